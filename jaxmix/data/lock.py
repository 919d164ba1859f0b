"""A folder that one process at a time writes into, held by a lock file that says who it is."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxmix.core.errors import ConfigError

LOCK = ".lock"
_ATTEMPTS, _SECONDS_BETWEEN = 50, 0.02
_BEAT, _SILENCE = 20.0, 120.0
"""Seconds between touches, and after how many without one a process of another machine counts as dead."""


@contextlib.contextmanager
def locked(folder: Path, what: str, *, where: str | None = None) -> Iterator[None]:
    """Holds `folder` for this process, which is made when missing; the lock of a process that died is taken over.

    A process of this machine is known to be dead by its number and start. One of another machine is taken to be dead
    when it has not touched its lock for two minutes.

    Args:
        folder: to hold.
        what: the process does there, for the other one's error: "prepares data".
        where: the key that names the folder, for errors.

    Raises:
        ConfigError: the folder cannot be made or written, or another process holds it: which one, where and since when.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "it is a file" if folder.is_file() else error.strerror
        raise _cannot_write(folder, reason, where) from error
    path, own = folder / LOCK, {**_this_process(), "what": what}
    for _ in range(_ATTEMPTS):
        try:
            with path.open("x", encoding="utf-8") as file:
                json.dump(own, file)
            break
        except FileExistsError:
            holder = _read(path)
            if holder is None:  # just being written, or just given up
                time.sleep(_SECONDS_BETWEEN)
            elif _is_alive(holder, path):
                raise ConfigError(
                    f"process {holder['pid']} on {holder['host']} {holder['what']} here since {holder['began']}",
                    where=str(folder),
                    fix=f"Wait for it, or use another folder. If it is gone, remove {path}.",
                ) from None
            else:
                _remove(path, holder)
        except OSError as error:
            raise _cannot_write(folder, error.strerror, where) from error
    else:
        raise ConfigError("the lock cannot be read", where=str(path), fix="Remove it if no process is at work there.")
    done = threading.Event()
    threading.Thread(target=_touch, args=(path, done), name="jaxmix-lock", daemon=True).start()
    try:
        yield
    finally:
        done.set()
        _remove(path, own)


def _cannot_write(folder: Path, reason: str | None, where: str | None) -> ConfigError:
    what = f"the folder {str(folder)!r} cannot be written: {reason}"
    return ConfigError(what, where=where or str(folder), fix="Choose another folder.")


def _touch(path: Path, done: threading.Event) -> None:
    while not done.wait(_BEAT):
        with contextlib.suppress(OSError):
            os.utime(path)


def _remove(path: Path, holder: dict[str, Any]) -> None:
    """Removes the lock of `holder`; that of another process, which was quicker, is put back."""
    aside = path.with_name(f"{LOCK}.{os.getpid()}-{secrets.token_hex(4)}")
    with contextlib.suppress(FileNotFoundError):
        path.rename(aside)
        if _read(aside) == holder:
            aside.unlink()
        else:
            aside.rename(path)


def _this_process() -> dict[str, Any]:
    began = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    pid = os.getpid()
    return {"host": socket.gethostname(), "space": _space(), "pid": pid, "began": began, "start": _start_of(pid)}


def _space() -> str | None:
    """What numbers of processes are counted in: containers of one name have their own. None if unknown."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return None


def _start_of(pid: int) -> str | None:
    """When a process was started, in ticks since the machine's: numbers of processes come again. None if unknown."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    keys = ("host", "space", "pid", "began", "start", "what")
    return found if isinstance(found, dict) and all(key in found for key in keys) else None


def _is_alive(holder: dict[str, Any], path: Path) -> bool:
    if (holder["host"], holder["space"]) != (socket.gethostname(), _space()):
        probe = path.with_name(f"{LOCK}.{os.getpid()}-{secrets.token_hex(4)}")
        probe.touch()  # the clock of the file system, which may be that of a third machine
        try:
            return probe.stat().st_mtime - path.stat().st_mtime < _SILENCE
        except FileNotFoundError:
            return True  # given up just now: the next attempt sees it
        finally:
            probe.unlink()
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    start = _start_of(holder["pid"])
    return start is None or start == holder["start"]
