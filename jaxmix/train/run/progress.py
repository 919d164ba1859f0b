"""What a person watching a run sees: a live bar on a terminal, one line per interval otherwise."""

from __future__ import annotations

import sys
import time
from typing import Any, TextIO

_MAX_SHOWN = 8


class Progress:
    """Shows step, tokens per second, time left, loss and the weight of each domain. Prints on process 0 only.

    Args:
        total: steps of the run.
        first: step the run starts or continues at.
        names: domain names.
        label: shown in front of every line.
        interval: seconds between lines when the stream is no terminal.
        stream: where to write, standard error by default.
        is_enabled: False prints nothing.
    """

    def __init__(
        self,
        total: int,
        *,
        first: int,
        names: tuple[str, ...],
        label: str = "train",
        interval: float = 10.0,
        stream: TextIO | None = None,
        is_enabled: bool = True,
    ):
        self._total, self._names, self._label, self._interval = total, names, label, interval
        self._stream = stream or sys.stderr
        self._is_enabled = is_enabled
        self._last_line = -float("inf")
        self._bar: Any = None
        if is_enabled and self._stream.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

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

    def update(self, step: int, *, loss: float, tokens_per_second: float, seconds_left: float, weights: Any) -> None:
        """Shows the state after `step` steps."""
        if not self._is_enabled:
            return
        status = f"loss {loss:.4f}  {_rate(tokens_per_second)}  {_weights(self._names, weights)}"
        if self._bar is not None:
            self._bar.update(self._task, completed=step, status=status)
            return
        now = time.monotonic()
        if now - self._last_line >= self._interval or step == self._total:
            self._last_line = now
            left = _clock(seconds_left)
            print(f"{self._label}: step {step}/{self._total}  {status}  {left} left", file=self._stream, flush=True)

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


def _rate(tokens_per_second: float) -> str:
    if tokens_per_second >= 1e6:
        return f"{tokens_per_second / 1e6:.2f}M tok/s"
    return f"{tokens_per_second / 1e3:.1f}k tok/s"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(max(seconds, 0.0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
