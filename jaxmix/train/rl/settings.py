"""The settings of a reinforcement fine-tuning run, checked before any file or device is touched."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from jaxmix.core.errors import ConfigError
from jaxmix.core.settings import setting
from jaxmix.curricula.uniform import MAX_REFILLS, OVERSAMPLING
from jaxmix.train.run.settings import LoopSettings

_OF_THE_LOOP = (
    "steps",
    "seed",
    "max_wait",
    "eval_every",
    "eval_batch",
    "log_every",
    "checkpoint_every",
    "keep",
    "resume",
    "max_consecutive_skipped",
)


@dataclasses.dataclass(frozen=True)
class FinetuneSettings(LoopSettings):
    """Settings of rollouts, policy updates and evaluations. A step is one generated batch.

    Under Adam, an update after every batch hides what a curriculum saves: a step is as long with two live groups as
    with twelve. Hence `accumulate_live_groups`, `refill` (DAPO's dynamic sampling, for bandits that say which groups
    they keep: batches of 3 · `batch_size` prompts until `groups_per_update` of them are kept, at most 10, the surplus
    dropped) and `scale_by_live_share`. The policy gradient ignores `top_p` and `top_k`: it is exact for 1 and 0.
    """

    batch_size: int = setting(16, at_least=1, help="prompts per generated batch")
    rollouts: int = setting(8, at_least=2, help="completions per prompt")
    temperature: float = setting(1.0, above=0, below=math.inf, help="of the rollouts and of the trained policy")
    top_p: float = setting(1.0, above=0, at_most=1, help="rollouts keep the most likely tokens only; 1: all")
    top_k: int = setting(0, at_least=0, help="rollouts keep this many of the most likely tokens; 0: all")
    accumulate_live_groups: bool = setting(
        True, help="update once groups_per_update groups with a gradient are collected, not after every batch"
    )
    groups_per_update: int | None = setting(
        None, at_least=1, help="live groups that an update waits for; empty: batch_size"
    )
    max_wait: int = setting(64, at_least=1, help="batches after which an update uses the groups collected so far")
    refill: bool = setting(False, help="generate until enough groups are kept, and drop the surplus")
    scale_by_live_share: bool = setting(False, help="multiply each update by the share of its groups that are live")
    updates_per_batch: int = setting(1, at_least=1, help="optimizer steps on the collected groups, all in each")
    micro_batches: int = setting(1, at_least=1, help="parts that a step's gradient is summed over; divides the groups")
    clip_low: float = setting(0.2, at_least=0, at_most=1, help="see `grpo_loss`")
    clip_high: float = setting(0.28, at_least=0, below=math.inf, help="see `grpo_loss`")
    kl_weight: float = setting(0.0, at_least=0, below=math.inf, help="see `grpo_loss`")
    aggregate: Literal["token_mean", "sequence_mean", "constant"] = setting("token_mean", help="see `grpo_loss`")
    standardize: bool = setting(True, help="see `grpo_loss`")
    learning_rate: float = setting(3e-4, above=0, below=math.inf, help="constant after the warm-up")
    warmup_updates: int = setting(0, at_least=0, help="optimizer steps of linear warm-up")
    beta2: float = setting(0.999, at_least=0, at_most=1, help="of AdamW")
    weight_decay: float = setting(0.0, at_least=0, below=math.inf, help="of AdamW, of matrices")
    eval_every: int = setting(25, at_least=1, help="steps between evaluations; also before step 0 and after the last")
    eval_samples: int = setting(2, at_least=1, help="completions per held-out prompt")
    eval_temperature: float = setting(1.0, at_least=0, below=math.inf, help="0: the most likely token")
    eval_batch: int = setting(512, at_least=1, help="held-out prompts at a time")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_updates()

    def _check_updates(self) -> None:
        if self.refill and self.accumulate_live_groups:
            raise ConfigError(
                "refill and accumulate_live_groups are two ways to wait for groups",
                where="train.refill",
                fix="Set accumulate_live_groups to false.",
            )
        if not self.waits and self.groups_per_update not in (None, self.batch_size):
            raise ConfigError(
                f"groups_per_update is {self.groups_per_update}, an update takes the {self.batch_size} of its batch",
                where="train.groups_per_update",
                fix="Leave it out, or set accumulate_live_groups.",
            )
        if self.groups % self.micro_batches:
            raise ConfigError(
                f"{self.micro_batches} micro-batches do not divide the {self.groups} groups of an update",
                where="train.micro_batches",
                fix="Choose a divisor.",
            )

    def differs_in(self, other: FinetuneSettings) -> list[str]:
        """Settings that are part of the compiled programs and are not the same in `other`."""
        names = [field.name for field in dataclasses.fields(self) if field.name not in _OF_THE_LOOP]
        return [name for name in names if getattr(self, name) != getattr(other, name)]

    @property
    def waits(self) -> bool:
        """Whether updates wait for groups, or follow every batch."""
        return self.accumulate_live_groups or self.refill

    @property
    def groups(self) -> int:
        """Groups of an update, the default resolved."""
        return self.batch_size if self.groups_per_update is None else self.groups_per_update

    @property
    def prompts(self) -> int:
        """Prompts of a generated batch; refilling draws more."""
        return OVERSAMPLING * self.batch_size if self.refill else self.batch_size

    @property
    def patience(self) -> int:
        """Batches after which an update uses the groups collected so far."""
        return MAX_REFILLS if self.refill else self.max_wait

    @property
    def capacity(self) -> int:
        """Groups that the buffer holds: a surplus waits for the next update, unless refilling drops it."""
        if not self.waits:
            return self.batch_size
        return self.groups if self.refill else self.groups - 1 + self.batch_size
