"""Counts held-out documents that are nearly equal to a training document of their source, by MinHash.

A document is taken as its shingles: every word with the four that follow, in lower case and without punctuation. Its
sketch is the least hash in each of 36 bins (one permutation; an empty bin takes that of another, drawn by its number),
joined six by six into six bands. A held-out document counts as a near-duplicate if it has a band in common with a
training document. Two documents that share a part J of their shingles (Jaccard) have one with chance 1 − (1−J⁶)⁶: 0.99
at J = 0.9, 0.84 at 0.8, 0.53 at 0.7, 0.09 at 0.5. In a text of 300 words, three changed words make J 0.91, nine 0.76.

Words are runs of letters and digits, known by their first eight bytes of UTF-8; characters of Chinese and Japanese are
words. Only the letters of ASCII lose their case. Of a document the first 100,000 characters count.

References:
    Broder (1997), "On the resemblance and containment of documents". Li, Owen and Zhang (2012), "One permutation
    hashing". Shrivastava (2017), "Optimal densification for fast and accurate minwise hashing".
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt

from jaxmix.core.errors import RunError
from jaxmix.data.files import write_whole
from jaxmix.data.prepared.store import checksum

BANDS, _ROWS = 6, 6
_BINS = BANDS * _ROWS
_SHINGLE = 5
_CHARACTERS = 100_000
MOST_COMPARED = 1_000_000
"""Held-out documents of a source that are compared, evenly spaced among more: 48 bytes of memory each."""
_LONG = 256
"""Words from which on only the lowest quarter of every bin is looked at: in most bins the least is there."""

_PAD = b"\xff"
"""A byte that UTF-8 does not have: words behind a text, so that none of its shingles reaches into the next text."""
_KINDS = bytes(ord(chr(byte).lower()) if chr(byte).isalnum() else 0 for byte in range(128)) + bytes(range(128, 256))
_EMPTY, _ONES = np.uint64(2**64 - 1), np.uint64(0x0101010101010101)
_RANDOM = np.random.Generator(np.random.PCG64(0))
_FACTORS = _RANDOM.integers(0, 2**63, max(_SHINGLE, _ROWS), np.uint64) * np.uint64(2) + np.uint64(1)
_OTHERS = np.argsort(_RANDOM.random((_BINS, _BINS)) - np.eye(_BINS), axis=1)
"""By bin: itself, then the others in the order in which it takes their least hash."""


def sketches(texts: Sequence[str]) -> UInt[np.ndarray, "n bands"]:
    """The sketch of every text; zeros for one without words. The same on every machine."""
    pads = b"\0" + (_PAD + b"\0") * (_SHINGLE - 1)
    parts = [text[:_CHARACTERS].encode("utf-8", "surrogatepass") + pads for text in texts]
    data = b"".join([b"\0", *parts, bytes(8)]).translate(_KINDS)
    kinds = np.frombuffer(data, np.uint8)
    is_alone = (kinds[1:] - np.uint8(0xE3)) < 7  # first byte of a character from U+3000 to U+9FFF
    starts = np.flatnonzero((kinds[1:] != 0) & ((kinds[:-1] == 0) | is_alone)) + 1
    head = np.ndarray(len(data) - 7, "<u8", data, strides=(1,))[starts]
    zeros = (head - _ONES) & ~head & (_ONES << np.uint64(7))  # its lowest bit: the highest of the first byte that is 0
    words = head & (((zeros & (~zeros + np.uint64(1))) >> np.uint64(7)) - np.uint64(1))
    span = len(words) - (_SHINGLE - 1)
    hashes = words[:span] * _FACTORS[0]
    for shift in range(1, _SHINGLE):
        hashes += words[shift : shift + span] * _FACTORS[shift]
    hashes = (hashes ^ (hashes >> np.uint64(32))) * _FACTORS[0]
    bins = (hashes >> np.uint64(32)) * np.uint64(_BINS)  # and in the lower half the place within the bin
    first = np.searchsorted(starts, np.cumsum([1, *map(len, parts)]))  # the words that texts begin with
    lengths = np.diff(first)
    is_long = np.repeat(lengths >= _LONG, lengths)[:span]
    is_high = bins.astype(np.uint32) >= 2**30
    kept = np.flatnonzero((kinds[starts[:span]] != _PAD[0]) & ~(is_long & is_high))
    counts = np.diff(np.searchsorted(kept, first))
    places = np.repeat(np.arange(len(texts)) * _BINS, counts) + (bins[kept] >> np.uint64(32)).astype(np.int64)
    minima = np.full(len(texts) * _BINS, _EMPTY)
    np.minimum.at(minima, places, hashes[kept])
    result = np.zeros((len(texts), BANDS), np.uint64)
    result[counts > 0] = _banded(minima.reshape(len(texts), _BINS)[counts > 0])
    return result


def _banded(minima: np.ndarray) -> np.ndarray:
    """Minima [n, bins] as bands, empty bins filled."""
    row, column = np.nonzero(minima == _EMPTY)
    others = _OTHERS[column]
    pick = np.argmax(minima[row[:, None], others] != _EMPTY, axis=1)
    minima[row, column] = minima[row, others[np.arange(len(row)), pick]]
    return _mix((_mix(minima).reshape(-1, BANDS, _ROWS) * _FACTORS[:_ROWS]).sum(axis=2))


def _mix(value: np.ndarray) -> np.ndarray:
    """The finalizer of SplitMix64."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def write_sketches(record: Path, rows: Sequence[np.ndarray]) -> str:
    """Writes the sketches of a unit's documents, those of the training part first, beside its record; the checksum."""
    buffer = io.BytesIO()
    np.save(buffer, np.concatenate([np.zeros((0, BANDS), np.uint64), *rows]))
    write_whole(sketches_file(record), buffer.getvalue())
    return checksum(sketches_file(record))


def sketches_file(record: Path) -> Path:
    """Where the sketches of a unit lie, by the file of its record."""
    return record.with_suffix(".sketches.npy")


def count_near_duplicates(units: Sequence[tuple[Path, dict[str, Any]]]) -> dict[str, int] | None:
    """`{"count": near-duplicates, "of": held-out documents that were compared}` of a source.

    Linear in the documents; those of the training part are read one unit at a time.

    Args:
        units: file and content of the records of all its units.

    Returns:
        None where a unit has no sketches: an earlier version of jaxmix has prepared it.

    Raises:
        RunError: the sketches are damaged.
    """
    if not all(sketches_file(path).is_file() for path, _ in units):
        return None
    held = np.concatenate([_read(path, record)[record["splits"]["train"]["documents"] :] for path, record in units])
    held = held[held.any(axis=1)]
    if len(held) > MOST_COMPARED:
        held = held[np.linspace(0, len(held) - 1, MOST_COMPARED).astype(np.int64)]
    ordered = np.sort(held, axis=0)
    is_hit = np.zeros((len(held) + 1, BANDS), bool)  # at the first of equal bands; the last row: beyond all
    for path, record in units if len(held) else ():
        train = _read(path, record)[: record["splits"]["train"]["documents"]]
        for band in range(BANDS):
            place = np.searchsorted(ordered[:, band], train[:, band])
            is_same = ordered[np.minimum(place, len(held) - 1), band] == train[:, band]
            is_hit[place[is_same & (train[:, band] != 0)], band] = True
    near = [is_hit[np.searchsorted(ordered[:, band], held[:, band]), band] for band in range(BANDS)]
    return {"count": int(np.any(near, axis=0).sum()), "of": len(held)}


def _read(path: Path, record: dict[str, Any]) -> np.ndarray:
    file = sketches_file(path)
    try:
        rows = np.load(file)
    except (OSError, ValueError, EOFError) as error:
        raise RunError(
            f"{file} cannot be read: {error}", fix=f"Delete {path.name} beside it, and prepare again."
        ) from error
    if rows.dtype != np.uint64 or rows.shape != (sum(s["documents"] for s in record["splits"].values()), BANDS):
        raise RunError(f"{file} is not of its unit", fix=f"Delete {path.name} beside it, and prepare again.")
    return rows
