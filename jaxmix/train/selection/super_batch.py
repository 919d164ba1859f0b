"""Losses, quotas and features of the rows of a super-batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxmix.core.segment import sum_by_domain
from jaxmix.core.types import Array, Bool, Float, Int, PRNGKeyArray, TokenIds
from jaxmix.models.base import token_loss
from jaxmix.train.run.micro_batches import rejoin, split_rows

Batch = dict[str, Array]


def losses_in_micro_batches(apply: Callable[[Any, Batch], Any], count: int) -> Callable[[Any, Batch], Array]:
    """`(params, batch) -> f32[c, t]`, the loss without regularizer, computed in `count` micro-batches."""

    def losses(params: Any, batch: Batch) -> Array:
        if count == 1:
            return token_loss(apply(params, batch))[0]
        cut = jax.tree.map(lambda x: split_rows(x, count), batch)
        return rejoin(jax.lax.map(lambda micro: token_loss(apply(params, micro))[0], cut))

    return losses


def scoring_micro_batches(candidates: int, batch_size: int, *, accumulate: int, mesh: Mesh) -> int:
    """The fewest micro-batches that divide every device's rows and are no larger than those of the train step."""
    own = candidates // (mesh.shape["data"] * mesh.shape["fsdp"])
    least = -(-candidates * accumulate // batch_size)
    return next(count for count in range(min(least, own), own + 1) if own % count == 0)


def domain_quota(key: PRNGKeyArray, domain: Int[Array, " c"], num_select: int, num_domains: int) -> Int[Array, " m"]:
    """The number of rows to choose from each domain so that shares stay: `n_j b / c`, rounded.

    Systematic rounding: with C_j = Σ_{k ≤ j} n_k b / c and one u ~ U[0, 1) for all,

        q_j = ⌊C_j + u⌋ − ⌊C_{j−1} + u⌋

    adds up to b, is within one row of n_j b / c and equals it on average: largest remainders would never choose a row
    of a domain that has one in most super-batches.

    Args:
        key: typed key.
        domain: of the candidates.
        num_select: b.
        num_domains: m.

    Numerics: exact in float32 up to 2²⁴ rows.
    """
    counts = jnp.cumsum(sum_by_domain(jnp.ones(domain.shape, jnp.float32), domain, num_domains))
    steps = jnp.floor(counts * jnp.float32(num_select / domain.shape[0]) + jax.random.uniform(key))
    # The last is b, whatever the rounding of the product.
    steps = steps.at[-1].set(num_select)
    return jnp.diff(steps, prepend=jnp.zeros(1, steps.dtype)).astype(jnp.int32)


def row_features(
    tokens: TokenIds, valid: Bool[Array, "b t"], *, size: int = 256, span: int = 3
) -> Float[Array, "b {size}"]:
    """Hashed counts of `span` adjacent tokens, unit-norm: ⟨z_i, z_j⟩ estimates how much text two rows share.

    Each window of tokens is hashed to a bucket and a sign (a count sketch), so that inner products are those of the
    full count vectors on average. It sees repetition and not meaning; the mean of a model's hidden states would see
    both, and models here do not give it away.

    Args:
        tokens: of the rows.
        valid: positions that count; a window counts where its first position does.
        size: buckets, a power of two.
        span: tokens of a window, ≥ 1 and at most t.

    Numerics: sums of ±1, exact in any order. A row without a window is 0.
    """
    bits = size.bit_length() - 1
    hashed = jnp.zeros(tokens.shape, jnp.uint32)
    for offset in range(span):
        shifted = jnp.roll(tokens, -offset, axis=1).astype(jnp.uint32)
        hashed = (hashed ^ (shifted + jnp.uint32(1))) * jnp.uint32(2654435761)
        hashed = hashed ^ (hashed >> jnp.uint32(15))
    is_whole = (jnp.arange(tokens.shape[1]) <= tokens.shape[1] - span)[None, :] & valid
    sign = jnp.where(hashed & jnp.uint32(1) > 0, 1.0, -1.0) * is_whole.astype(jnp.float32)
    bucket = (hashed >> jnp.uint32(32 - bits)).astype(jnp.int32)
    counts = jax.vmap(lambda where, what: jnp.zeros(size, jnp.float32).at[where].add(what))(bucket, sign)
    norm = jnp.linalg.norm(counts, axis=1, keepdims=True)
    return counts / jnp.maximum(norm, 1.0)
