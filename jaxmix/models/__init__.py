"""Models: bundles of `init` and `apply` that the train loop drives. Flax is loaded when a model is first built."""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "Encoder": "encoders.base",
    "ImageTowerConfig": "towers.config",
    "Model": "base",
    "PRESETS": "lm.presets",
    "Rollouts": "lm.generation",
    "Sampling": "lm.sampling",
    "Student": "student.model",
    "TOWER_PRESETS": "towers.presets",
    "TextTowerConfig": "towers.config",
    "TransformerConfig": "lm.config",
    "TwoTowers": "towers.model",
    "TwoTowersConfig": "towers.config",
    "caption_tokens": "towers.captions",
    "count_params": "lm.accounting",
    "embed_mixed": "towers.mixed_resolution",
    "fit_partition": "partition",
    "flops_per_token": "lm.accounting",
    "generate": "lm.generation",
    "load_encoder": "encoders.load",
    "load_student": "student.model",
    "mean_flops_per_image": "towers.mixed_resolution",
    "preset": "lm.presets",
    "sharded_loss": "towers.contrastive_loss",
    "sigmoid_loss": "towers.contrastive_loss",
    "softmax_loss": "towers.contrastive_loss",
    "tower_preset": "towers.presets",
    "train_student": "student.training",
    "transformer": "lm.decoder",
    "two_towers": "towers.model",
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
