"""Reads `.safetensors` files: eight bytes of length, a JSON header, raw little-endian arrays. Nothing is executed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from jaxmix.core.errors import ConfigError

__all__ = ["read_safetensors"]

_PREFIX = 8
_LONGEST_HEADER = 100_000_000  # what the format allows
_DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U8": "u1",
    "BOOL": "?",
}


def read_safetensors(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a file by name, memory-mapped and read-only: what is not used is not read from disk.

    Args:
        path: of the file. Where it is missing and `NAME.safetensors.index.json` lies beside it, the arrays of all
            files that this index names.

    Raises:
        ConfigError: no such file, it is cut off, or its header does not describe it.

    References:
        The format's description, https://github.com/huggingface/safetensors (section "Format").
    """
    path = Path(path)
    index = path.with_name(path.name + ".index.json")
    if not path.is_file() and index.is_file():
        files = sorted(set(_json(index.read_bytes(), index)["weight_map"].values()))
        return {name: array for file in files for name, array in read_safetensors(path.with_name(file)).items()}
    if not path.is_file():
        raise ConfigError(f"there is no file {path.name}", where=str(path.parent), fix="Is the checkpoint whole?")
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_PREFIX), "little")
        if size < _PREFIX or length > min(size - _PREFIX, _LONGEST_HEADER):
            raise _damaged(path, f"a header of {length} bytes does not fit into {size}")
        header = _json(file.read(length), path)
    start = _PREFIX + length
    data = np.memmap(path, np.uint8, mode="r") if size > start else np.zeros(size, np.uint8)
    return {name: _array(path, data[start:], name, entry) for name, entry in header.items() if name != "__metadata__"}


def _array(path: Path, data: np.ndarray, name: str, entry: Any) -> np.ndarray:
    try:
        kind, shape, (first, last) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path, f"the entry of {name!r} is not whole") from error
    dtype = _dtype(kind)
    if dtype is None:
        raise ConfigError(
            f"{name!r} has the dtype {kind!r}", where=str(path), fix=f"Known: {', '.join(_DTYPES)}, BF16."
        )
    is_inside = 0 <= first <= last <= len(data) and all(side >= 0 for side in shape)
    if not is_inside or math.prod(shape) * dtype.itemsize != last - first:
        raise _damaged(path, f"{name!r} of shape {list(shape)} cannot lie at bytes {first} to {last} of {len(data)}")
    return data[first:last].view(dtype).reshape(shape)


def _dtype(kind: str) -> np.dtype[Any] | None:
    if kind == "BF16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(_DTYPES[kind]) if kind in _DTYPES else None


def _json(content: bytes, path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(content))
    except (ValueError, TypeError) as error:
        raise _damaged(path, "its header is not JSON") from error


def _damaged(path: Path, what: str) -> ConfigError:
    return ConfigError(f"{path.name} is no whole safetensors file: {what}", where=str(path), fix="Fetch it again.")
