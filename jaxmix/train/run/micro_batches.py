"""A batch cut into micro-batches on the devices that hold its rows."""

from __future__ import annotations

import jax.numpy as jnp

from jaxmix.core.types import Array


def split_rows(x: Array, count: int) -> Array:
    """[b, …] → [count, b / count, …]: rows i, i + count, … form micro-batch i: each device cuts its own rows."""
    return jnp.swapaxes(x.reshape(-1, count, *x.shape[1:]), 0, 1)


def rejoin(x: Array) -> Array:
    """The inverse of `split_rows`."""
    return jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:])
