"""Batches cut into micro-batches on the devices that hold their rows, and sums over these."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxmix.core.types import Array


def split_rows(x: Array, count: int) -> Array:
    """[b, …] → [count, b / count, …]: rows i, i + count, … form micro-batch i: each device cuts its own rows."""
    return jnp.swapaxes(x.reshape(-1, count, *x.shape[1:]), 0, 1)


def rejoin(x: Array) -> Array:
    """The inverse of `split_rows`."""
    return jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:])


def sum_over(function: Callable[[Any], Any], micro_batches: Any) -> Any:
    """The sum of `function(micro_batch)`, a tree of arrays, over the leading axis of `micro_batches`, one at a time."""
    shapes = jax.eval_shape(function, jax.tree.map(lambda x: x[0], micro_batches))
    start = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    add = lambda total, micro: (jax.tree.map(jnp.add, total, function(micro)), None)
    return jax.lax.scan(add, start, micro_batches)[0]
