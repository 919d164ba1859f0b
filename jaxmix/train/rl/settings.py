"""The settings of a reinforcement fine-tuning run, checked before anything is touched."""

from __future__ import annotations

import dataclasses
import math

from jaxmix.core.errors import ConfigError, nearest
from jaxmix.curricula.uniform import MAX_REFILLS, OVERSAMPLING
from jaxmix.train.grpo import AGGREGATES

_RESUME = ("auto", "must", "never")
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
class FinetuneSettings:
    """How prompts are rolled out, when the policy is updated, and how carefully. A step is one generated batch.

    Attributes:
        steps: generated batches, ≥ 1.
        seed: of parameters (where none are given), arms, prompts and rollouts.
        batch_size: prompts per generated batch, B.
        rollouts: completions per prompt, G ≥ 2.
        temperature: > 0, of the rollouts and of the policy that is trained.
        top_p, top_k: rollouts keep the most likely tokens only, see `Sampling`. The policy gradient does not know of
            it: 1 and 0 (all tokens) are the honest choice.
        accumulate_live_groups: update once `groups_per_update` groups with a gradient have been collected, each
            generated prompt counting. Otherwise once per generated batch, live groups or not; under Adam that hides
            what a curriculum saves, because a step is as long with two live groups as with twelve.
        groups_per_update: live groups that an update waits for; None: `batch_size`.
        max_wait: update with what there is after so many batches without one; ≥ 1.
        refill: DAPO's dynamic sampling, for bandits that say which groups they keep: generate batches of 3 ·
            `batch_size` prompts until `groups_per_update` of them are kept, at most 10, and drop the surplus.
        scale_by_live_share: the other remedy: multiply each update by the share of its groups that are live.
        updates_per_batch: optimizer steps on the collected groups, all of them in each, clipped against the
            log-probabilities that they were sampled with; ≥ 1.
        micro_batches: pieces that the gradient of a step is summed over, to bound memory; divides the groups.
        clip_low, clip_high, kl_weight, aggregate, standardize: see `grpo_loss`.
        learning_rate: > 0; constant after `warmup_updates`.
        warmup_updates: optimizer steps of linear warm-up.
        beta1, beta2, epsilon, weight_decay: of AdamW.
        clip_norm: global gradient norm, 0 for none.
        eval_every: steps between evaluations; one is also made before step 0 and after the last.
        eval_samples: completions per held-out prompt.
        eval_temperature: 0 takes the most likely token.
        eval_batch: held-out prompts at a time.
        log_every: steps between metrics records.
        checkpoint_every: steps between checkpoints; one is also made after the last step.
        keep: newest checkpoints to keep.
        resume: "auto" continues if there is a checkpoint, "must" fails without one, "never" fails with one.
        max_consecutive_skipped: the run stops when so many updates in a row were not finite.
    """

    steps: int = 1000
    seed: int = 0
    batch_size: int = 16
    rollouts: int = 8
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    accumulate_live_groups: bool = True
    groups_per_update: int | None = None
    max_wait: int = 64
    refill: bool = False
    scale_by_live_share: bool = False
    updates_per_batch: int = 1
    micro_batches: int = 1
    clip_low: float = 0.2
    clip_high: float = 0.28
    kl_weight: float = 0.0
    aggregate: str = "token_mean"
    standardize: bool = True
    learning_rate: float = 3e-4
    warmup_updates: int = 0
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    eval_every: int = 25
    eval_samples: int = 2
    eval_temperature: float = 1.0
    eval_batch: int = 512
    log_every: int = 10
    checkpoint_every: int = 200
    keep: int = 3
    resume: str = "auto"
    max_consecutive_skipped: int = 20

    def __post_init__(self) -> None:
        for name, least in (
            ("steps", 1),
            ("batch_size", 1),
            ("rollouts", 2),
            ("top_k", 0),
            ("max_wait", 1),
            ("updates_per_batch", 1),
            ("micro_batches", 1),
            ("warmup_updates", 0),
            ("eval_every", 1),
            ("eval_samples", 1),
            ("eval_batch", 1),
            ("log_every", 1),
            ("checkpoint_every", 1),
            ("keep", 1),
            ("max_consecutive_skipped", 1),
        ):
            _check_count(name, getattr(self, name), least)
        if self.groups_per_update is not None:
            _check_count("groups_per_update", self.groups_per_update, 1)
        for name, low, high, is_open in (
            ("temperature", 0.0, math.inf, True),
            ("top_p", 0.0, 1.0, True),
            ("clip_low", 0.0, 1.0, False),
            ("clip_high", 0.0, math.inf, False),
            ("kl_weight", 0.0, math.inf, False),
            ("learning_rate", 0.0, math.inf, True),
            ("beta1", 0.0, 1.0, False),
            ("beta2", 0.0, 1.0, False),
            ("epsilon", 0.0, math.inf, False),
            ("weight_decay", 0.0, math.inf, False),
            ("clip_norm", 0.0, math.inf, False),
            ("eval_temperature", 0.0, math.inf, False),
        ):
            value = getattr(self, name)
            if not math.isfinite(value) or not low <= value <= high or (is_open and value == low):
                span = f"{'(' if is_open else '['}{low}, {high}]"
                raise ConfigError(f"{name} must be finite and in {span}, got {value}", where=f"train.{name}")
        for name, known in (("aggregate", AGGREGATES), ("resume", _RESUME)):
            value = getattr(self, name)
            if value not in known:
                raise ConfigError(f"unknown {name} {value!r}", where=f"train.{name}", fix=nearest(value, known))
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
        """Groups of an update, with the default worked out."""
        return self.batch_size if self.groups_per_update is None else self.groups_per_update

    @property
    def prompts(self) -> int:
        """Prompts of a generated batch; refilling draws more of them."""
        return OVERSAMPLING * self.batch_size if self.refill else self.batch_size

    @property
    def patience(self) -> int:
        """Batches after which an update takes what there is."""
        return MAX_REFILLS if self.refill else self.max_wait

    @property
    def capacity(self) -> int:
        """Groups that the buffer holds: a surplus waits for the next update, unless refilling drops it."""
        if not self.waits:
            return self.batch_size
        return self.groups if self.refill else self.groups - 1 + self.batch_size


def _check_count(name: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name} must be a whole number ≥ {least}, got {value!r}", where=f"train.{name}")
