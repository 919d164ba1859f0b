"""Sampling of the next token: temperature, top-k, top-p, or greedy."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxmix.core.settings import check_fields, setting
from jaxmix.core.types import Array, Float, Int, PRNGKeyArray

_ONE = 0x3F800000  # the bits of 1.0; those of smaller floats are smaller, in the same order
_LARGEST_ROW = 64


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
        temperature: ≥ 0, of softmax(logits / temperature); 0 takes the most likely token.
        top_k: keep the k most likely tokens, ties with the last of them included; 0: all.
        top_p: keep the most likely tokens that together have at least this mass (of what `top_k` left), ties with
            the last of them included; in (0, 1].
        policy_temperature: > 0, at which the reported log-probabilities are taken, of all tokens. None: `temperature`,
            or 1 where that is 0.

    Raises:
        ConfigError: a value outside its range.
    """

    temperature: float = setting(1.0, at_least=0, below=math.inf)
    top_k: int = setting(0, at_least=0)
    top_p: float = setting(1.0, above=0, at_most=1)
    policy_temperature: float | None = setting(None, above=0, below=math.inf)

    def __post_init__(self) -> None:
        check_fields(self, "Sampling")

    @property
    def reported_temperature(self) -> float:
        """policy_temperature with its default worked out."""
        return self.policy_temperature or self.temperature or 1.0


def draw_tokens(
    key: PRNGKeyArray, logits: Float[Array, "*x v"], sampling: Sampling
) -> tuple[Int[Array, "*x"], Float[Array, "*x"]]:
    """One token of every row, and its log-probability under the whole softmax at the reported temperature.

    Numerics: float32. A token's own chance is right to about 1e-7 of the row's mass. The same key gives the same
    tokens however the rows lie on devices.
    """
    wide = logits.astype(jnp.float32)
    highest = jnp.max(wide, axis=-1, keepdims=True)
    shifted = (wide - highest) / sampling.reported_temperature
    if sampling.temperature == 0:
        tokens = jnp.argmax(wide, axis=-1).astype(jnp.int32)
    else:
        weights = jnp.exp((wide - highest) / sampling.temperature)
        if 0 < sampling.top_k < logits.shape[-1]:
            counted = lambda kept: jnp.sum(kept > 0, axis=-1) >= sampling.top_k
            weights = largest_weights(weights, counted)
        if sampling.top_p < 1:
            wanted = sampling.top_p * jnp.sum(weights, axis=-1)
            weights = largest_weights(weights, lambda kept: jnp.sum(kept, axis=-1) >= wanted)
        tokens = draw_by_weight(key, weights)
    at_token = jnp.take_along_axis(shifted, tokens[..., None], axis=-1)[..., 0]
    return tokens, at_token - jnp.log(jnp.sum(jnp.exp(shifted), axis=-1))


def largest_weights(weights: Float[Array, "*x v"], suffice: Callable[[Array], Array]) -> Float[Array, "*x v"]:
    """The fewest largest weights of each row that suffice, ties included, the others 0.

    By bisection over the bits of the threshold: thirty sums instead of a sort, exact to the last bit.

    Args:
        weights: float32 in [0, 1].
        suffice: `(kept [*x, v], those left out being 0) -> bool[*x]`; true of all of them, and of more if of fewer.
    """
    bits = jax.lax.bitcast_convert_type(weights, jnp.int32)
    cut = lambda threshold: jnp.where(bits >= threshold[..., None], weights, 0.0)

    def narrow(_: Array, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = low + (high - low + 1) // 2
        is_enough = suffice(cut(middle))
        return jnp.where(is_enough, middle, low), jnp.where(is_enough, high, middle - 1)

    low = jnp.zeros(weights.shape[:-1], jnp.int32)
    threshold, _ = jax.lax.fori_loop(0, 30, narrow, (low, jnp.full_like(low, _ONE)))
    return cut(threshold)


def draw_by_weight(key: PRNGKeyArray, weights: Float[Array, "*x v"]) -> Int[Array, "*x"]:
    """One place of every row, likely in proportion to its weight ≥ 0; never one of weight 0.

    By inversion with two uniform numbers a row, where the Gumbel trick needs one for every word: first a block of
    about √v words, then a word in it.
    """
    words = weights.shape[-1]
    if words <= _LARGEST_ROW:
        return _invert(jax.random.uniform(key, weights.shape[:-1]), weights)
    size = math.isqrt(words - 1) + 1
    padded = jnp.pad(weights, [(0, 0)] * (weights.ndim - 1) + [(0, -words % size)])
    blocks = padded.reshape(*weights.shape[:-1], -1, size)
    first, second = jax.random.uniform(key, (2, *weights.shape[:-1]))
    block = _invert(first, jnp.sum(blocks, axis=-1))
    inside = jnp.take_along_axis(blocks, block[..., None, None], axis=-2)[..., 0, :]
    return block * size + _invert(second, inside)


def _invert(uniform: Float[Array, "*x"], weights: Float[Array, "*x v"]) -> Int[Array, "*x"]:
    """The first place where the running sum exceeds `uniform` times the whole."""
    running = jnp.cumsum(weights, axis=-1)
    # A parallel running sum may fall by a rounding; places of weight 0 are therefore left out by name.
    is_past = (running > uniform[..., None] * running[..., -1:]) & (weights > 0)
    place = jnp.where(jnp.any(is_past, axis=-1), jnp.argmax(is_past, axis=-1), jnp.argmax(weights, axis=-1))
    return place.astype(jnp.int32)
