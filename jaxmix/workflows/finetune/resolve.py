"""From the sections of a fine-tuning configuration to what they name, mistakes reported by file and dotted path."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from jaxmix.core.errors import ConfigError, nearest
from jaxmix.workflows.config.resolve import loop_settings, model_overrides
from jaxmix.workflows.config.sections import TRACKER_NAMES
from jaxmix.workflows.config.strict import Origin, arguments
from jaxmix.workflows.finetune.config import FinetuneConfig, ReductionConfig

if TYPE_CHECKING:
    from jaxmix.curricula import Bandit
    from jaxmix.data.tasks import PromptSet
    from jaxmix.models.lm.config import TransformerConfig
    from jaxmix.train.rl.settings import FinetuneSettings


def check_finetune(config: FinetuneConfig, origin: Origin) -> None:
    """Checks everything that can be checked without a device. Raises `ConfigError`."""
    for name in config.track:
        if name not in TRACKER_NAMES:
            raise ConfigError(f"unknown tracker {name!r}", where=origin("track"), fix=nearest(name, TRACKER_NAMES))
    settings = resolve_finetune_settings(config, origin)
    prompts = open_tasks(config, "train", origin, is_sketch=True)
    open_tasks(config, "held_out", origin, is_sketch=True)
    _check_reduction(config, prompts, origin)
    bandit = resolve_bandit(config, _with_arms(config, prompts), origin)
    if settings.refill and bandit.keep is None:
        raise ConfigError(
            f"train.refill waits for the groups that the bandit keeps, and {config.bandit.name!r} keeps all",
            where=origin("train.refill"),
            fix="Use the bandit `dapo`.",
        )
    resolve_policy_config(config, prompts, origin)
    if config.start.steps and config.start.run is not None:
        raise ConfigError(
            "start has both run and steps", where=origin("start"), fix="Take a policy, or make one: give one of them."
        )
    if config.start.steps and prompts.targets is None:
        raise ConfigError(
            f"{config.tasks.name!r} has no reference answers for a supervised start",
            where=origin("start.steps"),
            fix="Set it to 0, or give tasks.completion_length room for the answers.",
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
            fix="Give one of them.",
        )
    if section.difficulty == "attempts" and config.start.steps == 0 and config.start.run is None:
        raise ConfigError(
            "a policy that starts from nothing fails on all prompts alike",
            where=origin("reduction.difficulty"),
            fix="Set start.steps or start.run, or take the level.",
        )
    if section.difficulty == "level" and len(set(prompts.levels)) == 1 and section.difficulty_weight > 0:
        raise ConfigError(
            f"all prompts of {config.tasks.name!r} have the same level",
            where=origin("reduction.difficulty"),
            fix="Set it to attempts, or difficulty_weight to 0.",
        )


def _with_arms(config: FinetuneConfig, prompts: PromptSet) -> PromptSet:
    """The prompts with arms as the bandit will see them, for checks of its arguments."""
    k = config.reduction.num_clusters
    return prompts if k is None else prompts.with_clusters(prompts.arms * 0, k)


def open_tasks(
    config: FinetuneConfig, part: str, origin: Origin | None = None, *, is_sketch: bool = False
) -> PromptSet:
    """The prompts of one part, "train" or "held_out".

    Args:
        config: the run.
        part: its `evaluation` arguments are laid over the others for "held_out".
        origin: names the file in errors.
        is_sketch: few prompts of each arm, where the tasks are made by a program: for checks.

    Raises:
        ConfigError: unknown tasks or arguments, or a file that they cannot be read from.
        EnvironmentProblem: an extra that is not installed.
    """
    from jaxmix.data import tasks
    from jaxmix.data.tokenizers import load_tokenizer

    origin, section = origin or Origin(), config.tasks
    adapters: dict[str, Callable[..., Any]] = {"gsm8k": tasks.gsm8k, "reasoning_gym": tasks.reasoning_gym}
    known = [*tasks.registry, *adapters]
    if section.name not in known:
        raise ConfigError(
            f"unknown tasks {section.name!r}", where=origin("tasks.name"), fix=nearest(section.name, known)
        )
    is_adapter = section.name in adapters
    factory = adapters[section.name] if is_adapter else tasks.registry.get(section.name)
    given = dict(section.options) | (dict(section.evaluation) if part == "held_out" else {})
    path = "tasks.evaluation" if part == "held_out" and section.evaluation else "tasks"
    for name in ("part", "package"):
        if name in given:
            raise ConfigError(f"unknown key {name!r}", where=origin(f"{path}.{name}"), fix="Leave it out.")
    if section.tokenizer is not None and not is_adapter:
        raise ConfigError(
            f"the suite {section.name!r} has tokens of its own", where=origin("tasks.tokenizer"), fix="Leave it out."
        )
    try:
        options = arguments(factory, given, origin=origin, path=path)
        needed = {"gsm8k": "path", "reasoning_gym": "datasets"}.get(section.name)
        if needed is not None and needed not in options:
            raise ConfigError(f"tasks.{needed} is missing", where=origin("tasks"), fix=f"Set tasks.{needed}.")
        if section.name == "gsm8k":
            if part == "held_out" and "path" not in section.evaluation:
                raise ConfigError(
                    "there are no held-out problems",
                    where=origin("tasks.evaluation"),
                    fix="Set tasks.evaluation.path to another JSONL file.",
                )
        else:
            options["part"] = part
            if is_sketch:
                options["per_arm"] = 2
        if is_adapter:
            options["tokenizer"] = load_tokenizer(section.tokenizer or "byte")
        return factory(**options)
    except ConfigError as error:
        raise _placed(error, origin, path, given) from None


def resolve_finetune_settings(config: FinetuneConfig, origin: Origin | None = None) -> FinetuneSettings:
    """The loop's settings out of the sections `train` and `checkpoint`."""
    from jaxmix.train.rl.settings import FinetuneSettings

    return loop_settings(FinetuneSettings, config, origin)


def resolve_bandit(config: FinetuneConfig, prompts: PromptSet, origin: Origin | None = None) -> Bandit:
    """The bandit over the arms of `prompts`.

    Where it takes one number per arm (`sizes`, `difficulty`), the file may give a list, a mapping by the arms' names,
    `{level_decay: 0.4}` for 0.4 ** level, or `level` for what rises evenly with the level (0 … 100 for AdaRFT, 0 … 1
    for DOTS and BOTS). `order: level` is easy to hard. `total_steps` is filled in.
    """
    from jaxmix import curricula

    origin = origin or Origin()
    name, section = config.bandit.name, "bandit"
    factory = curricula.registry.get(name, where=origin("bandit.name"))
    options = {k: _per_arm(name, k, v, prompts, origin(f"{section}.{k}")) for k, v in config.bandit.options.items()}
    if "total_steps" in inspect.signature(factory).parameters:
        options.setdefault("total_steps", config.train.steps)
    try:
        if "num_arms" in options:
            raise ConfigError("unknown key 'num_arms'", where=origin("bandit.num_arms"), fix="The tasks say it.")
        given = arguments(factory, options, origin=origin, path=section, skip=1)
        return factory(prompts.num_arms, **given)
    except ConfigError as error:
        raise _placed(error, origin, section, options) from None


def _per_arm(bandit: str, key: str, value: Any, prompts: PromptSet, where: str) -> Any:
    """A table of one number per arm, spelled out."""
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
        raise ConfigError(f"there is no number for arm {missing[0]!r}", where=where, fix="Give one for every arm.")
    return [value[name] for name in prompts.arm_names]


def resolve_policy_config(
    config: FinetuneConfig, prompts: PromptSet, origin: Origin | None = None
) -> TransformerConfig:
    """The model's settings; vocabulary and length are those of the prompts unless they are set."""
    from jaxmix.models.lm.presets import preset

    origin = origin or Origin()
    overrides = model_overrides(config.model, origin)
    if overrides.setdefault("vocab_size", prompts.vocab_size) < prompts.vocab_size:
        raise ConfigError(
            f"model.vocab_size {overrides['vocab_size']} is below the {prompts.vocab_size} of the prompts",
            where=origin("model.vocab_size"),
            fix="Leave it out: that of the prompts is taken.",
        )
    overrides.setdefault("seq_len", prompts.prompt_length + prompts.completion_length)
    try:
        return preset(config.model.preset, **overrides)
    except ConfigError as error:
        raise origin.explain(error) from None


def start_weights(config: FinetuneConfig, prompts: PromptSet) -> list[float]:
    """How often each arm is drawn in the supervised start, in proportion to `level_decay ** level`; never noise."""
    noise = noise_families(config)
    return [
        0.0 if family in noise else config.start.level_decay**level
        for family, level in zip(prompts.families, prompts.levels, strict=True)
    ]


def noise_families(config: FinetuneConfig) -> set[str]:
    """The families of the suite that follow no rule and cannot be learned; none where that is not known."""
    from jaxmix.data import tasks

    if config.tasks.name not in tasks.registry:
        return set()
    return {family.name for family in tasks.suite(config.tasks.name) if not family.is_learnable}


def _placed(error: ConfigError, origin: Origin, section: str, given: Mapping[str, Any]) -> ConfigError:
    """An error of a factory, which names itself and its argument, at the place in the file."""
    argument = re.match(r"\w+\((\w+)\)", error.where or "")
    if argument and argument[1] in given:
        return ConfigError(error.what, where=origin(f"{section}.{argument[1]}"), fix=error.fix)
    return origin.explain(error) if argument is None else ConfigError(error.what, where=origin(section), fix=error.fix)
