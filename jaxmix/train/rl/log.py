"""What a fine-tuning run says: metrics.jsonl, timing.jsonl, trackers, the progress line."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxmix.train.rl.settings import FinetuneSettings
from jaxmix.train.run.files import RunRecords
from jaxmix.train.run.trackers import Tracker


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


class FinetuneLog(RunRecords):
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
        super().__init__(
            run_dir,
            names,
            steps=settings.steps,
            trackers=trackers,
            first=first,
            tokens=0,
            label=label,
            show_progress=show_progress,
        )
        self.window = RolloutWindow(len(names))
        self.reward_seconds = 0.0
        self.generated = 0
        self._started = time.perf_counter()

    def train(self, step: int, currencies: Mapping[str, int], probabilities: np.ndarray, skipped: int) -> None:
        """The record of the steps since the last one, and the progress line."""
        record: dict[str, Any] = {"kind": "train", "step": step, **currencies}
        record |= self.window.fields(self._names)
        record["train/skipped"] = skipped
        record |= {f"bandit/probability/{n}": float(p) for n, p in zip(self._names, probabilities, strict=True)}
        self._write(record)
        self._pace(
            step,
            self.generated,
            loss=record.get("train/loss", float("nan")),
            weights=probabilities,
            seconds=time.perf_counter() - self._started,
            reward_seconds=self.reward_seconds,
        )
        self.window = RolloutWindow(len(self._names))

    def evaluation(self, step: int, currencies: Mapping[str, int], solved: Mapping[str, float]) -> None:
        """One record of solve rates on held-out prompts."""
        record: dict[str, Any] = {"kind": "eval", "step": step, **currencies}
        record |= {f"eval/solve/{name}": value for name, value in solved.items()}
        self._write(record)
