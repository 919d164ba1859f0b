"""Atomic file replacement: a kill at any moment leaves the old file or the new one."""

from __future__ import annotations

import json
import os
import secrets
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from jaxmix.core.errors import ConfigError, RunError


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


def check_folder_name(name: str, what: str, *, where: str) -> None:
    """Raises `ConfigError` unless `name`, that of `what`, can be the name of a folder on any machine."""
    is_odd = not name or name.startswith(".") or name != name.strip() or any(c in "/\\" or ord(c) < 32 for c in name)
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        is_odd = True
    if is_odd or size > _LONGEST_NAME or name in ("plan.json", "index.json"):
        what = f"{name[:40]!r}{'…' if len(name) > 40 else ''} cannot be the name of {what}"
        raise ConfigError(what, where=where, fix=f"Use letters, digits, - and _, at most {_LONGEST_NAME} bytes.")


_LONGEST_NAME = 200
"""In UTF-8; most file systems have room for 255, endings included."""


def check_apart(names: Iterable[str], what: str, *, where: str) -> None:
    """Raises `ConfigError` for two names that are one folder where case and the form of accents do not count."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(unicodedata.normalize("NFC", name).casefold(), name)
        if other != name:
            raise ConfigError(
                f"the {what} {other!r} and {name!r} differ in case or accents alone",
                where=where,
                fix="Rename one: some file systems cannot tell their folders apart.",
            )


def write_json(path: Path, value: Any) -> None:
    """Writes a value as JSON, replacing the file as a whole."""
    write_whole(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path, *, fix: str = "Delete it.") -> Any:
    """The content of a JSON file, None where there is none. RunError: it is damaged, or cannot be read."""
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        what = f"{path.name} cannot be read: {error.strerror}"
        raise RunError(what, where=str(path.parent), fix="Try again when it can.") from error
    except (ValueError, RecursionError) as error:  # also a number of more digits than Python converts
        raise RunError(f"{path.name} is not JSON: {error}", where=str(path.parent), fix=fix) from error


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a file, its folder too if need be; the content is on disk before the name points to it.

    In text, bytes of a path that are not UTF-8 (lone surrogates) become escapes, which JSON and YAML read back.
    """
    with replaced(path) as file:
        file.write(content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content)
