"""Rows on one device or split over a mesh, checked, with weights."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxmix.core.errors import ConfigError
from jaxmix.core.sharding import batch_sharding, batch_spec, replicated
from jaxmix.core.types import Array, Float

_TOLERANCE = {2: 2e-2, 4: 1e-3, 8: 1e-3}


class PlacedRows(NamedTuple):
    """Rows where the passes want them, with their weights.

    Attributes:
        x: over a mesh padded with zero rows to a multiple of its data axes.
        weight: 0 for padding.
        number: rows with a weight above 0.
        total: their weight.
        given: rows without padding.
        mesh: or `None` for one device.
    """

    x: Float[Array, "n d"]
    weight: Float[Array, " n"]
    number: float
    total: float
    given: int
    mesh: Mesh | None


def row_shards(mesh: Mesh) -> int:
    """The number of shares into which `mesh` divides rows."""
    (axes,) = batch_spec()
    return math.prod(mesh.shape[axis] for axis in axes)


def place_rows(
    name: str, x: Any, sample_weight: Any, num_clusters: int, mesh: Mesh | None, *, checked: bool = True
) -> PlacedRows:
    """Puts rows and weights on the devices, and checks them there unless that was done before.

    Raises:
        ConfigError: `x` is not a matrix of floats, a row is not of length 1, weights are negative or not finite or of
            another length, or fewer rows than clusters count.
    """
    if getattr(x, "ndim", 0) != 2 or not jnp.issubdtype(x.dtype, jnp.floating) or not x.size:
        raise ConfigError(
            f"rows must be floats of shape [n, d], got {getattr(x, 'dtype', type(x))}{list(getattr(x, 'shape', ()))}",
            where=f"{name}(x)",
            fix="Give a row of length 1 for every document.",
        )
    given = x.shape[0]
    dtype = jnp.dtype(jnp.float64 if x.dtype == np.float64 and jax.config.read("jax_enable_x64") else jnp.float32)
    weight = np.ones((given,), dtype) if sample_weight is None else sample_weight
    if getattr(weight, "shape", None) != (given,):
        raise ConfigError(
            f"{given} rows have weights of shape {getattr(weight, 'shape', None)}",
            where=f"{name}(sample_weight)",
            fix="Give one weight a row.",
        )
    if mesh is None:
        x, weight = jnp.asarray(x), jnp.asarray(weight, dtype)
    else:
        pad = -given % row_shards(mesh)
        sharding = batch_sharding(mesh)
        host = np if isinstance(x, np.ndarray) else jnp
        if pad:
            x = host.pad(x, ((0, pad), (0, 0)))
        x = jax.device_put(x, sharding)
        weight = jax.device_put(jnp.pad(jnp.asarray(weight, dtype), (0, pad)), sharding)
    if not checked:
        return PlacedRows(x, weight, math.nan, math.nan, given, mesh)
    # One pass of row lengths; under plain `jit` each device looks at its own rows.
    length, count, total, is_fine = jax.device_get(_inspect(x, weight))
    if not is_fine or (num_clusters and not total > 0):
        raise ConfigError(
            "weights must be finite, ≥ 0 and not all 0", where=f"{name}(sample_weight)", fix="Drop rows with weight 0."
        )
    if not length <= _TOLERANCE[x.dtype.itemsize]:
        raise ConfigError(
            f"rows must have length 1, one is off by {length:.3g}",
            where=f"{name}(x)",
            fix="Divide rows by their length, and drop zero rows (empty documents).",
        )
    if count < num_clusters:
        raise ConfigError(
            f"{int(count)} rows are fewer than {num_clusters} clusters", where=f"{name}(x)", fix="Lower num_clusters."
        )
    return PlacedRows(x, weight, float(count), float(total), given, mesh)


@jax.jit
def _inspect(x: Array, weight: Array) -> tuple[Array, Array, Array, Array]:
    """(largest error of a length, rows that count, weight, whether weights are fine)."""
    squares = jnp.sum(jnp.square(x.astype(weight.dtype)), axis=1)
    off = jnp.where(weight > 0, jnp.abs(jnp.sqrt(squares) - 1), 0)
    is_fine = jnp.all(jnp.isfinite(weight) & (weight >= 0))
    return jnp.max(off), jnp.sum(weight > 0, dtype=jnp.int32), jnp.sum(weight), is_fine


@functools.cache
def _gather(mesh: Mesh | None) -> Any:
    out = None if mesh is None else replicated(mesh)
    return jax.jit(lambda x, rows: x[rows], out_shardings=out)


def take_rows(x: Array, rows: np.ndarray, mesh: Mesh | None) -> Array:
    """`x[rows]`, the same on every device."""
    return _gather(mesh)(x, jnp.asarray(rows))
