"""Batches of images at several patch sizes at once, as in the training of Flexi-JEST."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxmix.core.errors import ConfigError
from jaxmix.core.types import Array, Float, Int, PRNGKeyArray


def embed_mixed(
    embed_image: Callable[..., Any],
    params: Any,
    images: Array,
    *,
    patch_sizes: Sequence[int],
    key: PRNGKeyArray | None = None,
) -> Float[Array, "b e"]:
    """Embeds equal shares of a batch at the given patch sizes; row i of the result belongs to image i.

    The batch is cut into groups of len(patch_sizes) consecutive rows, and of every group one row is embedded at each
    of the patch sizes, which one is drawn by `key`. Two halves are `(16, 32)`; a quarter at the coarse one is
    `(16, 16, 16, 32)`. One contrastive loss over the result sees all pairs, whatever their resolutions.

    Drawn within groups and not over the batch, because the order of selected rows tells their chunk: early chunks
    differ from late ones, and so each has its exact share of every resolution. Groups also stay on their device when
    rows are sharded.

    Args:
        embed_image: of a `TwoTowers`.
        params: its parameters.
        images: u8 or f32[b, h, w, 3]; b is a multiple of len(patch_sizes).
        patch_sizes: static; a size that stands there twice gets two shares, in one call of `embed_image`.
        key: typed PRNG key; None: the first row of every group gets the first patch size, and so on.

    Raises:
        ConfigError: no patch size, or the rows cannot be divided into groups.

    References:
        Evans et al., "Data curation via joint example selection further accelerates multimodal learning", arXiv
        2406.17711 (Flexi-JEST: half of each batch at patch 32, half at 16).
    """
    size = len(patch_sizes)
    rows = images.shape[0]
    if size == 0 or rows % size:
        raise ConfigError(
            f"{rows} images cannot be divided into equal shares for the patch sizes {list(patch_sizes)}",
            where="patch_sizes",
            fix="Choose a batch size that is a multiple of their number.",
        )
    order = _orders(key, rows // size, size)
    groups = images.reshape(-1, size, *images.shape[1:])
    groups = groups if key is None else _take(groups, order)
    places: dict[int, list[int]] = {}
    for place, patch_size in enumerate(patch_sizes):
        places.setdefault(patch_size, []).append(place)
    parts, found = [], []
    for patch_size, at in places.items():
        part = jnp.stack([groups[:, place] for place in at], axis=1).reshape(-1, *images.shape[1:])
        parts.append(embed_image(params, part, patch_size=patch_size).reshape(rows // size, len(at), -1))
        found.extend(at)
    # Slot s of the joined parts holds place found[s] of the drawn order, that is row order[:, found[s]].
    slot_rows = jnp.take(order, jnp.asarray(found), axis=1)
    return _take(jnp.concatenate(parts, axis=1), jnp.argsort(slot_rows, axis=1)).reshape(rows, -1)


def mean_flops_per_image(flops_per_image: Callable[..., float], patch_sizes: Sequence[int]) -> float:
    """Mean operations of one image's forward pass in `embed_mixed`; `flops_per_image` of a `TwoTowers`."""
    return math.fsum(flops_per_image(patch_size) for patch_size in patch_sizes) / len(patch_sizes)


def _orders(key: PRNGKeyArray | None, groups: int, size: int) -> Int[Array, "groups size"]:
    plain = jnp.broadcast_to(jnp.arange(size), (groups, size))
    return plain if key is None else jax.random.permutation(key, plain, axis=1, independent=True)


def _take(x: Array, order: Array) -> Array:
    """x [groups, size, …] with the rows of every group in the given order."""
    return jnp.take_along_axis(x, order.reshape(*order.shape, *(1,) * (x.ndim - 2)), axis=1)
