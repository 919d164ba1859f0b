"""Linear mixing optimization: the update that the online methods share.

In one round, losses are taken to fall linearly in the weights, `L_i(t+1) = L_i(t) − Σ_j A_ij(t) p_j(t)`. A method
is an estimate of the matrix A; what it does with it is one exponentiated-gradient step on the column sums of A, the
drop of the summed losses per unit of each domain's weight. Entry (i, j) is positive when training domain j lowers
the loss of domain i.

Chen, Hu, Lourie, Cho, Ré: "Aioli: A Unified Optimization Framework for Language Model Data Mixing",
arXiv 2411.05735.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxmix.core.pytree import state
from jaxmix.core.simplex import exponentiated_gradient_step, mix_with
from jaxmix.core.types import Array, Bool, DomainVector, Float, Int, PRNGKeyArray, Weights
from jaxmix.core.validate import check_number
from jaxmix.mixers.base import Cadence, Feedback, Mixer, MixerInfo, initial_weights, require

EVERY_STEP = Cadence()


class Estimate(NamedTuple):
    """What a method estimates from one update's feedback.

    Attributes:
        score: f32[m], column sums of the method's A, finite: the more, the more weight.
        extra: further named arrays to log.
        has_moved: bool[], false to leave the weights as they are this time; always true if `None`.
    """

    score: DomainVector
    extra: dict[str, Array] | None = None
    has_moved: Bool[Array, ""] | None = None


@state(version=1)
class LmoState:
    """Attributes:
    count: i32[], updates so far.
    weights: f32[m] on the simplex.
    average: f32[m], mean of the weights over all updates; the starting weights before the first.
    estimator: the method's own state.
    """

    count: Int[Array, ""]
    weights: Weights
    average: Weights
    estimator: Any


Start = Callable[[Weights], Any]
"""`(starting weights) -> estimator`: the method's state before the first update."""

Learn = Callable[[LmoState, Feedback], tuple[Any, Estimate]]
"""`(state, feedback) -> (estimator, estimate)`: the method itself."""


def lmo(
    name: str,
    start: Start,
    learn: Learn,
    *,
    needs: frozenset[str],
    step_size: float | Callable[[Int[Array, ""]], Float[Array, ""]],
    memory: float = 1.0,
    smoothing: float = 0.0,
    cadence: Cadence = EVERY_STEP,
    gradients: str = "exact",
) -> Mixer:
    """Builds a mixer from its estimate of A: `p ∝ p^memory · exp(step_size · score)`, then `(1 − c) p + c/m`.

    Args:
        name: of the method.
        start: makes the estimator's state; see `Start`.
        learn: turns feedback into an `Estimate`; see `Learn`. It runs under `jit`, with every signal in `needs`.
        needs: names of signals.
        step_size: ≥ 0, or a function of the number of updates before this one.
        memory: 1 accumulates scores, 0 forgets the old weights, between they decay toward uniform.
        smoothing: c in [0, 1], share that is always spread evenly.
        cadence: see `Cadence`.
        gradients: see `Mixer`.

    Returns:
        A mixer that starts from the prior. `final(state)` is the mean of the weights over all updates.

    Raises:
        ConfigError: memory or smoothing outside [0, 1], a negative step size.
    """
    check_number(name, "memory", memory, 0.0, 1.0)
    check_number(name, "smoothing", smoothing, 0.0, 1.0)
    if not callable(step_size):
        check_number(name, "step_size", step_size, 0.0)

    def init(key: PRNGKeyArray, num_domains: int, prior: Weights | None = None) -> LmoState:
        del key
        weights = initial_weights(num_domains, prior)
        return LmoState(count=jnp.int32(0), weights=weights, average=weights, estimator=start(weights))

    def update(key: PRNGKeyArray, state: LmoState, feedback: Feedback) -> tuple[LmoState, MixerInfo]:
        del key
        require(feedback, needs, name)
        estimator, estimate = learn(state, feedback)
        size = step_size(state.count) if callable(step_size) else step_size
        moved = exponentiated_gradient_step(state.weights, estimate.score, step_size=size, memory=memory)
        if smoothing > 0:
            moved = mix_with(moved, jnp.full_like(moved, 1.0 / moved.shape[0]), smoothing)
        weights = moved if estimate.has_moved is None else jnp.where(estimate.has_moved, moved, state.weights)
        average = state.average + (weights - state.average) / (state.count + 1).astype(weights.dtype)
        new = LmoState(count=state.count + 1, weights=weights, average=average, estimator=estimator)
        return new, MixerInfo(score=estimate.score, extra=estimate.extra or {})

    return Mixer(
        init=init,
        update=update,
        weights=lambda state: state.weights,
        needs=needs,
        cadence=cadence,
        name=name,
        gradients=gradients,
        final=lambda state: state.average,
    )


def importance_weights(weights: Weights, sampling: Weights) -> DomainVector:
    """Factors on the losses of domains drawn by `sampling` that stand for drawing by `weights`; 0 if never drawn."""
    is_drawn = sampling > 0
    return jnp.where(is_drawn, weights / jnp.where(is_drawn, sampling, 1.0), 0.0)


def normalized_interaction(interaction: Float[Array, "n m"]) -> Float[Array, "n m"]:
    """Shifts the entries to be ≥ 0 where one is negative, and scales them to add to 1 (uniform if all are equal to 0).

    `A − min(min A, 0)`, divided by its sum. The column sums then average 1/m, and only their spread acts.
    """
    shifted = interaction - jnp.minimum(jnp.min(interaction), 0.0)
    # Divided by the largest entry first, so that the sum of entries near float32's limit stays finite.
    largest = jnp.max(shifted)
    shifted = shifted / jnp.where(largest > 0, largest, 1.0)
    total = jnp.sum(shifted)
    return jnp.where(total > 0, shifted / jnp.where(total > 0, total, 1.0), 1.0 / interaction.size)
