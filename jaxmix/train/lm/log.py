"""What a run says while it trains: metrics.jsonl, timing.jsonl, trackers and the progress line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxmix.train.lm.evaluate import aggregates
from jaxmix.train.lm.settings import TrainSettings
from jaxmix.train.lm.step import StepInfo
from jaxmix.train.run.files import RunRecords
from jaxmix.train.run.metrics import LogWindow
from jaxmix.train.run.trackers import Tracker


class RunLog(RunRecords):
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
        super().__init__(
            run_dir,
            names,
            steps=settings.steps,
            trackers=trackers,
            first=first,
            tokens=tokens,
            label=label,
            show_progress=show_progress,
        )
        self._prior, self.window = prior, window
        self.data_wait = 0.0
        self.rates: list[float] = []

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
        realized: Mapping[str, Mapping[str, Any]],
        weight_lag: int,
        selection: Mapping[str, float],
    ) -> None:
        """The record of the steps since the last one, and the progress line; `selection` holds further fields."""
        tokens = int(sum(r["tokens"] for r in realized.values()))
        record: dict[str, Any] = {"kind": "train", "step": step, "tokens": tokens}
        record |= self.window.take(self._names)
        record |= {
            "train/grad_norm": float(info.grad_norm),
            "train/learning_rate": learning_rate,
            "train/skipped": int(info.skipped),
        }
        record |= {f"mix/weight/{n}": float(w) for n, w in zip(self._names, weights, strict=True)}
        record["mix/entropy"] = float(-np.sum(weights * np.log(np.maximum(weights, 1e-30))))
        for name, drawn in realized.items():
            record[f"data/share/{name}"] = drawn["share"]
            record[f"data/asked/{name}"] = drawn["asked_share"]
            record[f"data/epochs/{name}"] = drawn["epochs"]
        record["data/weight_lag"] = weight_lag
        record |= selection
        self._write(record)
        rate = self._pace(
            step,
            tokens,
            loss=record.get("train/loss", float("nan")),
            weights=weights,
            data_wait_seconds=self.data_wait,
        )
        self.rates.append(rate)
