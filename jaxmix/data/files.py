"""Atomic file replacement: a kill at any moment leaves the old file or the new one."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from jaxmix.core.errors import RunError


@contextmanager
def replaced(path: Path) -> Iterator[BinaryIO]:
    """A file to write that takes the name `path` at the end, when it is on disk; an error leaves nothing.

    Until then it has a name that no other call uses, `.NAME.….partial`: several processes may write the same file,
    and one of them wins. Only a killed process leaves that file behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.parent / f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.partial"
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Writes a value as JSON, replacing the file as a whole; lone surrogates become escapes."""
    write_whole(path, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace"))


def read_json(path: Path) -> Any:
    """The content of a JSON file, None where there is none. RunError: it is damaged."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise RunError(f"{path.name} is not JSON: {error}", where=str(path.parent), fix="Delete it.") from error


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a file, its folder too if need be; the content is on disk before the name points to it."""
    with replaced(path) as file:
        file.write(content.encode("utf-8") if isinstance(content, str) else content)
