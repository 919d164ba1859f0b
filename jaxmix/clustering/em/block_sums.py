"""Sums over rows, a block at a time: an N × K array is never larger than the rows of one device.

`fused_pass` reads the rows once and returns every sum. A balanced fit in memory splits it: `posterior_pass` writes the
posterior P at the biases it starts from, `dual_pass` evaluates other biases on P alone, `gram_pass` makes the matrix of
a Hessian, and `moment_pass` reads the rows a second time for their means. `docs/gem.md` has the formulas.

The last block overlaps the one before when blocks do not divide the rows, with weight 0 for what was counted:
padding or reshaping the rows instead would copy them all. Totals carry their rounding error along.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmix.clustering.base import GemState, Sums
from jaxmix.core.special import log_vmf_normalizer
from jaxmix.core.types import Array, Float

HIGHEST = jax.lax.Precision.HIGHEST
_TILE = {"cpu": 13 << 17}
_OTHER_TILE = 1 << 26
"""Entries of a block and its logits together: the second-level caches of a CPU, enough to fill other devices."""


def block_rows(rows: int, width: int) -> int:
    """Rows of a block: the largest power of two whose `width` entries a row fit the tile, at most `rows`."""
    tile = _TILE.get(jax.default_backend(), _OTHER_TILE)
    return min(rows, 1 << max(6, (tile // width).bit_length() - 1))


class LinearRule(NamedTuple):
    """Logits are rows times `slopes` plus `offsets`."""

    slopes: Float[Array, "k d"]
    offsets: Float[Array, " k"]


def linear_rule(state: GemState) -> LinearRule:
    """`κ μ` and `g(κ) + b`."""
    kappa = state.concentrations
    normalizer = log_vmf_normalizer(kappa, state.mean_directions.shape[1])
    return LinearRule(kappa[:, None] * state.mean_directions, normalizer + state.biases)


def as_rows(block: Array, dtype: Any) -> Array:
    """A block in the precision of the computation. Rows stored in half precision are brought back to length 1."""
    if block.dtype == dtype:
        return block
    rows = block.astype(dtype)
    return rows * jax.lax.rsqrt(jnp.maximum(jnp.sum(rows * rows, axis=1, keepdims=True), jnp.finfo(dtype).tiny))


def varying_zero(x: Array, dtype: Any) -> Array:
    """0 that varies over the devices as the rows of `x` do, which `shard_map` requires of the carry of a loop."""
    return jnp.sum(x[:0], dtype=dtype)


def by_blocks(
    function: Callable[..., tuple[Any, Any]],
    reads: tuple[Array, ...],
    sample_weight: Array,
    table: Any,
    sums: Any,
    *,
    scratch: int = 0,
) -> tuple[Any, Any]:
    """Adds up `function(weights, *rows) -> (sums, table_rows)` over blocks; returns (sums, table).

    Args:
        function: of the weights and rows of a block.
        reads: arrays [n, …] that are cut into blocks; their widths together decide the size of one.
        sample_weight: [n].
        table: tree of arrays [n, …] that are written, every row once or twice the same; `None` for none.
        sums: tree of zeros.
        scratch: entries a row that `function` makes and does not return, such as logits; they count as read.
    """
    first = reads[0]
    total = first.shape[0]
    widths = [array.shape[1] for array in (*reads, *jax.tree.leaves(table)) if array.ndim > 1]
    rows = block_rows(total, sum(widths) + scratch)
    cut = lambda array, start: jax.lax.dynamic_slice_in_dim(array, start, rows)
    put = lambda array, part, start: jax.lax.dynamic_update_slice_in_dim(array, part, start, 0)

    def body(i: Array, carry: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
        found, error, table = carry
        start = jnp.minimum(i * rows, total - rows)
        is_new = start + jnp.arange(rows, dtype=jnp.int32) >= i * rows
        weights = jnp.where(is_new, cut(sample_weight, start), 0)
        parts, written = function(weights, *(cut(array, start) for array in reads))
        found, error = _add(found, error, parts)
        return found, error, jax.tree.map(lambda array, part: put(array, part, start), table, written)

    zero = lambda leaf: jnp.zeros_like(leaf) + varying_zero(first, leaf.dtype)
    start = jax.tree.map(zero, sums)
    found, error, table = jax.lax.fori_loop(0, -(-total // rows), body, (start, start, table))
    return jax.tree.map(jnp.add, found, error), table


def _add(total: Any, error: Any, part: Any) -> tuple[Any, Any]:
    """Knuth's two-sum: what rounding took from the total goes to `error`."""
    new = jax.tree.map(jnp.add, total, part)

    def lost(a: Array, b: Array, s: Array, e: Array) -> Array:
        back = s - a
        return e + ((a - (s - back)) + (b - back))

    return new, jax.tree.map(lost, total, part, new, error)


def fused_pass(state: GemState, x: Array, sample_weight: Array, *, hard: bool = False, gram: bool = False) -> Sums:
    """Every sum at the biases of `state`, rows read once."""
    return linear_pass(linear_rule(state), x, sample_weight, hard=hard, gram=gram)


def linear_pass(rule: LinearRule, x: Array, sample_weight: Array, *, hard: bool = False, gram: bool = False) -> Sums:
    """`fused_pass` of any linear rule."""
    slopes, offsets = rule
    k, d = slopes.shape
    dtype = slopes.dtype

    def block(weights: Array, x: Array) -> tuple[Sums, None]:
        # Clusters in front: sums and maxima over them are vectorized over the rows, and no table is transposed.
        rows = as_rows(x, dtype)
        logits = jnp.matmul(slopes, rows.T, precision=HIGHEST) + offsets[:, None]
        products = None
        if hard:
            value, labels = _largest(logits)
            shares, weight_of = jax.nn.one_hot(labels, k, dtype=dtype, axis=0), weights
        else:
            top = jnp.max(logits, axis=0)
            shares = jnp.exp(logits - top[None, :])
            total = jnp.sum(shares, axis=0)
            value, weight_of = jnp.log(total) + top, weights / total
        weighted = shares * weight_of[None, :]
        if gram and not hard:
            # One total on each side: the square of a small one underflows in float32.
            products = jnp.matmul(weighted, (shares * (1 / total)[None, :]).T, precision=HIGHEST)
        return Sums(
            count=jnp.sum(weights > 0, dtype=dtype),
            weight=jnp.sum(weights),
            value=jnp.sum(weights * value),
            mass=jnp.matmul(shares, weight_of, precision=HIGHEST),
            resultant=jnp.matmul(weighted, rows, precision=HIGHEST),
            gram=products,
        ), None

    zero = jnp.zeros((), dtype)
    matrix = jnp.zeros((k, k), dtype) if gram else None
    zeros = Sums(zero, zero, zero, jnp.zeros((k,), dtype), jnp.zeros((k, d), dtype), matrix)
    sums: Sums = by_blocks(block, (x,), sample_weight, None, zeros, scratch=k)[0]
    # Zeros that lie on the same devices as the rest. Within the loop K² of them would be added up for every block.
    return sums if gram else sums._replace(gram=jnp.zeros((k, k), dtype) + 0 * sums.weight)


def is_near(shift: Array) -> Array:
    """Whether a posterior can be carried to biases changed by `shift` (`dual_pass`, `moment_pass`).

    A row keeps at least exp(−range) of its weight, range that of the entries of `shift`. What the smallest normal
    number cuts off is then e^-28 of it at most: 59 nats are near in float32, 680 in float64.
    """
    return jnp.max(shift) - jnp.min(shift) <= -math.log(float(jnp.finfo(shift.dtype).tiny)) - 28


def posterior_pass(
    state: GemState, x: Array, sample_weight: Array, table: Array, moved: tuple[Array, Array] | None = None
) -> tuple[Array, Array, Array]:
    """Writes the posterior at the biases of `state` into `table` [n, k]; returns (Σ w_i lse_i, mass, table).

    With `moved` = (since, shift) the biases are those of `state` plus `shift`, and the value is Σ w_i times the change
    of lse_i since those plus `since`.
    """
    slopes, offsets = linear_rule(state)
    k = slopes.shape[0]
    dtype = slopes.dtype

    def block(weights: Array, x: Array) -> tuple[tuple[Array, Array], Array]:
        logits = jnp.matmul(as_rows(x, dtype), slopes.T, precision=HIGHEST) + offsets[None, :]
        if moved is not None:
            since, shift = moved
            logits = jax.nn.log_softmax(logits + since[None, :], axis=1) + (shift - since)[None, :]
        top = jnp.max(logits, axis=1)
        powers = jnp.exp(logits - top[:, None])
        total = _row_sums(powers)
        mass = jnp.matmul(weights / total, powers, precision=HIGHEST)
        return (jnp.sum(weights * (jnp.log(total) + top)), mass), powers * (1 / total)[:, None]

    (value, mass), table = by_blocks(block, (x,), sample_weight, table, (jnp.zeros((), dtype), jnp.zeros((k,), dtype)))
    return value, mass, table


def gram_pass(table: Array, sample_weight: Array, shift: Array) -> Array:
    """Σ w γ γᵀ at biases changed by a near `shift`: the matrix of a Hessian."""
    k, dtype = table.shape[1], table.dtype
    scale = jnp.exp(shift - jnp.max(shift))

    def block(weights: Array, posterior: Array) -> tuple[Array, None]:
        powers = posterior * scale[None, :]
        total = _row_sums(powers)
        weighted = powers * (weights / total)[:, None]
        return jnp.matmul(weighted.T, powers * (1 / total)[:, None], precision=HIGHEST), None

    found: Array = by_blocks(block, (table,), sample_weight, None, jnp.zeros((k, k), dtype))[0]
    return found


def dual_pass(table: Array, sample_weight: Array, shift: Array) -> tuple[Array, Array]:
    """(Σ w_i (lse_i after − before), mass) at biases changed by a near `shift`, from the posterior alone."""
    k, dtype = table.shape[1], table.dtype
    top = jnp.max(shift)
    scale = jnp.exp(shift - top)

    def block(weights: Array, posterior: Array) -> tuple[tuple[Array, Array], None]:
        total = jnp.matmul(posterior, scale, precision=HIGHEST)
        mass = jnp.matmul(weights / total, posterior, precision=HIGHEST) * scale
        return (jnp.sum(weights * (jnp.log(total) + top)), mass), None

    zeros = jnp.zeros((), dtype), jnp.zeros((k,), dtype)
    found: tuple[Array, Array] = by_blocks(block, (table,), sample_weight, None, zeros)[0]
    return found


def moment_pass(table: Array, x: Array, sample_weight: Array, shift: Array) -> tuple[Array, Array]:
    """(mass, resultant) at biases changed by a near `shift`."""
    k, d, dtype = table.shape[1], x.shape[1], table.dtype
    scale = jnp.exp(shift - jnp.max(shift))

    def block(weights: Array, x: Array, posterior: Array) -> tuple[tuple[Array, Array], None]:
        powers = posterior * scale[None, :]
        share = weights / _row_sums(powers)
        mass, weighted = jnp.matmul(share, powers, precision=HIGHEST), powers * share[:, None]
        return (mass, jnp.matmul(weighted.T, as_rows(x, dtype), precision=HIGHEST)), None

    return by_blocks(block, (x, table), sample_weight, None, (jnp.zeros((k,), dtype), jnp.zeros((k, d), dtype)))[0]


def label_pass(state: GemState, x: Array, *, with_posterior: bool) -> tuple[Array, Array | None]:
    """(labels i32[n], log posterior [n, k] or `None`)."""
    return linear_labels(linear_rule(state), x, with_posterior=with_posterior)


def linear_labels(rule: LinearRule, x: Array, *, with_posterior: bool = False) -> tuple[Array, Array | None]:
    """`label_pass` of any linear rule."""
    slopes, offsets = rule
    k = slopes.shape[0]
    dtype, n = slopes.dtype, x.shape[0]

    def block(_: Array, x: Array) -> tuple[tuple[()], Any]:
        # Clusters in front, as in `linear_pass`.
        logits = jnp.matmul(slopes, as_rows(x, dtype).T, precision=HIGHEST) + offsets[:, None]
        labels = _largest(logits)[1]
        return (), (labels, jax.nn.log_softmax(logits, axis=0).T) if with_posterior else (labels,)

    labels = jnp.zeros((n,), jnp.int32) + varying_zero(x, jnp.int32)
    posterior = (jnp.zeros((n, k), dtype) + varying_zero(x, dtype),) if with_posterior else ()
    scratch = 0 if with_posterior else k
    found = by_blocks(block, (x,), jnp.zeros((n,), dtype), (labels, *posterior), (), scratch=scratch)[1]
    return found[0], found[1] if with_posterior else None


def _largest(logits: Array) -> tuple[Array, Array]:
    """(maximum, its first position) along the first axis: two plain reductions of floats, faster than `argmax`."""
    k = logits.shape[0]
    largest = jnp.max(logits, axis=0)
    positions = jnp.arange(k, dtype=logits.dtype)[:, None]
    # A column of nan equals its maximum nowhere.
    found = jnp.min(jnp.where(logits >= largest[None, :], positions, k), axis=0)
    return largest, jnp.minimum(found, k - 1).astype(jnp.int32)


def _row_sums(powers: Array) -> Array:
    """Row sums as a product with ones, which is faster for few columns."""
    return jnp.matmul(powers, jnp.ones((powers.shape[1],), powers.dtype), precision=HIGHEST)
