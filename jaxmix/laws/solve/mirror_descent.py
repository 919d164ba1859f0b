"""Minimization over mixtures: mirror descent on the simplex with caps and floors, from many starts at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmix.core.simplex import kl_project_capped_simplex
from jaxmix.core.types import Array, Bool, DomainVector, Float, Int, Weights

_ARMIJO = 1e-4
_GROW, _SHRINK = 1.5, 0.5
_MAX_FAILURES = 60
_ROUNDING = 1e-12


class Minimum(NamedTuple):
    """Where a descent ended.

    Attributes:
        weights: on the simplex.
        value: of the objective.
        gap: `linear_gap` there; 0 at a stationary point.
        is_converged: the gap is below the tolerance.
        steps: tried, accepted or not.
    """

    weights: Weights
    value: Float[Array, ""]
    gap: Float[Array, ""]
    is_converged: Bool[Array, ""]
    steps: Int[Array, ""]


def mirror_descent(
    objective: Callable[[Weights], Float[Array, ""]],
    start: Weights,
    caps: DomainVector,
    floors: DomainVector,
    *,
    max_steps: int | Array = 3000,
    tolerance: float | Array = 1e-8,
) -> Minimum:
    r"""Descends from `start` to a stationary point of `objective` on the simplex between floors and caps.

    With g the gradient of the objective J at h, and the step size η:

        h_new = argmin_p  ⟨g, p⟩ + KL(p ‖ h) / η    subject to    floors ≤ p ≤ caps,  Σ p = 1

    which is the divergence projection of h exp(−η g). A step is taken when it meets Armijo's rule
    J(h_new) ≤ J(h) + 1e-4 ⟨g, h_new − h⟩, and η grows by a half; otherwise η is halved. Where rounding hides the
    difference of the values, the trapezoid of the slopes at both ends stands for it.

    Args:
        objective: differentiable on positive weights. Its gradient is not asked for at a domain whose cap is 0.
        start: float[m], within the bounds, positive where the cap is.
        caps: float[m], adding up to 1 or more.
        floors: float[m], ≤ caps. A small positive floor lets a domain come back.
        max_steps: most steps tried.
        tolerance: of the gap, relative to |J|.

    Returns:
        The end. Jit-able, and `vmap`-able over starts.

    Numerics: best in float64: a gap of 1e-8 is beyond float32. The value never rises by more than
        1e-12 of itself.
    """
    is_open = caps > 0
    gradient_of = jax.value_and_grad(objective)

    def look(weights: Weights) -> tuple[Array, Array]:
        value, gradient = gradient_of(weights)
        gradient = jnp.where(is_open, gradient, 0.0)
        # Steps add up to 0: a constant in the gradient only adds rounding errors.
        return value, gradient - jnp.sum(gradient * weights)

    def stepped(weights: Weights, gradient: DomainVector, step_size: Array) -> Weights:
        logits = jnp.where(is_open, jnp.log(jnp.where(is_open, weights, 1.0)) - step_size * gradient, -jnp.inf)
        return kl_project_capped_simplex(jax.nn.softmax(logits), caps, floors)

    def is_going(carry: Any) -> Array:
        _, value, _, _, gap, failures, count = carry
        is_done = (gap <= tolerance * jnp.abs(value)) | (failures >= _MAX_FAILURES)
        return (count < max_steps) & ~is_done & jnp.isfinite(value)

    def advance(carry: Any) -> Any:
        weights, value, gradient, step_size, gap, failures, count = carry
        new = stepped(weights, gradient, step_size)
        new_value, new_gradient = look(new)
        step = new - weights
        promised = jnp.sum(gradient * step)
        new_gap = linear_gap(new, new_gradient, caps, floors)
        # Near the end the difference of two values is lost in rounding; the slopes at both ends still show it.
        is_level = jnp.abs(new_value - value) <= _ROUNDING * jnp.abs(value)
        change = jnp.where(is_level, 0.5 * (promised + jnp.sum(new_gradient * step)), new_value - value)
        is_good = jnp.isfinite(new_value) & jnp.all(jnp.isfinite(new_gradient)) & (change <= _ARMIJO * promised)
        pick = lambda yes, no: jnp.where(is_good, yes, no)
        weights, gradient = pick(new, weights), pick(new_gradient, gradient)
        return (
            weights,
            pick(new_value, value),
            gradient,
            step_size * pick(jnp.asarray(_GROW, value.dtype), jnp.asarray(_SHRINK, value.dtype)),
            pick(new_gap, gap),
            jnp.where(is_good, 0, failures + 1),
            count + 1,
        )

    value, gradient = look(start)
    first = 1.0 / jnp.maximum(jnp.max(jnp.abs(gradient)), 1e-6)
    gap = linear_gap(start, gradient, caps, floors)
    zero = jnp.int32(0)
    end = jax.lax.while_loop(is_going, advance, (start, value, gradient, first, gap, zero, zero))
    weights, value, _, _, gap, _, steps = end
    return Minimum(weights, value, gap, gap <= tolerance * jnp.abs(value), steps)


def linear_gap(weights: Weights, gradient: DomainVector, caps: DomainVector, floors: DomainVector) -> Float[Array, ""]:
    """`max ⟨g, weights − p⟩` over all p within the bounds: 0 exactly at stationary points.

    For a convex objective it bounds how far the value is above the minimum.
    """
    order = jnp.argsort(gradient)
    room = (caps - floors)[order]
    before = jnp.cumsum(room) - room
    taken = jnp.clip(1.0 - jnp.sum(floors) - before, 0.0, room)
    best = jnp.sum(gradient * floors) + jnp.sum(gradient[order] * taken)
    return jnp.maximum(jnp.sum(gradient * weights) - best, 0.0)
