"""The sections of a fine-tuning run's configuration file."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from jaxmix.core.settings import setting
from jaxmix.train.rl.settings import FinetuneSettings
from jaxmix.workflows.config.sections import ModelConfig, Tracker


@dataclasses.dataclass(frozen=True)
class TasksConfig:
    """The prompts and their verifier. Further keys are the arguments of what `name` names."""

    name: str = setting(help="Set tasks.name: a suite (digits, symbols), gsm8k or reasoning_gym.")
    tokenizer: str | None = setting(None, help="of gsm8k and reasoning_gym: byte, or the path of a tokenizer.json")
    kept_per_arm: int | None = setting(None, at_least=1, help="train on so many prompts of each arm; empty: on all")
    evaluation: dict[str, Any] = setting(factory=dict, help="arguments that differ for the held-out prompts")
    options: dict[str, Any] = setting(factory=dict, rest=True, help="arguments of the suite or adapter")


@dataclasses.dataclass(frozen=True)
class StartConfig:
    """Where the policy comes from: a supervised start on prompts and answers, another run, or fresh parameters."""

    run: str | None = setting(None, help="take the newest policy of this run folder")
    steps: int = setting(0, at_least=0, help="optimizer steps of a supervised start; 0: none")
    batch_size: int = setting(128, at_least=1, help="prompts per step of it")
    learning_rate: float = setting(2e-3, above=0, help="of Adam")
    level_decay: float = setting(1.0, above=0, at_most=1, help="an arm of level i is drawn level_decay ** i as often")
    seed: int = setting(0, at_least=0, help="of parameters and batches, apart from train.seed: runs can share a start")


@dataclasses.dataclass(frozen=True)
class ReductionConfig:
    """New arms: clusters of the training prompts by text and difficulty. A few prompts of each are kept."""

    num_clusters: int | None = setting(None, at_least=1, help="arms; empty: those of the tasks, and all their prompts")
    per_cluster: int = setting(10, at_least=1, help="prompts kept of each, the ones farthest from one another")
    difficulty: Literal["level", "attempts"] = setting(
        "level", help="level of a prompt, or how often the policy fails on it at its start"
    )
    attempts: int = setting(8, at_least=1, help="completions of each prompt, for `difficulty: attempts`")
    difficulty_weight: float = setting(1.0, at_least=0, help="of difficulty against the text in the clusters")
    encoder: str = setting("builtin", help="builtin, or the folder of an encoder's checkpoint")


@dataclasses.dataclass(frozen=True)
class BanditConfig:
    """What decides which arm the next prompts come from. Further keys are the arguments of the bandit."""

    name: str = setting("space", help="space, uniform, dump, sec, … (a wrong name lists all)")
    options: dict[str, Any] = setting(factory=dict, rest=True, help="arguments of the bandit")


@dataclasses.dataclass(frozen=True)
class FinetuneConfig:
    """A whole fine-tuning run."""

    tasks: TasksConfig = setting(help="Set tasks: what the prompts are.")
    train: FinetuneSettings = setting(help="Set train: at least train.steps.")
    model: ModelConfig = setting(factory=ModelConfig)
    start: StartConfig = setting(factory=StartConfig)
    reduction: ReductionConfig = setting(factory=ReductionConfig)
    bandit: BanditConfig = setting(factory=BanditConfig)
    track: tuple[Tracker, ...] = setting(("jsonl",), help="jsonl (always on), tensorboard, wandb")
    mesh: dict[str, int] = setting(
        factory=lambda: {"data": -1}, place="train.mesh", help="devices along data, fsdp, tensor; -1: the rest"
    )
    out: str | None = setting(None, help="run folder; empty: runs/<name of the configuration file>")
