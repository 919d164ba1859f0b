"""Resolves a fine-tuning configuration: every section becomes the object that it names, once."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from jaxmix import curricula
from jaxmix.core.errors import ConfigError, nearest
from jaxmix.core.validate import check_mesh_shape
from jaxmix.curricula import Bandit
from jaxmix.data import tasks
from jaxmix.data.tasks import PromptSet
from jaxmix.data.tokenizers import load_tokenizer
from jaxmix.models.lm.config import TransformerConfig
from jaxmix.train.rl.settings import FinetuneSettings
from jaxmix.workflows.config.build import Origin
from jaxmix.workflows.config.mixer import place_argument
from jaxmix.workflows.config.resolve import model_of
from jaxmix.workflows.config.sections import RunFolder, Tracker, folder_of
from jaxmix.workflows.finetune.config import (
    BanditConfig,
    FinetuneConfig,
    ReductionConfig,
    StartConfig,
    TasksConfig,
)


@dataclasses.dataclass(frozen=True)
class FinetuneRun:
    """A fine-tuning run, resolved.

    Attributes:
        folder: where it is kept, with its configuration as written there.
        settings: of the loop.
        tasks, start, reduction: the sections of the file that say where prompts, policy and arms come from.
        bandit_name: of the bandit that `make_bandit` makes.
        mesh: devices along data, fsdp and tensor.
        trackers: by name.
        prompts, held_out: for training and for evaluation.
        model: of the policy.
        start_weights: how often each arm is drawn in the supervised start; never noise.
        noise: families that follow no rule and cannot be learned.
        make_bandit: prompts with the final arms → the bandit over them.
    """

    folder: RunFolder
    settings: FinetuneSettings
    tasks: TasksConfig
    start: StartConfig
    reduction: ReductionConfig
    bandit_name: str
    mesh: Mapping[str, int]
    trackers: tuple[Tracker, ...]
    prompts: PromptSet
    held_out: PromptSet
    model: TransformerConfig
    start_weights: tuple[float, ...]
    noise: frozenset[str]
    make_bandit: Callable[[PromptSet], Bandit]


def resolve_finetune(config: FinetuneConfig, *, origin: Origin | None = None, is_sketch: bool = False) -> FinetuneRun:
    """Resolves a configuration. Opens the files that `tasks` names, and touches no device.

    Args:
        config: the tree that `load_finetune` built.
        origin: names the file in errors.
        is_sketch: few prompts of each arm, where the tasks are made by a program: for checks.

    Raises:
        ConfigError: sections that do not fit each other, by file and dotted path.
    """
    origin = origin or Origin()
    prompts = open_tasks(config.tasks, "train", origin, is_sketch=is_sketch)
    held_out = open_tasks(config.tasks, "held_out", origin, is_sketch=is_sketch)
    noise = noise_families(config.tasks.name)
    by_level = [config.start.level_decay**level for level in prompts.levels]
    seq_len = prompts.prompt_length + prompts.completion_length
    return FinetuneRun(
        folder=folder_of(config),
        settings=config.train,
        tasks=config.tasks,
        start=config.start,
        reduction=config.reduction,
        bandit_name=config.bandit.name,
        mesh=config.mesh,
        trackers=config.track,
        prompts=prompts,
        held_out=held_out,
        model=model_of(config.model, vocab_size=prompts.vocab_size, seq_len=seq_len, origin=origin),
        start_weights=tuple(
            0.0 if family in noise else weight for family, weight in zip(prompts.families, by_level, strict=True)
        ),
        noise=noise,
        make_bandit=lambda arms: make_bandit(config.bandit, arms, steps=config.train.steps, origin=origin),
    )


def check_finetune(config: FinetuneConfig, origin: Origin) -> None:
    """Checks everything that can be checked without a device. Raises `ConfigError`."""
    check_mesh_shape(config.mesh, origin("train.mesh"))
    run = resolve_finetune(config, origin=origin, is_sketch=True)
    k, prompts, start = config.reduction.num_clusters, run.prompts, config.start
    _check_reduction(config, prompts, origin)
    bandit = run.make_bandit(prompts if k is None else prompts.with_clusters(prompts.arms * 0, k))
    if config.train.refill and bandit.keep is None:
        raise ConfigError(
            f"train.refill waits for the groups that the bandit keeps, and {config.bandit.name!r} keeps all",
            where=origin("train.refill"),
            fix="Use the bandit `dapo`.",
        )
    if start.steps and start.run is not None:
        raise ConfigError(
            "start has both run and steps", where=origin("start"), fix="Set one: take a policy, or make one."
        )
    if start.steps and prompts.targets is None:
        raise ConfigError(
            f"{config.tasks.name!r} has no reference answers for a supervised start",
            where=origin("start.steps"),
            fix="Set it to 0, or raise tasks.completion_length to the length of the answers.",
        )


def _check_reduction(config: FinetuneConfig, prompts: PromptSet, origin: Origin) -> None:
    section = config.reduction
    if section.num_clusters is None:
        if section != ReductionConfig():
            raise ConfigError(
                "reduction has settings and no num_clusters", where=origin("reduction"), fix="Set num_clusters."
            )
        return
    if config.tasks.kept_per_arm is not None:
        raise ConfigError(
            "tasks.kept_per_arm and reduction.num_clusters both choose prompts",
            where=origin("reduction.num_clusters"),
            fix="Set one of them.",
        )
    if section.difficulty == "attempts" and config.start.steps == 0 and config.start.run is None:
        raise ConfigError(
            "a policy that starts from fresh parameters fails on all prompts alike",
            where=origin("reduction.difficulty"),
            fix="Set start.steps or start.run, or use difficulty: level.",
        )
    if section.difficulty == "level" and len(set(prompts.levels)) == 1 and section.difficulty_weight > 0:
        raise ConfigError(
            f"all prompts of {config.tasks.name!r} have the same level",
            where=origin("reduction.difficulty"),
            fix="Set it to attempts, or difficulty_weight to 0.",
        )


def open_tasks(section: TasksConfig, part: str, origin: Origin, *, is_sketch: bool) -> PromptSet:
    """The prompts of one part, "train" or "held_out".

    Args:
        section: `tasks` of the configuration.
        part: its `evaluation` arguments are laid over the others for "held_out".
        origin: names the file in errors.
        is_sketch: few prompts of each arm, where the tasks are made by a program: for checks.

    Raises:
        ConfigError: arguments out of range, or a file that they cannot be read from.
        EnvironmentProblem: an extra that is not installed.
    """
    is_test = part == "held_out"
    given = dict(section.options) | (dict(section.evaluation) if is_test else {})
    options = dict(given)
    if section.name != "gsm8k":
        options["part"] = part
        if is_sketch:
            asked = given.get("per_arm")
            options["per_arm"] = 2 if asked is None else min(asked, 2)
    try:
        if not section.is_suite:
            options["tokenizer"] = load_tokenizer(section.tokenizer or "byte")
        return section.factory(**options)
    except ConfigError as error:
        path = "tasks.evaluation" if is_test and section.evaluation else "tasks"
        raise place_argument(error, origin, path, given) from None


def make_bandit(section: BanditConfig, prompts: PromptSet, *, steps: int, origin: Origin) -> Bandit:
    """The bandit over the arms of `prompts`.

    Where it takes one number per arm (`sizes`, `difficulty`), the file may give a list, a mapping by the arms' names,
    `{level_decay: 0.4}` for 0.4 ** level, or `level` for what rises evenly with the level (0 … 100 for AdaRFT, 0 … 1
    for DOTS and BOTS). `order: level` is easy to hard. `total_steps` is filled in.
    """
    name = section.name
    factory = curricula.registry.get(name)
    options = {k: _per_arm(name, k, v, prompts, origin(f"bandit.{k}")) for k, v in section.options.items()}
    if "total_steps" in inspect.signature(factory).parameters:
        options.setdefault("total_steps", steps)
    try:
        return factory(prompts.num_arms, **options)
    except ConfigError as error:
        raise place_argument(error, origin, "bandit", options) from None


def _per_arm(bandit: str, key: str, value: Any, prompts: PromptSet, where: str) -> Any:
    """An argument that holds one number per arm, as a list in the order of the arms."""
    levels = prompts.levels
    if key == "order" and value == "level":
        return sorted(range(prompts.num_arms), key=lambda arm: levels[arm])
    if key == "difficulty" and value == "level":
        most = 100.0 if bandit == "adarft" else 1.0
        return [most * level / max(1, *levels) for level in levels]
    if not isinstance(value, Mapping):
        return value
    if set(value) == {"level_decay"}:
        return [float(value["level_decay"]) ** level for level in levels]
    for name in value:
        if name not in prompts.arm_names:
            raise ConfigError(f"unknown arm {name!r}", where=where, fix=nearest(str(name), prompts.arm_names))
    missing = [name for name in prompts.arm_names if name not in value]
    if missing:
        raise ConfigError(f"there is no value for arm {missing[0]!r}", where=where, fix="Give one for every arm.")
    return [value[name] for name in prompts.arm_names]


def noise_families(tasks_name: str) -> frozenset[str]:
    """The families of the suite that follow no rule and cannot be learned; none where that is not known."""
    if tasks_name not in tasks.registry:
        return frozenset()
    return frozenset(family.name for family in tasks.suite(tasks_name) if not family.is_learnable)
