"""The parts of the transformer as Flax NNX modules. Parameters are float32 and have the axes that sharding names."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from jaxmix.core.types import Array
from jaxmix.models.attention import apply_rotary, causal_attention
from jaxmix.models.config import TransformerConfig

__all__ = ["Attention", "Block", "FeedForward", "RMSNorm", "matrix"]


def matrix(rngs: nnx.Rngs, shape: tuple[int, ...], scale: float) -> nnx.Param:
    """A normal parameter with standard deviation `scale`."""
    return nnx.Param(scale * jax.random.normal(rngs.params(), shape, jnp.float32))


class RMSNorm(nnx.Module):
    """x / √(mean(x²) + ε) · scale, computed in float32 (Zhang and Sennrich 2019)."""

    def __init__(self, width: int, epsilon: float):
        self.epsilon = epsilon
        self.scale = nnx.Param(jnp.ones((width,), jnp.float32))

    def __call__(self, x: Array) -> Array:
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        inverse = jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + self.epsilon)
        return (wide * inverse * self.scale[...].astype(wide.dtype)[None, None, :]).astype(x.dtype)


class Attention(nnx.Module):
    """Causal self-attention with rotary positions and grouped key-value heads, without biases."""

    def __init__(self, config: TransformerConfig, rngs: nnx.Rngs):
        self.config = config
        width, heads, groups, size = config.width, config.query_heads, config.key_heads, config.size_of_head
        self.query = matrix(rngs, (width, heads, size), width**-0.5)
        self.key_value = matrix(rngs, (width, 2, groups, size), width**-0.5)
        # Every block adds twice to the residual stream; this keeps its size at 1 at any depth.
        self.output = matrix(rngs, (heads, size, width), (heads * size * 2 * config.num_layers) ** -0.5)

    def __call__(self, x: Array, rotary: tuple[Array, Array]) -> Array:
        kernel = lambda parameter: parameter[...].astype(x.dtype)
        query = jnp.einsum("btd,dhk->bthk", x, kernel(self.query))
        key, value = jnp.moveaxis(jnp.einsum("btd,dcgk->btcgk", x, kernel(self.key_value)), 2, 0)
        mixed = causal_attention(
            apply_rotary(query, rotary),
            apply_rotary(key, rotary),
            value,
            kind=self.config.attention,
            block=self.config.attention_block,
        )
        return jnp.einsum("bthk,hkd->btd", mixed, kernel(self.output))


class FeedForward(nnx.Module):
    """down(activation(up(x))), or down(silu(gate(x)) · up(x)) for "swiglu" (Shazeer 2020), without biases."""

    def __init__(self, config: TransformerConfig, rngs: nnx.Rngs):
        self.activation = config.activation
        width, hidden = config.width, config.hidden_units
        self.up = matrix(rngs, (width, config.mlp_inputs, hidden), width**-0.5)
        self.down = matrix(rngs, (hidden, width), (hidden * 2 * config.num_layers) ** -0.5)

    def __call__(self, x: Array) -> Array:
        inner = jnp.einsum("btd,dif->btif", x, self.up[...].astype(x.dtype))
        if self.activation == "swiglu":
            active = jax.nn.silu(inner[:, :, 0]) * inner[:, :, 1]
        elif self.activation == "gelu":
            active = jax.nn.gelu(inner[:, :, 0])
        else:
            active = jnp.square(jax.nn.relu(inner[:, :, 0]))
        return jnp.einsum("btf,fd->btd", active, self.down[...].astype(x.dtype))


class Block(nnx.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(self, config: TransformerConfig, rngs: nnx.Rngs):
        self.attention_norm = RMSNorm(config.width, config.norm_epsilon)
        self.attention = Attention(config, rngs)
        self.feed_forward_norm = RMSNorm(config.width, config.norm_epsilon)
        self.feed_forward = FeedForward(config, rngs)

    def __call__(self, x: Array, rotary: tuple[Array, Array]) -> Array:
        x = x + self.attention(self.attention_norm(x), rotary)
        return x + self.feed_forward(self.feed_forward_norm(x))
