"""DoGE: more weight to the domains whose gradients help the others, or the target.

Fan, Pagliardini, Jaggi: "DoGE: Domain Reweighting with Generalization Estimation", arXiv 2310.15393.
"""

from __future__ import annotations

from typing import Literal

import jax.numpy as jnp

from jaxmix.core.pytree import state
from jaxmix.core.types import DomainVector, Weights
from jaxmix.core.validate import Count, Positive, Share, checked
from jaxmix.mixers.alignment import masked_mean, squared_norms, target_row, weigh_targets
from jaxmix.mixers.base import Cadence, Feedback, Gradients, Mixer, registry
from jaxmix.mixers.lmo import Estimate, LmoState, importance_weights, lmo

_LEAST_NORM = 1e-6


@state(version=1)
class DogeState:
    """Attributes:
    score: f32[m] in [0, max_score], each domain's last normalized alignment; 0 before it was drawn.
    sampling: f32[m] on the simplex, the prior.
    """

    score: DomainVector
    sampling: Weights


@registry.register
@checked
def doge(
    *,
    target: Literal["universal", "validation"] = "universal",
    regularization: Positive = 0.01,
    max_score: Positive = 5.0,
    smoothing: Share = 0.0,
    every: Count = 1,
    mode: Literal["sample", "proxy"] = "sample",
    gradients: Gradients = "exact",
) -> Mixer:
    r"""DoGE: weights grow with how well a domain's gradient agrees with the other domains' or the target's.

    With g_j the mean gradient of domain j in the step, h_i that of domain i's held-out loss, α the weights, η the
    learning rate, μ = regularization, c = smoothing, over the domains that the step drew:

        universal:   W_j = ⟨g_j, Σ_{i≠j} g_i⟩
        validation:  W_j = ⟨g_j, mean_i h_i⟩
        both:        s_j = η · clip(W_j / (mean_i ‖g_i‖ + 1e-6), 0, max_score)
                     α_j ∝ α_j exp(s_j / μ),  then α ← (1 − c) α + c/m

    Domains that the step did not draw keep their clipped alignment; η is always the step's own.

    Args:
        target: "universal" (generalize to all domains) or "validation" (out of domain: lower the mean held-out
            loss).
        regularization: μ > 0; see `docs/mixers.md` for published values.
        max_score: > 0, where normalized alignments are cut.
        smoothing: c in [0, 1].
        every: ≥ 1, optimizer steps between updates.
        mode: "sample" draws data by α. "proxy" draws by the prior and weights the losses by α / prior, as the
            paper does on its proxy model. In both, `final` is the mean of α over all updates: the mixture for the
            large run.
        gradients: see `Mixer`.

    Returns:
        A mixer that needs `gradient_alignment` f32[m, m] and `learning_rate`, for "validation" also
        `validation_alignment`. `info.score` is s; `info.extra` has `gradient_norm`, the mean over the domains.

    Raises:
        ConfigError: an argument out of its range; when traced, a `gradient_alignment` without norms (f32[m]).

    Numerics: finite for inner products from 0 to 1e30. A step that drew nothing leaves the weights as they are.

    Differs from the paper: new weights act from the next step on, not on the batch they were measured on. The
    gradients are clipped by the run's own rule (per domain to a norm of 5 in the original code, 1 in Aioli's).
    "validation" takes the mean over held-out domains like Aioli's re-implementation, where the paper sums over its
    targets. Negative alignment counts as 0, as in the code: nothing is pushed down, the others only overtake.

    Example:
        >>> import jax
        >>> mixer = doge(mode="proxy")
        >>> key = jax.random.key(0)
        >>> state = mixer.init(key, 3)
        >>> gram = jnp.array([[1.0, 0.8, 0.0], [0.8, 1.0, 0.4], [0.0, 0.4, 1.0]])
        >>> feedback = Feedback(gradient_alignment=gram, learning_rate=jnp.float32(1e-3))
        >>> state, info = mixer.update(key, state, feedback)
        >>> [f"{w:.3f}" for w in mixer.final(state)]
        ['0.333', '0.347', '0.320']

    References:
        arXiv 2310.15393, Algorithm 1; github.com/Olivia-fsm/DoGE; Aioli's re-implementation:
        github.com/HazyResearch/aioli.
    """
    has_target = target == "validation"

    def start(weights: Weights) -> DogeState:
        return DogeState(score=jnp.zeros_like(weights), sampling=weights)

    def learn(state: LmoState, feedback: Feedback) -> tuple[DogeState, Estimate]:
        dtype = state.weights.dtype
        gram = feedback.gradient_alignment.astype(dtype)
        squares = squared_norms(gram, "doge")
        is_drawn = squares > 0
        norm = masked_mean(jnp.sqrt(squares), is_drawn)
        if has_target:
            uniform = target_row(None, state.weights, "doge")
            alignment = weigh_targets(feedback.validation_alignment.astype(dtype), uniform)
        else:
            is_other = is_drawn[None, :] & ~jnp.eye(gram.shape[0], dtype=bool)
            alignment = jnp.sum(jnp.where(is_other, gram, 0.0), axis=1)
        is_new = is_drawn & jnp.isfinite(alignment)
        clipped = jnp.clip(alignment * (1.0 / (norm + _LEAST_NORM)), 0.0, max_score)
        score = jnp.where(is_new, clipped, state.estimator.score)
        estimate = Estimate(
            score=feedback.learning_rate.astype(dtype) * score,
            extra={"gradient_norm": norm},
            has_moved=jnp.any(is_new),
        )
        return DogeState(score=score, sampling=state.estimator.sampling), estimate

    mixer = lmo(
        "doge",
        start,
        learn,
        needs=frozenset({"gradient_alignment", "learning_rate"} | ({"validation_alignment"} if has_target else set())),
        step_size=1.0 / regularization,
        smoothing=smoothing,
        cadence=Cadence(update=every),
        gradients=gradients,
    )
    if mode == "sample":
        return mixer
    return mixer._replace(
        weights=lambda state: state.estimator.sampling,
        loss_weights=lambda state: importance_weights(state.weights, state.estimator.sampling),
        loss_normalization="token_mean",
    )
