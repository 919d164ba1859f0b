"""One of several runs that share a file's base, a folder and the prepared data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jaxmix.core.errors import ConfigError
from jaxmix.workflows.config.sections import RunConfig, from_mapping
from jaxmix.workflows.config.strict import apply_overrides


def member_config(
    base: Mapping[str, Any],
    changes: Mapping[str, Any],
    overrides: Sequence[tuple[str, str]],
    *,
    out: str,
    folder: str,
    file: str,
    member: str,
    seed: int | None = None,
) -> RunConfig:
    """Returns the configuration of one run, checked; raises `ConfigError` that names the member.

    Args:
        base: sections that all members share.
        changes: sections that this one replaces.
        overrides: dotted overrides, from the command line.
        out: folder of all; it also receives the prepared data, unless the base says otherwise.
        folder: of this run, within `out`.
        file: named in errors.
        member: named in errors, such as "variant odm".
        seed: of the run; None leaves what is written.
    """
    plain = apply_overrides({**base, **changes}, overrides)
    plain["out"] = f"{out}/{folder}"
    plain["data"] = {"prepared": f"{out}/prepared", **(plain.get("data") or {})}
    if seed is not None:
        plain["train"] = {**(plain.get("train") or {}), "seed": seed}
    try:
        return from_mapping(plain, file=file)
    except ConfigError as error:
        place = member if error.where is None else f"{error.where}, {member}"
        raise ConfigError(error.what, where=place, fix=error.fix) from None


def check_folder_name(name: str, what: str, *, where: str) -> None:
    """Raises `ConfigError` unless `name`, that of `what`, can be the name of a folder."""
    if not name or "/" in name or name.startswith(".") or name != name.strip():
        raise ConfigError(f"{name!r} cannot be the name of {what}", where=where, fix="Use letters, digits, - and _.")
