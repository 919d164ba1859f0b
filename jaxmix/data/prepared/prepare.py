"""Tokenizes sources into sharded ArrayRecord files with an index; a killed run can be continued, byte for byte.

The folder holds, during the work and afterwards:

    plan.json                            the settings
    DOMAIN/HASH/unit-00000.json          one finished unit of work: counts, troubles
    DOMAIN/HASH/unit-00000.sketches.npy  48 bytes a document, for counts of near-duplicates
    DOMAIN/HASH/train-00000.array_record its documents, one record each (several for a long one)
    DOMAIN/HASH/train-00000.npy          tokens of every record, negative where a record continues a document
    index.json                           the sums, and checksums of all files; written last

HASH is of what the source holds: a source that is added or mended is tokenized beside what is there, and the others'
work stays. Every file is written under another name, synced and renamed, and depends on its unit alone: neither the
number of workers nor kills leave a trace.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import os
import re
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np

from jaxmix import __version__
from jaxmix.core.errors import ConfigError, RunError, nearest
from jaxmix.core.validate import check_count
from jaxmix.data.files import check_apart, read_json, write_json
from jaxmix.data.lock import locked
from jaxmix.data.prepared.near_duplicates import count_near_duplicates, sketches, write_sketches
from jaxmix.data.prepared.store import content_checksum
from jaxmix.data.prepared.units import SHARD, SPLITS, ShardWriter, is_whole, read_record
from jaxmix.data.sources.readers import Trouble, Unit, shown, trouble_lines
from jaxmix.data.sources.specs import SourceSpec
from jaxmix.data.tokenizers import Tokenizer

FORMAT = 2
_BATCH = 64
_MERGED_BYTES = 2_000_000
_TAIL = "tail"
_LEAST_DIVIDED = 64
"""Tokens of an only document that is divided between the splits."""

Progress = Callable[[int, int, int], None]


@dataclasses.dataclass(frozen=True)
class PrepareSummary:
    """The result of `prepare_corpus`.

    Attributes:
        folder: where.
        index: the content of index.json.
        was_ready: an earlier run had done all the work.
        changed: sources that had been prepared with other content, or settings of their own, before.
        dropped: sources that the folder listed before; their files are kept.
    """

    folder: Path
    index: dict[str, Any]
    was_ready: bool
    changed: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()

    def troubles(self) -> dict[str, dict[str, Any]]:
        """By domain, then kind: `{"count": n, "first": [places]}`; empty where all was well."""
        return {name: entry["troubles"] for name, entry in self.index["domains"].items() if entry["troubles"]}


def prepare_corpus(
    sources: Mapping[str, SourceSpec],
    out: str | Path,
    *,
    tokenizer: Tokenizer,
    validation_fraction: float = 0.05,
    seed: int = 0,
    workers: int | None = None,
    max_record_tokens: int = 16_384,
    progress: Progress | None = None,
) -> PrepareSummary:
    """Tokenizes `sources` into `out`, continuing what a killed run left there.

    A record is a document with the end-of-document token behind it; documents of more than `max_record_tokens`
    tokens become several records. A hash of its tokens, not its place, decides the split of every document, with all
    its records: equal documents meet in the same split, and adding documents moves none. A domain of two or more
    different documents has at least one in each split; of an only document the end is held out.

    The end-of-document token stands at the end of documents alone: in their text it is taken out and counted, and so
    are unknown tokens, and characters that the tokenizer has nothing for.

    Args:
        sources: by domain name.
        out: folder; made when missing.
        tokenizer: see `load_tokenizer`.
        validation_fraction: in (0, 0.5], expected share of records held out.
        seed: of the split.
        workers: threads; one per core by default. Reading, decompression and tokenizers run outside Python's lock.
        max_record_tokens: ≥ 16; the longest record, and so what a random read costs at most.
        progress: called as `progress(units done, units in all, tokens so far)`.

    Raises:
        ConfigError: an argument is out of range, a source does not exist, `out` holds something else, or another
            process is at work there.
        RunError: a source cannot be read or has no document, or the tokenizer fails.
    """
    if not sources:
        raise ConfigError("there are no sources to prepare", where="sources", fix="Name at least one.")
    check_apart(sources, "sources", where="sources")
    if not 0 < validation_fraction <= 0.5:
        raise ConfigError(
            f"validation_fraction must be in (0, 0.5], got {validation_fraction}", where="data.validation_fraction"
        )
    check_count("prepare_corpus", "max_record_tokens", max_record_tokens, 16)
    if workers is not None and workers < 1:
        raise ConfigError(f"workers must be at least 1, got {workers}", where="data.workers")
    settings = {
        "format": FORMAT,
        "tokenizer": tokenizer.fingerprint,
        "vocab_size": tokenizer.vocab_size,
        "end_of_document": tokenizer.end_of_document,
        "dtype": "uint16" if tokenizer.vocab_size <= 2**16 else "uint32",
        "validation_fraction": validation_fraction,
        "seed": seed,
        "max_record_tokens": max_record_tokens,
    }
    folder = Path(out)
    sources = {name: spec.listed() for name, spec in sources.items()}
    hashes = {name: spec.fingerprint() for name, spec in sources.items()}
    ready = _index(folder)
    _check_folder(folder, settings, ready)
    if ready is not None and _is_of(ready, hashes):  # asks for no lock: ready data may be shared and read-only
        return PrepareSummary(folder, ready, was_ready=True)
    with locked(folder, "prepares data", where="data.prepared"):
        ready = _index(folder)
        if ready is not None and _is_of(ready, hashes):
            return PrepareSummary(folder, ready, was_ready=True)
        for left in folder.rglob(".*.partial"):  # of a process that was killed
            left.unlink(missing_ok=True)
        write_json(folder / "plan.json", {"settings": settings})
        old = {name: entry["source_hash"] for name, entry in (ready or {"domains": {}})["domains"].items()}
        work = _Work(folder, sources, hashes, tokenizer, settings)
        records = _tokenize(work, sources, workers, progress)
        for name, spec in sources.items():
            if spec.fingerprint() != hashes[name]:
                shutil.rmtree(work.home(name))  # not to be taken for the content of that hash
                what = f"source {name!r} changed while it was read"
                raise RunError(what, where=f"sources.{name}", fix="Run the same command again.")
        domains = {name: _summary(work, name, found) for name, found in records.items()}
        index = {"format": FORMAT, "jaxmix": __version__, "settings": settings, "domains": domains}
        write_json(folder / "index.json", {**index, "checksum": content_checksum(index)})
        for name in sources:
            # The content before this one stays, for runs that read it; a folder is renamed before it goes, so that no
            # half of one is taken for finished work.
            kept = {work.home(name).name, old.get(name, "")[:12]}
            for left in [path for path in (folder / name).iterdir() if path.is_dir() and path.name not in kept]:
                shutil.rmtree(left.rename(left.with_name(f".{left.name}.removed")))
    changed = tuple(name for name in sources if name in old and old[name] != hashes[name])
    dropped = tuple(name for name in old if name not in sources)
    return PrepareSummary(folder, read_json(folder / "index.json"), was_ready=False, changed=changed, dropped=dropped)


def _tokenize(
    work: _Work, sources: Mapping[str, SourceSpec], workers: int | None, progress: Progress | None
) -> dict[str, list[dict[str, Any]]]:
    """Does all units that are not done; their records by domain."""
    units = {name: _merged(spec.units()) for name, spec in sources.items()}
    total, done, tokens = sum(map(len, units.values())), 0, 0
    records: dict[str, list[dict[str, Any]]] = {name: [{}] * len(us) for name, us in units.items()}
    with ThreadPoolExecutor(workers or os.cpu_count() or 1, "jaxmix-prepare") as pool:
        futures = {
            pool.submit(work.unit, name, n, u): (name, n) for name, us in units.items() for n, u in enumerate(us)
        }
        try:
            for future in as_completed(futures):
                name, number = futures[future]
                records[name][number] = future.result()
                done += 1
                tokens += sum(records[name][number]["splits"][split]["tokens"] for split in SPLITS)
                if progress is not None:
                    progress(done, total, tokens)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    for name in sources:
        work.check_documents(name, records[name])
        records[name] = work.balance(name, units[name], records[name])
    return records


def _merged(units: list[Unit]) -> list[Unit]:
    """The units with neighbors of small JSON-lines files in one: ten thousand files do not make as many shards."""
    merged: list[Unit] = []
    size = 0
    for unit in units:
        is_whole = unit.kind == "jsonl" and unit.start == 0 and 0 <= unit.stop < _MERGED_BYTES
        if is_whole and merged and size and size + unit.stop < _MERGED_BYTES:
            merged[-1] = Unit("jsonl", (*merged[-1].paths, *unit.paths))
            size += unit.stop
        else:
            merged.append(unit)
            size = unit.stop if is_whole else 0
    return merged


class _Work:
    """One preparation: turns units of sources into finished files."""

    def __init__(
        self,
        folder: Path,
        sources: Mapping[str, SourceSpec],
        hashes: Mapping[str, str],
        tokenizer: Tokenizer,
        settings: Mapping[str, Any],
    ):
        self._folder, self.sources, self.hashes = folder, sources, hashes
        self._tokenizer, self._settings = tokenizer, settings
        self._dtype = np.dtype(settings["dtype"]).newbyteorder("<")
        self._key = settings["seed"].to_bytes(8, "little", signed=True)
        self._threshold = int(settings["validation_fraction"] * 2**64)

    def home(self, name: str) -> Path:
        """The folder of a source's files."""
        return self._folder / name / self.hashes[name][:12]

    def record(self, name: str, number: int) -> Path:
        """The file of a unit's record."""
        return self.home(name) / f"unit-{number:05d}.json"

    def unit(self, name: str, number: int, unit: Unit, moved: Mapping[str, int] | None = None) -> dict[str, Any]:
        """Returns the unit's record, doing its work if no earlier run has.

        `moved` names documents of a fixed split by their hash; `_TAIL` says how many last tokens are held out.
        """
        path = self.record(name, number)
        record = read_record(path)
        if record is not None and record["moved"] == dict(moved or record["moved"]) and is_whole(path, record):
            return record
        trouble = Trouble()
        writers = {split: ShardWriter(self.home(name), split, number) for split in SPLITS}
        extremes: list[int] = []
        documents = 0
        for batch in _batches(self._documents(name, unit, trouble)):
            texts = [text for _, text in batch]
            encoded = zip(batch, self._tokenizer.encode_batch(texts), sketches(texts), strict=True)
            for (where, text), tokens, sketch in encoded:
                kept = self._checked(tokens, text, where, trouble)
                if len(kept):
                    documents += 1
                    extremes = self._write(kept, sketch, writers, moved or {}, extremes)
        splits = {split: writer.finish() for split, writer in writers.items()}
        record = {
            "documents": documents,
            "splits": splits,
            "hash_range": [f"{h:016x}" for h in extremes],
            "moved": dict(moved or {}),
            "troubles": trouble.to_json(),
            "fields": list(trouble.fields),
            "sketches": write_sketches(path, [row for split in SPLITS for row in writers[split].sketches]),
        }
        write_json(path, {**record, "checksum": content_checksum(record)})  # last: a unit without it is done again
        return record

    def _documents(self, name: str, unit: Unit, trouble: Trouble) -> Any:
        for _, where, text in self.sources[name].texts(unit, trouble):
            if "\0" in text:
                trouble.add("documents with NUL bytes, which were taken out", where)
                text = text.replace("\0", "")
                if not text.strip():
                    trouble.add("empty documents", where)
                    continue
            yield where, text

    def _checked(self, tokens: np.ndarray, text: str, where: str, trouble: Trouble) -> np.ndarray:
        """The tokens of a document without ends inside it. Losses are counted."""
        size, end = self._tokenizer.vocab_size, self._tokenizer.end_of_document
        if len(tokens) and not 0 <= int(tokens.min()) <= int(tokens.max()) < size:
            raise RunError(
                f"the tokenizer gave the id {int(tokens.max())}, its vocabulary has {size}",
                where=where,
                fix="Its vocab_size must be above every id.",
            )
        is_end = tokens == end
        if is_end.any():
            trouble.add("documents with the end-of-document token in their text, which was taken out", where)
            tokens = tokens[~is_end]
        is_control = np.isin(tokens, getattr(self._tokenizer, "control", ()))
        if is_control.any():
            trouble.add("documents with control tokens in their text, which were taken out", where)
            tokens = tokens[~is_control]
        losses = getattr(self._tokenizer, "losses", None)
        if losses is not None:
            unknown, lost = losses(text, tokens)
            trouble.add("unknown tokens", where, count=unknown)
            trouble.add("characters that the tokenizer has no token for", where, count=lost)
        if not len(tokens):
            trouble.add("documents that the tokenizer leaves nothing of", where)
        return tokens

    def check_documents(self, name: str, records: list[dict[str, Any]]) -> None:
        """Raises `RunError` for a source without a single document, which is never what was meant."""
        if any(record["documents"] for record in records):
            return
        trouble, fields = Trouble(), dict.fromkeys(field for record in records for field in record["fields"])
        for record in records:
            trouble.merge(record["troubles"])
        kinds = trouble_lines(trouble.to_json())
        field = self.sources[name].text_field
        fix = nearest(field, fields) if fields else "Look at the files, or leave the source out."
        raise RunError(
            f"source {name!r} has no document" + (f": {'; '.join(kinds)}" if kinds else ""),
            where=f"sources.{name}" + (".text_field" if fields else ""),
            fix=f"{fix} The other sources' work is kept." if len(self.sources) > 1 else fix,
        )

    def _write(
        self,
        tokens: np.ndarray,
        sketch: np.ndarray,
        writers: Mapping[str, ShardWriter],
        moved: Mapping[str, int],
        extremes: list[int],
    ) -> list[int]:
        """Writes a document's records to their splits; keeps the smallest and largest hash of the unit."""
        whole = np.append(tokens, self._tokenizer.end_of_document).astype(self._dtype)
        size = self._settings["max_record_tokens"]
        value = int.from_bytes(hashlib.blake2b(whole.tobytes(), digest_size=8, key=self._key).digest(), "big")
        is_held_out = bool(moved.get(f"{value:016x}", value < self._threshold))
        tail = len(whole) - moved[_TAIL] if _TAIL in moved else 0
        # A last piece of only the end-of-document token would be a document of nothing.
        cuts = sorted({0, tail, *range(tail, max(len(whole) - 1, 1), size), *range(0, tail, size), len(whole)})
        for number, (start, stop) in enumerate(itertools.pairwise(cuts)):
            split = "validation" if (start >= tail if tail else is_held_out) else "train"
            writers[split].add(whole[start:stop].tobytes(), stop - start, sketch, is_continued=number > 0)
        return [min(extremes[0], value), max(extremes[1], value)] if extremes else [value, value]

    def balance(self, name: str, units: list[Unit], records: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Moves the document with the smallest (largest) hash to the split that got none.

        Of an only document the end is held out, which makes it two records or more.
        """
        if sum(record["documents"] for record in records) == 1:
            (number,) = (i for i, record in enumerate(records) if record["documents"])
            tokens = sum(records[number]["splits"][split]["tokens"] for split in SPLITS)
            if tokens >= _LEAST_DIVIDED:
                held_out = max(round(self._settings["validation_fraction"] * tokens), 2)
                records[number] = self.unit(name, number, units[number], {_TAIL: held_out})
            return records
        for split, pick, side in (("validation", 0, min), ("train", 1, max)):
            if any(record["splits"][split]["records"] for record in records):
                continue
            value = side(r["hash_range"][pick] for r in records if r["hash_range"])
            for number, record in enumerate(records):
                if value in record["hash_range"]:
                    records[number] = self.unit(name, number, units[number], {value: int(split == "validation")})
        return records


def _batches(documents: Any) -> Any:
    """Documents with their places, in batches for the tokenizer, none of them large."""
    batch: list[tuple[str, str]] = []
    size = 0
    for where, text in documents:
        batch.append((where, text))
        size += len(text)
        if len(batch) >= _BATCH or size > 4_000_000:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _index(folder: Path) -> dict[str, Any] | None:
    """The index; None where there is none, or an altered one, which is made again from the units' own records."""
    index = read_json(folder / "index.json")
    is_whole = isinstance(index, dict) and index.get("checksum") == content_checksum(index)
    return index if is_whole else None


def _is_of(index: dict[str, Any], hashes: Mapping[str, str]) -> bool:
    """Whether the index is of exactly these sources in this order."""
    return [(name, entry["source_hash"]) for name, entry in index["domains"].items()] == list(hashes.items())


def _check_folder(folder: Path, settings: Mapping[str, Any], index: dict[str, Any] | None) -> None:
    """Raises `ConfigError` for a folder of something else, or one that was begun with other settings."""
    if re.search("[\ud800-\udfff]", str(folder)):
        what = f"{shown(str(folder))} is not UTF-8, which ArrayRecord does not take"
        raise ConfigError(what, where="data.prepared", fix="Choose another folder.")
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file", where="data.prepared", fix="Choose another folder.")
    plan, fix = folder / "plan.json", "Remove the folder and prepare again, or choose another one."
    found = index or read_json(plan, fix=fix)  # the index has the settings too
    if not isinstance(found, dict) or not isinstance(found.get("settings"), dict):
        if plan.is_file():
            raise RunError(f"{plan.name} has no settings", where=str(folder), fix=fix)
        if folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir()):
            raise ConfigError(
                f"{folder} is not empty and holds no prepared data",
                where="data.prepared",
                fix="Choose another folder; nothing there was touched.",
            )
        return
    for key, value in settings.items():
        if found["settings"].get(key) != value:
            raise ConfigError(
                f"{folder} was prepared with {key} {found['settings'].get(key)!r}, now it is {value!r}",
                where="data",
                fix="Choose another folder for the new settings, or remove the old one.",
            )


def _summary(work: _Work, name: str, records: list[dict[str, Any]]) -> dict[str, Any]:
    trouble = Trouble()
    trouble.merge(work.sources[name].listing()[1])
    for record in records:
        trouble.merge(record["troubles"])
        trouble.add("document alone in its source, of which the end is held out", count=int(_TAIL in record["moved"]))
    splits = {}
    for split in SPLITS:
        parts = [record["splits"][split] for record in records]
        splits[split] = {
            **{key: sum(part[key] for part in parts) for key in ("documents", "records", "tokens")},
            "shards": [{key: part[key] for key in SHARD} for part in parts if part["file"]],
        }
    near = count_near_duplicates([(work.record(name, number), record) for number, record in enumerate(records)])
    documents, held_out = sum(record["documents"] for record in records), splits["validation"]["documents"]
    if near is not None and near["count"] == near["of"] == held_out:
        trouble.add("held-out documents, all of them near-duplicates of training documents", count=held_out)
    trouble.add(
        "documents, all alike, of which none is held out", count=documents if documents > 1 and not held_out else 0
    )
    return {
        "source_hash": work.hashes[name],
        "folder": work.home(name).name,
        "documents": documents,
        "near_duplicates": near,
        "tokens": sum(split["tokens"] for split in splits.values()),
        "bytes": sum(shard["bytes"] for split in splits.values() for shard in split["shards"]),
        "splits": splits,
        "troubles": trouble.to_json(),
    }
