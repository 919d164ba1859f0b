"""Random access to prepared data."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxmix.core.errors import ConfigError, RunError
from jaxmix.data.files import read_json
from jaxmix.data.sources.readers import array_record_reader


def read_index(folder: str | Path) -> dict[str, Any]:
    """The index of a prepared folder: settings, and per domain documents, tokens, bytes, hashes and troubles.

    Raises:
        ConfigError: nothing is there, or its preparation was not finished.
    """
    path = Path(folder) / "index.json"
    fix = "Remove it and run jaxmix prepare; finished work is kept."
    index = read_json(path, fix=fix)
    if index is not None and (not isinstance(index, dict) or index.get("checksum") != content_checksum(index)):
        is_altered = isinstance(index, dict) and "checksum" in index
        what = "was altered" if is_altered else "is damaged, or of another version of jaxmix"
        raise RunError(f"{path} {what}", where="data.prepared", fix=fix)
    if index is None:
        is_begun = (Path(folder) / "plan.json").is_file()
        raise ConfigError(
            f"{folder} was not prepared to the end" if is_begun else f"there is no prepared data in {folder}",
            where="data.prepared",
            fix="Run jaxmix prepare; it continues where it stopped." if is_begun else "Run jaxmix prepare first.",
        )
    return index


def content_checksum(plain: dict[str, Any]) -> str:
    """Of the content of index.json, or of a unit's record, but the checksum itself."""
    content = {key: value for key, value in plain.items() if key != "checksum"}
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()


def checksum(path: Path) -> str:
    """Of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def open_prepared(folder: str | Path, split: str = "train", *, verify: bool = False) -> dict[str, PreparedSource]:
    """Opens a split of every domain, in the order of the sources.

    The index, every file's size and the tables of lengths are always checked, which notices files that were cut,
    exchanged or altered in length.

    Args:
        folder: that `prepare_corpus` wrote.
        split: "train" or "validation".
        verify: also read all data and compare its checksums, at the speed of the disk.

    Raises:
        ConfigError: no such split or folder.
        RunError: a file is missing or is not the one that the index names.
    """
    index = read_index(folder)
    dtype = index["settings"]["dtype"]
    most_open = max(_MOST_OPEN // max(len(index["domains"]), 1), 1)
    sources = {}
    for name, entry in index["domains"].items():
        if split not in entry["splits"]:
            raise ConfigError(f"unknown split {split!r}", where="open_prepared", fix="Use train or validation.")
        home, shards = Path(folder) / name / entry["folder"], entry["splits"][split]["shards"]
        sources[name] = PreparedSource(home, name, dtype, shards, most_open=most_open)
        if verify:
            for shard in shards:
                _check_shard(home, shard, verify=True)
    return sources


def verify_prepared(folder: str | Path) -> dict[str, list[str]]:
    """Reads all data of a prepared folder and compares it with the index; by domain, what is wrong with its files.

    Raises:
        ConfigError, RunError: of `read_index`.
    """
    damage: dict[str, list[str]] = {}
    for name, entry in read_index(folder)["domains"].items():
        damage[name] = []
        for shard in (shard for split in entry["splits"].values() for shard in split["shards"]):
            try:
                _check_shard(Path(folder) / name / entry["folder"], shard, verify=True)
            except RunError as error:
                damage[name].append(error.what)
    return damage


def _check_shard(folder: Path, shard: dict[str, Any], *, verify: bool = False) -> None:
    """Raises `RunError` if a file or its table of lengths is not the one that the index names; `verify` reads it."""
    path = folder / shard["file"]
    table = path.with_suffix(".npy")
    try:
        _check(path, shard["bytes"], path.stat().st_size if path.is_file() else None, "bytes:")
        _check(table, shard["lengths_checksum"], checksum(table) if table.is_file() else None, "the checksum")
        if verify:
            _check(path, shard["checksum"], checksum(path), "the checksum")
    except OSError as error:
        raise RunError(f"{error.filename or path} cannot be read: {error.strerror}", fix=DAMAGED) from error


DAMAGED = "The prepared folder is damaged. Remove index.json and run jaxmix prepare, which redoes the damaged parts."
_MOST_OPEN = 256
"""Files of one split that are open at once: a process may usually open 1,024, and both splits and others need some."""


def _check(path: Path, expected: Any, found: Any, what: str) -> None:
    if found != expected:
        has = "is missing" if found is None else f"has {what} {found}"
        raise RunError(f"{path} {has}, the index says {expected}", fix=DAMAGED)


class PreparedSource:
    """One split of one domain, as a token source: `len`, `[i]`, `read(indices)`, `doc_lengths`.

    A record is a document, or a piece of a long one. Files are opened when they are first read; instances may be
    pickled, and read by several threads.

    Attributes:
        name: of the domain.
        doc_lengths: i64[n], tokens of each record.
        is_continued: bool[n], the record continues the document before it (maybe in the other split).
        num_tokens, num_bytes, num_documents: of the split; bytes are on disk.
    """

    def __init__(
        self, folder: Path, name: str, dtype: str, shards: Sequence[dict[str, Any]], *, most_open: int = _MOST_OPEN
    ):
        self.name = name
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self._most_open = most_open
        self._paths = [folder / shard["file"] for shard in shards]
        for shard in shards:
            _check_shard(folder, shard)
        lengths = [np.load(path.with_suffix(".npy")) for path in self._paths]
        signed = np.concatenate(lengths) if lengths else np.zeros(0, np.int64)
        self.doc_lengths, self.is_continued = np.abs(signed), signed < 0
        self._starts = np.cumsum([0, *(len(part) for part in lengths)])
        self.num_tokens = int(self.doc_lengths.sum())
        self.num_bytes = sum(shard["bytes"] for shard in shards)
        self.num_documents = int(np.sum(~self.is_continued))
        self._readers: dict[int, Any] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.doc_lengths)

    def __getitem__(self, index: int) -> np.ndarray:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self.read([index % len(self)])[0]

    def read(self, indices: Sequence[int]) -> list[np.ndarray]:
        """Reads records, one request per file, and returns their tokens in the order asked for."""
        if len(self._paths) == 1 and len(indices):  # the usual case, and half the time of the general one
            with self._lock:
                return [np.frombuffer(data, self._dtype) for data in self._reader(0).read(list(indices))]
        wanted = np.asarray(indices, np.int64)
        shard_of = np.searchsorted(self._starts, wanted, side="right") - 1
        result: list[Any] = [None] * len(wanted)
        for shard in np.unique(shard_of).tolist():
            places = np.flatnonzero(shard_of == shard)
            within = (wanted[places] - self._starts[shard]).tolist()
            with self._lock:  # a reader keeps one position
                data = self._reader(shard).read(within)
            for place, record in zip(places.tolist(), data, strict=True):
                result[place] = np.frombuffer(record, self._dtype)
        return result

    def close(self) -> None:
        """Closes the files; the next read opens them again."""
        with self._lock:
            for reader in self._readers.values():
                reader.close()
            self._readers.clear()

    def _reader(self, shard: int) -> Any:
        reader = self._readers.pop(shard, None)
        if reader is None:
            reader = array_record_reader(self._paths[shard])
            if len(self._readers) >= self._most_open:  # close the one that was read the longest ago
                self._readers.pop(next(iter(self._readers))).close()
        self._readers[shard] = reader
        return reader

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_readers", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _readers={}, _lock=threading.Lock())
