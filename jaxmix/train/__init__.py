"""The sharded training loop: one step, one loop, checkpoints, records."""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "RunResult": "loop",
    "SelectionCost": "selection_cost",
    "TrainSettings": "settings",
    "ValidationSet": "evaluate",
    "build_programs": "programs",
    "build_train_step": "step",
    "describe_cost": "selection_cost",
    "latest_by_step": "records",
    "read_records": "records",
    "relative_step_cost": "selection_cost",
    "run_training": "loop",
    "training_cost": "selection_cost",
    "validation_set": "evaluate",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"jaxmix.train.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'jaxmix.train' has no attribute {name!r}")
