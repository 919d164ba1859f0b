"""Partition of a transformer's parameters and activations over a mesh with the axes data, fsdp and tensor.

Over `tensor` go heads, hidden units and words (each device then computes its heads, its units, its logits); over
`fsdp` goes the width, gathered when a layer needs it; over `data` nothing of the parameters. Norms are small and
stay whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxmix.core.types import Array

_SPECS: dict[str, PartitionSpec] = {
    "table": PartitionSpec("tensor", "fsdp"),  # [v, d]
    "readout": PartitionSpec("tensor", "fsdp"),  # [v, d]
    "position": PartitionSpec(None, "fsdp"),  # [p, d]
    "attention/input": PartitionSpec("fsdp", "tensor", None, None),  # [d, g, r + 2, k]
    "attention/output": PartitionSpec("tensor", None, "fsdp"),  # [h, k, d]
    "attention/input_bias": PartitionSpec("tensor", None, None),  # [g, r + 2, k]
    "attention/output_bias": PartitionSpec(None),  # [d]
    "query_norm/scale": PartitionSpec(None),  # [k] or [h · k]
    "key_norm/scale": PartitionSpec(None),  # [k] or [g · k]
    "feed_forward/input": PartitionSpec("fsdp", None, "tensor"),  # [d, i, f]
    "feed_forward/output": PartitionSpec("tensor", "fsdp"),  # [f, d]
    "feed_forward/input_bias": PartitionSpec(None, "tensor"),  # [i, f]
    "feed_forward/output_bias": PartitionSpec(None),  # [d]
    "image/patch": PartitionSpec(None, None, None, "fsdp"),  # [p, p, c, d]
    "image/position": PartitionSpec(None, None, "fsdp"),  # [g, g, d]
    "image/projection": PartitionSpec("fsdp", "tensor"),  # [d, e]
    "text/table": PartitionSpec("tensor", "fsdp"),  # [v, d]
    "text/projection": PartitionSpec("fsdp", "tensor"),  # [d, e]
    "pool/query": PartitionSpec("tensor", None),  # [h, k]
    "pool/input": PartitionSpec("fsdp", "tensor", None, None),  # [d, h, 2, k]
    "pool/output": PartitionSpec("tensor", None, "fsdp"),  # [h, k, d]
    "log_temperature": PartitionSpec(),
    "bias": PartitionSpec(),
    "norm/scale": PartitionSpec(None),  # [d]
    "norm/bias": PartitionSpec(None),  # [d]
    "final_norm/scale": PartitionSpec(None),  # [d]
    "final_norm/bias": PartitionSpec(None),  # [d]
}


def parameter_partition(shapes: Any) -> Any:
    """Returns the tree of `PartitionSpec` for a tree of parameters or their shapes.

    Stacked blocks have one axis more in front, which is not split.
    """

    def spec(path: Any, leaf: Any) -> PartitionSpec:
        base = _SPECS[jax.tree_util.keystr(path[-2:], simple=True, separator="/")]
        return PartitionSpec(*(None,) * (leaf.ndim - len(base)), *base)

    return jax.tree_util.tree_map_with_path(spec, shapes)


def fit_partition(partition: Any, shapes: Any, axis_sizes: Mapping[str, int]) -> Any:
    """Drops the mesh axes that do not divide the dimension they would split; it is then whole on every device.

    Two key-value heads on `tensor = 4`, for example, are held by all four. Correct either way; it costs memory.

    Args:
        partition: tree of `PartitionSpec`, or None for "all whole".
        shapes: tree of arrays or `jax.ShapeDtypeStruct` of the same structure.
        axis_sizes: axis name → devices, such as `mesh.shape`.
    """
    if partition is None:
        return None

    def fit(leaf: Any, spec: PartitionSpec) -> PartitionSpec:
        return PartitionSpec(*(_divides(axis_sizes, axis, size) for axis, size in zip(spec, leaf.shape, strict=False)))

    return jax.tree.map(fit, shapes, partition)


def _divides(axis_sizes: Mapping[str, int], axis: Any, size: int) -> Any:
    count = 1
    for name in axis if isinstance(axis, tuple) else (axis,):
        count *= 1 if name is None else axis_sizes[name]
    return axis if size % count == 0 else None


def constrain_rows(x: Array) -> Array:
    """Keeps rows split over ("data", "fsdp") and the rest whole, if a mesh with these axes is in use.

    Without it XLA may split the residual stream like the parameters it meets and move it at every layer.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or not {"data", "fsdp"} <= set(mesh.axis_names):
        return x
    if x.shape[0] % (mesh.shape["data"] * mesh.shape["fsdp"]):
        return x
    spec = PartitionSpec(("data", "fsdp"), *(None,) * (x.ndim - 1))
    return jax.lax.with_sharding_constraint(x, spec)


def params_template(model: Any, mesh: Mesh) -> Any:
    """Shapes, dtypes and shardings of a model's parameters on a mesh, as `train.checkpoint.read_params` wants them."""
    shapes = jax.eval_shape(model.init, jax.random.key(0))

    def placed(leaf: Any, spec: PartitionSpec) -> Any:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree.map(placed, shapes, fit_partition(model.partition, shapes, mesh.shape))
