"""Models: bundles of `init` and `apply` that the train loop drives. Flax is loaded when a model is first built."""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "Model": "base",
    "PRESETS": "presets",
    "TransformerConfig": "config",
    "count_params": "accounting",
    "fit_partition": "partition",
    "flops_per_token": "accounting",
    "preset": "presets",
    "transformer": "decoder",
}

__all__ = [
    "PRESETS",
    "Model",
    "TransformerConfig",
    "count_params",
    "fit_partition",
    "flops_per_token",
    "preset",
    "transformer",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"jaxmix.models.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'jaxmix.models' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
