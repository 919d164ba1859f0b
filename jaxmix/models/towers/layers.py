"""Layers that the image and the text tower share: full attention, pooling, projection.

Letters: b rows, t tokens, d width, h heads, k size of a head, e size of the common space.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from jaxmix.core.types import Array, Bool, Float
from jaxmix.models.lm.attention import apply_rotary, full_attention
from jaxmix.models.lm.blocks import add_blocks, run_blocks
from jaxmix.models.lm.config import TransformerConfig
from jaxmix.models.lm.layers import FeedForward, Heads, RMSNorm, matrix
from jaxmix.models.precision import wide_dtype

_LEAST_SQUARE = 1e-12


class FullAttention(Heads):
    """Self-attention over all tokens that are not padding; rotary positions if given. Parameters as of `Attention`."""

    def __call__(self, x: Array, rotary: tuple[Array, Array] | None, valid: Array | None) -> Array:
        query, key, value = self.split(x)
        if rotary is not None:
            query, key = apply_rotary(query, rotary), apply_rotary(key, rotary)
        return self.join(full_attention(query, key, value, valid, kind=self.config.attention))


class TowerBlock(nnx.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x)), attending in both directions."""

    def __init__(self, config: TransformerConfig, rngs: nnx.Rngs):
        self.attention = FullAttention(config, rngs)
        self.feed_forward = FeedForward(config, rngs)

    def __call__(self, x: Array, rotary: tuple[Array, Array] | None, valid: Array | None) -> Array:
        x = x + self.attention(x, rotary, valid)
        return x + self.feed_forward(x)


class AttentionPool(nnx.Module):
    """One learned query looks at all tokens, then y + feed_forward(norm(y)): SigLIP's multi-head attention pooling."""

    def __init__(self, config: TransformerConfig, rngs: nnx.Rngs):
        width, heads, size = config.width, config.query_heads, config.size_of_head
        self.query = matrix(rngs, (heads, size), 1.0)
        self.input = matrix(rngs, (width, heads, 2, size), width**-0.5)
        self.output = matrix(rngs, (heads, size, width), (heads * size) ** -0.5)
        self.feed_forward = FeedForward(config, rngs)

    def __call__(self, x: Array, norm: RMSNorm, valid: Array | None) -> Array:
        """Normalized tokens [b, t, d] → [b, d]; `norm` is the one they came from, its gain is folded in here."""
        kernel = jnp.moveaxis(norm.fold(self.input[...]), 2, 0).astype(x.dtype)
        key, value = jnp.einsum("btd,jdhk->jbthk", x, kernel)
        query = jnp.broadcast_to(self.query[...].astype(x.dtype)[None, None], (x.shape[0], 1, *key.shape[2:]))
        mixed = full_attention(query, key, value, valid, kind="dense")
        pooled = jnp.einsum("bthk,hkd->btd", mixed, self.output[...].astype(x.dtype))
        return (pooled + self.feed_forward(pooled))[:, 0]


class Tower(nnx.Module):
    """Blocks, final norm, pooling and the projection to the common space; a subclass makes the first tokens.

    Args:
        config: the trunk.
        pool: "mean" or "attention".
        embedding_dim: e.
        key: typed PRNG key.
    """

    def __init__(self, config: TransformerConfig, pool: str, embedding_dim: int, key: Array):
        blocks_key, pool_key, projection_key = jax.random.split(key, 3)
        self.trunk = config
        add_blocks(self, TowerBlock, config, blocks_key)
        self.final_norm = RMSNorm(config.width, config.norm_epsilon)
        self.has_pool = pool == "attention"
        if self.has_pool:
            self.pool = AttentionPool(config, nnx.Rngs(params=pool_key))
        rngs = nnx.Rngs(params=projection_key)
        self.projection = matrix(rngs, (config.width, embedding_dim), config.width**-0.5)

    def embed(
        self, x: Float[Array, "b t d"], rotary: tuple[Array, Array] | None, valid: Bool[Array, "b t"] | None
    ) -> Float[Array, "b e"]:
        """First tokens → unit vectors, float32 (float64 if x is). A row without a valid token becomes zeros."""
        wide = wide_dtype(x.dtype)
        x = self.final_norm(run_blocks(self, TowerBlock, self.trunk, x, rotary, valid))
        projection = self.projection[...]
        if self.has_pool:
            pooled = self.pool(x, self.final_norm, valid).astype(wide)
        else:
            pooled, projection = _masked_mean(x.astype(wide), valid), self.final_norm.fold(projection)
        if valid is not None:
            pooled = jnp.where(jnp.any(valid, axis=1, keepdims=True), pooled, 0.0)
        embedding = jnp.einsum("bd,de->be", pooled, projection.astype(wide), precision=jax.lax.Precision.HIGHEST)
        return unit_rows(embedding)


def unit_rows(x: Float[Array, "b e"]) -> Float[Array, "b e"]:
    """x / max(|x|, 1e-6) row by row: a row of zeros stays zeros, and its gradient is finite."""
    square = jnp.sum(jnp.square(x), axis=1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(square, _LEAST_SQUARE))


def _masked_mean(x: Array, valid: Array | None) -> Array:
    if valid is None:
        return jnp.mean(x, axis=1)
    count = jnp.maximum(jnp.sum(valid, axis=1, dtype=x.dtype), 1.0)
    return jnp.sum(jnp.where(valid[:, :, None], x, 0.0), axis=1) / count[:, None]
