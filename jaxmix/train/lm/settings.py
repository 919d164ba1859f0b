"""The settings of a training run, checked before anything is touched."""

from __future__ import annotations

import dataclasses
import math

from jaxmix.core.errors import ConfigError, nearest


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """How long, how fast and how carefully to train. All steps are optimizer steps.

    Attributes:
        steps: length of the run, ≥ 1.
        seed: of parameters and mixer.
        learning_rate: peak, > 0.
        warmup_steps: linear warm-up, below `steps`; −1 takes 2 % of the run, at least 10 steps where it has them.
        schedule: "constant", "cosine" or "linear" after the warm-up.
        final_fraction: of the peak, reached at the end; in [0, 1].
        weight_decay: of matrices, ≥ 0.
        beta1, beta2, epsilon: of AdamW.
        clip_norm: global gradient norm, 0 for none.
        accumulate: micro-batches per step.
        loss_normalization: "token_mean" or "domain_mean", see `build_train_step`.
        log_every: steps between metrics records.
        eval_every: steps between evaluations; one is also made before step 0 and after the last.
        checkpoint_every: steps between checkpoints; one is also made after the last step.
        keep: newest checkpoints to keep.
        resume: "auto" continues if there is a checkpoint, "must" fails without one, "never" fails with one.
        max_consecutive_skipped: the run stops when so many updates in a row were not finite.
        gradient_rows: rows per domain that gradient signals look at where a mixer takes a sketch of them, and of
            held-out text; see `build_gradient_signals`.
        sketch_size: numbers a gradient is reduced to for a sketch.
        allow_changed_domains: continue a checkpoint although the list of domains has changed.
    """

    steps: int = 1000
    seed: int = 0
    learning_rate: float = 3e-3
    warmup_steps: int = -1
    schedule: str = "cosine"
    final_fraction: float = 0.1
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    clip_norm: float = 1.0
    accumulate: int = 1
    loss_normalization: str = "token_mean"
    log_every: int = 10
    eval_every: int = 100
    checkpoint_every: int = 200
    keep: int = 3
    resume: str = "auto"
    max_consecutive_skipped: int = 20
    gradient_rows: int = 2
    sketch_size: int = 4096
    allow_changed_domains: bool = False

    def __post_init__(self) -> None:
        for name, least in (
            ("steps", 1),
            ("warmup_steps", -1),
            ("accumulate", 1),
            ("log_every", 1),
            ("eval_every", 1),
            ("checkpoint_every", 1),
            ("keep", 1),
            ("gradient_rows", 1),
            ("sketch_size", 1),
            ("max_consecutive_skipped", 1),
        ):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}, got {getattr(self, name)}", where=f"train.{name}")
        if self.warmup_steps >= self.steps:
            raise ConfigError(
                f"warmup_steps must be below steps = {self.steps}, got {self.warmup_steps}",
                where="train.warmup_steps",
                fix="Shorten the warm-up, or set -1 for 2 % of the run.",
            )
        for name, low, high in (
            ("learning_rate", 0.0, math.inf),
            ("final_fraction", 0.0, 1.0),
            ("weight_decay", 0.0, math.inf),
            ("beta1", 0.0, 1.0),
            ("beta2", 0.0, 1.0),
            ("epsilon", 0.0, math.inf),
            ("clip_norm", 0.0, math.inf),
        ):
            value = getattr(self, name)
            if not (math.isfinite(value) and low <= value <= high):
                raise ConfigError(f"{name} must be finite and in [{low}, {high}], got {value}", where=f"train.{name}")
        if self.learning_rate == 0.0:
            raise ConfigError("learning_rate must be above 0", where="train.learning_rate")
        if self.resume not in ("auto", "must", "never"):
            raise ConfigError(
                f"unknown resume {self.resume!r}",
                where="checkpoint.resume",
                fix=nearest(self.resume, ("auto", "must", "never")),
            )

    @property
    def warmup(self) -> int:
        """Steps of warm-up with the default resolved."""
        if self.warmup_steps >= 0:
            return self.warmup_steps
        return min(max(self.steps // 50, 10), self.steps - 1)
