"""The candidates of a super-batch: all on one device, or in equal shares on the devices of a mesh."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from jaxmix.core.errors import ConfigError
from jaxmix.core.sharding import batch_spec, shard_map
from jaxmix.core.types import Array, Bool, Int

_TILE = 1 << 23
"""Entries of a tile of pairs where the caller does not say: 32 MiB of float32."""


class Candidates(NamedTuple):
    """Access to `total` candidates, of which this device holds all, or one of `shards` equal shares in order.

    Attributes:
        total: candidates in all.
        shards: number of shares; 1 under plain `jit`, whatever the sharding of the arrays.
        axes: mesh axes over which they are split.
    """

    total: int
    shards: int = 1
    axes: tuple[str, ...] = ()

    @property
    def local_count(self) -> int:
        """Candidates on this device."""
        return self.total // self.shards

    def local_indices(self) -> Int[Array, " c"]:
        """Global indices of the candidates on this device."""
        return self._start() + jnp.arange(self.local_count, dtype=jnp.int32)

    def _start(self) -> Array | int:
        return jax.lax.axis_index(self.axes) * self.local_count if self.axes else 0

    def _locate(self, indices: Int[Array, " k"]) -> tuple[Array, Array]:
        """(positions on this device, which of them are on it)."""
        local = indices - self._start()
        return local, (indices >= 0) & (local >= 0) & (local < self.local_count)

    def fetch(self, values: Array, indices: Int[Array, " k"]) -> Array:
        """`values[indices]`, the same on every device, 0 where an index is −1. Moves as much as it returns."""
        local, is_here = self._locate(indices)
        found = jnp.take(values, jnp.clip(local, 0, self.local_count - 1), axis=0)
        found = jnp.where(is_here.reshape(-1, *(1,) * (values.ndim - 1)), found, jnp.zeros((), values.dtype))
        return jax.lax.psum(found, self.axes) if self.axes else found

    def gather(self, values: Array) -> Array:
        """The whole vector of which this device holds `values`, the same on every device."""
        return jax.lax.all_gather(values, self.axes, tiled=True) if self.axes else values

    def local_part(self, values: Array) -> Array:
        """This device's share of a vector of all candidates."""
        return jax.lax.dynamic_slice_in_dim(values, self._start(), self.local_count) if self.axes else values

    def mark(self, flags: Bool[Array, " c"], indices: Int[Array, " k"], value: bool) -> Bool[Array, " c"]:
        """`flags` with those of `indices` set to `value`; −1 is ignored."""
        local, is_here = self._locate(indices)
        return flags.at[jnp.where(is_here, local, self.local_count)].set(value, mode="drop")


def over_candidates(
    function: Callable[[Candidates, Any, Any], Any], mesh: Mesh | None, total: int, data: Any, whole: Any, *, name: str
) -> Any:
    """Calls `function(candidates, data, whole)`, over the shards of `mesh` if there is one.

    Args:
        function: returns values that are the same on every device.
        mesh: candidates are split over its data axes; `None` leaves the sharding to `jit`.
        total: number of candidates.
        data: any pytree of scalars, which every device gets, and arrays with a row per candidate, which are split.
        whole: any pytree of other arrays, which every device gets.
        name: of the selector, for the error.
    """
    if mesh is None:
        return function(Candidates(total), data, whole)
    (axes,) = batch_spec()
    shards = math.prod(mesh.shape[axis] for axis in axes)
    if total % shards:
        raise ConfigError(
            f"{total} candidates cannot be divided over {shards} devices (data x fsdp)",
            where=f"{name}(mesh)",
            fix=f"Use a multiple of {shards}; pad with rows marked as not valid if need be.",
        )
    specs = jax.tree.map(lambda leaf: batch_spec() if jnp.ndim(leaf) else PartitionSpec(), data)
    local = partial(function, Candidates(total, shards, axes))
    # The result of an all-gather is the same everywhere, which the check of varying axes cannot see.
    return shard_map(local, mesh, in_specs=(specs, PartitionSpec()), out_specs=PartitionSpec(), check=False)(
        data, whole
    )


def by_row_blocks(function: Callable[[Any], Any], rows: Any, columns: int, row_block: int | None) -> Any:
    """`function(rows)` computed for some rows at a time, so that a tile of rows × `columns` stays small.

    Args:
        function: of a tree of arrays with rows in front; returns a tree of such arrays.
        rows: the tree for all rows.
        columns: width of the tile that `function` makes.
        row_block: rows at a time; by default as many as make a tile of 32 MiB.

    Block j has the rows j, j + blocks, j + 2 blocks, …: rows that are sharded in order then stay where they are.
    """
    count = jax.tree.leaves(rows)[0].shape[0]
    blocks = -(-count // (row_block or max(1, _TILE // columns)))
    if blocks == 1:
        return function(rows)
    blocks = next((number for number in range(blocks, 2 * blocks + 1) if count % number == 0), blocks)
    size = -(-count // blocks)

    def split(x: Array) -> Array:
        padded = jnp.pad(x, [(0, size * blocks - count)] + [(0, 0)] * (x.ndim - 1)) if size * blocks > count else x
        return padded.reshape(size, blocks, *x.shape[1:])

    parts = jax.tree.map(split, rows)
    one = lambda j: function(jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, j, 1, keepdims=False), parts))
    found = jax.lax.map(one, jnp.arange(blocks))
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1).reshape(size * blocks, *x.shape[2:])[:count], found)
