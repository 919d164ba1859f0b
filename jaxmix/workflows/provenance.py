"""What is needed to know where a run came from: command, versions, devices, hashes."""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxmix.data.files import write_whole
from jaxmix.workflows.doctor import installed_version

__all__ = ["describe_devices", "git_commit", "now", "versions", "write_json"]

_DISTRIBUTIONS = ("jaxmix", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def versions() -> dict[str, str]:
    """Versions of Python and of every package that can change a result."""
    python = ".".join(str(part) for part in sys.version_info[:3])
    return {"python": python, **{name: installed_version(name) or "none" for name in _DISTRIBUTIONS}}


def describe_devices() -> str:
    """Number, kind and platform of all devices, and the number of processes."""
    import jax

    kinds = ", ".join(sorted({d.device_kind for d in jax.devices()}))
    text = f"{jax.device_count()} x {kinds} ({jax.default_backend()})"
    return text if jax.process_count() == 1 else f"{text}, {jax.process_count()} processes"


def git_commit() -> str | None:
    """The commit checked out in the working folder, `-dirty` with uncommitted changes; None outside of git."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes a JSON file, replaced as a whole."""
    write_whole(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
