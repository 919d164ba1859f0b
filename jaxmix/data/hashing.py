"""Hashed word n-grams of texts: the features of the student classifier and of the built-in encoder.

A batch of texts becomes one array of code points, and every step works on that array: there is no Python loop over
characters, words or n-grams. The ids depend on the texts and the arguments alone, not on the process, the machine,
the batch or the version of Python: word characters and lower case are taken from the tables of Unicode 3.2, which
every Python carries, and pairs of cases never change once they are assigned.

A *word* is a maximal run of letters, marks and digits in lower case, after composition (NFC). Characters that
Unicode 3.2 does not know count as letters. Every ideograph, kana, Thai, Lao, Khmer and Myanmar character is a word of
its own, since these scripts put no spaces between words.
"""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt

from jaxmix.core.types import Int
from jaxmix.core.validate import check_count, check_number

_TABLE_SIZE = 0x30001  # the planes that hold scripts, and one entry for all beyond: letters without cases
_CHARACTERS_PER_WORD = 16
_UNSPACED = (  # first and last code point
    *((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x2E80, 0x2FDF), (0x3040, 0x30FF)),
    *((0x31F0, 0x31FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x2FFFF)),
)
_SEPARATOR = "\n"
_BASE = np.uint64(0x9E3779B97F4A7C15 | 1)
_PAIR = np.uint64(0xD6E8FEB86659FD93)


class Words(NamedTuple):
    """The words of a batch of texts, in order.

    Attributes:
        hashes: u64[w], one per word; equal words have equal hashes.
        starts, stops: i64[w], their places in `text`.
        offsets: i64[n+1]; words offsets[i]:offsets[i+1] are those of text i.
        text: the texts as one string, in lower case.
    """

    hashes: UInt[np.ndarray, " w"]
    starts: Int[np.ndarray, " w"]
    stops: Int[np.ndarray, " w"]
    offsets: Int[np.ndarray, " n+1"]
    text: UInt[np.ndarray, " characters"]

    def word(self, index: int) -> str:
        """The word at `index` as text."""
        points = self.text[int(self.starts[index]) : int(self.stops[index])]
        return points.astype("<u4").tobytes().decode("utf-32-le", "surrogatepass")


class HashedNgrams(NamedTuple):
    """The n-grams of a batch of texts as buckets.

    Attributes:
        ids: i32[f] in [0, buckets); of each text first the n-grams of the first order, in order, then the next.
        offsets: i64[n+1]; ids offsets[i]:offsets[i+1] are those of text i.
    """

    ids: Int[np.ndarray, " f"]
    offsets: Int[np.ndarray, " n+1"]


def hashed_ngrams(
    texts: Sequence[str],
    *,
    buckets: int,
    orders: Sequence[int] = (1, 2),
    seed: int = 0,
    max_words: int | None = None,
) -> HashedNgrams:
    """Hashes the word n-grams of every text into buckets.

    Args:
        texts: n texts; any string, lone surrogates too. A text without words has no n-grams.
        buckets: number of buckets, in [1, 2³¹).
        orders: lengths n of the n-grams, each ≥ 1. All orders share the buckets, as in FastText.
        seed: in [0, 2⁶⁴): of the hash.
        max_words: words read of every text (and at most 16 characters for each of them);
            None reads all.

    Returns:
        `HashedNgrams(ids, offsets)`. Repeated n-grams stand repeatedly.

    Raises:
        ConfigError: an argument is out of range.

    Example:
        >>> grams = hashed_ngrams(["The cat sat.", "", "the CAT"], buckets=1 << 20)
        >>> grams.offsets.tolist()
        [0, 5, 5, 8]
        >>> (grams.ids[:2] == grams.ids[5:7]).all() and grams.ids[3] == grams.ids[7]
        np.True_

    References:
        Joulin et al., "Bag of tricks for efficient text classification" (2016), section 2.2; the mixing function is
        the finalizer of SplitMix64 (Steele, Lea and Flood 2014).
    """
    check_count("hashed_ngrams", "buckets", buckets)
    check_number("hashed_ngrams", "buckets", buckets, 1, below=2**31)
    check_count("hashed_ngrams", "seed", seed, 0)
    for order in orders:
        check_count("hashed_ngrams", "orders", order)
    words = split_words(texts, max_words=max_words)
    lengths = np.diff(words.offsets)
    counts = np.stack([np.maximum(lengths - order + 1, 0) for order in orders], axis=1)
    offsets = np.concatenate([[0], np.cumsum(counts.sum(axis=1))])
    places = offsets[:-1, None] + np.cumsum(counts, axis=1) - counts  # where each order of each text begins
    ids = np.empty(int(offsets[-1]), np.int32)
    for column, order in enumerate(orders):
        hashes = _mix(words.hashes + np.uint64((seed + order * 0x632BE59BD9B4E019) % 2**64))
        span = max(len(words.hashes) - order + 1, 0)
        joined = hashes[:span]
        for shift in range(1, order):
            joined = _mix(joined * _PAIR + words.hashes[shift : shift + span])
        last = np.minimum(words.offsets[:-1], span)
        kept = counts[:, column]
        within = np.arange(int(kept.sum())) - np.repeat(np.cumsum(kept) - kept, kept)
        chosen = joined[within + np.repeat(last, kept)]
        ids[within + np.repeat(places[:, column], kept)] = chosen % np.uint64(buckets)
    return HashedNgrams(ids, offsets)


def split_words(texts: Sequence[str], *, max_words: int | None = None) -> Words:
    """Finds and hashes the words of every text. Arguments as for `hashed_ngrams`."""
    if max_words is not None:
        check_count("split_words", "max_words", max_words)
        texts = [text[: max_words * _CHARACTERS_PER_WORD] for text in texts]
    composed = [text if text.isascii() else unicodedata.normalize("NFC", text) for text in texts]
    joined = _SEPARATOR.join([*composed, ""])
    points = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), "<u4")
    lower, kinds = _tables()
    index = np.minimum(points, _TABLE_SIZE - 1)
    kind = kinds[index]
    text = np.where(points < _TABLE_SIZE - 1, lower[index], points).astype(np.uint32)
    is_word = kind > 0
    joins = np.zeros(len(points), bool)  # whether a character continues the word of the one before
    joins[1:] = (kind[1:] == 1) & (kind[:-1] == 1)
    starts = np.flatnonzero(is_word & ~joins)
    ends_here = is_word.copy()
    ends_here[:-1] &= ~joins[1:]
    stops = np.flatnonzero(ends_here) + 1
    text_ends = np.cumsum([len(text) + 1 for text in composed], dtype=np.int64)
    offsets = np.concatenate([[0], np.searchsorted(starts, text_ends)]).astype(np.int64)
    if max_words is not None:
        lengths = np.minimum(np.diff(offsets), max_words)
        kept = np.arange(int(lengths.sum())) + np.repeat(offsets[:-1] - (np.cumsum(lengths) - lengths), lengths)
        starts, stops = starts[kept], stops[kept]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
    return Words(_hash_spans(text, starts, stops), starts, stops, offsets, text)


def _hash_spans(text: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
    """Σ_j mix(c_j) B^j over every span, mixed; modulo 2⁶⁴."""
    if not len(starts):
        return np.zeros(0, np.uint64)
    lengths = stops - starts
    first = np.cumsum(lengths) - lengths
    within = np.arange(int(lengths.sum())) - np.repeat(first, lengths)
    points = text[within + np.repeat(starts, lengths)].astype(np.uint64)
    powers = np.multiply.accumulate(np.full(int(lengths.max()), _BASE, np.uint64))
    sums = np.add.reduceat(_mix(points + np.uint64(1)) * powers[within], first)
    return _mix(sums)


def _mix(value: np.ndarray) -> np.ndarray:
    """The finalizer of SplitMix64: every bit of the result depends on every bit of `value`."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


@functools.cache
def _tables() -> tuple[np.ndarray, np.ndarray]:
    """By code point: its lower case; 0 outside words, 1 in a word, 2 a word of its own."""
    category = unicodedata.ucd_3_2_0.category
    lower = np.arange(_TABLE_SIZE, dtype=np.uint32)
    kinds = np.ones(_TABLE_SIZE, np.int8)
    for point in range(0x20000):
        character = chr(point)
        is_known = (name := category(character)) != "Cn"
        kinds[point] = name[0] in "LMN" or not is_known
        if name in ("Lu", "Lt") and len(small := character.lower()) == 1:
            lower[point] = ord(small)
    for first, last in _UNSPACED:
        kinds[first : last + 1] *= 2
    kinds[0xD800:0xE000] = 0  # lone surrogates
    return lower, kinds
