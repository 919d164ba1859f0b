"""Layers of the transformer as Flax NNX modules. Parameters are float32, with the axes that sharding names."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxmix.core.types import Array, Float
from jaxmix.models.lm.attention import apply_rotary, causal_attention
from jaxmix.models.lm.config import TransformerConfig
from jaxmix.models.precision import wide_dtype


def matrix(rngs: nnx.Rngs, shape: tuple[int, ...], scale: float) -> nnx.Param:
    """A normal parameter with standard deviation `scale`."""
    return nnx.Param(scale * jax.random.normal(rngs.params(), shape, jnp.float32))


def zeros(shape: tuple[int, ...]) -> nnx.Param:
    """A bias."""
    return nnx.Param(jnp.zeros(shape, jnp.float32))


class RMSNorm(nnx.Module):
    """x / √(mean(x²) + ε) in float32 (Zhang and Sennrich 2019); its gain is applied by `fold`, not here.

    norm(x) · scale · W = norm(x) · (scale · W): multiplying the rows of the small matrix that comes next, instead of
    every token, leaves out two passes over the activations and turns the gain's gradient from a sum over tokens
    into one over the matrix. On CPU it makes a step of a small model about 5 % faster.
    """

    def __init__(self, width: int, epsilon: float):
        self.epsilon = epsilon
        self.scale = nnx.Param(jnp.ones((width,), jnp.float32))

    def __call__(self, x: Array) -> Array:
        wide = x.astype(wide_dtype(x.dtype))
        inverse = jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + self.epsilon)
        return (wide * inverse).astype(x.dtype)

    def fold(self, kernel: Array) -> Array:
        """Multiplies the first axis (width) of the parameter that reads the normalized values by the gain."""
        return kernel * self.scale[...].reshape(-1, *(1,) * (kernel.ndim - 1))

    def offset(self, kernel: Array) -> Array | None:
        """What the norm's own bias adds to a product with `kernel`: nothing here."""
        return None

    def whole(self, x: Array) -> Array:
        """Normalized values with their gain, where no parameter follows that could hold it."""
        return self(x) * trailing(self.scale[...], x)


class LayerNorm(RMSNorm):
    """(x − mean(x)) / √(var(x) + ε) in float32 (Ba et al. 2016); gain and bias are applied by `fold` and `offset`."""

    def __init__(self, width: int, epsilon: float):
        super().__init__(width, epsilon)
        self.bias = zeros((width,))

    def __call__(self, x: Array) -> Array:
        wide = x.astype(wide_dtype(x.dtype))
        return super().__call__(wide - jnp.mean(wide, axis=-1, keepdims=True)).astype(x.dtype)

    def offset(self, kernel: Array) -> Array:
        return jnp.einsum("d,d...->...", self.bias[...], kernel)

    def whole(self, x: Array) -> Array:
        return add_bias(super().whole(x), self.bias[...])


def norm_of(config: TransformerConfig) -> RMSNorm:
    """A norm of the residual stream."""
    return (LayerNorm if config.norm == "layer" else RMSNorm)(config.width, config.norm_epsilon)


class Branch(nnx.Module):
    """A part of a block that reads the residual stream through a norm and is added to it.

    Attributes:
        norm: in front of the branch, or behind it with `norm_after`.
        input: the parameter [d, …] that reads the stream.
        input_bias: […] or None.
    """

    config: TransformerConfig
    norm: RMSNorm
    input: nnx.Param
    input_bias: nnx.Param | None

    def read(self, x: Array) -> tuple[Array, Array, Array | None]:
        """What enters the branch, and the kernel and bias to read it with."""
        kernel, bias = self.input[...], None if self.input_bias is None else self.input_bias[...]
        if self.config.norm_after:
            return x, kernel, bias
        offset = self.norm.offset(kernel)
        if offset is not None:
            bias = offset if bias is None else bias + offset
        return self.norm(x), self.norm.fold(kernel), bias

    def leave(self, y: Array) -> Array:
        """What the branch adds to the stream."""
        return self.norm.whole(y) if self.config.norm_after else y


def trailing(parameter: Array, x: Array) -> Array:
    """A parameter over the last axes of x, with as many axes and in the dtype of x."""
    return parameter.astype(x.dtype).reshape(*(1,) * (x.ndim - parameter.ndim), *parameter.shape)


def add_bias(x: Array, bias: Array | None) -> Array:
    """x + bias over the last axes, in the dtype of x."""
    return x if bias is None else x + trailing(bias, x)


class Heads(Branch):
    """The products around an attention: normalized tokens into heads, heads back into tokens.

    Each of the g groups holds, in this order, its r query heads, its key head and its value head: one product makes
    all three, and a split over groups keeps together what belongs together.
    """

    def __init__(self, config: TransformerConfig, rngs: nnx.Rngs):
        self.config = config
        width, heads, groups, size = config.width, config.query_heads, config.key_heads, config.size_of_head
        joint = (groups, heads // groups + 2, size)
        self.norm = norm_of(config)
        self.input = matrix(rngs, (width, *joint), width**-0.5)
        self.input_bias = None if config.attention_bias == "none" else zeros(joint)
        # Every block adds twice to the residual stream; this keeps its size at 1 at any depth.
        self.output = matrix(rngs, (heads, size, width), (heads * size * 2 * config.num_layers) ** -0.5)
        self.output_bias = zeros((width,)) if config.attention_bias == "all" else None
        if config.query_key_norm != "none":
            is_joint = config.query_key_norm == "all"
            self.query_norm = RMSNorm(heads * size if is_joint else size, config.norm_epsilon)
            self.key_norm = RMSNorm(groups * size if is_joint else size, config.norm_epsilon)

    def split(self, x: Array) -> tuple[Array, Array, Array]:
        """x [b, t, d] → query [b, t, h, k], key and value [b, t, g, k]."""
        rows, length, _ = x.shape
        heads, size = self.config.query_heads, self.config.size_of_head
        x, kernel, bias = self.read(x)
        # Turned around while it is still a small matrix, so that query, key and value lie apart in the result.
        joint = jnp.einsum("btd,djgk->btjgk", x, jnp.swapaxes(kernel, 1, 2).astype(x.dtype))
        joint = add_bias(joint, None if bias is None else jnp.swapaxes(bias, 0, 1))
        query = jnp.swapaxes(joint[:, :, :-2], 2, 3).reshape(rows, length, heads, size)
        key, value = joint[:, :, -2], joint[:, :, -1]
        if self.config.query_key_norm != "none":
            query, key = self._normalized(self.query_norm, query), self._normalized(self.key_norm, key)
        return query, key, value

    def _normalized(self, norm: RMSNorm, x: Array) -> Array:
        flat = x.reshape(*x.shape[:2], -1) if self.config.query_key_norm == "all" else x
        return norm.whole(flat).reshape(x.shape)

    def join(self, mixed: Array) -> Array:
        """The heads' results [b, t, h, k] → [b, t, d], as they are added to the stream."""
        y = jnp.einsum("bthk,hkd->btd", mixed, self.output[...].astype(mixed.dtype))
        return self.leave(add_bias(y, None if self.output_bias is None else self.output_bias[...]))


class Attention(Heads):
    """Causal self-attention with rotary positions and grouped key-value heads."""

    def __call__(self, x: Array, rotary: tuple[Array, Array]) -> Array:
        query, key, value = self.split(x)
        mixed = causal_attention(
            apply_rotary(query, rotary),
            apply_rotary(key, rotary),
            value,
            kind=self.config.attention,
            block=self.config.attention_block,
            window=self.config.window,
        )
        return self.join(mixed)


class FeedForward(Branch):
    """down(activation(up(x))), or down(silu(gate(x)) · up(x)) for "swiglu" (Shazeer 2020)."""

    def __init__(self, config: TransformerConfig, rngs: nnx.Rngs):
        self.config = config
        width, hidden = config.width, config.hidden_units
        self.norm = norm_of(config)
        self.input = matrix(rngs, (width, config.mlp_inputs, hidden), width**-0.5)
        self.input_bias = zeros((config.mlp_inputs, hidden)) if config.mlp_bias else None
        self.output = matrix(rngs, (hidden, width), (hidden * 2 * config.num_layers) ** -0.5)
        self.output_bias = zeros((width,)) if config.mlp_bias else None

    def __call__(self, x: Array) -> Array:
        x, kernel, bias = self.read(x)
        inner = add_bias(jnp.einsum("btd,dif->btif", x, kernel.astype(x.dtype)), bias)
        activation = self.config.activation
        if activation == "swiglu":
            active = jax.nn.silu(inner[:, :, 0]) * inner[:, :, 1]
        elif activation == "relu2":
            active = jnp.square(jax.nn.relu(inner[:, :, 0]))
        else:
            active = jax.nn.gelu(inner[:, :, 0], approximate=activation == "gelu")
        y = jnp.einsum("btf,fd->btd", active, self.output[...].astype(x.dtype))
        return self.leave(add_bias(y, None if self.output_bias is None else self.output_bias[...]))


def rotary_of_layer(rotary: tuple[Array, Array], is_rotated: Array | bool | None) -> tuple[Array, Array]:
    """The table of a layer: that of all layers (None or true), or one that turns nothing."""
    if is_rotated is None:
        return rotary
    cos, sin = rotary
    return jnp.where(is_rotated, cos, 1.0), jnp.where(is_rotated, sin, 0.0)


def rotated_layers(config: TransformerConfig) -> Any:
    """For every block whether it has rotary positions, in the form of `map_blocks`; None: all have."""
    if config.unrotated_every is None:
        return None
    flags = (np.arange(config.num_layers) + 1) % config.unrotated_every != 0
    return flags if config.is_scanned else tuple(flags.tolist())


class Block(nnx.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x)), or what `norm_after` and `parallel_residual` ask for."""

    def __init__(self, config: TransformerConfig, rngs: nnx.Rngs):
        self.is_parallel = config.parallel_residual
        self.attention = Attention(config, rngs)
        self.feed_forward = FeedForward(config, rngs)

    def __call__(
        self, x: Float[Array, "b t d"], is_rotated: Array | bool | None, rotary: tuple[Array, Array]
    ) -> tuple[Array, None]:
        return self.add(x, self.attention(x, rotary_of_layer(rotary, is_rotated))), None

    def add(self, x: Array, attended: Array) -> Array:
        """The next x, from this one and what the attention adds to it."""
        y = x + attended
        return y + self.feed_forward(x if self.is_parallel else y)
