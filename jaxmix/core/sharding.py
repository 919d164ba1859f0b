"""Meshes, shardings and processes: the only module that calls the parts of JAX that differ between versions.

The same code serves one CPU, eight emulated devices, GPUs and a TPU pod slice. A mesh has three axes:

| axis | what is split over it |
|---|---|
| `data` | rows of the batch |
| `fsdp` | rows of the batch, and parameters that the model marks with it |
| `tensor` | parameters that the model marks with it |
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxmix.core.errors import ConfigError, EnvironmentProblem
from jaxmix.core.rendezvous import wait_for_all
from jaxmix.core.validate import MESH_AXES, check_mesh_shape

_ROW_AXES = ("data", "fsdp")


def build_mesh(*, data: int = -1, fsdp: int = 1, tensor: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns a mesh with the axes `data`, `fsdp` and `tensor`.

    Args:
        data: number of devices along the axis; at most one of the three may be −1, "all that are left".
        fsdp: the same.
        tensor: the same.
        devices: which devices; all of all processes by default, arranged for fast neighbors.

    Raises:
        ConfigError: the product of the axes differs from the number of devices.
    """
    sizes = {"data": data, "fsdp": fsdp, "tensor": tensor}
    count = jax.device_count() if devices is None else len(devices)
    check_mesh_shape(sizes, "mesh")
    has_free = -1 in sizes.values()
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if count % fixed or (not has_free and fixed != count):
        asked = " x ".join(f"{name}={size}" for name, size in sizes.items())
        raise ConfigError(
            f"the mesh {asked} does not fit on {count} device{'s' if count != 1 else ''}",
            where="mesh",
            fix=f"Choose axes whose product {'divides' if has_free else 'is'} {count}, "
            "or leave data at -1 to take all that are left.",
        )
    shape = tuple(count // fixed if size == -1 else size for size in sizes.values())
    types = (AxisType.Auto,) * len(MESH_AXES)
    if devices is None:
        return jax.make_mesh(shape, MESH_AXES, axis_types=types)
    # An explicit list keeps its order: tests and two-process runs rely on who holds which rows.
    return Mesh(np.asarray(devices, dtype=object).reshape(shape), MESH_AXES, axis_types=types)


def proxy_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with the one axis `proxy`: independent models side by side, see `jaxmix.train.swarm`.

    Args:
        devices: which devices; all of this process by default.
    """
    chosen = jax.local_devices() if devices is None else devices
    return Mesh(np.asarray(chosen, dtype=object), ("proxy",), axis_types=(AxisType.Auto,))


def one_device_per_core() -> None:
    """Makes every core that this process may use a device of its own. No effect once a device was touched.

    Several small programs side by side, each on one core, waste less than one program on all cores.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", cores or 1)


def batch_spec() -> PartitionSpec:
    """The specification of a batch array: rows over `data` and `fsdp`, everything else whole."""
    return PartitionSpec(_ROW_AXES)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch array on `mesh`; the number of rows must be a multiple of data × fsdp."""
    return NamedSharding(mesh, batch_spec())


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of a value that every device of `mesh` holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def named_shardings(mesh: Mesh, specs: Any) -> Any:
    """Turns a tree of `PartitionSpec` into the same tree of `NamedSharding`.

    `None` in the place of a specification (also as the whole tree) means replicated.
    """
    return jax.tree.map(
        lambda spec: NamedSharding(mesh, PartitionSpec() if spec is None else spec),
        specs,
        is_leaf=lambda x: x is None or isinstance(x, PartitionSpec),
    )


def global_batch(mesh: Mesh, host_batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """Puts one process's rows of a batch on its devices and returns the global arrays.

    With `process_shard() == (index, count)` and a global batch of b rows, the process passes rows
    `[index · b / count, (index + 1) · b / count)`: a contiguous slice, in order. With one process that is the
    whole batch.

    Args:
        mesh: the mesh of the run.
        host_batch: name → array with rows on the leading axis; all have equally many rows.

    Returns:
        name → array of b = rows × count rows, sharded by `batch_sharding(mesh)`.

    Raises:
        ConfigError: the rows cannot be divided over the devices, or the mesh does not give each process a
            contiguous run of rows.
    """
    sharding = batch_sharding(mesh)
    index, count = process_shard()
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    batch = {}
    for name, local in host_batch.items():
        rows = local.shape[0] * count
        if rows % shards:
            raise ConfigError(
                f"a batch of {rows} rows cannot be divided over {shards} devices (data x fsdp)",
                where="batch_size",
                fix=f"Use a multiple of {shards}.",
            )
        shape = (rows, *local.shape[1:])
        if count > 1:
            _check_contiguous(sharding, shape, index, count)
        batch[name] = jax.make_array_from_process_local_data(sharding, local, shape)
    return batch


def _check_contiguous(sharding: NamedSharding, shape: tuple[int, ...], index: int, count: int) -> None:
    """This process's devices must hold exactly the rows that `process_shard` promises."""
    start, stop = index * shape[0] // count, (index + 1) * shape[0] // count
    held: set[int] = set()
    for piece in sharding.addressable_devices_indices_map(shape).values():
        held.update(range(*(piece or (slice(None),))[0].indices(shape[0])))
    if held != set(range(start, stop)):
        raise ConfigError(
            f"process {index} of {count} would hold rows {min(held)} to {max(held)} of a batch of {shape[0]}, "
            f"not its share {start} to {stop - 1}",
            where="mesh",
            fix="Make data x fsdp a multiple of the number of processes, so that no process shares its rows.",
        )


def process_shard() -> tuple[int, int]:
    """Returns (index of this process, number of processes): which share of every batch this process reads."""
    return jax.process_index(), jax.process_count()


def initialize_distributed(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    timeout_s: int = 300,
    heartbeat_s: int = 100,
) -> None:
    """Joins this process to a run of several processes. Call it before anything touches a device.

    Without arguments everything comes from the environment (TPU pod slices, Slurm, Open MPI, Kubernetes); a
    single process needs no call at all. On CPUs the gloo collectives are switched on.

    Args:
        coordinator: `host:port` of process 0.
        num_processes: how many processes take part.
        process_id: this process, from 0 to num_processes − 1.
        timeout_s: how long to wait for the others, in seconds.
        heartbeat_s: after how many silent seconds a process counts as dead.

    Raises:
        ConfigError: an argument is missing or out of range.
        EnvironmentProblem: not all processes arrived in time; says which ones where that is known.
    """
    _check_processes(coordinator, num_processes, process_id)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    if num_processes == 1:
        return
    if coordinator is not None and num_processes is not None and process_id is not None:
        # JAX aborts the whole interpreter when someone is missing; this comes first and can say who it is.
        wait_for_all(coordinator, num_processes, process_id, timeout_s=timeout_s)
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            initialization_timeout=timeout_s,
            heartbeat_timeout_seconds=heartbeat_s,
        )
    except (RuntimeError, ValueError) as error:
        raise EnvironmentProblem(
            f"this process could not join a run of several processes: {str(error).splitlines()[0]}",
            where=f"coordinator {coordinator or 'from the environment'}",
            fix="Call it once, before anything touches a device, and give all three arguments where the cluster "
            "does not provide them.",
        ) from error


def _check_processes(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    given = [value is not None for value in (coordinator, num_processes, process_id)]
    if num_processes == 1 and process_id in (None, 0):
        return
    if any(given) and not all(given):
        raise ConfigError(
            f"coordinator, num_processes and process_id go together: got {coordinator}, {num_processes}, {process_id}",
            where="initialize_distributed",
            fix="Give all three, or none to take them from the cluster's environment.",
        )
    if coordinator is None or num_processes is None or process_id is None:
        return
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise ConfigError(
            f"the coordinator must be host:port, got {coordinator!r}",
            where="initialize_distributed",
            fix="Give process 0's address and a free port, for example 10.0.0.1:8476.",
        )
    if not 0 <= process_id < num_processes:
        raise ConfigError(
            f"process_id must be from 0 to {num_processes - 1}, got {process_id}",
            where="initialize_distributed",
            fix="Number the processes from 0.",
        )


def shard_map(
    function: Callable[..., Any], mesh: Mesh, *, in_specs: Any, out_specs: Any, check: bool = True
) -> Callable[..., Any]:
    """Maps `function` over the shards of its arguments on `mesh`.

    The check of varying axes is on by default: it proves that what `out_specs` calls replicated is replicated, and
    `sum_over` relies on it. A function whose shards do not communicate does not need it.
    """
    return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=check)


def sum_over(tree: Any, axes: Sequence[str] = _ROW_AXES) -> Any:
    """Inside `shard_map`: sums every leaf over those of `axes` on which it varies.

    `jax.lax.psum` raises on an axis where the value is the same everywhere. Here such an axis adds nothing: the
    value counts as a total that all shards already know.
    """

    def reduce(leaf: Any) -> Any:
        varying = tuple(axis for axis in axes if axis in jax.typeof(leaf).manual_axis_type.varying)
        return jax.lax.psum(leaf, varying) if varying else leaf

    return jax.tree.map(reduce, tree)


def use_mesh(mesh: Mesh) -> AbstractContextManager[Any]:
    """Context in which a bare `PartitionSpec` in `with_sharding_constraint` refers to `mesh`."""
    return jax.set_mesh(mesh)
