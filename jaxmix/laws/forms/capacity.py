"""Capacity competition: how a model of limited capacity divides it among the domains it is trained on.

Dai, Zheng: "Explaining Data Mixing Scaling Laws", arXiv 2606.08167. The law built on it is in
`jaxmix.laws.forms.capacity_law`.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxmix.core.types import Array, Float

MAX_STEPS = 40
_NO_DEMAND = -1e30


def allocate_capacity(weights: Any, exponent: Any, scale: Any, head: Any, model_size: Any) -> Float[Array, "*r m"]:
    r"""Returns the capacity that each domain gets when all compete for one model.

    With h the weights, b the exponents, c the scales, H the head, N the model size and m domains:

        x = argmin_x Σ_i h_i c_i x_i^{-b_i}   subject to   Σ_i (x_i − H) ≤ N − H,   x_i ≥ H

    whose solution is, with the multiplier λ > 0 that makes the capacities add up,

        x_i = max(H, (h_i b_i c_i / λ)^{1/(1+b_i)}),     Σ_i x_i = N + (m − 1) H.

    Args:
        weights: h, float[..., m], ≥ 0. A domain of weight 0 gets H.
        exponent: b, float[m] (or [..., m]), > 0: how fast the loss of a domain falls with its capacity.
        scale: c, float[m] (or [..., m]), > 0.
        head: H, scalar (or [...]), in the unit of `model_size`; 0 < H < N. The capacity all domains share.
        model_size: N, scalar or [...], in any unit (units of N and H cancel against c).

    Returns:
        float[..., m] of the dtype of `weights` (float32 if they are integers), rows adding up to N + (m − 1) H.

    Shapes: leading axes broadcast. Jit-able and `vmap`-able.

    Numerics: Newton in ν = log λ on φ(ν) = log Σ x(ν) − log (N + (m − 1) H), which is convex and falling, so that
    from ν_0 = max_i (log(h_i b_i c_i) − (1 + b_i) log(N + (m − 1) H)), where φ ≥ 0, it rises to the root without
    overshooting, and stops when rounding lets it rise no more (at most 40 steps, usually 5 to 8). The sum is met to
    1e-12 relative in float64 and 1e-5 in float32. Derivatives, forward and reverse and of any order, come from the
    implicit function theorem and never from the steps; domains held at H have none but that of H. Where H ≥ N there
    is nothing to divide and every domain gets H.

    Differs from the paper: the released code bisects λ itself (not its logarithm) and differentiates through it,
    which gives the wrong multiplier and a zero derivative.

    Example:
        >>> x = allocate_capacity(jnp.array([0.8, 0.2, 0.0]), jnp.full(3, 0.5), jnp.ones(3), 1.0, 100.0)
        >>> [round(float(v), 2) for v in x], round(float(x.sum()), 3)
        ([72.31, 28.69, 1.0], 102.0)

    References:
        arXiv 2606.08167, the inner problem of Equations 1 and 3.
    """
    weights = jnp.asarray(weights)
    if not jnp.issubdtype(weights.dtype, jnp.floating):
        weights = weights.astype(jnp.float32)
    log_scale = jnp.log(jnp.asarray(scale, weights.dtype))
    return jnp.exp(log_capacity(weights, exponent, log_scale, head, model_size))


def log_capacity(weights: Any, exponent: Any, log_scale: Any, head: Any, model_size: Any) -> Float[Array, "*r m"]:
    """The logarithm of `allocate_capacity`, from the logarithm of the scale."""
    weights = jnp.asarray(weights)
    dtype = weights.dtype
    per_row = lambda value: jnp.expand_dims(jnp.asarray(value, dtype), -1)
    exponent, log_scale = jnp.asarray(exponent, dtype), jnp.asarray(log_scale, dtype)
    head, model_size = per_row(head), per_row(model_size)
    batch = jnp.broadcast_shapes(
        weights.shape[:-1], exponent.shape[:-1], log_scale.shape[:-1], head.shape[:-1], model_size.shape[:-1]
    )
    num_domains = weights.shape[-1]
    grow = lambda value, width: jnp.broadcast_to(value, (*batch, width))
    weights, exponent, log_scale = (grow(value, num_domains) for value in (weights, exponent, log_scale))
    head, model_size = grow(head, 1), grow(model_size, 1)

    # Below the smallest normal number a weight counts as 0: its logarithm and 1/h are no longer finite everywhere.
    is_drawn = weights >= jnp.finfo(dtype).tiny
    log_weights = jnp.log(jnp.where(is_drawn, weights, 1.0))
    log_demand = jnp.where(is_drawn, log_weights + jnp.log(exponent) + log_scale, _NO_DEMAND)
    power = 1.0 / (1.0 + exponent)
    log_head = jnp.log(head)
    log_multiplier = _multiplier(log_demand, power, log_head, jnp.log(model_size + (num_domains - 1) * head))
    wanted = power * (log_demand - log_multiplier)
    return jnp.where(wanted > log_head, wanted, log_head)


@jax.custom_jvp
def _multiplier(log_demand: Array, power: Array, log_head: Array, log_total: Array) -> Array:
    """ν with Σ_i max(H, exp(p_i (s_i − ν))) = C; s, p [..., m], log H and log C [..., 1], ν [..., 1]."""
    # Domains lead, so that the sums over them run along whole vectors of rows.
    log_demand, power, log_head, log_total = (jnp.moveaxis(x, -1, 0) for x in (log_demand, power, log_head, log_total))
    # Up to the first bound one domain alone fills C; from the second on none wants more than H.
    start = jnp.max(log_demand - log_total / power, axis=0, keepdims=True)
    end = jnp.max(log_demand - log_head / power, axis=0, keepdims=True)
    tiny = jnp.finfo(log_demand.dtype).tiny

    def newton(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        value, is_done, step = carry
        wanted = power * (log_demand - value)
        is_free = wanted > log_head
        capacity = jnp.exp(jnp.where(is_free, wanted, log_head))
        total = jnp.sum(capacity, axis=0, keepdims=True)
        slope = jnp.sum(jnp.where(is_free, capacity * power, 0.0), axis=0, keepdims=True)
        excess = jnp.log(total) - log_total
        rise = jnp.minimum(excess * total / jnp.maximum(slope, tiny), end - value)
        new = jnp.where(is_done, value, value + jnp.maximum(rise, 0.0))
        return new, new <= value, step + 1

    is_going = lambda carry: (carry[2] < MAX_STEPS) & ~jnp.all(carry[1])
    value, _, _ = jax.lax.while_loop(is_going, newton, (start, jnp.zeros(start.shape, bool), jnp.int32(0)))
    return jnp.moveaxis(value, 0, -1)


@_multiplier.defjvp
def _multiplier_jvp(primals: tuple[Array, ...], tangents: tuple[Array, ...]) -> tuple[Array, Array]:
    """Differentiates Σ x = C: Σ_F x (p (ds − dν) + (s − ν) dp) + n_H H dlogH = C dlogC, F the domains above H."""
    log_demand, power, log_head, log_total = primals
    d_demand, d_power, d_head, d_total = tangents
    value = _multiplier(*primals)
    spread = log_demand - value
    is_free = power * spread > log_head
    capacity = jnp.where(is_free, jnp.exp(jnp.where(is_free, power * spread, log_head)), 0.0)
    add = lambda terms: jnp.sum(terms, axis=-1, keepdims=True)
    held = add((~is_free).astype(capacity.dtype)) * jnp.exp(log_head)
    slope = jnp.maximum(add(capacity * power), jnp.finfo(log_demand.dtype).tiny)
    moved = add(capacity * (power * d_demand + jnp.where(is_free, spread, 0.0) * d_power))
    return value, (moved + held * d_head - jnp.exp(log_total) * d_total) / slope
