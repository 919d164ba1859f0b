"""The key-value cache: several continuations of each prompt, the prompt computed once for all of them.

Letters: b prompts, n continuations of each, p and t tokens of a prompt and of a continuation, s new tokens, h query
heads, q key-value heads (h = q · r), k size of a head.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmix.core.types import Array, Bool, Float, Int
from jaxmix.models.base import Decoding
from jaxmix.models.lm.attention import apply_rotary, causal_mask
from jaxmix.models.lm.blocks import map_blocks
from jaxmix.models.lm.config import TransformerConfig
from jaxmix.models.lm.layers import Block, rotary_of_layer, rotated_layers
from jaxmix.models.lm.loss import token_losses
from jaxmix.models.precision import wide_dtype


class Part(NamedTuple):
    """Keys that queries look at, with their values; softmax runs over all parts together.

    Attributes:
        keys, values: [b, n, q, u, k], of every continuation; or [b, q, u, k], shared by the continuations of a prompt.
        visible: bool, to be broadcast over [b, n, s, u]: which keys a query sees.
    """

    keys: Array
    values: Array
    visible: Array


class Cache(NamedTuple):
    """What `extend` reads and adds to.

    Attributes:
        prompt: keys and values [b, q, p, k] of every layer.
        valid: bool[b, p], which slots of the prompts are tokens.
        own: keys and values [b, n, q, t, k] of every layer.
    """

    prompt: Any
    valid: Bool[Array, "b p"]
    own: Any


def joint_attention(query: Float[Array, "b n s h k"], parts: Sequence[Part]) -> Float[Array, "b n s h k"]:
    """softmax(q kᵀ / √k over what is visible in all parts) v, no part ever copied beside another.

    A key that continuations share is read once for all their queries: one matrix product of n · s · r rows instead
    of n products. Every query must see at least one key. Softmax in float32 (float64 if the input is).
    """
    rows, count, new, heads, size = query.shape
    groups = parts[0].keys.shape[-3]
    wide = wide_dtype(query.dtype)
    split = (query * (1.0 / math.sqrt(size))).reshape(rows, count, new, groups, heads // groups, size)
    own_form = split.transpose(0, 1, 3, 2, 4, 5)  # [b, n, q, s, r, k]
    shared_form = split.transpose(0, 3, 1, 2, 4, 5)  # [b, q, n, s, r, k]
    swap = lambda x: jnp.swapaxes(x, 1, 2)  # between the two forms

    is_shared = [part.keys.ndim == 4 for part in parts]
    scores = []
    for part, shared in zip(parts, is_shared, strict=True):
        queries = shared_form if shared else own_form
        flat = queries.reshape(*part.keys.shape[:-2], -1, size)
        product = jnp.einsum("...xk,...uk->...xu", flat, part.keys, preferred_element_type=wide)
        visible = part.visible[:, None, :, :, None, :] if shared else part.visible[:, :, None, :, None, :]
        scores.append(jnp.where(visible, product.reshape(*queries.shape[:-1], -1), -jnp.inf))

    to_own = lambda x, shared: swap(x) if shared else x
    highest = [jnp.max(score, axis=-1, keepdims=True) for score in scores]
    top = functools.reduce(jnp.maximum, map(to_own, highest, is_shared))
    top = jax.lax.stop_gradient(top)

    totals, results = [], []
    for part, score, shared in zip(parts, scores, is_shared, strict=True):
        weights = jnp.exp(score - (swap(top) if shared else top))
        flat = weights.astype(part.values.dtype).reshape(*part.keys.shape[:-2], -1, part.keys.shape[-2])
        mixed = jnp.einsum("...xu,...uk->...xk", flat, part.values, preferred_element_type=wide)
        results.append(to_own(mixed.reshape(*weights.shape[:-1], size), shared))
        totals.append(to_own(jnp.sum(weights, axis=-1, keepdims=True), shared))
    joint = functools.reduce(jnp.add, results) / functools.reduce(jnp.add, totals)
    return joint.astype(query.dtype).transpose(0, 1, 3, 2, 4, 5).reshape(query.shape)


class ContinuedBlock(Block):
    """A block whose new tokens also see what is kept of the tokens before them."""

    def __call__(  # type: ignore[override]
        self,
        x: Float[Array, "x s d"],
        layer: tuple[Any, Any, Any],
        rotary: tuple[Array, Array],
        visible: Array,
        prompt_visible: Array | None = None,
        index: Int[Array, ""] | None = None,
    ) -> tuple[Float[Array, "x s d"], tuple[Array, Array]]:
        """x = b · n. Returns the next x, and the new keys and values: in their place among the kept ones, if any.

        Args:
            x: new tokens.
            layer: keys and values of the prompts, and of the continuations; whether the layer is rotated. None without.
            rotary: of the new tokens' positions.
            visible: as in `Part`, of the continuations' kept keys, the new ones included; or of the new ones alone.
            prompt_visible: of the prompts' keys.
            index: place of the new tokens among the kept ones.
        """
        prompt, own, is_rotated = layer
        rotary = rotary_of_layer(rotary, is_rotated)
        query, key, value = self.attention.split(x)
        query, key = apply_rotary(query, rotary), apply_rotary(key, rotary)
        count = 1 if prompt is None else x.shape[0] // prompt[0].shape[0]
        by_prompt = lambda y: y.reshape(-1, count, *y.shape[1:])
        new = tuple(jnp.swapaxes(by_prompt(y), 2, 3) for y in (key, value))
        if own is not None and index is not None:
            # Written first and read afterwards: XLA then writes in place. The other order copies the cache.
            put = lambda old, part: jax.lax.dynamic_update_slice_in_dim(old, part, index, axis=-2)
            new = tuple(put(old, part) for old, part in zip(own, new, strict=True))
        parts = [Part(new[0], new[1], visible)]
        if prompt is not None and prompt_visible is not None:
            parts.append(Part(prompt[0], prompt[1], prompt_visible))
        mixed = joint_attention(by_prompt(query), parts)
        return self.add(x, self.attention.join(mixed.reshape(query.shape))), (new[0], new[1])


def build_decoding(config: TransformerConfig, merge: Callable[[Any], Any]) -> Decoding:
    """The `Decoding` of a decoder-only transformer; `merge` makes the module of its parameters.

    Positions are counted from the first slot, padding included. Rotary attention depends on differences of positions
    alone, so a prompt's padding changes nothing (but rounding). Learned positions leave the padding out.
    """

    def by_layer(prompt: Any, own: Any) -> Any:
        """Both and what `rotated_layers` says, as `map_blocks` wants them: stacked, or a tuple with three for each."""
        rotated = rotated_layers(config)
        if config.is_scanned:
            return prompt, own, rotated
        nothing = (None,) * config.num_layers
        return tuple(zip(prompt or nothing, own or nothing, rotated or nothing, strict=True))

    def logits(module: Any, x: Float[Array, "b s d"]) -> Array:
        hidden, words = module.read_out(x)
        words = words.astype(hidden.dtype)
        return jnp.einsum("bsd,vd->bsv", hidden, words, preferred_element_type=wide_dtype(words.dtype))

    def sees(queries: Array, keys: Array) -> Array:
        return causal_mask(queries, keys, config.window)[None, None]

    def after(valid: Bool[Array, "b p"], count: int, length: int) -> Int[Array, "x s"]:
        """Positions of the first tokens of `count` continuations."""
        first = jnp.repeat(jnp.sum(valid, axis=1, dtype=jnp.int32), count)
        return first[:, None] + jnp.arange(length)[None]

    def read_prompts(module: Any, prompts: Array, valid: Array) -> tuple[Array, Any]:
        """The last token's hidden state [b, 1, d], and keys and values [b, q, p, k] of every layer."""
        slots = jnp.arange(prompts.shape[1])
        # A padded slot sees itself, so that its softmax has something to run over; nothing else sees it.
        visible = sees(slots, slots)[:, 0] & (valid[:, None, :] | jnp.eye(len(slots), dtype=bool)[None])
        x = module.embed(prompts, jnp.cumsum(valid, axis=1, dtype=jnp.int32) - 1)
        kept, table = by_layer(None, None), module.rotary(len(slots))
        x, made = map_blocks(module, ContinuedBlock, config, x, kept, table, visible[:, None])
        return x[:, -1:], jax.tree.map(lambda y: jnp.squeeze(y, axis=-4), made)

    def prefill(params: Any, prompts: Array, valid: Array, num_continuations: int, length: int) -> tuple[Array, Cache]:
        module = merge(params)
        last, kept = read_prompts(module, prompts, valid)

        def room(y: Array) -> Array:
            *front, groups, _, size = y.shape
            return jnp.zeros((*front, num_continuations, groups, length, size), y.dtype)

        return logits(module, last)[:, 0], Cache(kept, valid, jax.tree.map(room, kept))

    def extend(params: Any, tokens: Array, index: Array, cache: Cache) -> tuple[Array, Cache]:
        module = merge(params)
        rows, count = tokens.shape
        prompt_length, length = cache.valid.shape[1], jax.tree.leaves(cache.own)[0].shape[-2]
        at = (prompt_length + index)[None]
        table = tuple(jax.lax.dynamic_slice_in_dim(x, at[0], 1) for x in module.rotary(prompt_length + length))
        x = module.embed(tokens.reshape(rows * count, 1), after(cache.valid, count, 1) + index)
        kept = by_layer(cache.prompt, cache.own)
        visible = sees(at, prompt_length + jnp.arange(length))
        of_prompt = cache.valid[:, None, None, :] & sees(at, jnp.arange(prompt_length))
        seen = (visible, of_prompt, index)
        x, own = map_blocks(module, ContinuedBlock, config, x, kept, table, *seen)
        return logits(module, x).reshape(rows, count, -1), cache._replace(own=own)

    def score(
        params: Any,
        prompts: Int[Array, "b p"],
        valid: Bool[Array, "b p"],
        continuations: Int[Array, "b n t"],
        counted: Bool[Array, "b n t"],
        temperature: float = 1.0,
    ) -> Float[Array, "b n t"]:
        module = merge(params)
        rows, count, length = continuations.shape
        prompt_length = prompts.shape[1]
        last, kept = read_prompts(module, prompts, valid)
        x = jnp.repeat(last, count, axis=0)
        if length > 1:
            tokens = continuations[:, :, :-1].reshape(rows * count, length - 1)
            new = module.embed(tokens, after(valid, count, length - 1))
            table = tuple(part[prompt_length:] for part in module.rotary(prompt_length + length - 1))
            slots = jnp.arange(prompt_length, prompt_length + length - 1)
            of_prompt = valid[:, None, None, :] & sees(slots, jnp.arange(prompt_length))
            seen = (sees(slots, slots), of_prompt)
            new, _ = map_blocks(module, ContinuedBlock, config, new, by_layer(kept, None), table, *seen)
            x = jnp.concatenate([x, new], axis=1)
        targets = jnp.where(counted, continuations, -1).reshape(rows * count, length)
        hidden, words = module.read_out(x)
        words = (words / temperature).astype(hidden.dtype)
        losses, _ = token_losses(hidden, words, targets, chunk=config.positions_per_loss_chunk)
        return -losses.reshape(rows, count, length)

    return Decoding(prefill, extend, score)
