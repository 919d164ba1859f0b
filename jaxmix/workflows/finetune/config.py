"""The sections of a fine-tuning run's configuration file."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

from jaxmix import curricula
from jaxmix.core.errors import ConfigError, nearest
from jaxmix.core.settings import setting
from jaxmix.data import tasks
from jaxmix.data.tasks import PromptSet
from jaxmix.train.rl.settings import FinetuneSettings
from jaxmix.workflows.config.build import Origin, arguments
from jaxmix.workflows.config.sections import ModelConfig, Tracker

_ADAPTERS: dict[str, Callable[..., PromptSet]] = {"gsm8k": tasks.gsm8k, "reasoning_gym": tasks.reasoning_gym}
_NEEDED = {"gsm8k": "path", "reasoning_gym": "datasets"}


@dataclasses.dataclass(frozen=True)
class TasksConfig:
    """The prompts and their verifier. Further keys are the arguments of what `name` names."""

    name: str = setting(help="Set tasks.name: a suite (digits, symbols), gsm8k or reasoning_gym.")
    tokenizer: str | None = setting(
        None, is_path=True, help="of gsm8k and reasoning_gym: byte, or the path of a tokenizer.json"
    )
    kept_per_arm: int | None = setting(None, at_least=1, help="train on so many prompts of each arm; empty: on all")
    evaluation: dict[str, Any] = setting(
        factory=dict, is_path=True, help="arguments that differ for the held-out prompts"
    )
    options: dict[str, Any] = setting(factory=dict, rest=True, is_path=True, help="arguments of the suite or adapter")

    @property
    def is_suite(self) -> bool:
        """Whether the prompts are those of a suite, in which characters are words."""
        return self.name in tasks.registry

    @property
    def factory(self) -> Callable[..., PromptSet]:
        """What makes the prompts."""
        return tasks.registry.get(self.name) if self.is_suite else _ADAPTERS[self.name]

    def checked(self, origin: Origin, path: str) -> TasksConfig:
        """The section, its arguments checked against the signature of what it names."""
        known = [*tasks.registry, *_ADAPTERS]
        if self.name not in known:
            raise ConfigError(
                f"unknown tasks {self.name!r}", where=origin(f"{path}.name"), fix=nearest(self.name, known)
            )
        if self.tokenizer is not None and self.is_suite:
            raise ConfigError(
                f"the suite {self.name!r} has its own tokens", where=origin(f"{path}.tokenizer"), fix="Leave it out."
            )
        options, evaluation = (
            arguments(self.factory, given, origin=origin, path=place, taken=("part", "package"))
            for place, given in ((path, self.options), (f"{path}.evaluation", self.evaluation))
        )
        needed = _NEEDED.get(self.name)
        if needed is not None and needed not in options:
            raise ConfigError(f"{path}.{needed} is missing", where=origin(path), fix=f"Set {path}.{needed}.")
        if self.name == "gsm8k" and "path" not in evaluation:
            raise ConfigError(
                "there are no held-out problems",
                where=origin(f"{path}.evaluation"),
                fix=f"Set {path}.evaluation.path to another JSONL file.",
            )
        return dataclasses.replace(self, options=options, evaluation=evaluation)


@dataclasses.dataclass(frozen=True)
class StartConfig:
    """Where the policy comes from: a supervised start on prompts and answers, another run, or fresh parameters."""

    run: str | None = setting(None, is_path=True, help="take the newest policy of this run folder")
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
    encoder: str = setting("builtin", is_path=True, help="builtin, or the folder of an encoder's checkpoint")


@dataclasses.dataclass(frozen=True)
class BanditConfig:
    """What decides which arm the next prompts come from. Further keys are the arguments of the bandit."""

    name: str = setting("space", help="space, uniform, dump, sec, … (a wrong name lists all)")
    options: dict[str, Any] = setting(factory=dict, rest=True, help="arguments of the bandit")

    def checked(self, origin: Origin, path: str) -> BanditConfig:
        """The section, its arguments converted; those by the names or levels of arms stay until the arms are known."""
        factory = curricula.registry.get(self.name, where=origin(f"{path}.name"))
        by_level = {k: v for k, v in self.options.items() if v == "level" and k in ("order", "difficulty")}
        given = {k: v for k, v in self.options.items() if k not in by_level}
        options = arguments(factory, given, origin=origin, path=path, skip=1, takes_names=True) | by_level
        return dataclasses.replace(self, options={k: options[k] for k in self.options})


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
    out: str | None = setting(None, is_path=True, help="run folder; empty: runs/<name of the configuration file>")
