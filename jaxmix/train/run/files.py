"""The files and the line that every run speaks by: metrics.jsonl, timing.jsonl, trackers, progress."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxmix.train.run.progress import Progress
from jaxmix.train.run.records import RecordFile
from jaxmix.train.run.trackers import Tracker


class RunRecords:
    """Base of the logs of the loops. Files are written by process 0 alone.

    Args:
        run_dir: of the run.
        names: of what is weighed: domains or arms.
        steps: of the whole run.
        trackers: besides the files.
        first: step this session starts at.
        tokens: counted before it.
        label: in front of progress lines.
        show_progress: print.
    """

    def __init__(
        self,
        run_dir: Path,
        names: tuple[str, ...],
        *,
        steps: int,
        trackers: Sequence[Tracker],
        first: int,
        tokens: int,
        label: str,
        show_progress: bool,
    ):
        self._names, self._steps, self._trackers = names, steps, trackers
        self.save_blocked = 0.0
        is_main = jax.process_index() == 0
        self._metrics = RecordFile(run_dir / "metrics.jsonl") if is_main else None
        self._timing = RecordFile(run_dir / "timing.jsonl") if is_main else None
        self._progress = Progress(steps, first=first, names=names, label=label, is_enabled=show_progress)
        self._clock = (time.perf_counter(), first, tokens)

    def note(self, line: str) -> None:
        """A line beside the progress."""
        self._progress.note(line)

    def close(self) -> None:
        self._progress.close()
        for file in (self._metrics, self._timing):
            if file is not None:
                file.close()
        for tracker in self._trackers:
            tracker.close()

    def _pace(self, step: int, tokens: int, *, loss: float, weights: np.ndarray, **fields: float) -> float:
        """The record of the time since the last one, and the progress line; returns tokens per second."""
        now = time.perf_counter()
        then, step_then, tokens_then = self._clock
        self._clock = (now, step, tokens)
        seconds, steps = now - then, max(step - step_then, 1)
        rate = (tokens - tokens_then) / seconds
        if self._timing is not None:
            figures = {"tokens_per_second": rate, "step_seconds": seconds / steps}
            self._timing.write({"step": step, **figures, "save_blocked_seconds": self.save_blocked, **fields})
        self._progress.update(
            step,
            loss=loss,
            tokens_per_second=rate,
            seconds_left=(self._steps - step) * seconds / steps,
            weights=weights,
        )
        return rate

    def _write(self, record: dict[str, Any]) -> None:
        if self._metrics is not None:
            self._metrics.write(record)
        for tracker in self._trackers:
            tracker.log(record["step"], record)
