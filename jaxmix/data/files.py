"""Files that are replaced as a whole: a kill at any moment leaves the old one or the new one."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def replaced(path: Path) -> Iterator[BinaryIO]:
    """A file to write that takes the name `path` at the end, when it is on disk; an error leaves nothing.

    The name in between is this call's own: several processes may write the same file, and one of them wins. Only a
    killed process leaves it behind, `.NAME.….partial`.
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


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a file, its folder too if need be; the content is on disk before the name points to it."""
    with replaced(path) as file:
        file.write(content.encode("utf-8") if isinstance(content, str) else content)
