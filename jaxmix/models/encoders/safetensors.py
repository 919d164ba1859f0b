"""Reading of `.safetensors` files, of which an index may name several."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from jaxmix.core.errors import ConfigError


def read_safetensors(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a file by name.

    Args:
        path: of the file. Where it is missing and `NAME.safetensors.index.json` lies beside it, the arrays of all
            files that this index names.

    Raises:
        ConfigError: no such file, or it is damaged.
    """
    path = Path(path)
    index = path.with_name(path.name + ".index.json")
    if not path.is_file() and index.is_file():
        files = sorted(set(_weight_map(index).values()))
        return {name: array for file in files for name, array in read_safetensors(path.with_name(file)).items()}
    if not path.is_file():
        raise ConfigError(f"there is no file {path.name}", where=str(path.parent), fix="Is the checkpoint whole?")
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dictionary)
    except SafetensorError as error:
        raise _damaged(path, error) from error


def _weight_map(index: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(index.read_bytes())["weight_map"])
    except (ValueError, TypeError, KeyError) as error:
        raise _damaged(index, error) from error


def _damaged(path: Path, error: Exception) -> ConfigError:
    return ConfigError(f"{path.name} is damaged: {error}", where=str(path), fix="Fetch it again.")
