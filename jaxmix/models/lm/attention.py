"""Rotary positions, causal attention and attention in both directions.

Letters: b rows, t tokens, h query heads, g key-value heads (h = g · r), k size of a head.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxmix.core.types import Array, Bool, Float, Int
from jaxmix.models.lm.config import RopeScaling
from jaxmix.models.precision import wide_dtype

_MOST_BLOCKS = 16


def rotary_table(
    length: int, dim: int, base: float, scaling: RopeScaling | None = None
) -> tuple[Float[Array, "t half"], Float[Array, "t half"]]:
    """Cosines and sines of the angles `position · base^(−2i / dim)`, i < dim / 2; float32.

    Made by NumPy: as part of the program, XLA's CPU compiler fuses them into their use and computes every cosine
    again for every row and head.
    """
    frequencies = base ** (-np.arange(0, dim, 2) / max(dim, 1))
    if scaling is not None:
        turns = frequencies * scaling.original_length / (2 * np.pi)
        low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
        kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
        frequencies = frequencies * (kept + (1.0 - kept) / scaling.factor)
    angles = np.arange(length)[:, None] * frequencies
    return jnp.asarray(np.cos(angles), jnp.float32), jnp.asarray(np.sin(angles), jnp.float32)


def apply_rotary(
    x: Float[Array, "b t h k"], table: tuple[Float[Array, "t half"], Float[Array, "t half"]]
) -> Float[Array, "b t h k"]:
    """Turns the pairs (x[i], x[i + half]) of every head by its position's angle (RoFormer, section 3.2.2).

    Dimensions from 2 · half on stay as they are.
    """
    cos, sin = (part[None, :, None, :].astype(x.dtype) for part in table)
    half = cos.shape[-1]
    first, second, rest = jnp.split(x, (half, 2 * half), axis=-1)
    turned = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate(turned if 2 * half == x.shape[-1] else [*turned, rest], axis=-1)


def causal_attention(
    query: Float[Array, "b t h k"],
    key: Float[Array, "b t g k"],
    value: Float[Array, "b t g k"],
    *,
    kind: str,
    block: int,
    window: int | None = None,
) -> Float[Array, "b t h k"]:
    """softmax(q kᵀ / √k over positions not later) v, by the way called `kind` ("auto": blocked on CPU).

    With a `window`, over the last `window` of them. The backend is looked at when the function is traced, so building
    a model touches no device.
    """
    backend = jax.default_backend()
    if kind == "blocked" or (kind == "auto" and backend == "cpu"):
        return blocked_causal_attention(query, key, value, block=block, window=window)
    return jax.nn.dot_product_attention(
        query,
        key,
        value,
        is_causal=True,
        local_window_size=None if window is None else (window - 1, 0),
        implementation="cudnn" if _suits_cudnn(query, backend) else "xla",
    )


def causal_mask(queries: Int[Array, " s"], keys: Int[Array, " u"], window: int | None) -> Bool[Array, "s u"]:
    """Which keys a query sees, by their positions: those not later, within the window."""
    before = queries[:, None] - keys[None, :]
    return before >= 0 if window is None else (before >= 0) & (before < window)


def _suits_cudnn(query: Array, backend: str) -> bool:
    """cuDNN's flash attention takes 16-bit floats, heads of at most 128 in steps of 8, and rows of even length."""
    _, length, _, head_dim = query.shape
    is_half = query.dtype in (jnp.bfloat16, jnp.float16)
    is_nvidia = backend == "gpu" and "cuda" in jax.devices()[0].client.platform_version.lower()
    return is_nvidia and is_half and head_dim <= 128 and head_dim % 8 == 0 and length % 2 == 0


def blocked_causal_attention(
    query: Float[Array, "b t h k"],
    key: Float[Array, "b t g k"],
    value: Float[Array, "b t g k"],
    *,
    block: int,
    window: int | None = None,
) -> Float[Array, "b t h k"]:
    """Causal attention in blocks of queries, each against just the keys from its window's begin to its end.

    Half the work of the dense form, and scores of one block at a time. The loop is unrolled, therefore rows longer
    than 16 blocks use larger blocks. Softmax in float32 (float64 if the input is).

    Args:
        query, key, value: after rotation; the head h attends with the key-value head ⌊h / r⌋.
        block: queries per block, ≥ 1; the last block may be shorter.
        window: a query sees its own key and window − 1 before it; None: all before it.
    """
    rows, length, heads, size = query.shape
    groups = key.shape[2]
    block = max(block, -(-length // _MOST_BLOCKS))
    wide = wide_dtype(query.dtype)
    scaled = query * (size**-0.5)
    # Heads in front of positions: every product below is then a batch of plain matrix products.
    queries = scaled.reshape(rows, length, groups, heads // groups, size).transpose(0, 2, 3, 1, 4)
    keys, values = key.transpose(0, 2, 1, 3), value.transpose(0, 2, 1, 3)
    outputs = []
    for start in range(0, length, block):
        end = min(start + block, length)
        first = 0 if window is None else max(0, start - window + 1)
        part = queries[:, :, :, start:end].reshape(rows, groups, -1, size)
        scores = jnp.einsum("bgqk,bgsk->bgqs", part, keys[:, :, first:end], preferred_element_type=wide)
        scores = scores.reshape(rows, groups, heads // groups, end - start, end - first)
        is_visible = causal_mask(jnp.arange(start, end), jnp.arange(first, end), window)
        scores = jnp.where(is_visible[None, None, None], scores, -jnp.inf)
        # Dividing the small output by Σ exp instead of the large weights saves a pass over them.
        weights = jnp.exp(scores - jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True)))
        total = jnp.sum(weights, axis=-1, keepdims=True)
        flat = weights.astype(value.dtype).reshape(rows, groups, -1, end - first)
        mixed = jnp.einsum("bgqs,bgsk->bgqk", flat, values[:, :, first:end], preferred_element_type=wide)
        outputs.append((mixed.reshape(*scores.shape[:-1], size) / total).astype(value.dtype))
    joined = jnp.concatenate(outputs, axis=3)
    return joined.transpose(0, 3, 1, 2, 4).reshape(rows, length, heads, size)


def full_attention(
    query: Float[Array, "b t h k"],
    key: Float[Array, "b s g k"],
    value: Float[Array, "b s g k"],
    valid: Bool[Array, "b s"] | None = None,
    *,
    kind: str = "auto",
) -> Float[Array, "b t h k"]:
    """softmax(q kᵀ / √k over the valid positions) v; a row with no valid position averages over all of them.

    Args:
        query, key, value: after rotation, if any; the head h attends with the key-value head ⌊h / r⌋.
        valid: which positions are tokens; None: all.
        kind: "dense" (scores of all heads at once, softmax in float32), "dot_product"
            (`jax.nn.dot_product_attention`: cuDNN on GPU in bfloat16 where nothing is masked), or "auto": dense on CPU.
    """
    backend = jax.default_backend()
    if kind == "dot_product" or (kind == "auto" and backend != "cpu"):
        mask = None if valid is None else valid[:, None, None, :]
        is_suited = valid is None and key.shape[1] == query.shape[1] and _suits_cudnn(query, backend)
        return jax.nn.dot_product_attention(
            query, key, value, mask=mask, implementation="cudnn" if is_suited else "xla"
        )
    rows, length, heads, size = query.shape
    groups = key.shape[2]
    wide = wide_dtype(query.dtype)
    queries = (query * (size**-0.5)).reshape(rows, length, groups, heads // groups, size)
    queries = queries.transpose(0, 2, 3, 1, 4).reshape(rows, groups, -1, size)
    keys, values = key.transpose(0, 2, 1, 3), value.transpose(0, 2, 1, 3)
    scores = jnp.einsum("bgqk,bgsk->bgqs", queries, keys, preferred_element_type=wide)
    if valid is not None:
        # The least finite number and not −∞: a row without tokens must not become 0 / 0.
        scores = jnp.where(valid[:, None, None, :], scores, jnp.finfo(wide).min)
    weights = jnp.exp(scores - jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True)))
    total = jnp.sum(weights, axis=-1, keepdims=True)
    mixed = jnp.einsum("bgqs,bgsk->bgqk", weights.astype(value.dtype), values, preferred_element_type=wide)
    mixed = (mixed / total).astype(value.dtype).reshape(rows, groups, heads // groups, length, size)
    return mixed.transpose(0, 3, 1, 2, 4).reshape(rows, length, heads, size)
