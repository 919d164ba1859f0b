"""The output of a run: metrics.jsonl, timing.jsonl, trackers and the progress line."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from jaxmix.train.run.progress import Progress
from jaxmix.train.run.records import RecordFile
from jaxmix.train.run.trackers import Tracker


class RunFiles:
    """Opens and writes the files of one run; process 0 alone writes.

    Args:
        run_dir: of the run.
        steps: of the whole run.
        first: step this session starts at.
        amount: processed before it, in `unit`.
        unit: of the pace, such as "tokens".
        names: of the domains or arms.
        trackers: in addition to the files.
        label: in front of progress lines.
        show_progress: print.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        steps: int,
        first: int,
        amount: int,
        unit: str,
        names: tuple[str, ...],
        trackers: Sequence[Tracker],
        label: str,
        show_progress: bool,
    ):
        self._steps, self._unit, self._trackers = steps, unit, trackers
        self.rates: list[float] = []
        is_main = jax.process_index() == 0
        self._metrics = RecordFile(run_dir / "metrics.jsonl") if is_main else None
        self._timing = RecordFile(run_dir / "timing.jsonl") if is_main else None
        self._progress = Progress(
            steps, first=first, names=names, unit=unit, label=label, is_enabled=show_progress and is_main
        )
        self._started = time.perf_counter()
        self._last = (self._started, first, amount)

    def note(self, line: str) -> None:
        """A line beside the progress."""
        self._progress.note(line)

    def write(self, record: dict[str, Any]) -> None:
        """One record, to metrics.jsonl and the trackers."""
        if self._metrics is not None:
            self._metrics.write(record)
        for tracker in self._trackers:
            tracker.log(record["step"], record)

    def pace(self, step: int, amount: int, *, loss: float, weights: Any, seconds: Mapping[str, float]) -> None:
        """Writes how long the steps since the last call took, with further `seconds`, and shows the progress."""
        now = time.perf_counter()
        then, step_then, amount_then = self._last
        self._last = (now, step, amount)
        per_step, rate = (now - then) / max(step - step_then, 1), (amount - amount_then) / (now - then)
        self.rates.append(rate)
        if self._timing is not None:
            pace = {f"{self._unit}_per_second": rate, "step_seconds": per_step, "seconds": now - self._started}
            self._timing.write({"step": step, **pace, **{f"{name}_seconds": value for name, value in seconds.items()}})
        self._progress.update(step, loss=loss, rate=rate, seconds_left=(self._steps - step) * per_step, weights=weights)

    def close(self) -> None:
        self._progress.close()
        for file in (self._metrics, self._timing):
            if file is not None:
                file.close()
        for tracker in self._trackers:
            tracker.close()
