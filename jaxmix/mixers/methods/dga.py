"""Dynamic gradient alignment: more weight to the domains whose gradients agree with the target's.

Fan, Grangier, Ablin: "Dynamic Gradient Alignment for Online Data Mixing", arXiv 2410.02498.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import jax.numpy as jnp

from jaxmix.core.errors import ConfigError
from jaxmix.core.pytree import state
from jaxmix.core.types import Array, DomainVector, Float, Weights
from jaxmix.core.validate import Count, NonNegative, Share, checked
from jaxmix.mixers.alignment import (
    bounded,
    is_measured,
    masked_mean,
    running_scale,
    squared_norms,
    target_row,
    weigh_targets,
)
from jaxmix.mixers.base import Cadence, Feedback, Gradients, Mixer, registry
from jaxmix.mixers.lmo import Estimate, LmoState, lmo
from jaxmix.mixers.wrappers.smoothing import ema


@state(version=1)
class DgaState:
    """Attributes:
    score: f32[m], each domain's last alignment; 0 before it was drawn.
    target: f32[m] on the simplex, weights of the target domains.
    scale: f32[], running mean of the squared gradient norm; 0 before the first and without `normalize`.
    """

    score: DomainVector
    target: Weights
    scale: Float[Array, ""]


@registry.register
@checked
def dga(
    *,
    step_size: NonNegative = 1.0,
    target: Literal["validation", "training"] = "validation",
    target_weights: Sequence[float] | None = None,
    decay: float = 0.0,
    normalize: bool = False,
    scale_decay: Share = 0.9,
    every: Count = 100,
    gradients: Gradients = "exact",
) -> Mixer:
    r"""Dynamic Gradient Alignment: weights grow with the inner product of a domain's and the target's gradient.

    With g_j the mean gradient of domain j in the step, h_i that of target domain i's loss and q the target weights:

        a_j = ⟨g_j, Σ_i q_i h_i⟩                  divided by ν if `normalize`
        p_j ∝ p_j exp(step_size · a_j)
        ν ← b ν + (1 − b) mean_j ‖g_j‖²           over the domains drawn, b = scale_decay
        drawn by:  p̄ ← decay · p̄ + (1 − decay) · p

    Domains that the step did not draw keep their last a_j.

    Args:
        step_size: ≥ 0. Without `normalize` its scale is that of 1 over a squared gradient norm; with it, it is the
            change of a log-weight for a domain that agrees entirely with the target.
        target: "validation" (h_i: gradient of domain i's held-out loss) or "training" (that of its training loss:
            the target is among the domains that are drawn).
        target_weights: m weights that add to 1; all equal by default. With a signal that is measured against
            the target already (`gradient_alignment` f32[m]) they do not apply.
        decay: in [0, 1) per update; 0 draws by p itself.
        normalize: divide by the running mean of the squared gradient norms, which fall as training goes on.
        scale_decay: b in [0, 1).
        every: ≥ 1, optimizer steps between updates.
        gradients: see `Mixer`.

    Returns:
        A mixer that needs `validation_alignment` (and `gradient_alignment` f32[m, m] if `normalize`) for
        "validation", `gradient_alignment` f32[m, m] or f32[m] for "training". `info.score` is a; `info.extra` is
        empty, or has `gradient_scale`, ν.

    Raises:
        ConfigError: an argument out of its range; target weights of another number than the domains, from `init`;
            when traced, `normalize` with a signal f32[m], which has no norms.

    Numerics: finite for inner products from 0 to 1e30; scores are cut at ±1e30. A step that drew nothing leaves the
    weights as they are.

    Differs from the paper: its step size, averaging factor and interval were not recovered, so the defaults are this
    project's; sweep the step size, or use `normalize`, which is an addition. The parametrization for very many
    domains (mixtures of a few distributions) is not included.

    Example:
        >>> import jax
        >>> mixer = dga(target="training")
        >>> key = jax.random.key(0)
        >>> state = mixer.init(key, 2)
        >>> state, info = mixer.update(key, state, Feedback(gradient_alignment=jnp.array([1.0, 0.0])))
        >>> [f"{w:.3f}" for w in mixer.weights(state)]
        ['0.731', '0.269']

    References:
        arXiv 2410.02498.
        `docs/mixers.md` has the formulas beside the other methods'.
    """
    signal = "validation_alignment" if target == "validation" else "gradient_alignment"

    def start(weights: Weights) -> DgaState:
        return DgaState(
            score=jnp.zeros_like(weights),
            target=target_row(target_weights, weights, "dga(target_weights)"),
            scale=jnp.zeros((), weights.dtype),
        )

    def learn(state: LmoState, feedback: Feedback) -> tuple[DgaState, Estimate]:
        dtype, old = state.weights.dtype, state.estimator
        rows = getattr(feedback, signal).astype(dtype)
        _check_shape(rows, target_weights)
        is_new = is_measured(rows)
        alignment = rows if rows.ndim == 1 else weigh_targets(rows, old.target)
        scale, extra = old.scale, {}
        if normalize:
            squares = squared_norms(feedback.gradient_alignment.astype(dtype), "dga")
            scale = running_scale(old.scale, masked_mean(squares, squares > 0), scale_decay)
            is_new = is_new & (scale > 0)
            alignment = alignment * (1.0 / jnp.where(scale > 0, scale, 1.0))
            extra = {"gradient_scale": scale}
        score = jnp.where(is_new, bounded(alignment), old.score)
        new = DgaState(score=score, target=old.target, scale=scale)
        return new, Estimate(score=score, extra=extra, has_moved=jnp.any(is_new))

    mixer = lmo(
        "dga",
        start,
        learn,
        needs=frozenset({signal} | ({"gradient_alignment"} if normalize else set())),
        step_size=step_size,
        cadence=Cadence(update=every),
        gradients=gradients,
    )
    if decay == 0:
        return mixer
    return ema(mixer, decay)._replace(name="dga", final=lambda state: state.inner.average)


def _check_shape(rows: Float[Array, "m n"] | Float[Array, " m"], target_weights: Sequence[float] | None) -> None:
    if rows.ndim == 1 and target_weights is not None:
        raise ConfigError(
            "target_weights need the inner products with every target domain, and the signal is a vector, measured "
            "against one target already",
            where="dga(target_weights)",
            fix="Leave target_weights out.",
        )
