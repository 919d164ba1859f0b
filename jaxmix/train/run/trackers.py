"""Trackers besides the run folder: TensorBoard and Weights & Biases, each installed with its extra."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from jaxmix.core.errors import ConfigError, EnvironmentProblem, nearest


@runtime_checkable
class Tracker(Protocol):
    """Receives every metrics record; scalars are keyed by the names used in metrics.jsonl."""

    def log(self, step: int, record: dict[str, Any]) -> None: ...
    def close(self) -> None: ...


class _TensorBoard:
    def __init__(self, run_dir: Path, config: dict[str, Any]):
        self._writer = _extra("tensorboardX", "tensorboard").SummaryWriter(str(run_dir / "tensorboard"))

    def log(self, step: int, record: dict[str, Any]) -> None:
        for name, value in _scalars(record).items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _WeightsAndBiases:
    def __init__(self, run_dir: Path, config: dict[str, Any]):
        # A stable id makes a resumed run continue its own page.
        self._run = _extra("wandb", "wandb").init(
            project="jaxmix", name=run_dir.name, id=run_dir.name, resume="allow", dir=str(run_dir), config=config
        )

    def log(self, step: int, record: dict[str, Any]) -> None:
        self._run.log({**_scalars(record), "step": step})

    def close(self) -> None:
        self._run.finish()


TRACKERS: dict[str, Callable[[Path, dict[str, Any]], Tracker]] = {
    "tensorboard": _TensorBoard,
    "wandb": _WeightsAndBiases,
}


def make_tracker(name: str, run_dir: Path, config: dict[str, Any]) -> Tracker:
    """Makes the tracker called `name`. metrics.jsonl is always written and is not a tracker.

    Raises:
        ConfigError: unknown name.
        EnvironmentProblem: its package is not installed.
    """
    if name not in TRACKERS:
        raise ConfigError(f"unknown tracker {name!r}", where="track", fix=nearest(name, TRACKERS))
    return TRACKERS[name](run_dir, config)


def _scalars(record: dict[str, Any]) -> dict[str, float]:
    return {k: v for k, v in record.items() if "/" in k and isinstance(v, int | float)}


def _extra(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise EnvironmentProblem(
            f"the tracker needs the package {module!r}, which is not installed",
            where=f"track: {extra}",
            fix=f'Run: pip install "jaxmix[{extra}]"',
        ) from error
