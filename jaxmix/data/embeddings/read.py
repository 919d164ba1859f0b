"""Reads embedding stores through memory maps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from jaxmix.core.errors import ConfigError, RunError
from jaxmix.core.validate import check_count
from jaxmix.data.embeddings.files import Shard, checksum, read_store_index, stored_dtype


@runtime_checkable
class TextEncoder(Protocol):
    """The encoder that a store needs; `jaxmix.models.Encoder` is one.

    Attributes:
        encode: `texts -> f32[b, d]`; a row of zeros where there is nothing to encode.
        dim: d.
        identity: the same for encoders that give the same rows.
    """

    @property
    def encode(self) -> Callable[[Sequence[str]], np.ndarray]: ...
    @property
    def dim(self) -> int: ...
    @property
    def identity(self) -> str: ...


def open_embedding_store(folder: str | Path) -> EmbeddingStore:
    """Opens a complete store. Sizes of all files are checked here, their content by `EmbeddingStore.verify`.

    Raises:
        RunError: there is no store, it is incomplete, or a file is missing or has another size than the index says.
    """
    return EmbeddingStore(folder)


class EmbeddingStore:
    """Rows of unit length, float32 when read, in the order of the shards and of the documents within.

    Instances may be pickled and read by several threads; files are mapped when they are first read.

    Attributes:
        folder: where.
        dim: d, width of a row.
        identity: of the encoder that made the rows.
        shards: the index's entry of every shard.
        num_documents: rows and dropped documents together.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        index = read_store_index(self.folder)
        self.dim: int = index["dim"]
        self.identity: str = index["encoder"]
        self.shards = tuple(Shard.from_json(entry) for entry in index["shards"])
        self._dtype = index["dtype"]
        self._starts = np.cumsum([0, *(shard.rows for shard in self.shards)])
        self._maps: dict[int, np.ndarray] = {}
        self.num_documents = sum(shard.documents for shard in self.shards)
        for shard in self.shards:
            path = self.folder / shard.file
            size, expected = path.stat().st_size if path.is_file() else None, shard.rows * self.dim * 2
            if size != expected:
                raise RunError(
                    f"{shard.file} {'is missing' if size is None else f'has {size} bytes, not {expected}'}",
                    where=str(self.folder),
                    fix=f"Delete {Path(shard.file).stem}.json and index.json and embed again: only that shard is made.",
                )

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows start:stop as f32[stop − start, d], scaled to length 1 again after the rounding to 16 bits.

        Raises:
            ConfigError: the range does not lie in the store.
        """
        if not 0 <= start <= stop <= len(self):
            raise ConfigError(f"rows {start} to {stop} of a store of {len(self)}", where="read")
        first = int(np.searchsorted(self._starts, start, side="right")) - 1
        parts = []
        while start < stop:
            begin, end = int(self._starts[first]), int(self._starts[first + 1])
            if start < end:
                parts.append(np.asarray(self._map(first)[start - begin : min(stop, end) - begin], np.float32))
            start, first = max(start, end), first + 1
        return _unit(np.concatenate(parts) if parts else np.zeros((0, self.dim), np.float32))

    def blocks(self, rows: int) -> Iterator[np.ndarray]:
        """All rows in order, `rows` at a time, across the borders of shards; the last block may be shorter.

        For `jaxmix.clustering.fit_stream`: `lambda: store.blocks(65_536)`.
        """
        check_count("blocks", "rows", rows)
        for start in range(0, len(self), rows):
            yield self.read(start, min(start + rows, len(self)))

    def take(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """The rows of the given numbers, in that order, as f32[n, d]."""
        wanted = np.asarray(rows, np.int64)
        if len(wanted) and (wanted.min() < 0 or wanted.max() >= len(self)):
            raise ConfigError(f"rows {wanted.min()} to {wanted.max()} of a store of {len(self)}", where="take")
        result = np.zeros((len(wanted), self.dim), np.float32)
        of = self._shard_of(wanted)
        for shard in np.unique(of).tolist():
            places = np.flatnonzero(of == shard)
            result[places] = self._map(shard)[wanted[places] - self._starts[shard]]
        return _unit(result)

    def documents(self, rows: Sequence[int] | np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Where rows come from: number of the shard i64[n], number of the document within it i64[n]; None: all rows."""
        wanted = np.arange(len(self)) if rows is None else np.asarray(rows, np.int64)
        of = self._shard_of(wanted)
        numbers = wanted - self._starts[of]
        for shard in np.unique(of).tolist():
            entry = self.shards[shard]
            if entry.dropped:
                kept = np.delete(np.arange(entry.documents), list(entry.dropped))
                places = of == shard
                numbers[places] = kept[numbers[places]]
        return of, numbers

    def dropped(self) -> dict[str, tuple[int, ...]]:
        """By source, the numbers of the documents that have no row because nothing in them could be encoded."""
        return {shard.source: shard.dropped for shard in self.shards if shard.dropped}

    def check_encoder(self, encoder: TextEncoder) -> None:
        """Raises ConfigError unless `encoder` is the one that the rows came from."""
        if encoder.identity != self.identity:
            raise ConfigError(
                f"the rows are of the encoder {self.identity}, not {encoder.identity}",
                where=str(self.folder),
                fix="Load the encoder that the store was made with, or embed again into another folder.",
            )

    def verify(self) -> None:
        """Reads every byte. Raises RunError that names the shards whose content is not what was written."""
        damaged = [shard.file for shard in self.shards if checksum(self.folder / shard.file) != shard.checksum]
        if damaged:
            raise RunError(
                f"the content of {', '.join(damaged)} is not what was written",
                where=str(self.folder),
                fix="Delete these, their .json files and index.json, and embed again: only these are remade.",
            )

    def _shard_of(self, rows: np.ndarray) -> np.ndarray:
        return np.searchsorted(self._starts, rows, side="right") - 1

    def _map(self, shard: int) -> np.ndarray:
        found = self._maps.get(shard)
        if found is None:
            shape = (self.shards[shard].rows, self.dim)
            path = self.folder / self.shards[shard].file
            dtype = stored_dtype(self._dtype)
            found = np.memmap(path, dtype, mode="r", shape=shape) if shape[0] else np.zeros(shape, dtype)
            self._maps[shard] = found
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": {}}


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)
