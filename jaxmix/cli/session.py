"""Shared by long-running commands: the command as typed, progress lines, other processes, Ctrl-C."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from types import TracebackType

from jaxmix.cli.arguments import Arguments
from jaxmix.cli.output import say


def command_of(arguments: Arguments) -> str:
    """The command as it was typed, quoted for a shell."""
    return shlex.join(["jaxmix", *arguments.argv])


def notes_of(arguments: Arguments) -> Callable[[str], None]:
    """Where lines about the stages of a job go: to the screen, or with `--json` nowhere."""
    return (lambda line: None) if arguments.json else say


def join_processes(arguments: Arguments) -> None:
    """Joins the other processes of the run, before anything touches a device."""
    given = (arguments.coordinator, arguments.processes, arguments.process)
    if arguments.distributed or any(value is not None for value in given):
        from jaxmix.core.sharding import initialize_distributed

        initialize_distributed(*given)


class continued_by:
    """Turns Ctrl-C outside the training loop, which handles it itself, into a message that says how to continue."""

    def __init__(self, command: str):
        self._command = command

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, KeyboardInterrupt) and not str(error):
            raise KeyboardInterrupt(f"Finished work is kept. Continue with: {self._command}") from None
