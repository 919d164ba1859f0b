"""Batches of a few fixed shapes from token lists of any length, and their results in the order of the texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Batch = Callable[[np.ndarray, np.ndarray], Any]
"""`(tokens i32[b, t], lengths i32[b]) -> f32[b, d]`, called with few different shapes."""

_SHORTEST = 16
_CHARACTERS_PER_TOKEN = 16
_MARGIN = 128  # tokens; more than the one word that a cut can have split


def length_buckets(longest: int) -> tuple[int, ...]:
    """Powers of two and the numbers half-way between them, from 16 to `longest`, which is the last.

    >>> length_buckets(200)
    (16, 24, 32, 48, 64, 96, 128, 192, 200)
    """
    steps = []
    power = _SHORTEST
    while power < longest:
        steps += [power, power * 3 // 2]
        power *= 2
    return (*(step for step in steps if step < longest), longest)


def in_batches(
    run: Batch, tokens: Sequence[Sequence[int]], *, longest: int, batch_tokens: int, multiple: int = 1
) -> np.ndarray:
    """Runs all rows, sorted by length, in batches of about `batch_tokens` tokens, padding included.

    A batch has the length of its longest row rounded up to a bucket, and as many rows as that bucket always has:
    `run` sees one shape per bucket. Rows are padded with token 0, batches with rows of length 0.

    Args:
        run: see `Batch`. Its results are fetched after the next batch has begun.
        tokens: of every row, at most `longest` each.
        longest: of the buckets.
        batch_tokens: rows × length of a batch.
        multiple: the number of rows is one of it.

    Returns:
        f32[n, d], in the order of `tokens`.
    """
    lengths = np.array([len(row) for row in tokens], np.int32)
    order = np.argsort(-lengths, kind="stable")  # longest first: what does not fit into memory fails at once
    buckets = np.array(length_buckets(longest))
    result: np.ndarray | None = None
    waiting: list[tuple[np.ndarray, Any]] = []
    start = 0

    def fetch() -> None:
        nonlocal result
        rows, values = waiting.pop(0)
        values = np.asarray(values, np.float32)[: len(rows)]
        if result is None:
            result = np.empty((len(tokens), values.shape[1]), np.float32)
        result[rows] = values

    while start < len(order):
        length = int(buckets[np.searchsorted(buckets, lengths[order[start]])])
        count = max(multiple, batch_tokens // length // multiple * multiple)
        rows = order[start : start + count]
        batch = np.zeros((count, length), np.int32)
        for place, row in enumerate(rows):
            batch[place, : lengths[row]] = tokens[row]
        batch_lengths = np.zeros(count, np.int32)
        batch_lengths[: len(rows)] = lengths[rows]
        waiting.append((rows, run(batch, batch_lengths)))
        if len(waiting) > 1:
            fetch()
        start += len(rows)
    while waiting:
        fetch()
    assert result is not None
    return result


def tokenize(fast: Any, texts: Sequence[str], max_length: int) -> list[list[int]]:
    """Token ids of every text, special ones included, the same as of the whole text cut to `max_length` tokens.

    Long texts are cut by characters first. Where too few tokens come of what is left, the whole text is read.

    Args:
        fast: a tokenizer of the `tokenizers` library that truncates to `max_length`.
        texts: n of them.
        max_length: in tokens.
    """
    limit = max_length * _CHARACTERS_PER_TOKEN
    # Lone surrogates, which the library refuses, become question marks.
    texts = [text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8") for text in texts]
    encodings = fast.encode_batch([text[:limit] for text in texts])
    ids = []
    for text, encoding in zip(texts, encodings, strict=True):
        if len(text) > limit and sum(len(rest.ids) for rest in encoding.overflowing) < _MARGIN:
            encoding = fast.encode(text)
        ids.append(encoding.ids)
    return ids
