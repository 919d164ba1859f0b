"""The settings of a training run of a language model, checked before any file or device is touched."""

from __future__ import annotations

import dataclasses
from typing import Literal

from jaxmix.core.errors import ConfigError
from jaxmix.core.settings import setting
from jaxmix.train.run.settings import LoopSettings


@dataclasses.dataclass(frozen=True)
class TrainSettings(LoopSettings):
    """Length, optimizer and checks of a training run. All steps are optimizer steps."""

    warmup_steps: int = setting(-1, at_least=-1, help="linear warm-up; -1: 2 % of the run, at least 10 steps")
    schedule: Literal["constant", "cosine", "linear"] = setting("cosine", help="of the learning rate after the warm-up")
    final_fraction: float = setting(0.1, at_least=0, at_most=1, help="of the peak, reached at the end")
    accumulate: int = setting(1, at_least=1, help="micro-batches per step")
    loss_normalization: Literal["token_mean", "domain_mean"] = setting(
        "token_mean", help="token_mean or domain_mean, see `build_train_step`"
    )
    gradient_rows: int = setting(
        2, at_least=1, help="rows per domain, drawn and held out, that sketched gradient signals look at"
    )
    sketch_size: int = setting(4096, at_least=1, help="numbers that a gradient is reduced to for a sketch")
    allow_changed_domains: bool = setting(False, help="continue a checkpoint although the list of domains has changed")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.warmup_steps >= self.steps:
            raise ConfigError(
                f"warmup_steps must be below steps = {self.steps}, got {self.warmup_steps}",
                where="train.warmup_steps",
                fix="Shorten the warm-up, or set -1 for 2 % of the run.",
            )

    @property
    def warmup(self) -> int:
        """Steps of warm-up, the default resolved."""
        if self.warmup_steps >= 0:
            return self.warmup_steps
        return min(max(self.steps // 50, 10), self.steps - 1)
