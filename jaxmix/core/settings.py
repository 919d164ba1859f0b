"""Settings as frozen dataclasses: ranges and choices stand beside each field, and one function checks them.

`check_fields` in a dataclass's `__post_init__` and the reader of configuration files both call `check_value`, so that a
wrong value is described alike, whether it comes from Python or from a file.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import re
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal

from jaxmix.core.errors import ConfigError, nearest


def setting(
    default: Any = dataclasses.MISSING,
    *,
    help: str = "",
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    required: bool = False,
    rest: bool = False,
    place: str | None = None,
    is_path: bool = False,
    factory: Any = dataclasses.MISSING,
) -> Any:
    """A dataclass field with a range and a line of help. Choices are its annotation: `Literal["auto", "never"]`.

    Args:
        default: default value; without one the key is required.
        help: what the key means, with its unit.
        at_least, above, at_most, below: the range of a number; `below=math.inf` asks for a finite one.
        required: a file must give it, although there is a default in Python.
        rest: this field, a mapping, takes all keys of its section that no other field takes.
        place: dotted key under which a file gives the value, where that is not a key of its own section.
        is_path: a file or folder: `expand_path` is applied to it, in a mapping to its entry `path`.
        factory: `default_factory` of the field.
    """
    metadata = {"help": help, "at_least": at_least, "above": above, "at_most": at_most, "below": below}
    metadata |= {"required": required, "rest": rest, "place": place, "is_path": is_path}
    if factory is not dataclasses.MISSING:
        return dataclasses.field(default_factory=factory, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def check_fields(settings: Any, section: str, prefix: str = "") -> None:
    """Checks every field of a dataclass against its range and its choices.

    Args:
        settings: the dataclass.
        section: of a configuration file, named in errors.
        prefix: written before the names of the fields, such as `text.`.

    Raises:
        ConfigError: what the value must be, the value, and where a file gives it.
    """
    hints = type_hints(type(settings))
    for f in dataclasses.fields(settings):
        where = f.metadata.get("place") or f"{section}.{prefix}{f.name}"
        check_value(prefix + f.name, getattr(settings, f.name), hints[f.name], f.metadata, where)


def check_value(name: str, value: Any, hint: Any, rules: Mapping[str, Any], where: str) -> None:
    """Checks one value: its choices (a `Literal`), whole numbers, and the range that `setting` gave.

    Raises:
        ConfigError: names the field, what it must be, and the value.
    """
    members = members_of(hint)
    if value is None and type(None) in members:
        return
    choices = [word for member in members if typing.get_origin(member) is Literal for word in typing.get_args(member)]
    if choices and isinstance(value, str) and value not in choices and str not in members:
        raise ConfigError(f"unknown {name} {value!r}", where=where, fix=nearest(value, choices))
    if int in members and float not in members and (isinstance(value, bool) or not isinstance(value, int)):
        raise ConfigError(f"{name} must be a whole number, got {value!r}", where=where)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        low, above, high, below = (rules.get(rule) for rule in ("at_least", "above", "at_most", "below"))
        is_inside = (
            (low is None or value >= low)
            and (above is None or value > above)
            and (high is None or value <= high)
            and (below is None or value < below)
        )
        if not is_inside:
            raise ConfigError(f"{name} must be {_range(low, above, high, below)}, got {value!r}", where=where)


def expand_path(path: str, where: str) -> str:
    """A path with the values of `$NAME` and `${NAME}`, then the home folder for `~` or `~user` at its start.

    `$$` is a dollar sign, and so is one that no name follows.

    Raises:
        ConfigError: the variable is not set or empty, a brace is not closed, there is no such user, or the path is
            longer than any file system takes.
    """

    def value(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        name = match[1] or match[2]
        if name is None:
            what = f"the brace of {match[0][:60]!r} is not closed"
            raise ConfigError(what, where=where, fix="Write ${NAME}, or $$ for a dollar sign.")
        if not os.environ.get(name):
            what = f"the environment variable {name!r} is {'empty' if name in os.environ else 'not set'}"
            raise ConfigError(f"{what}: {path!r}", where=where, fix="Set it, or write $$ for a dollar sign.")
        return os.environ[name]

    expanded = os.path.expanduser(re.sub(r"\$(?:\$|([A-Za-z_]\w*)|\{(\w+)\}|\{[^}]*\Z)", value, path))
    if expanded.startswith("~"):
        user = expanded.partition("/")[0]
        raise ConfigError(f"there is no home folder {user!r}", where=where, fix=f"A name is written ./{user}.")
    size = len(os.fsencode(expanded))
    if size > _LONGEST_PATH or max(len(os.fsencode(name)) for name in expanded.split("/")) > _LONGEST_NAME:
        what = f"no file system takes a path of {size:,} bytes, or with such a name in it: {expanded[:60]!r}…"
        raise ConfigError(what, where=where, fix=f"A path has up to {_LONGEST_PATH:,} bytes, a name {_LONGEST_NAME}.")
    return expanded


_LONGEST_PATH, _LONGEST_NAME = 4095, 255


def escape_path(path: str) -> str:
    """The text that `expand_path` turns into this path."""
    return ("./" if path.startswith("~") else "") + path.replace("$", "$$")


def map_paths(value: Any, change: Callable[[str], str]) -> Any:
    """The value of a setting that `is_path`, its paths changed."""
    if isinstance(value, Mapping):
        return {key: map_paths(inner, change) if key == "path" else inner for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map_paths(inner, change) for inner in value)
    return change(value) if isinstance(value, str) else value


def type_hints(cls: Callable[..., Any]) -> Mapping[str, Any]:
    """The annotations of a dataclass or of a function's parameters, resolved once: that takes most of a check."""
    return _hints(cls)


_hints = functools.cache(typing.get_type_hints)


def members_of(hint: Any) -> tuple[Any, ...]:
    """The members of a union; a hint that is none is its only member."""
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _range(low: float | None, above: float | None, high: float | None, below: float | None) -> str:
    """A range in words."""
    words = ["finite"] if below == math.inf else []
    bounds = (("at least", low), ("above", above), ("at most", high), ("below", None if below == math.inf else below))
    words += [f"{word} {bound:g}" for word, bound in bounds if bound is not None]
    return " and ".join(words)
