"""What a run says while it trains: metrics.jsonl, timing.jsonl, trackers and the progress line."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxmix.train.evaluate import aggregates
from jaxmix.train.progress import Progress
from jaxmix.train.records import RecordFile
from jaxmix.train.settings import TrainSettings
from jaxmix.train.step import StepInfo
from jaxmix.train.trackers import Tracker
from jaxmix.train.window import LogWindow

__all__ = ["RunLog"]


class RunLog:
    """Writes the records of one run. Files are written by process 0 alone.

    Args:
        run_dir: of the run.
        names: of the domains.
        prior: f32[m], what the `prior` aggregate of losses weighs by.
        settings: of the loop.
        window: sums since the last record, restored from a checkpoint or fresh.
        trackers: besides the files.
        first: step this session starts at.
        tokens: drawn before it.
        label: in front of progress lines.
        show_progress: print.
    """

    def __init__(
        self,
        run_dir: Path,
        names: tuple[str, ...],
        *,
        prior: np.ndarray,
        settings: TrainSettings,
        window: LogWindow,
        trackers: Sequence[Tracker],
        first: int,
        tokens: int,
        label: str,
        show_progress: bool,
    ):
        self._names, self._prior, self._settings, self._trackers = names, prior, settings, trackers
        self.window = window
        self.save_blocked = self.data_wait = 0.0
        self.rates: list[float] = []
        is_main = jax.process_index() == 0
        self._metrics = RecordFile(run_dir / "metrics.jsonl") if is_main else None
        self._timing = RecordFile(run_dir / "timing.jsonl") if is_main else None
        self._progress = Progress(settings.steps, first=first, names=names, label=label, is_enabled=show_progress)
        self._clock = (time.perf_counter(), first, tokens)

    def note(self, line: str) -> None:
        """A line beside the progress."""
        self._progress.note(line)

    def losses(self, kind: str, step: int, tokens: int, losses: np.ndarray) -> None:
        """One record of held-out losses f32[m]: `kind` is eval, control or test."""
        record: dict[str, Any] = {"kind": kind, "step": step, "tokens": tokens}
        record |= {f"{kind}/loss/{n}": float(x) for n, x in zip(self._names, losses, strict=True)}
        record |= {f"{kind}/loss/{k}": v for k, v in aggregates(losses, self._prior).items()}
        self._write(record)

    def step(
        self,
        step: int,
        info: StepInfo,
        *,
        learning_rate: float,
        weights: np.ndarray,
        realised: Mapping[str, Mapping[str, Any]],
        weight_lag: int,
        selection: Mapping[str, float],
    ) -> None:
        """The record of the steps since the last one, and the progress line; `selection` holds further fields."""
        tokens = int(sum(r["tokens"] for r in realised.values()))
        record: dict[str, Any] = {"kind": "train", "step": step, "tokens": tokens}
        record |= self.window.take(self._names)
        record |= {
            "train/grad_norm": float(info.grad_norm),
            "train/learning_rate": learning_rate,
            "train/skipped": int(info.skipped),
        }
        record |= {f"mix/weight/{n}": float(w) for n, w in zip(self._names, weights, strict=True)}
        record["mix/entropy"] = float(-np.sum(weights * np.log(np.maximum(weights, 1e-30))))
        for name, drawn in realised.items():
            record[f"data/share/{name}"] = drawn["share"]
            record[f"data/asked/{name}"] = drawn["asked_share"]
            record[f"data/epochs/{name}"] = drawn["epochs"]
        record["data/weight_lag"] = weight_lag
        record |= selection
        self._write(record)
        self._time(step, tokens, loss=record.get("train/loss", float("nan")), weights=weights)

    def close(self) -> None:
        self._progress.close()
        for file in (self._metrics, self._timing):
            if file is not None:
                file.close()
        for tracker in self._trackers:
            tracker.close()

    def _time(self, step: int, tokens: int, *, loss: float, weights: np.ndarray) -> None:
        now = time.perf_counter()
        then, step_then, tokens_then = self._clock
        self._clock = (now, step, tokens)
        seconds, steps = now - then, max(step - step_then, 1)
        rate = (tokens - tokens_then) / seconds
        self.rates.append(rate)
        if self._timing is not None:
            self._timing.write(
                {
                    "step": step,
                    "tokens_per_second": rate,
                    "step_seconds": seconds / steps,
                    "save_blocked_seconds": self.save_blocked,
                    "data_wait_seconds": self.data_wait,
                }
            )
        self._progress.update(
            step,
            loss=loss,
            tokens_per_second=rate,
            seconds_left=(self._settings.steps - step) * seconds / steps,
            weights=weights,
        )

    def _write(self, record: dict[str, Any]) -> None:
        if self._metrics is not None:
            self._metrics.write(record)
        for tracker in self._trackers:
            tracker.log(record["step"], record)
