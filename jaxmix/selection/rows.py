"""Candidates by their global number, whether all rows are here or each device holds a share of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from jaxmix.core.errors import ConfigError
from jaxmix.core.sharding import batch_spec, shard_map
from jaxmix.core.types import Array

_TILE = 1 << 23
"""Pair terms held at once where the caller does not say: 32 MiB of float32."""


class Rows(NamedTuple):
    """Access to `total` candidates, of which this program holds all, or one of `shards` equal shares in order.

    Attributes:
        total: candidates in all.
        shards: in how many shares they lie; 1 under plain `jit`, whatever the sharding of the arrays.
        axes: mesh axes over which they are split.
    """

    total: int
    shards: int = 1
    axes: tuple[str, ...] = ()

    @property
    def held(self) -> int:
        """Candidates held here."""
        return self.total // self.shards

    def numbers(self) -> Array:
        """i32[held], the global numbers of the candidates held here."""
        return self._start() + jnp.arange(self.held, dtype=jnp.int32)

    def _start(self) -> Array | int:
        return jax.lax.axis_index(self.axes) * self.held if self.axes else 0

    def fetch(self, values: Array, indices: Array) -> Array:
        """`values[indices]`, the same on every device, 0 where an index is −1. Moves as much as it returns."""
        local = indices - self._start()
        is_here = (indices >= 0) & (local >= 0) & (local < self.held)
        found = jnp.take(values, jnp.clip(local, 0, self.held - 1), axis=0)
        found = jnp.where(is_here.reshape(-1, *(1,) * (values.ndim - 1)), found, jnp.zeros((), values.dtype))
        return jax.lax.psum(found, self.axes) if self.axes else found

    def gather(self, values: Array) -> Array:
        """All of a vector, the same on every device."""
        return jax.lax.all_gather(values, self.axes, tiled=True) if self.axes else values

    def local(self, values: Array) -> Array:
        """This device's share of a vector of all candidates."""
        return jax.lax.dynamic_slice_in_dim(values, self._start(), self.held) if self.axes else values

    def mark(self, flags: Array, indices: Array, value: bool) -> Array:
        """`flags` with those of `indices` set; −1 is no index."""
        local = indices - self._start()
        is_here = (indices >= 0) & (local >= 0) & (local < self.held)
        return flags.at[jnp.where(is_here, local, self.held)].set(value, mode="drop")


def over_rows(
    function: Callable[[Rows, Any, Any], Any], mesh: Mesh | None, count: int, per_row: Any, whole: Any, *, name: str
) -> Any:
    """Calls `function(rows, per_row, whole)`, over the shards of `mesh` if there is one.

    Args:
        function: returns what is the same on every device.
        mesh: rows are split over its data axes; `None` leaves the sharding to `jit`.
        count: candidates.
        per_row: tree of arrays with `count` rows.
        whole: tree of arrays that every device holds whole.
        name: of the selector, for the error.
    """
    if mesh is None:
        return function(Rows(count), per_row, whole)
    (axes,) = batch_spec()
    shards = 1
    for axis in axes:
        shards *= mesh.shape[axis]
    if count % shards:
        raise ConfigError(
            f"{count} candidates cannot be divided over {shards} devices (data x fsdp)",
            where=f"{name}(mesh)",
            fix=f"Use a multiple of {shards}, with rows marked as not valid if need be.",
        )
    split, same = PartitionSpec(axes), PartitionSpec()
    spec = lambda tree, each: jax.tree.map(lambda _: each, tree)
    # The result of an all-gather is the same everywhere, which the check of varying axes cannot see.
    mapped = shard_map(
        partial(function, Rows(count, shards, axes)),
        mesh,
        in_specs=(spec(per_row, split), spec(whole, same)),
        out_specs=same,
        is_checked=False,
    )
    return mapped(per_row, whole)


def by_row_blocks(function: Callable[[Any], Any], per_row: Any, columns: int, row_block: int | None) -> Any:
    """`function(per_row)` computed for some rows at a time, so that a tile of rows × `columns` stays small.

    Args:
        function: of a tree of arrays with rows in front; returns a tree of such arrays.
        per_row: the tree for all rows.
        columns: width of the tile that `function` makes.
        row_block: rows at a time; by default as many as make a tile of 32 MiB.

    Block j has the rows j, j + blocks, j + 2 blocks, …: rows that are sharded in order then stay where they are.
    """
    rows = jax.tree.leaves(per_row)[0].shape[0]
    blocks = -(-rows // (row_block or max(1, _TILE // columns)))
    if blocks == 1:
        return function(per_row)
    blocks = next((number for number in range(blocks, 2 * blocks + 1) if rows % number == 0), blocks)
    size = -(-rows // blocks)

    def split(x: Array) -> Array:
        padded = jnp.pad(x, [(0, size * blocks - rows)] + [(0, 0)] * (x.ndim - 1)) if size * blocks > rows else x
        return padded.reshape(size, blocks, *x.shape[1:])

    parts = jax.tree.map(split, per_row)
    one = lambda j: function(jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, j, 1, keepdims=False), parts))
    found = jax.lax.map(one, jnp.arange(blocks))
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1).reshape(size * blocks, *x.shape[2:])[:rows], found)
