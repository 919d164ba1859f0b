"""Where a run came from: command, versions, devices, hashes; and whether its folder is finished or can be continued."""

from __future__ import annotations

import contextlib
import datetime
import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import jax

from jaxmix.core.errors import ConfigError
from jaxmix.data.files import write_whole
from jaxmix.data.lock import locked
from jaxmix.workflows.config.sections import RunFolder, folder_path, what_is_trained
from jaxmix.workflows.config.yaml import dump_yaml, parse_yaml
from jaxmix.workflows.doctor import installed_version

PROVENANCE = "provenance.json"
C, P, R = TypeVar("C"), ParamSpec("P"), TypeVar("R")

_DISTRIBUTIONS = ("jaxmix", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def versions() -> dict[str, str]:
    """Versions of Python and of every package that can change a result."""
    python = ".".join(str(part) for part in sys.version_info[:3])
    return {"python": python, **{name: installed_version(name) or "none" for name in _DISTRIBUTIONS}}


def describe_devices() -> str:
    """Number, kind and platform of all devices, and the number of processes."""
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


def made_by(command: str) -> dict[str, Any]:
    """The command line, versions, devices and the commit."""
    return {"command": command, "versions": versions(), "devices": describe_devices(), "commit": git_commit()}


def provenance_of(
    folder: RunFolder, *, command: str, content: Mapping[str, Any], changed_data: Sequence[str] = ()
) -> dict[str, Any]:
    """The content of a run's provenance.json; writes nothing.

    Earlier sessions stay listed, unless the configuration starts the run anew.

    Args:
        folder: of the run.
        command: what was typed.
        content: what is particular to this kind of run.
        changed_data: sources that hold other documents than when the run began.
    """
    made = made_by(command)
    session = {"started": now(), "command": command, "devices": made["devices"]}
    if changed := changed_settings(folder):
        session["changed"] = changed
    if changed_data:
        session["changed_data"] = list(changed_data)
    sessions = [session]
    old = folder.path / PROVENANCE
    if not folder.starts_anew and old.is_file():
        with contextlib.suppress(json.JSONDecodeError):  # cut short by a kill: this session starts the list anew
            sessions = [*json.loads(old.read_text(encoding="utf-8")).get("sessions", []), session]
    return {
        **made,
        "config_hash": folder.config_hash,
        **content,
        "started": sessions[0]["started"],
        "sessions": sessions,
    }


def begin_run(folder: RunFolder, provenance: Mapping[str, Any]) -> None:
    """Writes config.yaml and provenance.json on process 0, and says which settings a continued run changes.

    Called when a run has accepted the checkpoint that it continues: one that is refused leaves the folder as it was.
    """
    if jax.process_index() != 0:
        return
    session, was_begun = provenance["sessions"][-1], bool(saved_steps(folder.path))
    if was_begun and "changed" in session:
        print(f"{folder.path}: continued with {_changes(session['changed'], folder.plain['train'])}", file=sys.stderr)
    if was_begun and "changed_data" in session:
        names = ", ".join(session["changed_data"])
        print(f"{folder.path}: continued on other documents of {names}", file=sys.stderr)
    write_whole(folder.path / "config.yaml", dump_yaml(folder.plain))
    write_json(folder.path / PROVENANCE, provenance)


def is_finished(folder: RunFolder, *, result: str) -> bool:
    """Whether the folder holds a finished run of its configuration; the file `result` is written last."""
    try:
        provenance = json.loads((folder.path / PROVENANCE).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return False
    is_same = provenance.get("config_hash") == folder.config_hash
    return is_same and "finished" in provenance and (folder.path / result).is_file()


def saved_steps(folder: Path) -> list[int]:
    """The steps of a folder's finished checkpoints; what a killed process was writing is none."""
    return [int(path.name) for path in (folder / "checkpoints").glob("[0-9]*") if path.name.isdigit()]


def check_fixed(folder: RunFolder, fixed: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> None:
    """Raises `ConfigError` if the folder has checkpoints that its configuration cannot continue.

    Nor can another configuration continue a run that has no step left: nothing would be trained by it.

    Args:
        folder: of the run.
        fixed: picks the settings that a run keeps for life, by dotted name.
    """
    path, saved, steps = folder.path / "config.yaml", saved_steps(folder.path), folder.plain["train"]["steps"]
    if folder.starts_anew or not path.is_file() or not saved:
        return
    before, after = fixed(parse_yaml(path.read_text(encoding="utf-8"), where=str(path))), fixed(folder.plain)
    for key in {**before, **after}:
        if before.get(key) != after.get(key):
            raise ConfigError(
                f"{key} was {before.get(key)!r} and is now {after.get(key)!r}: the checkpoints cannot be continued",
                where=str(folder.path),
                fix="Choose another run folder with --out, or restore the old value.",
            )
    changed = changed_settings(folder)
    if changed and max(saved) >= steps:
        shown = ", ".join(f"{key} was {old!r} and is {new!r}" for key, (old, new) in list(changed.items())[:5])
        raise ConfigError(
            f"the run has had {max(saved)} steps: none of {steps} is left to train with other settings: {shown}",
            where=str(folder.path),
            fix="Nothing was touched. Choose another folder with --out, or raise train.steps.",
        )


def changed_settings(folder: RunFolder) -> dict[str, list[Any]]:
    """What the run's configuration changes of the one that is written there: before and after, by dotted name."""
    path = folder.path / "config.yaml"
    if folder.starts_anew or not path.is_file():
        return {}
    stored = parse_yaml(path.read_text(encoding="utf-8"), where=str(path))
    before, after = (_flat(what_is_trained(plain)) for plain in (stored, folder.plain))
    return {key: [before.get(key), after.get(key)] for key in {**before, **after} if before.get(key) != after.get(key)}


def _changes(changed: Mapping[str, list[Any]], train: Mapping[str, Any]) -> str:
    """Changed settings in words; of sections that came or left, such as a source, their name alone."""
    words = []
    for key, (before, after) in changed.items():
        word = f"{key} {after!r} (was {before!r})"
        if before is None or after is None:
            word = f"{'.'.join(key.split('.')[:2])} {'new' if before is None else 'left out'}"
        words.append(word)
    keys = ", ".join(dict.fromkeys(words))
    if "train.steps" in changed and train.get("schedule", "constant") != "constant":
        keys += f"; the learning-rate schedule is that of a run of {train['steps']:,} steps from here on"
    return keys


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {path: value}
    parts = (_flat(inner, f"{path}.{key}" if path else str(key)) for key, inner in value.items())
    return {key: inner for part in parts for key, inner in part.items()}


def check_same_data(folder: RunFolder, data_hash: Any, *, allowed: bool) -> list[str]:
    """The sources whose documents are not those that the run was last trained on; `ConfigError` unless allowed.

    Args:
        folder: of the run.
        data_hash: of the data, by source or of all.
        allowed: `checkpoint.allow_changed_data`.
    """
    path = folder.path / PROVENANCE
    if folder.starts_anew or not saved_steps(folder.path):
        return []
    try:
        before = json.loads(path.read_text(encoding="utf-8")).get("data_hash")
    except (FileNotFoundError, json.JSONDecodeError):
        return []
    then, after = (value if isinstance(value, Mapping) else {"": value} for value in (before, data_hash))
    changed = [name for name in then if name in after and then[name] != after[name]]
    if changed and not allowed:
        name = changed[0]
        what = f"source {name!r} has changed since the run began" if name else "the prompts have changed"
        raise ConfigError(
            what,
            where=str(folder.path),
            fix="Put the old data back, choose another folder with --out, or set checkpoint.allow_changed_data.",
        )
    return [name or "the prompts" for name in changed]


def in_its_folder(run: Callable[Concatenate[C, P], R]) -> Callable[Concatenate[C, P], R]:
    """`run(config, …)` while process 0 holds the run's folder: another one that trains there is refused by name."""

    @functools.wraps(run)
    def held(config: C, *args: P.args, **options: P.kwargs) -> R:
        is_main = jax.process_index() == 0
        with locked(folder_path(config), "trains") if is_main else contextlib.nullcontext():
            return run(config, *args, **options)

    return held


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes a JSON file, replaced as a whole."""
    write_whole(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
