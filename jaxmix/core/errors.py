"""One error style: what was wrong, the value, where it came from, what to do.

Every error a user can cause is one of three classes; the command line turns each into its exit code.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterable


class JaxmixError(Exception):
    """Base of all errors that jaxmix raises on purpose.

    Args:
        what: one sentence without a full stop: the rule that was broken and the value that broke it.
        where: the file and key, or the argument, that the value came from.
        fix: one or two sentences that tell the reader what to do.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None):
        self.what, self.where, self.fix = what, where, fix
        message = what if where is None else f"{what} ({where})"
        super().__init__(message if fix is None else f"{message}. {fix}")


class RunError(JaxmixError):
    """A run that started could not go on (exit code 1)."""

    exit_code = 1


class ConfigError(JaxmixError, ValueError):
    """A setting or argument is wrong (exit code 2). Raised before any file is opened or device touched."""

    exit_code = 2


class EnvironmentProblem(JaxmixError, RuntimeError):
    """The machine lacks something the command needs: a package, a version, a device (exit code 3)."""

    exit_code = 3


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns `Did you mean 'x'? Known: a, b, x.` for an unknown name, nearest match first."""
    names = sorted(known)
    lower = {known_name.lower(): known_name for known_name in names}
    match = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.5)
    guess = f"Did you mean {lower[match[0]]!r}? " if match else ""
    return f"{guess}Known: {', '.join(names) if names else '(none)'}."


def warn_renamed(old: str, new: str, *, stacklevel: int = 3) -> None:
    """Warns the caller's caller that a public name has a new spelling."""
    warnings.warn(f"{old} is now spelled {new}; the old spelling will be removed", DeprecationWarning, stacklevel)
