"""Random access to rows of fixed length over one token source."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from jaxmix.core.errors import ConfigError

__all__ = ["PackedRows", "Rows", "WholeRows", "document_tokens"]


class Rows(Protocol):
    """What the stream needs of a source: its rows, and how many tokens of each have a target."""

    num_documents: int

    def __len__(self) -> int: ...
    def read_rows(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]: ...
    def count_targets(self, rows: np.ndarray) -> np.ndarray: ...


def document_tokens(item: Any, *, where: str) -> np.ndarray:
    """The tokens of one item of a source: a 1-D integer array, or a mapping with one under `tokens`."""
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


class PackedRows:
    """Documents of one source, laid end to end and cut into rows of `seq_len` tokens.

    The target of a row's last position is the first token of the next row. The last row is padded with token 0 and
    target −1, so that no token is lost or trained on twice in an epoch.

    Args:
        source: `__len__` and `__getitem__(i)`; uses `doc_lengths` (i64[n]) and `read(indices)` where it has them. A
            2-D integer array is n documents of equal length.
        seq_len: tokens per row, ≥ 1.
        name: for error messages.
    """

    def __init__(self, source: Any, seq_len: int, *, name: str = "source"):
        if seq_len < 1:
            raise ConfigError(f"seq_len must be at least 1, got {seq_len}", where="seq_len")
        self._source, self._seq_len, self._where = source, seq_len, f"source {name!r}"
        self._flat: np.ndarray | None = None
        self.num_documents = len(source)
        if isinstance(source, np.ndarray):
            if source.ndim != 2 or not np.issubdtype(source.dtype, np.integer):
                raise ConfigError(
                    f"an array source must be integers of shape [documents, length], got "
                    f"{source.dtype}{list(source.shape)}",
                    where=self._where,
                )
            self._flat = np.ascontiguousarray(source).reshape(-1)
            lengths = np.full(len(source), source.shape[1], np.int64)
        elif isinstance(source, list | tuple):
            documents = [document_tokens(item, where=self._where) for item in source]
            self._flat = np.concatenate(documents) if documents else np.zeros(0, np.int32)
            lengths = np.asarray([len(d) for d in documents], np.int64)
        elif hasattr(source, "doc_lengths"):
            lengths = np.asarray(source.doc_lengths, np.int64)
        else:
            lengths = np.asarray([len(self._document(i)) for i in range(len(source))], np.int64)
        self._offsets = np.concatenate([[0], np.cumsum(lengths)])
        self.num_tokens = int(self._offsets[-1])

    def __len__(self) -> int:
        return -(-self.num_tokens // self._seq_len)

    def count_targets(self, rows: np.ndarray) -> np.ndarray:
        """i64[n]: tokens of each row that have a target; `seq_len` for all but the last row."""
        return np.clip(self.num_tokens - 1 - rows.astype(np.int64) * self._seq_len, 0, self._seq_len)

    def read_rows(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Reads rows i64[n] and returns tokens and targets, i32[n, seq_len] each."""
        starts = rows.astype(np.int64) * self._seq_len
        ends = np.minimum(starts + self._seq_len + 1, self.num_tokens)
        if self._flat is not None:
            flat, offsets = self._flat, starts
        else:
            flat, offsets = self._gather(starts, ends)
        window = np.arange(self._seq_len + 1)[None, :]
        lengths = (ends - starts)[:, None]
        positions = offsets[:, None] + np.minimum(window, lengths - 1)
        tokens = flat[positions].astype(np.int32)
        is_padding = window >= lengths
        targets = np.where(is_padding[:, 1:], np.int32(-1), tokens[:, 1:])
        return np.where(is_padding[:, :-1], np.int32(0), tokens[:, :-1]), targets

    def _gather(self, starts: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Reads each needed document once; a row's documents follow each other, so a row stays in one piece."""
        first = np.searchsorted(self._offsets, starts, side="right") - 1
        last = np.searchsorted(self._offsets, ends - 1, side="right") - 1
        spans = last - first + 1
        within = np.arange(spans.sum()) - np.repeat(np.cumsum(spans) - spans, spans)
        needed = np.unique(np.repeat(first, spans) + within)
        documents = self._read(needed.tolist())
        lengths = np.asarray([len(d) for d in documents], np.int64)
        expected = self._offsets[needed + 1] - self._offsets[needed]
        if not np.array_equal(lengths, expected):
            wrong = int(np.flatnonzero(lengths != expected)[0])
            raise ConfigError(
                f"document {needed[wrong]} has {lengths[wrong]} tokens, its source promised {expected[wrong]}",
                where=self._where,
                fix="The source changed while it was read, or its doc_lengths are wrong.",
            )
        places = np.concatenate([[0], np.cumsum(lengths)])
        return np.concatenate(documents), places[np.searchsorted(needed, first)] + starts - self._offsets[first]

    def _read(self, indices: Sequence[int]) -> list[np.ndarray]:
        if hasattr(self._source, "read"):
            return [document_tokens(d, where=self._where) for d in self._source.read(indices)]
        return [self._document(i) for i in indices]

    def _document(self, index: int) -> np.ndarray:
        return document_tokens(self._source[index], where=self._where)


class WholeRows:
    """Items of one source that are rows already: at most `seq_len` tokens, or `seq_len` + 1 with the last target.

    Shorter items are padded with token 0 and target −1. A longer one is an error that names it: nothing is cut.

    Args:
        source: `__len__` and `__getitem__(i)`; uses `doc_lengths` and `read(indices)` where it has them.
        seq_len: tokens per row, ≥ 1.
        name: for error messages.
    """

    def __init__(self, source: Any, seq_len: int, *, name: str = "source"):
        if seq_len < 1:
            raise ConfigError(f"seq_len must be at least 1, got {seq_len}", where="seq_len")
        self._source, self._seq_len, self._where = source, seq_len, f"source {name!r}"
        self.num_documents = len(source)
        lengths = getattr(source, "doc_lengths", None)
        if lengths is None:
            lengths = [len(document_tokens(source[i], where=self._where)) for i in range(len(source))]
        self._lengths = np.asarray(lengths, np.int64)
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
        """i64[n]: tokens of each row that have a target."""
        return np.maximum(self._lengths[rows] - 1, 0)

    def read_rows(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Reads rows i64[n] and returns tokens and targets, i32[n, seq_len] each."""
        if hasattr(self._source, "read"):
            items = self._source.read(rows.tolist())
        else:
            items = [self._source[i] for i in rows.tolist()]
        tokens = np.zeros((len(rows), self._seq_len), np.int32)
        targets = np.full((len(rows), self._seq_len), -1, np.int32)
        for i, item in enumerate(items):
            row = document_tokens(item, where=self._where)
            tokens[i, : len(row)] = row[: self._seq_len]
            targets[i, : len(row) - 1] = row[1:]
        return tokens, targets
