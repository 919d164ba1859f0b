"""The settings that every training loop has."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from jaxmix.core.settings import check_fields, setting

Resume = Literal["auto", "must", "never"]


@dataclasses.dataclass(frozen=True)
class LoopSettings:
    """Length, optimizer, cadence and checkpoints of a loop."""

    steps: int = setting(1000, at_least=1, required=True, help="Set train.steps: the length of the run.")
    seed: int = setting(0, help="of parameters and everything that is drawn")
    learning_rate: float = setting(3e-3, above=0, below=math.inf, help="peak of the learning rate")
    beta1: float = setting(0.9, at_least=0, at_most=1, help="of AdamW")
    beta2: float = setting(0.95, at_least=0, at_most=1, help="of AdamW")
    epsilon: float = setting(1e-8, at_least=0, below=math.inf, help="of AdamW")
    weight_decay: float = setting(0.1, at_least=0, below=math.inf, help="of AdamW, of matrices")
    clip_norm: float = setting(1.0, at_least=0, below=math.inf, help="bound on the global gradient norm; 0: none")
    log_every: int = setting(10, at_least=1, help="steps between metrics records")
    eval_every: int = setting(100, at_least=1, help="steps between evaluations; also before step 0 and after the last")
    checkpoint_every: int = setting(200, at_least=1, place="checkpoint.every", help="steps between checkpoints")
    keep: int = setting(3, at_least=1, place="checkpoint.keep", help="newest checkpoints to keep")
    resume: Resume = setting(
        "auto", place="checkpoint.resume", help="auto, must (fails without a checkpoint) or never (fails with one)"
    )
    allow_changed_data: bool = setting(
        False, place="checkpoint.allow_changed_data", help="continue although the sources hold other documents now"
    )
    max_consecutive_skipped: int = setting(
        20, at_least=1, help="updates in a row that may be not finite before the run stops"
    )

    def __post_init__(self) -> None:
        check_fields(self, "train")
