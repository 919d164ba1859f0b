"""Weights on the simplex: steps, distances and projections.

All functions are pure, keep static shapes, and work under `jit`, `vmap` and `grad`. Bounds of the projections
are arrays or numbers. The last axis is the simplex; the projections take one vector (use `vmap` for more).
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxmix.core.types import Array, DomainVector, Float, Weights

TINY = 1e-30
"""Weights below this count as this inside a logarithm, so that a group that died out can return."""


def normalize(weights: Float[Array, "*s m"]) -> Float[Array, "*s m"]:
    """Divides weights ≥ 0 by their sum over the last axis; a vector of zeros becomes uniform."""
    total = jnp.sum(weights, axis=-1, keepdims=True)
    is_positive = total > 0
    return jnp.where(is_positive, weights / jnp.where(is_positive, total, 1.0), 1.0 / weights.shape[-1])


def exponentiated_gradient_step(
    weights: Weights,
    score: DomainVector,
    *,
    step_size: float | Float[Array, ""],
    memory: float | Float[Array, ""] = 1.0,
    min_weight: float = TINY,
) -> Weights:
    """One step of exponentiated gradient (mirror) ascent: `p_new ∝ p^memory · exp(step_size · score)`.

    Args:
        weights: f32[m] on the simplex.
        score: f32[m], finite, larger means "more of it"; only differences between domains act.
        step_size: ≥ 0.
        memory: 1 accumulates all scores, 0 forgets the old weights, between the old weights decay to uniform.
        min_weight: smaller weights count as this. With the default a domain of weight 0 can return when its score
            is high enough; with 0 a weight of 0 stays 0 for ever (as long as memory > 0).

    Returns:
        f32[m] on the simplex.

    Numerics: in log space, relative to the best score: finite for scores of ±1e30.
    """
    logits = step_size * (score - jnp.max(score)) + _scaled_log(jnp.maximum(weights, min_weight), memory)
    return jax.nn.softmax(logits)


def kl_divergence(p: Float[Array, "*s m"], q: Float[Array, "*s m"]) -> Float[Array, "*s"]:
    """`KL(p ‖ q) = Σ p log(p / q)` in nats over the last axis, with 0 log 0 = 0; infinite where p > 0 = q."""
    is_positive = p > 0
    safe = jnp.where(is_positive, p, 1.0)
    covered = jnp.where(is_positive & (q > 0), q, 1.0)
    terms = jnp.where(is_positive, safe * (jnp.log(safe) - jnp.log(covered)), 0.0)
    return jnp.sum(jnp.where(is_positive & (q <= 0), jnp.inf, terms), axis=-1)


def entropy(p: Float[Array, "*s m"]) -> Float[Array, "*s"]:
    """`−Σ p log p` in nats over the last axis, with 0 log 0 = 0: between 0 (one-hot) and log m (uniform)."""
    safe = jnp.where(p > 0, p, 1.0)
    return -jnp.sum(jnp.where(p > 0, safe * jnp.log(safe), 0.0), axis=-1)


def mix_with(weights: Weights, other: Weights, amount: float | Float[Array, ""]) -> Weights:
    """`(1 − amount) · weights + amount · other`, with amount in [0, 1]."""
    return (1.0 - amount) * weights + amount * other


def project_capped_simplex(
    x: DomainVector,
    caps: DomainVector | Float[Array, ""] | float,
    floors: DomainVector | Float[Array, ""] | float = 0.0,
) -> Weights:
    """The point nearest to `x`: minimizes `‖p − x‖²` subject to `floors ≤ p ≤ caps` and `Σ p = 1`.

    The minimizer is `p = clip(x + θ, floors, caps)`; θ is found exactly, see `_project`.

    Args:
        x: f32[m], any finite values.
        caps: f32[m] or a number, ≥ floors. Values above 1 mean "no cap".
        floors: f32[m] or a number, ≥ 0.

    Returns:
        f32[m] on the simplex. Caps that add to less than 1 cannot be kept: the result is then `caps / Σ caps`
        (uniform if all are 0). Floors that add to more than 1: `floors / Σ floors`.
    """
    x = x - jax.lax.stop_gradient(jnp.max(x))  # only differences matter; keeps precision for large x
    low, high = _bounds(x, caps, floors)
    return _project(low - x, high - x, jnp.ones_like(x), x, low, high)


def kl_project_capped_simplex(
    weights: Weights,
    caps: DomainVector | Float[Array, ""] | float,
    floors: DomainVector | Float[Array, ""] | float = 0.0,
) -> Weights:
    """The nearest weights in divergence: minimizes `KL(p ‖ weights)` s.t. `floors ≤ p ≤ caps`, `Σ p = 1`.

    The minimizer is `p = clip(λ · weights, floors, caps)`: domains that hit no bound keep their ratios. λ is found
    exactly, see `_project`.

    Args:
        weights: f32[m] on the simplex. A weight of 0 (or subnormal, which XLA flushes to 0) stays 0 unless its floor
            is higher: mass there makes the divergence infinite, while any positive weight, however small, keeps it
            finite. Only where the other domains' caps add to less than 1 is there no such point: those domains are
            then at their caps, and the weight-0 domains share the rest as evenly as their caps allow.
        caps: f32[m] or a number, ≥ floors. Values above 1 mean "no cap".
        floors: f32[m] or a number, ≥ 0.

    Returns:
        f32[m] on the simplex; bounds that cannot be kept are treated as in `project_capped_simplex`.
    """
    low, high = _bounds(weights, caps, floors)
    is_zero = weights < jnp.finfo(weights.dtype).tiny
    needs_zeros = jnp.sum(jnp.where(is_zero, low, high)) < 1.0
    low = jnp.where(needs_zeros & ~is_zero, high, low)
    weights = jnp.where(is_zero, jnp.where(needs_zeros, 1.0, 0.0), weights)
    safe = jnp.where(weights > 0, weights, 1.0)
    leaves_low = jnp.where(weights > 0, low / safe, jnp.inf)
    reaches_high = jnp.where(weights > 0, high / safe, jnp.inf)
    return _project(leaves_low, reaches_high, weights, jnp.zeros_like(weights), low, high)


def _bounds(
    like: DomainVector, caps: DomainVector | Float[Array, ""] | float, floors: DomainVector | Float[Array, ""] | float
) -> tuple[Array, Array]:
    """Floors and caps as vectors; no weight can exceed 1, so neither need caps (and infinity stays out)."""
    low = jnp.broadcast_to(jnp.asarray(floors, like.dtype), like.shape)
    high = jnp.broadcast_to(jnp.asarray(caps, like.dtype), like.shape)
    return low, jnp.maximum(jnp.minimum(high, 1.0), low)


def _project(
    leaves_low: DomainVector,
    reaches_high: DomainVector,
    slope: DomainVector,
    offset: DomainVector,
    low: DomainVector,
    high: DomainVector,
) -> Weights:
    """Solves `Σ clip(offset + slope · u, low, high) = 1` for the scalar u and returns the clipped terms.

    The sum grows piecewise linearly in u, with kinks at `leaves_low` and `reaches_high`. A binary search over the
    sorted kinks finds the linear piece that holds the solution: which domains sit at a bound is then known, and
    u follows in closed form. O(m log m); exact up to rounding; gradients flow through the closed form.
    """
    frozen = jax.lax.stop_gradient((leaves_low, reaches_high, slope, offset, low, high))
    left, right = _bracket(*frozen)
    is_high = frozen[1] <= left
    is_free = (frozen[0] <= left) & (frozen[1] >= right) & ~is_high & (frozen[2] > 0)
    rest = 1.0 - jnp.sum(jnp.where(is_high, high, jnp.where(is_free, 0.0, low)))
    total_slope = jnp.sum(jnp.where(is_free, slope, 0.0))
    has_free = total_slope > 0
    u = (rest - jnp.sum(jnp.where(is_free, offset, 0.0))) / jnp.where(has_free, total_slope, 1.0)
    # The last clip only takes off rounding: in exact arithmetic every free term lies between its bounds.
    inside = jnp.clip(offset + slope * u, low, high)
    solution = jnp.where(is_free, inside, jnp.where(is_high, high, low))
    # Offsets far from 0 leave their rounding in u; spread over terms of order 1, what is missing is exact again.
    missing = 1.0 - jnp.sum(solution)
    spread = jnp.where(is_free, slope * missing / jnp.where(has_free, total_slope, 1.0), 0.0)
    solution = jnp.clip(solution + spread, low, high)
    # For points so far apart that a whole range [low, high] rounds to one kink, the sum jumps there: what is missing
    # goes to the domains of that kink.
    room = jnp.where((frozen[1] <= right) & ~is_high, high - solution, 0.0)
    missing = jnp.maximum(1.0 - jnp.sum(solution), 0.0) / jnp.maximum(jnp.sum(room), TINY)
    solution = solution + jax.lax.stop_gradient(room * jnp.minimum(missing, 1.0))
    solution = jnp.where(jnp.sum(high) <= 1.0, normalize(high), solution)
    return jnp.where(jnp.sum(low) >= 1.0, normalize(low), solution)


def _bracket(
    leaves_low: Array, reaches_high: Array, slope: Array, offset: Array, low: Array, high: Array
) -> tuple[Array, Array]:
    """The two neighboring kinks between which the sum reaches 1."""
    kinks = jnp.sort(jnp.concatenate([leaves_low, reaches_high]))

    def reaches_one(k: Array) -> Array:
        is_low, is_high = kinks[k] <= leaves_low, kinks[k] >= reaches_high
        between = jnp.clip(offset + slope * jnp.where(is_low | is_high, 0.0, kinks[k]), low, high)
        return jnp.sum(jnp.where(is_high, high, jnp.where(is_low, low, between))) >= 1.0

    last = _first_true(reaches_one, kinks.shape[0])
    return kinks[jnp.maximum(last - 1, 0)], kinks[last]


def _first_true(predicate: Callable[[Array], Array], size: int) -> Array:
    """Smallest index in [0, size) at which a monotone predicate holds; size − 1 if it holds nowhere."""

    def halve(_: Array, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        first, last = bounds
        middle = (first + last) // 2
        holds = predicate(middle)
        return jnp.where(holds, first, jnp.minimum(middle + 1, last)), jnp.where(holds, middle, last)

    start = (jnp.int32(0), jnp.int32(size - 1))
    return jax.lax.fori_loop(0, max(1, size.bit_length()), halve, start)[1]


def _scaled_log(p: Array, factor: float | Array) -> Array:
    """`factor · log p`, 0 where the factor is 0 and −∞ where p is 0 < factor."""
    log = jnp.log(jnp.where(p > 0, p, 1.0))
    return jnp.where(p > 0, factor * log, jnp.where(jnp.asarray(factor) > 0, -jnp.inf, 0.0))
