"""Random access to rows of fixed length over one token source."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxmix.core.errors import ConfigError
from jaxmix.core.validate import check_count


def document_tokens(item: Any, *, where: str) -> np.ndarray:
    """The tokens of one item of a source: a 1-D integer array, or a mapping with one under `tokens`."""
    if type(item) is np.ndarray and item.ndim == 1 and item.dtype.kind in "iu":  # nearly always, so first
        return item
    tokens = item["tokens"] if isinstance(item, dict) else item
    tokens = np.asarray(tokens) if not isinstance(tokens, bytes | str) else tokens
    if not isinstance(tokens, np.ndarray) or tokens.ndim != 1 or not np.issubdtype(tokens.dtype, np.integer):
        got = f"{tokens.dtype}{list(tokens.shape)}" if isinstance(tokens, np.ndarray) else type(tokens).__name__
        raise ConfigError(
            f"a token source must give 1-D integer arrays, got {got}",
            where=where,
            fix="Tokenize text first: jaxmix prepare, or jaxmix.data.load_tokenizer.",
        )
    return tokens


class RowSource(ABC):
    """A token source as rows of fixed length, read by their numbers.

    Args:
        source: `__len__` and `__getitem__(i)`; uses `doc_lengths` (i64[n]) and `read(indices)` where it has them. A
            2-D integer array is n documents of equal length.
        seq_len: tokens per row, ≥ 1.
        name: for error messages.
    """

    num_tokens: int

    def __init__(self, source: Any, seq_len: int, *, name: str = "source"):
        check_count("MixtureStream", "seq_len", seq_len)
        self._source, self._seq_len, self._where = source, seq_len, f"source {name!r}"
        self.num_documents = len(source)

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def count_targets(self, rows: np.ndarray) -> np.ndarray:
        """i64[n]: tokens of each row that have a target."""

    @abstractmethod
    def read_into(self, rows: Sequence[int], tokens: np.ndarray, targets: np.ndarray, places: Sequence[int]) -> None:
        """Reads rows in one request into `tokens[place]` and `targets[place]`, i32[b, seq_len] each."""

    def _read(self, indices: Sequence[int]) -> list[np.ndarray]:
        items = self._source.read(indices) if hasattr(self._source, "read") else [self._source[i] for i in indices]
        return [document_tokens(item, where=self._where) for item in items]

    def _document_lengths(self) -> np.ndarray:
        """i64[n], tokens of every document; reads them all where the source does not say."""
        if hasattr(self._source, "doc_lengths"):
            return np.asarray(self._source.doc_lengths, np.int64)
        return np.asarray(
            [len(document_tokens(self._source[i], where=self._where)) for i in range(len(self._source))], np.int64
        )


class PackedRows(RowSource):
    """Documents of one source, laid end to end and cut into rows of `seq_len` tokens.

    The target of a row's last position is the first token of the next row. The last row is padded with token 0 and
    target −1, so that no token is lost or trained on twice in an epoch.
    """

    def __init__(self, source: Any, seq_len: int, *, name: str = "source"):
        super().__init__(source, seq_len, name=name)
        self._flat: np.ndarray | None = None
        if isinstance(source, np.ndarray):
            if source.ndim != 2 or not np.issubdtype(source.dtype, np.integer):
                raise ConfigError(
                    f"an array source must be integers of shape [documents, length], got "
                    f"{source.dtype}{list(source.shape)}",
                    where=self._where,
                )
            self._flat = np.asarray(source).reshape(-1)  # asarray: slices of a memory map are slow
            lengths = np.full(len(source), source.shape[1], np.int64)
        elif isinstance(source, list | tuple):
            documents = [document_tokens(item, where=self._where) for item in source]
            self._flat = np.concatenate(documents) if documents else np.zeros(0, np.int32)
            lengths = np.asarray([len(d) for d in documents], np.int64)
        else:
            lengths = self._document_lengths()
        self._offsets = np.concatenate([[0], np.cumsum(lengths)])
        self.num_tokens = int(self._offsets[-1])

    def __len__(self) -> int:
        return -(-self.num_tokens // self._seq_len)

    def count_targets(self, rows: np.ndarray) -> np.ndarray:
        return np.clip(self.num_tokens - 1 - rows.astype(np.int64) * self._seq_len, 0, self._seq_len)

    def read_into(self, rows: Sequence[int], tokens: np.ndarray, targets: np.ndarray, places: Sequence[int]) -> None:
        starts = [row * self._seq_len for row in rows]
        ends = [min(start + self._seq_len + 1, self.num_tokens) for start in starts]
        flat, offsets = (self._flat, starts) if self._flat is not None else self._gather(starts, ends)
        for place, start, end, offset in zip(places, starts, ends, offsets, strict=True):
            _fill(tokens[place], targets[place], flat[offset : offset + end - start])

    def _gather(self, starts: list[int], ends: list[int]) -> tuple[np.ndarray, list[int]]:
        """Reads each needed document once; a row's documents follow each other, so a row stays in one piece."""
        edges = np.asarray([*starts, *ends])
        edges[len(starts) :] -= 1
        documents_at = np.searchsorted(self._offsets, edges, side="right") - 1
        first, last = documents_at[: len(starts)].tolist(), documents_at[len(starts) :].tolist()
        needed = sorted({i for begin, end in zip(first, last, strict=True) for i in range(begin, end + 1)})
        documents = self._read(needed)
        expected = (self._offsets[np.asarray(needed) + 1] - self._offsets[needed]).tolist()
        place_of, place = {}, 0
        for index, document, length in zip(needed, documents, expected, strict=True):
            if len(document) != length:
                raise ConfigError(
                    f"document {index} has {len(document)} tokens, its source promised {length}",
                    where=self._where,
                    fix="The source changed while it was read, or its doc_lengths are wrong.",
                )
            place_of[index] = place
            place += length
        begins = self._offsets[first].tolist()
        offsets = [place_of[f] + start - begin for f, start, begin in zip(first, starts, begins, strict=True)]
        return documents[0] if len(documents) == 1 else np.concatenate(documents), offsets


class WholeRows(RowSource):
    """Items of one source that are rows already: at most `seq_len` tokens, or `seq_len` + 1 with the last target.

    Shorter items are padded with token 0 and target −1. A longer one is an error that names it: nothing is cut.
    """

    def __init__(self, source: Any, seq_len: int, *, name: str = "source"):
        super().__init__(source, seq_len, name=name)
        if isinstance(source, np.ndarray) and source.ndim == 2:
            self._source = np.asarray(source)  # slices of a memory map are slow
            self._lengths = np.full(len(source), source.shape[1], np.int64)
        else:
            self._lengths = self._document_lengths()
        too_long = np.flatnonzero(self._lengths > seq_len + 1)
        if len(too_long):
            raise ConfigError(
                f"item {too_long[0]} has {self._lengths[too_long[0]]} tokens, a row holds {seq_len}",
                where=self._where,
                fix="Raise seq_len, cut the items, or pack them with unit='tokens'.",
            )
        self.num_tokens = int(self._lengths.sum())

    def __len__(self) -> int:
        return len(self._lengths)

    def count_targets(self, rows: np.ndarray) -> np.ndarray:
        return np.maximum(self._lengths[rows] - 1, 0)

    def read_into(self, rows: Sequence[int], tokens: np.ndarray, targets: np.ndarray, places: Sequence[int]) -> None:
        for place, item in zip(places, self._read(rows), strict=True):
            _fill(tokens[place], targets[place], item)


def _fill(tokens: np.ndarray, targets: np.ndarray, row: np.ndarray) -> None:
    """Lays up to t + 1 tokens into a row i32[t]; pads with token 0 and target −1."""
    t, n = len(tokens), len(row)
    if n == t + 1:
        tokens[:], targets[:] = row[:-1], row[1:]
        return
    tokens[:n], tokens[n:] = row, 0
    has_target = max(n - 1, 0)
    targets[:has_target], targets[has_target:] = row[1:], -1
