"""Parsing of a command's arguments: no abbreviations, and for an unknown name an error with the nearest known one."""

from __future__ import annotations

import dataclasses
import shlex
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

from jaxmix.core.errors import ConfigError, nearest
from jaxmix.core.settings import escape_path, expand_path


@dataclasses.dataclass(frozen=True)
class Flag:
    """An option of a command.

    Attributes:
        name: with its two dashes.
        help: one line.
        metavar: what its value is called; None for a switch.
        kind: `str`, `int` or `float`.
        is_hidden: left out of `--help`.
        is_override: a section of the configuration, parsed as any other override.
    """

    name: str
    help: str
    metavar: str | None = None
    kind: type = str
    is_hidden: bool = False
    is_override: bool = False

    @property
    def key(self) -> str:
        return self.name.lstrip("-").replace("-", "_")


@dataclasses.dataclass(frozen=True)
class Command:
    """A command of the program.

    Attributes:
        name: as typed.
        summary: one line for `jaxmix --help`.
        details: further text for the command's own help.
        positional: (name, help) of each required argument.
        flags: its options, in addition to those of every command.
        sections: configuration sections whose dotted overrides it takes; empty for none.
        home: the module of jaxmix.cli that has a function of the command's name; empty: that of the same name.
    """

    name: str
    summary: str
    details: str = ""
    positional: tuple[tuple[str, str], ...] = ()
    flags: tuple[Flag, ...] = ()
    sections: tuple[str, ...] = ()
    home: str = ""


COMMON = (
    Flag("--help", "show this help"),
    Flag("--debug", "show the traceback of an error"),
)


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What was typed.

    Attributes:
        values: by key (`dry_run` for `--dry-run`): True/False for switches, a value or None for the rest.
        overrides: dotted name and YAML text, in order.
        argv: everything after `jaxmix`, as typed.
    """

    values: dict[str, Any]
    overrides: tuple[tuple[str, str], ...]
    argv: tuple[str, ...]

    @property
    def command(self) -> str:
        """The command as it was typed, quoted for a shell."""
        return shlex.join(["jaxmix", *self.argv])

    def __getattr__(self, key: str) -> Any:
        try:
            return self.__dict__["values"][key]
        except KeyError:
            raise AttributeError(key) from None


def parse(command: Command, argv: Sequence[str], keys: Callable[[], Sequence[str]] = tuple) -> Arguments:
    """Parses what follows the command's name. `keys` gives the dotted keys that an override may name, for errors.

    Raises:
        ConfigError: an unknown option, a missing or superfluous argument, a value of the wrong kind.
    """
    where = f"jaxmix {command.name}"
    flags = {f.name: f for f in (*command.flags, *COMMON)}
    values: dict[str, Any] = {f.key: None if f.metavar else False for f in flags.values()}
    overrides: list[tuple[str, str]] = []
    found: list[str] = []
    words = list(argv)
    while words:
        word = words.pop(0)
        if word == "-h":
            word = "--help"
        if not word.startswith("--") or word == "--":
            if word.startswith("-") and len(word) > 1 and word != "--":
                raise ConfigError(f"unknown option {word!r}", where=where, fix=nearest("-" + word, _visible(flags)))
            if word != "--":
                found.append(word)
            continue
        name, has_value, text = word.partition("=")
        flag = flags.get(name)
        if flag is not None and flag.is_override:
            flag = None
        is_override = flag is None and name.lstrip("-").split(".")[0] in command.sections
        if flag is None and not is_override:
            raise ConfigError(f"unknown option {name!r}", where=where, fix=_guess(name, command, flags, keys))
        if flag is not None and flag.metavar is None:
            if has_value:
                raise ConfigError(f"{name} takes no value", where=where, fix=f"Write {name} alone.")
            values[flag.key] = True
            continue
        if not has_value:
            if not words or words[0].startswith("--"):
                raise ConfigError(f"{name} needs a value", where=where, fix=f"Write {name} VALUE.")
            text = words.pop(0)
        if flag is None:
            overrides.append((name[2:], text))
        else:
            values[flag.key] = _value(flag, text, where)
    if not values["help"]:
        _take_positional(command, found, values, where)
    return Arguments(values, tuple(overrides), (command.name, *argv))


def _guess(name: str, command: Command, flags: dict[str, Flag], keys: Callable[[], Sequence[str]]) -> str:
    """What may have been meant: a key whose section was left out, or the nearest option."""
    bare = name.lstrip("-").replace("-", "_")
    bare = {"lr": "learning_rate"}.get(bare, bare)
    meant = [f"--{key}" for key in keys() if key.rpartition(".")[2] == bare] if command.sections else []
    if meant:
        return f"Did you mean {' or '.join(meant)}?"
    known = {*_visible(flags), *(f"--{section}" for section in command.sections)}
    return nearest(name.split(".")[0] if "." in name else name, known)


def _visible(flags: dict[str, Flag]) -> list[str]:
    return [name for name, flag in flags.items() if not flag.is_hidden]


_PATHS = ("FOLDER", "FILE", "CONFIG", "TABLE", "RUN")
"""Names of arguments and values that are paths."""


def _value(flag: Flag, text: str, where: str) -> Any:
    if flag.metavar in _PATHS:
        return expand_path(text, f"{where} {flag.name}")
    try:
        return flag.kind(text)
    except ValueError:
        wanted = {int: "a whole number", float: "a number"}[flag.kind]
        raise ConfigError(f"{flag.name} needs {wanted}: got {text!r}", where=where) from None


def path_text(path: str) -> str:
    """A path that was given by an option, as the YAML text of an override."""
    from jaxmix.workflows.config.yaml import dump_yaml

    return dump_yaml(escape_path(path))


def _take_positional(command: Command, found: list[str], values: dict[str, Any], where: str) -> None:
    for (name, _), word in zip(command.positional, found, strict=False):
        values[name.lower()] = expand_path(word, where) if name in _PATHS else word
    for name, about in command.positional[len(found) :]:
        usage = " ".join(n for n, _ in command.positional)
        raise ConfigError(f"{name} is missing: {about}", where=where, fix=f"Write: jaxmix {command.name} {usage}")
    if len(found) > len(command.positional):
        extra = found[len(command.positional)]
        name, is_assignment, value = extra.partition("=")
        fix = f"Write --{name} {value}" if is_assignment else f"See jaxmix {command.name} --help."
        raise ConfigError(f"unexpected argument {extra!r}", where=where, fix=fix)


def help_text(command: Command, keys: Sequence[tuple[str, str]] = ()) -> str:
    """The help page of one command. `keys` are configuration keys and what they mean."""
    usage = " ".join(
        ["jaxmix", command.name, *(n for n, _ in command.positional), "[options]"]
        + (["[--section.key value …]"] if command.sections else [])
    )
    lines = [f"Usage: {usage}", "", *textwrap.wrap(command.summary + ".", 100)]
    for paragraph in textwrap.dedent(command.details).strip().split("\n\n"):
        if paragraph:
            lines += ["", *textwrap.wrap(" ".join(paragraph.split()), 100)]
    rows = [(n, about) for n, about in command.positional]
    shown = [f for f in (*command.flags, *COMMON) if not f.is_hidden]
    rows += [(f"{f.name} {f.metavar}" if f.metavar else f.name, f.help) for f in shown]
    lines += ["", "Options:", *_columns(rows)]
    if keys:
        lines += ["", "Keys of the configuration, each of which --KEY VALUE overrides:", *_columns(list(keys))]
    return "\n".join(lines)


def _columns(rows: list[tuple[str, str]]) -> list[str]:
    width = min(max((len(name) for name, _ in rows), default=0), 28)
    lines = []
    for name, about in rows:
        first, *more = textwrap.wrap(about, 100 - width - 4) or [""]
        lines.append(f"  {name.ljust(width)}  {first}".rstrip())
        lines += [" " * (width + 4) + line for line in more]
    return lines
