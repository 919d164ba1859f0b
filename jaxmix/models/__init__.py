"""Models: bundles of `init` and `apply` that the train loop drives. Flax is loaded when a model is first built."""

from __future__ import annotations

from jaxmix.core.lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
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
        "load_checkpoint": "checkpoints.load",
        "load_encoder": "encoders.load",
        "load_student": "student.model",
        "mean_flops_per_image": "towers.mixed_resolution",
        "preset": "lm.presets",
        "save_checkpoint": "checkpoints.load",
        "sharded_loss": "towers.contrastive_loss",
        "sigmoid_loss": "towers.contrastive_loss",
        "softmax_loss": "towers.contrastive_loss",
        "tower_preset": "towers.presets",
        "train_student": "student.training",
        "transformer": "lm.decoder",
        "two_towers": "towers.model",
    },
)
