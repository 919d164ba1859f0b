"""Shared by commands: actions, progress lines, other processes, Ctrl-C."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping

from jaxmix.cli.arguments import Arguments
from jaxmix.cli.output import show
from jaxmix.core.errors import ConfigError, nearest
from jaxmix.core.sharding import initialize_distributed


def do_action(arguments: Arguments, actions: Mapping[str, Callable[[Arguments], int]]) -> int:
    """Runs what the argument ACTION names. Raises `ConfigError` for an unknown one."""
    name = arguments.action
    if name not in actions:
        where = f"jaxmix {arguments.argv[0]}"
        raise ConfigError(f"unknown action {name!r}", where=where, fix=nearest(name, actions))
    return actions[name](arguments)


def notes_of(arguments: Arguments) -> Callable[[str], None]:
    """Where lines about the stages of a job go: to the screen, or with `--json` nowhere."""
    return (lambda line: None) if arguments.json else show


def join_processes(arguments: Arguments) -> None:
    """Joins the other processes of the run, before anything touches a device."""
    given = (arguments.coordinator, arguments.processes, arguments.process)
    if arguments.distributed or any(value is not None for value in given):
        initialize_distributed(*given)


@contextlib.contextmanager
def continuable(arguments: Arguments) -> Iterator[None]:
    """Turns Ctrl-C outside the training loop, which handles it itself, into a message that says how to continue."""
    try:
        yield
    except KeyboardInterrupt as error:
        if str(error):
            raise
        raise KeyboardInterrupt(f"Finished work is kept. Continue with: {arguments.command}") from None
