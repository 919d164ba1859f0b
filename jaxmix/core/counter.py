"""Exact counters beyond 32 bits: a run's tokens overflow an int32, and float32 is not exact above 2²⁴.

JAX runs with 64-bit types off; two int32 limbs in base 2³⁰ count exactly to 2⁶¹.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from jaxmix.core.errors import ConfigError
from jaxmix.core.pytree import state
from jaxmix.core.types import Array, Float, Int

_BASE = 2**30
_HALF = 2**15


@state(version=1)
class Counter:
    """`high · 2³⁰ + low`, elementwise.

    Attributes:
        high: i32[...].
        low: i32[...] in [0, 2³⁰).
    """

    high: Int[Array, "*s"]
    low: Int[Array, "*s"]


def counter(value: int | np.ndarray) -> Counter:
    """A counter that starts at a Python integer or NumPy integer array, 0 ≤ value < 2⁶¹."""
    value = np.asarray(value, np.int64)
    if np.any(value < 0) or np.any(value >= 2**61):
        raise ConfigError(f"a counter must lie in [0, 2^61), got {value.tolist()}", where="counter")
    return Counter(high=jnp.asarray(value // _BASE, jnp.int32), low=jnp.asarray(value % _BASE, jnp.int32))


def add(count: Counter, amount: Counter | Float[Array, "*s"] | Int[Array, "*s"]) -> Counter:
    """Adds whole numbers ≥ 0: another counter, or float32 (rounded to whole numbers) or int32 of the same shape."""
    if not isinstance(amount, Counter):
        amount = _split(amount)
    low = count.low + amount.low  # below 2³¹: no overflow
    return Counter(high=count.high + amount.high + low // _BASE, low=low % _BASE)


def total(count: Counter) -> Counter:
    """Sums a counter over its only axis, of up to 2¹⁵ elements, exactly."""
    ones, upper = jnp.sum(count.low % _HALF), jnp.sum(count.low // _HALF)
    upper = upper + ones // _HALF
    return Counter(high=jnp.sum(count.high) + upper // _HALF, low=(upper % _HALF) * _HALF + ones % _HALF)


def difference(a: Counter, b: Counter) -> Float[Array, "*s"]:
    """`a − b` as float32: subtracted exactly, then rounded once."""
    high, low = a.high - b.high, a.low - b.low
    return high.astype(jnp.float32) * _BASE + low.astype(jnp.float32)


def is_at_least(a: Counter, b: Counter) -> Array:
    """`a ≥ b`, exactly."""
    return (a.high > b.high) | ((a.high == b.high) & (a.low >= b.low))


def _split(amount: Array) -> Counter:
    if not jnp.issubdtype(amount.dtype, jnp.floating):
        return Counter(high=amount // _BASE, low=amount % _BASE)
    whole = jnp.round(amount)
    high = jnp.floor(whole / _BASE)
    # Exact: the base is a power of two, so neither the quotient nor the rest is rounded.
    return Counter(high=high.astype(jnp.int32), low=(whole - high * _BASE).astype(jnp.int32))
