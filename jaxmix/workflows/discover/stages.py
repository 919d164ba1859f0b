"""Stages of a discovery: each has a folder, records its settings, and is done once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jaxmix.core.errors import ConfigError
from jaxmix.workflows.provenance import write_json

FILE = "stage.json"


def run_stage(
    folder: Path, settings: Mapping[str, Any], work: Callable[[], dict[str, Any]], *, say: Callable[[str], None]
) -> dict[str, Any]:
    """The result of a stage: the one stored in `folder`, or that of `work`, which is then stored.

    Args:
        folder: of the stage; `work` writes its files there, each so that a kill leaves whole ones.
        settings: all that the result depends on, JSON-able: the stage's own settings and the key of the one before.
        work: does the stage and returns a JSON-able summary. After a kill it continues from the files it wrote.
        say: receives a line when the stage begins or is found done.

    Returns:
        The summary, with `key`: the hash of the settings.

    Raises:
        ConfigError: the folder was begun with other settings.
    """
    path = folder / FILE
    wanted = json.loads(json.dumps(dict(settings)))
    found = read_stage(folder)
    if found is not None and found["settings"] != wanted:
        old = found["settings"]
        name = next(k for k in {**old, **wanted} if old.get(k) != wanted.get(k))
        shown = "it comes from an earlier stage that changed"
        if name != "after":
            shown = f"{name} was {_short(old.get(name))} and is now {_short(wanted.get(name))}"
        raise ConfigError(
            f"the stage {folder.name!r} was made with other settings: {shown}",
            where=str(folder),
            fix=f"Choose another folder with --out, or delete {folder} to redo this stage and the later ones.",
        )
    if found is not None and found["result"] is not None:
        say(f"{folder.name}: already done")
        return {**found["result"], "key": key_hash(wanted)}
    say(f"{folder.name} …")
    write_json(path, {"settings": wanted, "result": None})
    result = json.loads(json.dumps(work()))
    write_json(path, {"settings": wanted, "result": result})
    return {**result, "key": key_hash(wanted)}


def read_stage(folder: Path) -> dict[str, Any] | None:
    """`{"settings": …, "result": … or None}` of a stage that has started, or None."""
    try:
        return dict(json.loads((folder / FILE).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ConfigError(f"{FILE} is not JSON: {error}", where=str(folder), fix=f"Delete {folder}.") from error


def key_hash(settings: Mapping[str, Any]) -> str:
    """Hash of settings, whatever the order of their names."""
    return hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=16).hexdigest()


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "…"
