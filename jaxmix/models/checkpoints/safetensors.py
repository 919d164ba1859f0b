"""Safetensors files, of which an index may name several."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 (gives NumPy bfloat16, which safetensors asks it for)
import numpy as np

from jaxmix.core.errors import ConfigError

WEIGHTS = "model.safetensors"


class StoredArrays:
    """The arrays of a checkpoint, each read from disk when it is asked for.

    Args:
        path: of the file. Where it is missing and `NAME.safetensors.index.json` lies beside it, the arrays of all
            files that this index names.

    Attributes:
        shapes: of the arrays, by name.

    Raises:
        ConfigError: no such file, or it is damaged.
    """

    def __init__(self, path: str | Path):
        from safetensors import SafetensorError, safe_open

        path = Path(path)
        index = path.with_name(path.name + ".index.json")
        files = [path]
        if not path.is_file() and index.is_file():
            files = [path.with_name(file) for file in sorted(set(_weight_map(index).values()))]
        self._file_of: dict[str, Any] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for file in files:
            if not file.is_file():
                raise ConfigError(
                    f"there is no file {file.name}", where=str(file.parent), fix="Is the checkpoint whole?"
                )
            try:
                opened = safe_open(file, framework="numpy")
                for name in opened.keys():  # noqa: SIM118 (it is not a dictionary)
                    self._file_of[name] = opened
                    self.shapes[name] = tuple(opened.get_slice(name).get_shape())
            except SafetensorError as error:
                raise _damaged(file, error) from error

    def __getitem__(self, name: str) -> np.ndarray:
        return np.asarray(self._file_of[name].get_tensor(name))


def write_safetensors(
    path: str | Path, arrays: Iterable[tuple[str, np.ndarray]], sizes: Mapping[str, int], *, shard_bytes: int
) -> None:
    """Writes arrays to one file, or to several with an index, none of which is held in memory with another.

    Args:
        path: of the file; shards are called `NAME-00001-of-00002.safetensors`.
        arrays: (name, array) in the order of `sizes`.
        sizes: bytes of every array, by name.
        shard_bytes: size from which another file is begun; a single array may be larger.
    """
    from safetensors.numpy import save_file

    path = Path(path)
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if shards[-1] and filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    files = [f"{path.stem}-{number:05d}-of-{len(shards):05d}{path.suffix}" for number in range(1, len(shards) + 1)]
    files = [path.name] if len(shards) == 1 else files
    rest = iter(arrays)
    for file, names in zip(files, shards, strict=True):
        part = {name: np.ascontiguousarray(array) for name, array in (next(rest) for _ in names)}
        save_file(part, path.with_name(file), metadata={"format": "pt"})
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(sizes.values())},
            "weight_map": {name: file for file, names in zip(files, shards, strict=True) for name in names},
        }
        path.with_name(path.name + ".index.json").write_text(json.dumps(index, indent=2))


def _weight_map(index: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(index.read_bytes())["weight_map"])
    except (ValueError, TypeError, KeyError) as error:
        raise _damaged(index, error) from error


def _damaged(path: Path, error: Exception) -> ConfigError:
    return ConfigError(f"{path.name} is damaged: {error}", where=str(path), fix="Fetch it again.")
