"""PiKE: more weight to domains with large gradients, less to noisy ones.

Li, Deng, Zhong, Razaviyayn, Mirrokni: "PiKE: Adaptive Data Mixing for Large-Scale Multi-Task Learning Under Low
Gradient Conflicts", arXiv 2502.06244.
"""

from __future__ import annotations

import jax.numpy as jnp

from jaxmix.core.pytree import state
from jaxmix.core.types import Array, DomainVector, Float, Weights
from jaxmix.core.validate import Count, NonNegative, Positive, Share, checked
from jaxmix.mixers.alignment import bounded, masked_mean, running_scale, squared_norms
from jaxmix.mixers.base import Cadence, Feedback, Gradients, Mixer, registry
from jaxmix.mixers.lmo import Estimate, LmoState, lmo


@state(version=1)
class PikeState:
    """Attributes:
    score: f32[m], each domain's last score; 0 before it was drawn.
    noise: f32[m], each domain's last measured noise; 0 before the first.
    scale: f32[], running mean of the squared gradient norm; 0 before the first and without `normalize`.
    """

    score: DomainVector
    noise: DomainVector
    scale: Float[Array, ""]


@registry.register
@checked
def pike(
    batch_size: Positive,
    *,
    norm_gain: NonNegative = 0.05,
    noise_gain: NonNegative = 0.05,
    normalize: bool = True,
    scale_decay: Share = 0.9,
    smoothing: float = 0.0,
    every: Count = 100,
    gradients: Gradients = "exact",
) -> Mixer:
    r"""PiKE: weights grow with a domain's squared gradient norm and shrink with its gradient noise.

    With g_j the mean gradient of domain j in the step, σ_j² the trace of the covariance of one row's gradient,
    b = batch_size, ζ_1 = norm_gain, ζ_2 = noise_gain, c = smoothing:

        s_j = ζ_1 ‖g_j‖² − ζ_2 / (2 b) σ_j²           both divided by ν if `normalize`
        p_j ∝ p_j exp(s_j),  then p ← (1 − c) p + c/m
        ν ← a ν + (1 − a) mean_j ‖g_j‖²               over the domains drawn, a = scale_decay

    Domains that the step did not draw keep their last s_j, and a domain without a measured noise (0 or not finite: it
    had a single row) its last σ_j².

    Args:
        batch_size: b > 0, rows of a step of the whole run.
        norm_gain: ζ_1 ≥ 0.
        noise_gain: ζ_2 ≥ 0.
        normalize: divide by the running mean of the squared norms, which fall as training goes on and would take the
            mixer's speed with them. False is the paper's rule.
        scale_decay: a in [0, 1).
        smoothing: c in [0, 1].
        every: ≥ 1, optimizer steps between updates.
        gradients: see `Mixer`.

    Returns:
        A mixer that needs `gradient_alignment` f32[m, m] (its diagonal) and `gradient_noise`. `info.score` is s;
        `info.extra` is empty, or has `gradient_scale`, ν.

    Raises:
        ConfigError: an argument out of its range; when traced, a `gradient_alignment` f32[m].

    Numerics: finite for signals from 0 to 1e30; scores are cut at ±1e30. Norms that are not finite count as
    "not drawn". A step that drew nothing leaves the weights as they are.

    Differs from the paper: its gains and interval were not found, so the defaults are this project's, and `normalize`
    is an addition. ‖g_j‖² is the measured norm, larger than that of the expected gradient by σ_j² over the domain's
    rows in the step. Batch composition follows the weights row by row on average, where the paper rounds b p_j. The
    balanced variant, which weights the losses too, is not included.

    Example:
        >>> import jax
        >>> mixer = pike(8, noise_gain=0.2, normalize=False)
        >>> key = jax.random.key(0)
        >>> state = mixer.init(key, 2)
        >>> feedback = Feedback(gradient_alignment=jnp.eye(2), gradient_noise=jnp.array([1.0, 9.0]))
        >>> state, info = mixer.update(key, state, feedback)
        >>> [f"{w:.3f}" for w in mixer.weights(state)]
        ['0.525', '0.475']

    References:
        arXiv 2502.06244, Algorithm 1.
        `docs/mixers.md` has the formulas beside the other methods'.
    """

    def start(weights: Weights) -> PikeState:
        return PikeState(
            score=jnp.zeros_like(weights), noise=jnp.zeros_like(weights), scale=jnp.zeros((), weights.dtype)
        )

    def learn(state: LmoState, feedback: Feedback) -> tuple[PikeState, Estimate]:
        dtype, old = state.weights.dtype, state.estimator
        squares = squared_norms(feedback.gradient_alignment.astype(dtype), "pike")
        now = feedback.gradient_noise.astype(dtype)
        is_new = squares > 0
        # One row of a domain has no measurable covariance: the signal is then 0, and the last one holds.
        noise = jnp.where(is_new & (now > 0) & jnp.isfinite(now), now, old.noise)
        scale, unit, extra = old.scale, jnp.ones((), dtype), {}
        if normalize:
            scale = running_scale(old.scale, masked_mean(squares, squares > 0), scale_decay)
            unit, extra = jnp.where(scale > 0, scale, 1.0), {"gradient_scale": scale}
        # Multiplied by one inverse: compilers differ in whether they divide a vector by a scalar or do the same.
        signal = bounded(squares * (norm_gain / unit))
        penalty = bounded(noise * (noise_gain / (2.0 * batch_size) / unit))
        score = jnp.where(is_new, signal - penalty, old.score)
        return PikeState(score=score, noise=noise, scale=scale), Estimate(
            score=score, extra=extra, has_moved=jnp.any(is_new)
        )

    return lmo(
        "pike",
        start,
        learn,
        needs=frozenset({"gradient_alignment", "gradient_noise"}),
        step_size=1.0,
        smoothing=smoothing,
        cadence=Cadence(update=every),
        gradients=gradients,
    )
