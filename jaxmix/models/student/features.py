"""Texts as sparse rows for the student: n-grams of training texts, and batches that one compiled step takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32, Int64

from jaxmix.data.hashing import hashed_ngrams

_TEXTS_AT_ONCE = 256  # the working arrays of that many documents stay near the cache
_LEAST_SLOTS = 1024


class Features(NamedTuple):
    """The n-grams of n texts, as positions in a table of the buckets that occur.

    Attributes:
        columns: row of the table for every n-gram; −1 for buckets that are not in the table.
        offsets: columns offsets[i]:offsets[i+1] are those of text i.
    """

    columns: Int32[np.ndarray, " f"]
    offsets: Int64[np.ndarray, " n1"]  # n + 1


class StudentBatch(NamedTuple):
    """b texts of a training step, cut into one part per device: arrays, on the host or placed, or their shardings.

    Attributes:
        used: i32[u], the distinct table rows of the batch, padded with the number of rows of the table.
        places: i32[parts·f], for every n-gram its place in `used`.
        rows: i32[parts·f], for every n-gram its text within its part.
        shares: f32[parts·f], one over the number of n-grams of its text; 0 for padding.
        targets: f32[b, k], what the teacher says; rows sum to 1 (to 0 for padding).
    """

    used: Any
    places: Any
    rows: Any
    shares: Any
    targets: Any


def hash_texts(
    texts: Sequence[str], *, buckets: int, orders: Sequence[int], seed: int, max_words: int
) -> tuple[np.ndarray, np.ndarray]:
    """Buckets i32[f] and offsets i64[n+1] of all texts, hashed in small batches."""
    ids, lengths = [np.zeros(0, np.int32)], [np.zeros(0, np.int64)]
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        part = texts[start : start + _TEXTS_AT_ONCE]
        grams = hashed_ngrams(part, buckets=buckets, orders=orders, seed=seed, max_words=max_words)
        ids.append(grams.ids)
        lengths.append(np.diff(grams.offsets))
    return np.concatenate(ids), np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype(np.int64)


def build_batch(
    features: Features, chosen: np.ndarray, targets: np.ndarray, *, parts: int, table_rows: int, scratch: np.ndarray
) -> StudentBatch:
    """The batch of the texts `chosen`, its arrays padded to powers of two so that few programs are compiled.

    Args:
        features: of all training texts; without −1.
        chosen: i64[b], texts of the batch; −1 for padding. b is a multiple of `parts`.
        targets: f32[n, k] of all training texts.
        parts: number of devices.
        table_rows: rows of the table.
        scratch: i32[table_rows], overwritten.
    """
    per_part = len(chosen) // parts
    is_text = chosen >= 0
    first = features.offsets[np.where(is_text, chosen, 0)]
    counts = np.where(is_text, features.offsets[np.where(is_text, chosen, 0) + 1] - first, 0)
    ends = np.cumsum(counts)
    columns = features.columns[np.arange(int(ends[-1])) + np.repeat(first - (ends - counts), counts)]
    used = _distinct(columns, scratch)
    places_of = scratch
    places_of[used] = np.arange(len(used), dtype=np.int32)
    row = np.repeat(np.arange(len(chosen)), counts)
    share = np.repeat(1.0 / np.maximum(counts, 1), counts).astype(np.float32)
    part = row // per_part
    sizes = np.bincount(part, minlength=parts)
    width = _padded(int(sizes.max()))
    slot = np.arange(len(columns)) - np.repeat(np.cumsum(sizes) - sizes, sizes) + part * width
    places, rows = np.zeros(parts * width, np.int32), np.full(parts * width, per_part - 1, np.int32)
    shares = np.zeros(parts * width, np.float32)
    places[slot], rows[slot], shares[slot] = places_of[columns], row % per_part, share
    padded = np.full(_padded(len(used)), table_rows, np.int32)
    padded[: len(used)] = used
    wanted = np.where(is_text[:, None], targets[np.where(is_text, chosen, 0)], 0.0).astype(np.float32)
    return StudentBatch(padded, places, rows, shares, wanted)


def _distinct(columns: np.ndarray, scratch: np.ndarray) -> np.ndarray:
    """The distinct values, ascending: by marking them, which is many times faster than sorting."""
    scratch[:] = 0
    scratch[columns] = 1
    return np.flatnonzero(scratch).astype(np.int32)


def _padded(count: int) -> int:
    return max(_LEAST_SLOTS, 1 << (count - 1).bit_length()) if count else _LEAST_SLOTS
