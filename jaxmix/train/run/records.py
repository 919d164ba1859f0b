"""Append-only JSON-lines files that survive a kill: a run's measurements, one object a line."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any


class RecordFile:
    """Appends records; each line is handed to the operating system before `write` returns.

    A line that a kill cut short is removed when the file is opened again, so that a reader never meets half a
    record in the middle. Values that JSON cannot hold (nan, ±inf) are written as null.
    """

    def __init__(self, path: Path):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        _drop_torn_tail(path)
        self._file = path.open("a", encoding="utf-8")

    def write(self, record: dict[str, Any]) -> None:
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
        self._file.write(json.dumps(finite, allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read_records(path: Path) -> list[dict[str, Any]]:
    """Reads all whole records; a torn last line is left out, a broken line before it raises `ValueError`."""
    records = []
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines[:-1], start=1):
        if line.strip():
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}: line {number} is not JSON: {error}") from error
    return records


def latest_by_step(records: Iterable[dict[str, Any]], kind: str | None = None) -> list[dict[str, Any]]:
    """One record per step, ordered by step: a resumed run repeats some, and the later line wins."""
    by_step = {r["step"]: r for r in records if kind is None or r.get("kind") == kind}
    return [by_step[step] for step in sorted(by_step)]


def _drop_torn_tail(path: Path) -> None:
    if not path.exists():
        return
    with path.open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        end = size
        while end > 0:
            start = max(0, end - 65536)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
        if end < size:
            file.truncate(end)
