"""Models: bundles of `init` and `apply` that the train loop drives. Flax is loaded when a model is first built."""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "Encoder": "encoder",
    "ImageTowerConfig": "towers_config",
    "Model": "base",
    "PRESETS": "presets",
    "Rollouts": "generation",
    "Sampling": "sampling",
    "Student": "student",
    "TOWER_PRESETS": "tower_presets",
    "TextTowerConfig": "towers_config",
    "TransformerConfig": "config",
    "TwoTowers": "towers",
    "TwoTowersConfig": "towers_config",
    "caption_tokens": "captions",
    "count_params": "accounting",
    "embed_mixed": "mixed_resolution",
    "fit_partition": "partition",
    "flops_per_token": "accounting",
    "generate": "generation",
    "load_encoder": "encoder",
    "load_student": "student",
    "mean_flops_per_image": "mixed_resolution",
    "preset": "presets",
    "sharded_loss": "contrastive_loss",
    "sigmoid_loss": "contrastive_loss",
    "softmax_loss": "contrastive_loss",
    "tower_preset": "tower_presets",
    "train_student": "student_training",
    "transformer": "decoder",
    "two_towers": "towers",
}

__all__ = [
    "PRESETS",
    "TOWER_PRESETS",
    "Encoder",
    "ImageTowerConfig",
    "Model",
    "Rollouts",
    "Sampling",
    "Student",
    "TextTowerConfig",
    "TransformerConfig",
    "TwoTowers",
    "TwoTowersConfig",
    "caption_tokens",
    "count_params",
    "embed_mixed",
    "fit_partition",
    "flops_per_token",
    "generate",
    "load_encoder",
    "load_student",
    "mean_flops_per_image",
    "preset",
    "sharded_loss",
    "sigmoid_loss",
    "softmax_loss",
    "tower_preset",
    "train_student",
    "transformer",
    "two_towers",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"jaxmix.models.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'jaxmix.models' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
