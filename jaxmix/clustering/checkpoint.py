"""Checkpoints of a streamed fit, written whole: a kill at any moment leaves the old files or the new ones."""

from __future__ import annotations

import hashlib
import io
import json
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxmix.clustering.base import Clusterer
from jaxmix.core.errors import ConfigError, RunError
from jaxmix.core.pytree import to_nested
from jaxmix.core.types import PRNGKeyArray

FORMAT = 2


def fingerprint(clusterer: Clusterer, key: PRNGKeyArray, tol: float, init: Any) -> dict[str, Any]:
    """The settings that a run must share with the one that wrote a checkpoint."""
    start = init if isinstance(init, str) else hashlib.sha256(np.asarray(init).tobytes()).hexdigest()
    return {
        "format": FORMAT,
        "clusterer": clusterer.name,
        "num_clusters": clusterer.num_clusters,
        "max_concentration": clusterer.max_concentration,
        "balance": repr(clusterer.balance),
        "key": [int(word) for word in np.asarray(jax.random.key_data(key)).ravel()],
        "tol": tol,
        "init": start,
    }


class StreamCheckpoint:
    """Two files in one folder: the survey of the first pass, and the position of the fit.

    Args:
        folder: made when missing.
        settings: from `fingerprint`.
        every: blocks between two saves.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], every: int):
        self._folder, self._settings, self.every = folder, json.dumps(settings, sort_keys=True), every

    def read_survey(self) -> dict[str, Any] | None:
        return self._read("survey.npz")

    def write_survey(self, survey: dict[str, np.ndarray]) -> None:
        self._write("survey.npz", survey)

    def read(self) -> dict[str, Any] | None:
        return self._read("progress.npz")

    def write(self, tree: dict[str, Any]) -> None:
        self._write("progress.npz", tree)

    def _read(self, name: str) -> dict[str, Any] | None:
        path = self._folder / name
        if not path.exists():
            return None
        try:
            with np.load(io.BytesIO(path.read_bytes())) as archive:
                flat = {key: archive[key] for key in archive.files}
        except Exception as error:
            raise RunError(
                f"the checkpoint cannot be read: {error}", where=str(path), fix="Remove the folder to begin again."
            ) from error
        if str(flat.pop("settings")) != self._settings:
            raise ConfigError(
                "the checkpoint belongs to a fit with other settings",
                where=str(path),
                fix="Use another folder, or the settings that it was begun with.",
            )
        tree: dict[str, Any] = {}
        for key, value in flat.items():
            *parents, last = key.split("/")
            node = tree
            for parent in parents:
                node = node.setdefault(parent, {})
            node[last] = value
        return tree

    def _write(self, name: str, tree: dict[str, Any]) -> None:
        flat = {"settings": np.asarray(self._settings)}
        for path, leaf in jax.tree_util.tree_flatten_with_path(to_nested(tree))[0]:
            flat[jax.tree_util.keystr(path, simple=True, separator="/")] = np.asarray(leaf)
        content = io.BytesIO()
        np.savez(content, **flat)  # type: ignore[arg-type]
        self._folder.mkdir(parents=True, exist_ok=True)
        partial = self._folder / f".{name}.partial"
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self._folder / name)
