"""Reads documents from files of every supported format. What cannot be read is counted and named, never skipped."""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxmix.core.errors import ConfigError, EnvironmentProblem, nearest

FORMATS: dict[str, tuple[str, ...]] = {
    "text": (".txt", ".md", ".text", ".txt.gz", ".txt.zst"),
    "jsonl": (".jsonl", ".ndjson", ".jsonl.gz", ".jsonl.zst", ".json.gz", ".json.zst"),
    "parquet": (".parquet",),
    "array_record": (".array_record", ".arrayrecord"),
}
_UNIT_BYTES = 32_000_000
_NAMED = 5


class Trouble:
    """Counts problems by kind, with the first few places of each."""

    def __init__(self) -> None:
        self._kinds: dict[str, tuple[int, list[str]]] = {}

    def add(self, kind: str, *where: str, count: int = 1) -> None:
        total, first = self._kinds.get(kind, (0, []))
        self._kinds[kind] = (total + count, [*first, *where][:_NAMED])

    def merge(self, record: dict[str, Any]) -> None:
        for kind, entry in record.items():
            self.add(kind, *entry["first"], count=entry["count"])

    def to_json(self) -> dict[str, Any]:
        return {kind: {"count": n, "first": first} for kind, (n, first) in sorted(self._kinds.items())}


@dataclasses.dataclass(frozen=True)
class Unit:
    """A piece of work: some whole files, or a range of one.

    Attributes:
        kind: a key of `FORMATS`, or "tfds", "hf", "memory".
        paths: files, in order.
        start, stop: bytes of a plain JSON-lines file, row groups of a Parquet file, or records; −1: to the end.
    """

    kind: str
    paths: tuple[Path, ...]
    start: int = 0
    stop: int = -1


def detect_format(path: Path) -> str | None:
    """The format of a file by its ending; None if it is unknown."""
    name = path.name.lower()
    return next((kind for kind, endings in FORMATS.items() if name.endswith(endings)), None)


def split_file(path: Path, kind: str) -> list[Unit]:
    """Ranges of a file that can be read at the same time, of about 32 MB each."""
    try:
        size = path.stat().st_size
        if kind == "jsonl" and path.suffix in (".jsonl", ".ndjson"):
            starts = range(0, max(size, 1), _UNIT_BYTES)
            return [Unit(kind, (path,), s, min(s + _UNIT_BYTES, size)) for s in starts]
        if kind == "parquet":
            import pyarrow.parquet as pq

            groups = pq.ParquetFile(path).metadata.num_row_groups
            return [Unit(kind, (path,), g, g + 1) for g in range(groups)]
        if kind == "array_record":
            with contextlib.closing(array_record_reader(path)) as reader:
                count = reader.num_records()
            step = 20_000
            return [Unit(kind, (path,), s, min(s + step, count)) for s in range(0, count, step)]
    except Exception:  # reading the unit will report what is wrong with the file
        return [Unit(kind, (path,))]
    return [Unit(kind, (path,))]


def read_unit(unit: Unit, text_field: str, trouble: Trouble) -> Iterator[tuple[str, bytes]]:
    """Yields (place, UTF-8 bytes as found) of every document; troubles go to `trouble`."""
    for path in unit.paths:
        try:
            yield from _READERS[unit.kind](path, unit, text_field, trouble)
        except (OSError, EOFError, zlib.error, ValueError, RuntimeError, gzip.BadGzipFile) as error:
            if isinstance(error, ConfigError | EnvironmentProblem):
                raise
            trouble.add(
                "unreadable files", f"{path.name}: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
            )


def _open(path: Path) -> Any:
    if path.suffix == ".gz":
        return gzip.open(path, "rb")
    if path.suffix == ".zst":
        import pyarrow as pa

        return pa.input_stream(str(path), compression="zstd")
    return path.open("rb")


def _text(path: Path, unit: Unit, field: str, trouble: Trouble) -> Iterator[tuple[str, bytes]]:
    with _open(path) as file:
        data = bytes(file.read())
    if not data:
        trouble.add("empty files", path.name)
        return
    yield path.name, data


def _jsonl(path: Path, unit: Unit, field: str, trouble: Trouble) -> Iterator[tuple[str, bytes]]:
    with _open(path) as file:
        if unit.stop < 0:
            lines = _lines(file)
        else:
            if unit.stop == 0:
                trouble.add("empty files", path.name)
            lines = _lines_between(file, unit.start, unit.stop)
        is_empty = True
        for place, line in lines:
            is_empty = False
            if line.strip():
                yield from _json_document(line, f"{path.name}:{place}", field, trouble)
        if is_empty and unit.stop < 0:
            trouble.add("empty files", path.name)


def _lines(file: Any) -> Iterator[tuple[str, bytes]]:
    """Lines of a stream that cannot read lines, each with its number."""
    rest, number = b"", 0
    while chunk := bytes(file.read(1 << 20)):
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            number += 1
            yield f"line {number}", line
    if rest:
        yield f"line {number + 1}", rest


def _lines_between(file: Any, start: int, stop: int) -> Iterator[tuple[str, bytes]]:
    """Lines that begin in [start, stop): the line that a cut goes through belongs to the part it begins in."""
    if start:
        file.seek(start - 1)
        file.readline()
    while (place := file.tell()) < stop and (line := file.readline()):
        yield f"byte {place}", line


def _json_document(line: bytes, where: str, field: str, trouble: Trouble) -> Iterator[tuple[str, bytes]]:
    try:
        record = json.loads(line.decode("utf-8", errors="replace"))
    except (json.JSONDecodeError, RecursionError):
        trouble.add("lines that are not JSON", where)
        return
    if not isinstance(record, dict) or field not in record:
        trouble.add(f"records without {field!r}", where)
    elif not isinstance(record[field], str):
        trouble.add(f"records whose {field!r} is no text", where)
    else:
        if b"\xef\xbf\xbd" not in line and "\ufffd" in record[field] and b"\\ufffd" not in line.lower():
            trouble.add("documents with invalid UTF-8", where)
        yield where, record[field].encode("utf-8", errors="surrogatepass")


def _parquet(path: Path, unit: Unit, field: str, trouble: Trouble) -> Iterator[tuple[str, bytes]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path)
    names = file.schema_arrow.names
    if field not in names:
        raise ConfigError(f"{path} has no column {field!r}", where="text_field", fix=nearest(field, names))
    groups = range(unit.start, file.metadata.num_row_groups if unit.stop < 0 else unit.stop)
    for group in groups:
        column = file.read_row_group(group, columns=[field]).column(field).cast(pa.large_binary())
        for row, value in enumerate(column):
            where = f"{path.name}: row group {group}, row {row}"
            if not value.is_valid:
                trouble.add(f"records without {field!r}", where)
            else:
                yield where, value.as_py()


def _array_record(path: Path, unit: Unit, field: str, trouble: Trouble) -> Iterator[tuple[str, bytes]]:
    with contextlib.closing(array_record_reader(path)) as reader:
        stop = reader.num_records() if unit.stop < 0 else unit.stop
        for first in range(unit.start, stop, 256):
            last = min(first + 256, stop)
            for number, record in zip(range(first, last), reader.read(first, last), strict=True):
                yield f"{path.name}: record {number}", record


def array_record_reader(path: Path) -> Any:
    """Opens a file for random access, with the options that ArrayRecord advises for it."""
    from array_record.python.array_record_module import ArrayRecordReader

    return ArrayRecordReader(str(path), "readahead_buffer_size:0,max_parallelism:0")


_READERS = {"text": _text, "jsonl": _jsonl, "parquet": _parquet, "array_record": _array_record}
