"""GRAPE: domains that help the tasks that improve most slowly.

Fan, Glarou, Jaggi: "GRAPE: Optimize Data Mixture for Group Robust Multi-target Adaptive Pretraining",
arXiv 2505.20380.
"""

from __future__ import annotations

from typing import Any, Literal

import jax.numpy as jnp

from jaxmix.core.pytree import state
from jaxmix.core.simplex import exponentiated_gradient_step, mix_with
from jaxmix.core.types import Array, DomainVector, Float, Weights
from jaxmix.core.validate import Count, NonNegative, Share, checked
from jaxmix.mixers.alignment import bounded, is_measured, weigh_targets
from jaxmix.mixers.base import Cadence, Feedback, Gradients, Mixer, registry
from jaxmix.mixers.lmo import Estimate, LmoState, lmo

# step size, task step size, decay of the "ema" kind
_DEFAULTS = {"paper": (1e3, 1e4, 0.7), "repository": (1.5, 5.0, 0.9)}
_LEAST_LOSS = 1e-6
_NOT_YET = -1.0


@state(version=1)
class GrapeState:
    """Attributes:
    tasks: f32[m] on the simplex, weights of the target tasks.
    loss: f32[m], what the tasks' gradients are divided by; -1 before it was measured.
    alignment: f32[m, m], the last inner products of training domain j (row) and task i; 0 before j was drawn.
    """

    tasks: Weights
    loss: DomainVector
    alignment: Float[Array, "m m"]


@registry.register
@checked
def grape(
    variant: Literal["paper", "repository"] = "paper",
    *,
    score: Literal["log", "gap", "ema"] = "log",
    step_size: float | None = None,
    task_step_size: NonNegative | None = None,
    task_smoothing: Share = 0.001,
    loss_decay: Share | None = None,
    every: Count = 100,
    gradients: Gradients = "exact",
) -> Mixer:
    r"""GRAPE: a game of two weights, over training domains (p) and over target tasks (z).

    Tasks whose relative improvement is slow gain weight, and domains that help the weighted tasks do. With g_j the
    mean gradient of training domain j, h_i and L_i gradient and value of task i's held-out loss, κ_p = step_size,
    κ_z = task_step_size, η the learning rate, c = task_smoothing:

        B_ji = ⟨g_j, h_i⟩ / D_i,   D_i = L_i ("log"), 1 ("gap"), or a moving average of L_i ("ema")
        z_i ∝ z_i exp(−κ_z e Σ_j p_j B_ji),  then z ← (1 − c) z + c/m
        p_j ∝ p_j exp(κ_p e Σ_i z_i B_ji)
        paper: e = η        repository: e = 1

    Both use the values from before the update. Domains that the step did not draw keep their row of inner
    products; a held-out loss that is nan keeps its last value.

    Args:
        variant: "paper" (the learning rate is inside both exponents) or "repository" (the released code leaves
            it out).
        score: "log" (progress in log-loss), "gap" (progress in loss) or "ema".
        step_size: κ_p ≥ 0. By default 1000 for "paper", 1.5 for "repository".
        task_step_size: κ_z ≥ 0. By default 10 000 for "paper", 5 for "repository".
        task_smoothing: c in [0, 1].
        loss_decay: in [0, 1) per update, for "ema": how much of the old average stays; 0.7 for "paper", 0.9 for
            "repository".
        every: ≥ 1, optimizer steps between updates, and between measurements of the held-out loss.
        gradients: see `Mixer`.

    Returns:
        A mixer that needs `validation_alignment`, `validation_loss` unless `score` is "gap", and `learning_rate`
        for "paper". The tasks are the domains' held-out sets. `info.score` is `e Σ_i z_i B_ji`; `info.extra` has
        `task_weights`, the new z.

    Raises:
        ConfigError: unknown variant or score, an argument out of its range.

    Numerics: losses below 1e-6 count as 1e-6 where they divide; B is cut at ±1e30. A task whose loss was never
    measured does not act on p, and its z moves like the others' average. A step that drew nothing leaves both
    weights as they are.

    Differs from the paper: p and z move at the same updates (the code has an interval for each). The "offline"
    variant (changes of the loss instead of gradients) is not included. Which value of p or z the other uses within
    one update is not stated in what was read; here, the one before it.

    Example:
        >>> import jax
        >>> mixer = grape("repository")
        >>> key = jax.random.key(0)
        >>> state = mixer.init(key, 2)
        >>> feedback = Feedback(
        ...     validation_alignment=jnp.array([[1.0, 0.0], [0.0, 0.2]]), validation_loss=jnp.array([2.0, 2.0])
        ... )
        >>> state, info = mixer.update(key, state, feedback)
        >>> [f"{w:.2f}" for w in info.extra["task_weights"]]  # the second task improves more slowly
        ['0.27', '0.73']

    References:
        arXiv 2505.20380; github.com/Olivia-fsm/GRAPE_data_mixture_with_multi_target, and the older
        github.com/Olivia-fsm/multi-target-data-mixing.
        `docs/mixers.md` has the formulas beside the other methods'.
    """
    usual, usual_task, usual_decay = _DEFAULTS[variant]
    task_step_size = usual_task if task_step_size is None else task_step_size
    loss_decay = usual_decay if loss_decay is None else loss_decay
    has_loss, has_rate = score != "gap", variant == "paper"
    needs = {"validation_alignment"}
    needs |= {"validation_loss"} if has_loss else set()
    needs |= {"learning_rate"} if has_rate else set()

    def start(weights: Weights) -> GrapeState:
        m = weights.shape[0]
        return GrapeState(
            tasks=jnp.full_like(weights, 1.0 / m),
            loss=jnp.full_like(weights, _NOT_YET if has_loss else 1.0),
            alignment=jnp.zeros((m, m), weights.dtype),
        )

    def learn(state: LmoState, feedback: Feedback) -> tuple[GrapeState, Estimate]:
        dtype, old = state.weights.dtype, state.estimator
        loss = old.loss
        if has_loss:
            now = feedback.validation_loss.astype(dtype)
            kept = loss_decay if score == "ema" else 0.0
            averaged = jnp.where(loss >= 0, kept * loss + (1.0 - kept) * now, now)
            loss = jnp.where(jnp.isfinite(now), averaged, loss)
        fresh = feedback.validation_alignment.astype(dtype)
        is_new, is_known = is_measured(fresh), loss >= 0
        alignment = jnp.where(is_new[:, None], fresh, old.alignment)
        rate = feedback.learning_rate.astype(dtype) if has_rate else 1.0
        relative = bounded(alignment / jnp.maximum(loss, _LEAST_LOSS)[None, :])
        relative = rate * jnp.where(is_known[None, :], relative, 0.0)
        has_moved = jnp.any(is_new) & jnp.any(is_known)
        tasks = _move_tasks(
            old.tasks, weigh_targets(relative.T, state.weights), is_known, task_step_size, task_smoothing
        )
        tasks = jnp.where(has_moved, tasks, old.tasks)
        estimate = Estimate(
            score=weigh_targets(relative, old.tasks), extra={"task_weights": tasks}, has_moved=has_moved
        )
        return GrapeState(tasks=tasks, loss=loss, alignment=alignment), estimate

    return lmo(
        "grape",
        start,
        learn,
        needs=frozenset(needs),
        step_size=usual if step_size is None else step_size,
        cadence=Cadence(update=every, validate=every if has_loss else 0),
        gradients=gradients,
    )


def _move_tasks(tasks: Weights, progress: Weights, is_known: Any, step_size: float, smoothing: float) -> Weights:
    """One step against the progress of each task; unknown ones move like the average of the known."""
    share = jnp.where(is_known, tasks, 0.0)
    average = jnp.sum(share * progress) / jnp.maximum(jnp.sum(share), _LEAST_LOSS)
    moved = exponentiated_gradient_step(tasks, -jnp.where(is_known, progress, average), step_size=step_size)
    return mix_with(moved, jnp.full_like(moved, 1.0 / moved.shape[0]), smoothing)
