"""Atomic, asynchronous checkpoints of a whole run, each verified by checksums when it is read.

One step folder holds the arrays of a state (a `RunState`, or that of a swarm) and a JSON object with what is not an
array: the stream's cursors, domain names, state versions, configuration hash. Orbax writes to a temporary folder and
renames it, so a kill leaves either a complete step or none.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from jaxmix.core.errors import ConfigError, RunError
from jaxmix.core.pytree import from_nested, state_versions, to_nested

FORMAT = 1


class Restored(NamedTuple):
    """A checkpoint read back: its step, the arrays, and the JSON part as it was given to `save`."""

    step: int
    state: Any
    meta: dict[str, Any]


class Checkpointer:
    """Writes and reads the checkpoints of one run.

    Args:
        folder: `checkpoints/` of the run folder; made when missing.
        keep: how many of the newest steps stay, ≥ 1.
        report: called with one line about a damaged checkpoint.
    """

    def __init__(self, folder: Path, *, keep: int, report: Callable[[str], None]):
        # Orbax logs every phase of every save.
        logging.getLogger("absl").setLevel(logging.ERROR)
        self._folder, self._keep, self._report = folder.absolute(), keep, report
        self._manager = self._open()

    def _open(self) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(max_to_keep=self._keep, create=True)
        return ocp.CheckpointManager(self._folder, options=options)

    def steps(self) -> list[int]:
        """Steps on disk, oldest first."""
        return sorted(self._manager.all_steps())

    def begins_afresh(self, resume: str) -> bool:
        """Whether there is no checkpoint to continue.

        Raises:
            RunError: none, and `resume` is "must".
            ConfigError: some, and it is "never".
        """
        steps, run_dir = self.steps(), self._folder.parent
        if not steps and resume == "must":
            raise RunError(
                "there is no checkpoint to resume",
                where=str(run_dir),
                fix="Set checkpoint.resume to auto to start afresh.",
            )
        if steps and resume == "never":
            raise ConfigError(
                f"{run_dir} already holds checkpoints up to step {steps[-1]}",
                where="checkpoint.resume: never",
                fix="Choose another run folder, or set checkpoint.resume to auto to continue it.",
            )
        return not steps

    def save(self, step: int, state: Any, meta: dict[str, Any]) -> float:
        """Starts a save and returns the seconds it blocked; writing continues in the background."""
        started = time.perf_counter()
        nested = to_nested(state)
        record = {
            "format": FORMAT,
            "versions": state_versions(state),
            "arrays": _describe(nested),
            "checksums": {name: int(value) for name, value in jax.device_get(checksums(nested)).items()},
            **meta,
        }
        self._manager.save(
            step, args=ocp.args.Composite(state=ocp.args.StandardSave(nested), meta=ocp.args.JsonSave(record))
        )
        return time.perf_counter() - started

    def wait(self) -> None:
        """Returns when everything begun is on disk; raises if a background write failed."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.close()

    def peek(self) -> dict[str, Any] | None:
        """The JSON part of the newest readable checkpoint, without its arrays; None when there is none."""
        for step in reversed(self.steps()):
            try:
                return self._read_meta(step)
            except Exception:  # a broken one is reported when `restore` meets it
                continue
        return None

    def restore(self, template: Any, *, only_train: bool = False) -> Restored | None:
        """Reads the newest complete checkpoint.

        A checkpoint that cannot be read, or whose arrays do not have the checksums they were saved with, is reported,
        set aside under another name, and the one before it is tried.

        Args:
            template: a state of the wanted shapes on the wanted mesh, whatever mesh wrote the checkpoint.
            only_train: take the model's half and leave the template's mixer: the domains have changed.

        Returns:
            None when there is no checkpoint at all.

        Raises:
            RunError: there are checkpoints but none is complete, or they belong to another model.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                return self._read(step, template, only_train)
            except RunError:
                raise
            except Exception as error:
                self._report(
                    f"checkpoint {step} is damaged ({type(error).__name__}: {_first_line(error)}); "
                    f"set aside as damaged-{step}, trying the one before"
                )
                self._set_aside(step)
        if steps:
            raise RunError(
                "no checkpoint of this run can be read",
                where=str(self._folder),
                fix="The damaged ones are kept beside it. Start again in another run folder.",
            )
        return None

    def _read_meta(self, step: int) -> dict[str, Any]:
        return dict(self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"])

    def _read(self, step: int, template: Any, only_train: bool) -> Restored:
        meta = self._read_meta(step)
        if meta["format"] > FORMAT:
            raise RunError(f"checkpoint {step} has format {meta['format']}", fix="Upgrade jaxmix to read it.")
        wanted = to_nested(template)
        is_same_version = not only_train and meta["versions"] == state_versions(template)
        if is_same_version:
            _check_same_arrays(step, meta["arrays"], _describe(wanted))
            layout = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), wanted)
            target = ocp.args.StandardRestore(layout)
        else:
            target = ocp.args.StandardRestore()  # read as stored, sharded afterwards
        nested = self._manager.restore(step, args=ocp.args.Composite(state=target))["state"]
        found = jax.device_get(checksums(jax.tree.map(jnp.asarray, nested)))
        wrong = sorted(name for name, value in found.items() if int(value) != meta["checksums"].get(name))
        if wrong or set(found) != set(meta["checksums"]):
            raise ValueError(f"checksum of {', '.join(wrong) or 'missing arrays'} differs from when it was saved")
        if only_train:
            versions = {
                where.removeprefix("train").removeprefix("/"): version
                for where, version in meta["versions"].items()
                if where.split("/")[0] == "train"
            }
            state = dataclasses.replace(template, train=from_nested(template.train, nested["train"], versions))
        else:
            state = from_nested(template, nested, meta["versions"])
        if not is_same_version:
            state = jax.tree.map(lambda x, like: jax.device_put(x, like.sharding), state, template)
        return Restored(step, state, meta)

    def _set_aside(self, step: int) -> None:
        self._manager.close()
        if jax.process_index() == 0:
            (self._folder / str(step)).rename(self._folder / f"damaged-{step}-{time.time_ns()}")
        self._manager = self._open()


def check_same_run(stored: Mapping[str, Any], own: Mapping[str, Any], run_dir: Path) -> None:
    """Raises `ConfigError` where a value `stored` in a checkpoint differs from this run's `own`.

    These are values that the arrays do not show: with another pool or batch size the run would silently be a different
    one.
    """
    for name, value in own.items():
        if stored.get(name) != value:
            raise ConfigError(
                f"the checkpoint was written with {name} {stored.get(name)}, this run has {value}",
                where=str(run_dir),
                fix="Use another run folder, or the settings it was begun with.",
            )


def read_params(run_dir: Path, template: Any) -> Any:
    """The newest parameters of another run, for use as a frozen model.

    Args:
        run_dir: its folder; nothing in it is changed.
        template: tree of `jax.ShapeDtypeStruct` with shardings, as the parameters are wanted.

    Raises:
        RunError: there is no checkpoint, or its parameters have other names or shapes.
    """
    folder = (run_dir / "checkpoints").absolute()
    steps = sorted(int(p.name) for p in folder.glob("[0-9]*") if p.name.isdigit()) if folder.is_dir() else []
    if not steps:
        raise RunError(f"the run {run_dir} has no checkpoint", fix="Name the folder of a run that was trained.")
    logging.getLogger("absl").setLevel(logging.ERROR)
    with ocp.CheckpointManager(folder, options=ocp.CheckpointManagerOptions(read_only=True)) as manager:
        stored = manager.restore(steps[-1], args=ocp.args.Composite(state=ocp.args.StandardRestore()))["state"]
    params = from_nested(template, stored["train"]["params"], {})
    return jax.tree.map(lambda x, like: jax.device_put(x, like.sharding), params, template)


@jax.jit
def _checksum(x: jax.Array) -> jax.Array:
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    if x.dtype.itemsize == 8:
        bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    else:
        bits = jax.lax.bitcast_convert_type(x, unsigned[x.dtype.itemsize]).astype(jnp.uint32)
    # Position enters through an odd multiplier per element; integer sums are exact in any order and layout.
    position = jnp.zeros(bits.shape, jnp.uint32)
    for axis, size in enumerate(bits.shape):
        position = position * np.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
    return jnp.sum(bits * (position * np.uint32(2654435761) | np.uint32(1)), dtype=jnp.uint32)


def checksums(nested: dict[str, Any]) -> dict[str, jax.Array]:
    """Returns u32[] for every array, by its path; the same for any sharding of the same values."""
    return {name: _checksum(x) for name, x in _flat(nested).items()}


def _flat(nested: dict[str, Any]) -> dict[str, Any]:
    leaves = jax.tree_util.tree_flatten_with_path(nested)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _describe(nested: dict[str, Any]) -> dict[str, str]:
    return {name: f"{x.dtype}{list(x.shape)}" for name, x in _flat(nested).items()}


def _check_same_arrays(step: int, stored: dict[str, str], wanted: dict[str, str]) -> None:
    for name in sorted(stored.keys() | wanted.keys()):
        if stored.get(name) != wanted.get(name):
            raise RunError(
                f"checkpoint {step} holds {name!r} as {stored.get(name, 'nothing')}, "
                f"this run needs {wanted.get(name, 'nothing')}",
                fix="The model, optimizer or mixer differs from the one that wrote it. Use another run folder.",
            )


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return text[0][:200] if text else ""
