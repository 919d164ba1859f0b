"""Embeddings of a frozen reference on disk: computed once for a pool, read by row in every later run.

A folder holds `image.npy` and `text.npy` [n, d], ordinary NumPy files that are read through a memory map, and
`cache.json`: the key (what the embeddings are of), the model's temperature and bias, and how many rows are written.
That file is replaced as a whole after each block, so a kill at any moment leaves a folder that says how far it got,
and the same call continues from there. Losses are not cached: a contrastive loss depends on the companions of an
example, its embeddings do not.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from jaxmix.core.errors import ConfigError, RunError
from jaxmix.core.validate import check_choice
from jaxmix.data.files import read_json, write_json

FORMAT = 1
DTYPES = ("float32", "float16")
_INDEX = "cache.json"


class EmbeddingCache(NamedTuple):
    """The embeddings of all pairs of a pool under one frozen model.

    Attributes:
        image: memory-mapped, rows of unit norm.
        text: the same.
        temperature: the model's factor t, already exponentiated.
        bias: of its logits; 0 for a softmax loss.
    """

    image: Float[np.ndarray, "n d"]
    text: Float[np.ndarray, "n d"]
    temperature: float
    bias: float

    def read(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Image and text embeddings f32[c, d] of the rows i64[c]."""
        return np.asarray(self.image[rows], np.float32), np.asarray(self.text[rows], np.float32)


def cache_key(**ingredients: Any) -> dict[str, str]:
    """A fingerprint for everything that the embeddings depend on, by name.

    Name at least the model's configuration, its parameters, the preprocessing and the data; an augmentation seed
    where the reference sees augmented images. Each ingredient is hashed apart, so that a mismatch can be named.

    Example:
        >>> key = cache_key(model={"width": 64}, preprocessing={"size": 20})
        >>> sorted(key)
        ['model', 'preprocessing']
    """
    if not ingredients:
        raise ConfigError(
            "an embedding cache needs a key",
            where="cache_key",
            fix="Give the model's configuration, its parameters, the preprocessing and the data.",
        )
    return {name: fingerprint(value) for name, value in ingredients.items()}


def fingerprint(value: Any) -> str:
    """32 hexadecimal digits that change when `value` does: numbers, strings, arrays, and mappings and lists of them.

    Mappings are hashed in the order of their keys, arrays by dtype, shape and content, dataclasses by field.

    Raises:
        ConfigError: `value` holds something without content, such as a function.
    """
    digest = hashlib.blake2b(digest_size=16)
    _absorb(digest, value)
    return digest.hexdigest()


def _absorb(digest: Any, value: Any) -> None:
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        array = np.ascontiguousarray(value)
        digest.update(f"array {array.dtype} {array.shape} ".encode())
        digest.update(array.tobytes())
    elif isinstance(value, Mapping):
        digest.update(f"mapping {len(value)} ".encode())
        for name in sorted(value, key=str):
            _absorb(digest, str(name))
            _absorb(digest, value[name])
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        _absorb(digest, {field.name: getattr(value, field.name) for field in dataclasses.fields(value)})
    elif isinstance(value, list | tuple):
        digest.update(f"sequence {len(value)} ".encode())
        for item in value:
            _absorb(digest, item)
    elif value is None or isinstance(value, bool | int | float | str | bytes):
        text = repr(value).encode()
        digest.update(f"{type(value).__name__} {len(text)} ".encode() + text)
    elif isinstance(value, Path):
        _absorb(digest, str(value))
    else:
        raise ConfigError(
            f"a {type(value).__name__} has no fingerprint: {value!r}",
            where="cache_key",
            fix="Describe it by a name and its settings.",
        )


def write_embeddings(
    folder: str | Path,
    *,
    key: Mapping[str, str],
    num_rows: int,
    embed: Callable[[int, int], tuple[Any, Any]],
    temperature: float,
    bias: float = 0.0,
    block: int = 1024,
    dtype: str = "float32",
    report: Callable[[int], None] | None = None,
) -> EmbeddingCache:
    """Fills the cache in `folder`, continuing where an earlier call stopped, and opens it.

    One process writes; the others of a run open the folder afterwards.

    Args:
        folder: made when missing.
        key: from `cache_key`.
        num_rows: n, pairs of the pool.
        embed: `(start, stop) -> (image, text)`, embeddings [stop − start, d] of those rows of the pool.
        temperature: the model's factor, > 0.
        bias: of its logits.
        block: rows embedded and written at a time, ≥ 1.
        dtype: "float32" or "float16" (half the space; a coordinate of a unit vector is off by at most 2.5e-4).
        report: called with the number of rows written, after each block.

    Raises:
        ConfigError: the folder holds embeddings of something else (their difference is named), or a bad argument.
        RunError: `embed` returned another shape or values that are not finite, or the files there cannot be read.
    """
    folder = Path(folder)
    for name, value in (("num_rows", num_rows), ("block", block)):
        if value < 1:
            raise ConfigError(f"{name} must be at least 1, got {value}", where=f"write_embeddings({name})")
    check_choice("write_embeddings", "dtype", dtype, DTYPES)
    if not (np.isfinite(temperature) and temperature > 0 and np.isfinite(bias)):
        raise ConfigError(
            f"temperature must be above 0 and bias finite, got {temperature} and {bias}", where="write_embeddings"
        )
    index = _read_index(folder)
    if index is None:
        index = {"format": FORMAT, "key": dict(key), "rows": num_rows, "dtype": dtype, "done": 0}
        index |= {"temperature": float(temperature), "bias": float(bias)}
    else:
        _check_key(folder, index, key)
        if index["rows"] != num_rows:
            raise ConfigError(f"the cache has {index['rows']} rows, the pool {num_rows}", where=str(folder))
    files: tuple[np.ndarray, np.ndarray] | None = None
    while index["done"] < num_rows:
        start, stop = index["done"], min(index["done"] + block, num_rows)
        arrays = [np.asarray(x) for x in embed(start, stop)]
        _check_block(arrays, start, stop, index.get("width"))
        if files is None:
            index["width"] = arrays[0].shape[1]
            files = _open_files(folder, index, mode="r+" if start else "w+")
        for file, array in zip(files, arrays, strict=True):
            file[start:stop] = array.astype(file.dtype)
            file.flush()  # type: ignore[attr-defined]
        index["done"] = stop
        write_json(folder / _INDEX, index)
        if report is not None:
            report(stop)
    return open_embeddings(folder, key=key)


def open_embeddings(folder: str | Path, *, key: Mapping[str, str]) -> EmbeddingCache:
    """Opens a complete cache for reading.

    Args:
        folder: that `write_embeddings` filled.
        key: identifies what the embeddings must be of; from `cache_key`.

    Raises:
        ConfigError: they are of something else; the ingredients that differ are named.
        RunError: there is no cache, it is incomplete, or a file is damaged.
    """
    folder = Path(folder)
    index = _read_index(folder)
    if index is None:
        raise RunError("there is no embedding cache", where=str(folder), fix="Fill it with write_embeddings.")
    _check_key(folder, index, key)
    if index["done"] < index["rows"]:
        raise RunError(
            f"the embedding cache is incomplete: {index['done']:,} of {index['rows']:,} rows are written",
            where=str(folder),
            fix="Call write_embeddings with the same key to continue.",
        )
    image, text = _open_files(folder, index, mode="r")
    return EmbeddingCache(image, text, index["temperature"], index["bias"])


def _check_block(arrays: list[np.ndarray], start: int, stop: int, width: int | None) -> None:
    shapes = [array.shape for array in arrays]
    expected = (stop - start, width if width is not None else (shapes[0][-1] if shapes and shapes[0] else None))
    if len(shapes) != 2 or any(shape != expected for shape in shapes):
        raise RunError(f"embed({start}, {stop}) returned shapes {shapes}, expected two of {expected}")
    if not all(np.isfinite(array).all() for array in arrays):
        raise RunError(
            f"embeddings of rows {start} to {stop - 1} are not finite", fix="Check the reference's checkpoint."
        )


def _check_key(folder: Path, index: dict[str, Any], key: Mapping[str, str]) -> None:
    stored = index["key"]
    differing = sorted(name for name in stored.keys() | key.keys() if stored.get(name) != key.get(name))
    if differing:
        raise ConfigError(
            f"the embedding cache is of another {' and '.join(differing)}",
            where=str(folder),
            fix="Use another folder, or delete this one to compute the embeddings again.",
        )


def _open_files(folder: Path, index: dict[str, Any], *, mode: str) -> tuple[np.ndarray, np.ndarray]:
    shape, dtype = (index["rows"], index["width"]), np.dtype(index["dtype"])
    files = []
    for name in ("image", "text"):
        path = folder / f"{name}.npy"
        try:
            if mode == "w+":
                folder.mkdir(parents=True, exist_ok=True)
                file = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
            else:
                file = np.lib.format.open_memmap(path, mode=mode)  # type: ignore[arg-type]
        except (OSError, ValueError) as error:
            raise RunError(
                f"{path.name} of the embedding cache cannot be read: {error}",
                where=str(folder),
                fix="Delete the folder and compute the embeddings again.",
            ) from error
        if file.shape != shape or file.dtype != dtype:
            raise RunError(
                f"{path.name} holds {file.dtype}{list(file.shape)}, {_INDEX} says {dtype}{list(shape)}",
                where=str(folder),
                fix="Delete the folder and compute the embeddings again.",
            )
        files.append(file)
    return files[0], files[1]


def _read_index(folder: Path) -> dict[str, Any] | None:
    index: dict[str, Any] | None = read_json(folder / _INDEX)
    if index is not None and index.get("format") != FORMAT:
        raise RunError(
            f"the embedding cache has format {index.get('format')}, this jaxmix reads {FORMAT}", where=str(folder)
        )
    return index
