"""Reads documents from files of every supported format. What cannot be read is counted and named, never skipped.

A damaged file costs the documents behind the damage, which is counted. A file that the disk does not give (an I/O
error) is read again, and ends the work if that does not help: nothing is lost for good because a disk was away.
"""

from __future__ import annotations

import codecs
import contextlib
import dataclasses
import gzip
import json
import os
import re
import time
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxmix.core.errors import JaxmixError, RunError, nearest

FORMATS: dict[str, tuple[str, ...]] = {
    "text": (".txt", ".md", ".text", ".txt.gz", ".txt.zst"),
    "jsonl": (".jsonl", ".ndjson", ".jsonl.gz", ".jsonl.zst", ".json.gz", ".json.zst"),
    "parquet": (".parquet",),
    "array_record": (".array_record", ".arrayrecord"),
}
MAX_DOCUMENT_BYTES = 256 * 2**20
"""Of one text file or one line, unpacked: a small file can unpack to any size."""

EMPTY = "empty files"
_UNIT_BYTES, _CHUNK_BYTES = 32_000_000, 1 << 20
_NAMED = 5
_ATTEMPTS, _SECONDS_BETWEEN = 4, 0.5
_WIDE_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)
_WIDE = "files in UTF-16 or UTF-32, which must be saved as UTF-8"
_DAMAGE = (OSError, EOFError, zlib.error)
_MOST_OTHER = 0.1
"""Of the bytes of a text file that may be NUL or not UTF-8: more mean an image, a program, or another encoding."""
_CONTROL = re.compile("[\0-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
"""Also what ends a line, or turns the direction of what follows."""
_POINTER = b"version https://git-lfs.github.com/spec/"


class Trouble:
    """Counts problems by kind, with the first few places of each.

    Attributes:
        fields: of the first records that lacked the field that was asked for.
    """

    def __init__(self) -> None:
        self._kinds: dict[str, tuple[int, list[str]]] = {}
        self.fields: dict[str, None] = {}

    def add(self, kind: str, *where: str, count: int | None = None) -> None:
        """Counts one of a kind at each place, or `count` of them; none changes nothing."""
        if more := len(where) if count is None else count:
            total, first = self._kinds.get(kind, (0, []))
            self._kinds[kind] = (total + more, [*first, *where][:_NAMED])

    def merge(self, other: Trouble | Mapping[str, Any]) -> None:
        """Adds what another one has counted, or its `to_json`."""
        if isinstance(other, Trouble):
            self.fields |= other.fields
            other = other.to_json()
        for kind, entry in other.items():
            self.add(kind, *entry["first"], count=entry["count"])

    def to_json(self) -> dict[str, Any]:
        return {kind: {"count": n, "first": first} for kind, (n, first) in sorted(self._kinds.items())}


def trouble_lines(troubles: Mapping[str, Any]) -> list[str]:
    """What `Trouble.to_json` gave, for people: `empty files: 1 (a.txt)`."""
    lines = []
    for kind, entry in troubles.items():
        places = [*entry["first"], *["…"] * (entry["count"] > len(entry["first"]))]
        lines.append(f"{kind}: {entry['count']:,}" + (f" ({', '.join(places)})" if entry["first"] else ""))
    return lines


@dataclasses.dataclass(frozen=True)
class Unit:
    """A piece of work: some whole files, or a range of one.

    Attributes:
        kind: a key of `FORMATS`, or "tfds", "hf", "memory".
        paths: files, in order; several of them are whole.
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
    whole = [Unit(kind, (path,))]
    try:
        size = path.stat().st_size
        if kind == "jsonl" and not path.name.lower().endswith((".gz", ".zst")):
            starts = range(0, max(size, 1), _UNIT_BYTES)
            return [Unit(kind, (path,), s, min(s + _UNIT_BYTES, size)) for s in starts]
        if kind == "parquet":
            import pyarrow.parquet as pq

            groups = pq.ParquetFile(path).metadata.num_row_groups
            return [Unit(kind, (path,), g, g + 1) for g in range(groups)] or whole
        if kind == "array_record":
            with contextlib.closing(array_record_reader(path)) as reader:
                count = reader.num_records()
            step = 20_000
            return [Unit(kind, (path,), s, min(s + step, count)) for s in range(0, count, step)] or whole
    except Exception:  # reading the unit will report what is wrong with the file
        return whole
    return whole


def read_unit(unit: Unit, text_field: str, trouble: Trouble) -> Iterator[tuple[str, bytes]]:
    """Yields (place, UTF-8 bytes as found) of every document; troubles go to `trouble`.

    Raises:
        RunError: a file cannot be read although it is there, after several attempts, or a Parquet file has no such
            column.
    """
    for path in unit.paths:
        number = 0
        try:
            for number, document in enumerate(_read_file(path, unit, text_field, trouble), start=1):  # noqa: B007
                yield document
        except (*_DAMAGE, ValueError, RuntimeError) as error:
            if isinstance(error, JaxmixError):
                raise
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            if number:
                trouble.add(
                    "damaged files, of which the rest is lost", f"{shown(path)}, after document {number}: {reason}"
                )
            else:
                trouble.add("unreadable files", f"{shown(path)}: {reason}")


def _read_file(path: Path, unit: Unit, text_field: str, trouble: Trouble) -> Iterator[tuple[str, bytes]]:
    """The documents of a file, which is opened again after an I/O error; nothing is given or counted twice."""
    given = 0
    for attempt in range(1, _ATTEMPTS + 1):
        found = Trouble()
        try:
            for number, document in enumerate(_READERS[unit.kind](path, unit, text_field, found)):
                if number >= given:
                    given += 1
                    yield document
        except OSError as error:
            # A damaged archive is an OSError without a number; a missing permission is for the user to mend.
            if error.errno is None or isinstance(error, PermissionError):
                trouble.merge(found)
                raise
            if attempt == _ATTEMPTS:
                raise RunError(
                    f"{shown(path)} could not be read: {os.strerror(error.errno)}",
                    where=shown(str(path.parent)),
                    fix="Nothing of it was marked as done: run the same command again when the disk is well.",
                ) from error
            time.sleep(_SECONDS_BETWEEN * attempt)
            continue
        except BaseException:
            trouble.merge(found)
            raise
        trouble.merge(found)
        return


def shown(path: Path | str) -> str:
    """A path as text that can be printed and stored: control characters, bytes that are not UTF-8 become escapes."""
    text = path.name if isinstance(path, Path) else path
    text = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def open_unpacked(path: Path) -> Any:
    """A binary stream over a file, unpacked by the ending of its name."""
    name = path.name.lower()
    if name.endswith(".gz"):
        return gzip.open(path, "rb")
    if name.endswith(".zst"):
        import pyarrow as pa

        return pa.input_stream(str(path), compression="zstd")
    return path.open("rb")


def _text(path: Path, unit: Unit, field: str, trouble: Trouble) -> Iterator[tuple[str, bytes]]:
    data, damage = bytearray(), None
    with open_unpacked(path) as file:
        try:
            for chunk in _chunks(path, file):
                data += chunk
                if len(data) > MAX_DOCUMENT_BYTES:
                    break
        except _DAMAGE as error:
            if not data or getattr(error, "errno", None) is not None:
                raise
            damage = error
    if len(data) > MAX_DOCUMENT_BYTES:
        trouble.add(_TOO_LARGE, shown(path))
    elif data.startswith(_POINTER):
        trouble.add("Git LFS pointers in place of files", shown(path))
    elif data.startswith(_WIDE_MARKS):
        trouble.add(_WIDE, shown(path))
    elif not data:
        trouble.add(EMPTY, shown(path))
    elif _other_bytes(data) > _MOST_OTHER * len(data):
        trouble.add("files that are not UTF-8 text, but binary or in another encoding", shown(path))
    else:
        yield shown(path), bytes(data.removeprefix(codecs.BOM_UTF8))
    if damage is not None:
        raise damage


def _other_bytes(data: bytearray) -> int:
    """Bytes that are NUL or not UTF-8."""
    try:
        data.decode("utf-8")
        undecodable = 0
    except UnicodeDecodeError:
        undecodable = len(data) - len(data.decode("utf-8", errors="ignore").encode("utf-8"))
    return undecodable + data.count(0)


_TOO_LARGE = f"documents of more than {MAX_DOCUMENT_BYTES // 2**20} MB, which must be divided"


def _jsonl(path: Path, unit: Unit, field: str, trouble: Trouble) -> Iterator[tuple[str, bytes]]:
    for where, record, is_utf8 in json_lines(path, trouble, start=unit.start, stop=unit.stop):
        if not isinstance(record, dict) or record.get(field) is None:
            trouble.add(f"records without {field!r}", where)
            if isinstance(record, dict) and len(trouble.fields) < _NAMED:
                trouble.fields |= dict.fromkeys(record)
        elif not isinstance(record[field], str):
            trouble.add(f"records whose {field!r} is not text", where)
        else:
            if not is_utf8 and "\ufffd" in record[field]:
                trouble.add("documents with invalid UTF-8", where)
            yield where, record[field].encode("utf-8", errors="surrogatepass")


def json_lines(path: Path, trouble: Trouble, *, start: int = 0, stop: int = -1) -> Iterator[tuple[str, Any, bool]]:
    """Yields (place, value, whether it is UTF-8) of the lines of a file; a line that is not JSON goes to `trouble`.

    Only a line feed ends a line: U+2028, U+0085 and the like may stand within text. A byte-order mark is removed.

    Args:
        path: plain, `.gz` or `.zst`.
        trouble: receives what cannot be read.
        start, stop: bytes of a plain file: lines that begin in [start, stop); −1: all lines, numbered.
    """
    with open_unpacked(path) as file:
        lines = _lines(_chunks(path, file)) if stop < 0 else _lines_between(file, start, stop)
        is_empty = True
        for place, line in lines:
            where = f"{shown(path)}:{place}"
            if is_empty and start == 0:
                if line.startswith(_WIDE_MARKS):
                    trouble.add(_WIDE, shown(path))
                    return
                if line.startswith(_POINTER):
                    trouble.add("Git LFS pointers in place of files", shown(path))
                    return
                line = line.removeprefix(codecs.BOM_UTF8)
            is_empty = False
            if len(line) > MAX_DOCUMENT_BYTES:
                trouble.add(_TOO_LARGE, where)
                continue
            if not line.strip():
                continue
            try:
                text, is_utf8 = line.decode("utf-8"), True
            except UnicodeDecodeError:
                text, is_utf8 = line.decode("utf-8", errors="replace"), False
            try:
                yield where, json.loads(text), is_utf8
            except (ValueError, RecursionError):  # also a number of more digits than Python converts
                trouble.add("lines that are not JSON", where)
        if is_empty and start == 0:
            trouble.add(EMPTY, shown(path))


def _chunks(path: Path, file: Any) -> Iterator[bytes]:
    """The bytes of an opened file, all of those before its damage too."""
    given = 0
    try:
        while chunk := bytes(file.read(_CHUNK_BYTES)):
            given += len(chunk)
            yield chunk
    except _DAMAGE as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        # What a read had unpacked before the damage went with it: again from there, byte by byte.
        with open_unpacked(path) as again:
            while given and (chunk := again.read(min(given, _CHUNK_BYTES))):
                given -= len(chunk)
            while byte := bytes(again.read(1)):
                yield byte


def _lines(chunks: Iterator[bytes]) -> Iterator[tuple[str, bytes]]:
    """Lines of a stream that cannot read lines, each with its number."""
    parts: list[bytes] = []
    number = size = 0
    for chunk in chunks:
        *whole, rest = chunk.split(b"\n")
        for line in whole:
            number += 1
            yield f"line {number}", b"".join([*parts, line])
            parts, size = [], 0
        if size <= MAX_DOCUMENT_BYTES:  # of a longer line only the length is needed
            parts.append(rest)
            size += len(rest)
    if parts and any(parts):
        yield f"line {number + 1}", b"".join(parts)


def _lines_between(file: Any, start: int, stop: int) -> Iterator[tuple[str, bytes]]:
    """Lines that begin in [start, stop): the line that a cut goes through belongs to the part it begins in."""
    if start:
        file.seek(start - 1)
        file.readline()
    while (place := file.tell()) < stop and (line := file.readline(MAX_DOCUMENT_BYTES + 1)):
        yield f"byte {place}", line
        while len(line) > MAX_DOCUMENT_BYTES and not line.endswith(b"\n"):  # past the end of a line too long to keep
            line = file.readline(MAX_DOCUMENT_BYTES + 1)


def _parquet(path: Path, unit: Unit, field: str, trouble: Trouble) -> Iterator[tuple[str, bytes]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path)
    names = file.schema_arrow.names
    if names.count(field) != 1:
        what = "no column" if field not in names else f"{names.count(field)} columns"
        fix = "Rename all but one." if field in names else nearest(field, names)
        raise RunError(f"{shown(path)} has {what} {field!r}", where="text_field", fix=fix)
    if unit.start == file.metadata.num_rows == 0:
        trouble.add(EMPTY, shown(path))
    groups = range(unit.start, file.metadata.num_row_groups if unit.stop < 0 else unit.stop)
    for group in groups:
        column, is_text = file.read_row_group(group, columns=[field]).column(field), True
        try:
            column = column.cast(pa.large_binary())
        except pa.ArrowNotImplementedError:
            is_text = False
        for row, value in enumerate(column):
            where = f"{shown(path)}: row group {group}, row {row}"
            if not value.is_valid:
                trouble.add(f"records without {field!r}", where)
            elif not is_text:
                trouble.add(f"records whose {field!r} is not text", where)
            else:
                yield where, value.as_py()


def _array_record(path: Path, unit: Unit, field: str, trouble: Trouble) -> Iterator[tuple[str, bytes]]:
    with contextlib.closing(array_record_reader(path)) as reader:
        stop = reader.num_records() if unit.stop < 0 else unit.stop
        for first in range(unit.start, stop, 256):
            last = min(first + 256, stop)
            for number, record in zip(range(first, last), reader.read(first, last), strict=True):
                yield f"{shown(path)}: record {number}", record
    if stop == 0:  # closing a damaged file, which seems to have no record, is an error
        trouble.add(EMPTY, shown(path))


def array_record_reader(path: Path) -> Any:
    """Opens a file for random access, with the options that ArrayRecord advises for it."""
    from array_record.python.array_record_module import ArrayRecordReader

    str(path).encode()  # a ValueError for bytes that are not UTF-8, which ArrayRecord does not take
    return ArrayRecordReader(str(path), "readahead_buffer_size:0,max_parallelism:0")


_READERS = {"text": _text, "jsonl": _jsonl, "parquet": _parquet, "array_record": _array_record}
