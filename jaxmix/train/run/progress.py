"""The progress of a run on the console: a live bar on a terminal, one line per interval otherwise."""

from __future__ import annotations

import sys
import time
from typing import Any, TextIO

_MAX_SHOWN = 8


class Progress:
    """Shows step, pace, time left, loss and the weight of each domain. Prints on process 0 only.

    Args:
        total: steps of the run.
        first: step the run starts or continues at.
        names: of the domains or arms.
        label: shown in front of every line.
        unit: of the pace.
        noun: the word for a step.
        interval: seconds between lines when the stream is not a terminal.
        stream: where to write, standard error by default.
        is_enabled: False prints nothing.
    """

    def __init__(
        self,
        total: int,
        *,
        first: int = 0,
        names: tuple[str, ...] = (),
        label: str = "train",
        unit: str = "tokens",
        noun: str = "step",
        interval: float = 10.0,
        stream: TextIO | None = None,
        is_enabled: bool = True,
    ):
        self._total, self._names, self._label, self._interval = total, names, label, interval
        self._unit, self._noun = unit, noun
        self._stream = stream or sys.stderr
        self._is_enabled = is_enabled
        self._last_line = -float("inf")
        self._bar: Any = None
        if is_enabled and self._stream.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress as Bar, TextColumn, TimeRemainingColumn

            self._bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[status]}"),
                console=Console(file=self._stream),
            )
            self._task = self._bar.add_task(label, total=total, completed=first, status="")
            self._bar.start()

    def update(self, step: int, *, loss: float, rate: float, seconds_left: float, weights: Any) -> None:
        """Shows the state after `step` steps; `rate` is in units per second."""
        pace = f"{rate / 1e6:.2f}M" if rate >= 1e6 else f"{rate / 1e3:.1f}k" if rate >= 1e3 else f"{rate:.0f}"
        status = f"loss {loss:.4f}  {pace} {self._unit}/s  {_weights(self._names, weights)}"
        self.show(step, status, f"  {_clock(seconds_left)} left")

    def show(self, step: int, status: str, left: str = "") -> None:
        """Shows `status`, and `left` unless the stream is a terminal, whose bar shows the time left."""
        if not self._is_enabled:
            return
        if self._bar is not None:
            self._bar.update(self._task, completed=step, status=status)
            return
        now = time.monotonic()
        if now - self._last_line >= self._interval or step == self._total:
            self._last_line = now
            line = f"{self._label}: {self._noun} {step}/{self._total}  {status}{left}"
            print(line, file=self._stream, flush=True)

    def note(self, text: str) -> None:
        """Prints one line that stays."""
        if not self._is_enabled:
            return
        if self._bar is not None:
            self._bar.console.print(f"{self._label}: {text}", markup=False, highlight=False)
        else:
            print(f"{self._label}: {text}", file=self._stream, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()


def _weights(names: tuple[str, ...], weights: Any) -> str:
    order = sorted(range(len(names)), key=lambda j: -float(weights[j]))
    shown = "  ".join(f"{names[j]} {float(weights[j]):.3f}" for j in order[:_MAX_SHOWN])
    return shown + (f"  (+{len(names) - _MAX_SHOWN} more)" if len(names) > _MAX_SHOWN else "")


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(max(seconds, 0.0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
