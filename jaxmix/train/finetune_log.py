"""What a fine-tuning run says: metrics.jsonl, timing.jsonl, trackers, the progress line."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxmix.train.finetune_settings import FinetuneSettings
from jaxmix.train.progress import Progress
from jaxmix.train.records import RecordFile
from jaxmix.train.trackers import Tracker

__all__ = ["FinetuneLog", "RolloutWindow"]


class RolloutWindow:
    """Sums since the last record, in float64, kept in every checkpoint so that a resumed run writes the same record."""

    def __init__(self, num_arms: int):
        self.slots, self.solved = np.zeros(num_arms), np.zeros(num_arms)
        self.live = 0
        self.updates = 0
        self.sums: dict[str, float] = {}
        self._waiting: list[Any] = []

    def add_rollouts(self, arms: np.ndarray, rewards: np.ndarray, is_live: np.ndarray) -> None:
        """One batch: arms i[b], rewards f[b, g], bool[b]. A verifier that failed (nan) counts as not solved."""
        np.add.at(self.slots, arms, 1.0)
        np.add.at(self.solved, arms, np.nan_to_num(rewards.astype(np.float64)).mean(axis=1))
        self.live += int(is_live.sum())

    def add_update(self, info: Any) -> None:
        """An `UpdateInfo` whose arrays may still be on their way; they are fetched with the next record or save."""
        self.updates += 1
        self._waiting.append(info)

    def fields(self, names: tuple[str, ...]) -> dict[str, float]:
        """The record's fields. An arm that was not drawn has no solve rate, an interval without updates no loss."""
        self._settle()
        total = max(float(self.slots.sum()), 1.0)
        record = {f"train/{name}": value / self.updates for name, value in self.sums.items()} if self.updates else {}
        record |= {"reward/mean": float(self.solved.sum()) / total, "reward/live_share": self.live / total}
        for name, slots, solved in zip(names, self.slots.tolist(), self.solved.tolist(), strict=True):
            record[f"arm/share/{name}"] = slots / total
            if slots > 0:
                record[f"arm/solve/{name}"] = solved / slots
        return record

    def _settle(self) -> None:
        for info in jax.device_get(self._waiting):
            for name, value in info._asdict().items():
                self.sums[name] = self.sums.get(name, 0.0) + float(value)
        self._waiting.clear()

    def to_json(self) -> dict[str, Any]:
        """Everything as plain numbers; Python's shortest float form reads back to the same bits."""
        self._settle()
        return {
            "slots": self.slots.tolist(),
            "solved": self.solved.tolist(),
            "live": self.live,
            "updates": self.updates,
            "sums": {name: value if np.isfinite(value) else None for name, value in self.sums.items()},
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> RolloutWindow:
        window = cls(len(record["slots"]))
        window.slots += np.asarray(record["slots"])
        window.solved += np.asarray(record["solved"])
        window.live, window.updates = int(record["live"]), int(record["updates"])
        window.sums = {name: float("nan") if value is None else value for name, value in record["sums"].items()}
        return window


class FinetuneLog:
    """Writes the records of one run. Files are written by process 0 alone.

    Args:
        run_dir: of the run.
        names: of the arms.
        settings: of the run.
        trackers: besides the files.
        first: step this session starts at.
        label: in front of progress lines.
        show_progress: print.
    """

    def __init__(
        self,
        run_dir: Path,
        names: tuple[str, ...],
        *,
        settings: FinetuneSettings,
        trackers: Sequence[Tracker],
        first: int,
        label: str,
        show_progress: bool,
    ):
        self._names, self._settings, self._trackers = names, settings, trackers
        self.window = RolloutWindow(len(names))
        self.save_blocked = self.reward_seconds = 0.0
        self.generated = 0
        is_main = jax.process_index() == 0
        self._metrics = RecordFile(run_dir / "metrics.jsonl") if is_main else None
        self._timing = RecordFile(run_dir / "timing.jsonl") if is_main else None
        self._progress = Progress(settings.steps, first=first, names=names, label=label, is_enabled=show_progress)
        self._started = time.perf_counter()
        self._clock = (self._started, first, 0)

    def note(self, line: str) -> None:
        """A line beside the progress."""
        self._progress.note(line)

    def train(self, step: int, currencies: Mapping[str, int], probabilities: np.ndarray, skipped: int) -> None:
        """The record of the steps since the last one, and the progress line."""
        record: dict[str, Any] = {"kind": "train", "step": step, **currencies}
        record |= self.window.fields(self._names)
        record["train/skipped"] = skipped
        record |= {f"bandit/probability/{n}": float(p) for n, p in zip(self._names, probabilities, strict=True)}
        self._write(record)
        self._time(step, loss=record.get("train/loss", float("nan")), probabilities=probabilities)
        self.window = RolloutWindow(len(self._names))

    def evaluation(self, step: int, currencies: Mapping[str, int], solved: Mapping[str, float]) -> None:
        """One record of solve rates on held-out prompts."""
        record: dict[str, Any] = {"kind": "eval", "step": step, **currencies}
        record |= {f"eval/solve/{name}": value for name, value in solved.items()}
        self._write(record)

    def close(self) -> None:
        self._progress.close()
        for file in (self._metrics, self._timing):
            if file is not None:
                file.close()
        for tracker in self._trackers:
            tracker.close()

    def _time(self, step: int, *, loss: float, probabilities: np.ndarray) -> None:
        now = time.perf_counter()
        then, step_then, generated_then = self._clock
        self._clock = (now, step, self.generated)
        seconds, steps = now - then, max(step - step_then, 1)
        rate = (self.generated - generated_then) / seconds
        if self._timing is not None:
            self._timing.write(
                {
                    "step": step,
                    "seconds": now - self._started,
                    "step_seconds": seconds / steps,
                    "tokens_per_second": rate,
                    "save_blocked_seconds": self.save_blocked,
                    "reward_seconds": self.reward_seconds,
                }
            )
        self._progress.update(
            step,
            loss=loss,
            tokens_per_second=rate,
            seconds_left=(self._settings.steps - step) * seconds / steps,
            weights=probabilities,
        )

    def _write(self, record: dict[str, Any]) -> None:
        if self._metrics is not None:
            self._metrics.write(record)
        for tracker in self._trackers:
            tracker.log(record["step"], record)
