"""Ctrl-C and a machine's shutdown notice ask the loop to save a checkpoint and stop."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import jax

from jaxmix.core.errors import RunError


class Interruption:
    """Context manager: SIGINT and SIGTERM ask for a stop at the next step; a second SIGINT stops at once.

    With several processes a notice reaches one host first. They agree on the step through JAX's preemption service,
    which answers to SIGTERM, so that no host waits for another in a collective.
    """

    def __init__(self) -> None:
        self._is_requested = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            caught = (signal.SIGINT,) if jax.process_count() > 1 else (signal.SIGINT, signal.SIGTERM)
            self._previous = {number: signal.signal(number, self._request) for number in caught}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def is_requested(self, step: int) -> bool:
        """Whether to stop before `step`; the same answer on every process."""
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            return bool(multihost_utils.reached_preemption_sync_point(step))
        return self._is_requested

    def _request(self, number: int, frame: FrameType | None) -> None:
        if (self._is_requested and number == signal.SIGINT) or jax.process_count() > 1:
            raise KeyboardInterrupt
        self._is_requested = True


def interrupted(step: int, run_dir: Path) -> RunError:
    """The error that a loop raises once the checkpoint at `step` is complete."""
    return RunError(
        f"interrupted; saved at step {step}",
        where=str(run_dir),
        fix="Run the same command again to continue.",
    )
