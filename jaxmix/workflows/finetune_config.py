"""The form of a fine-tuning run's configuration, and the objects that its sections name."""

# ruff: noqa: RUF009 (`setting` returns dataclasses.field, which the rule allows)
from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxmix.core.errors import ConfigError, nearest
from jaxmix.workflows.config import TRACKER_NAMES, CheckpointConfig, ModelConfig, read_config_file
from jaxmix.workflows.strict import Origin, apply_overrides, arguments, build, convert, describe, setting, to_plain

if TYPE_CHECKING:
    from jaxmix.curricula import Bandit
    from jaxmix.data.tasks import PromptSet
    from jaxmix.models.config import TransformerConfig
    from jaxmix.train.finetune_settings import FinetuneSettings

__all__ = [
    "BanditConfig",
    "FinetuneConfig",
    "StartConfig",
    "TasksConfig",
    "finetune_hash",
    "is_finetune",
    "load_finetune",
    "noise_families",
    "open_tasks",
    "resolve_bandit",
    "resolve_finetune_settings",
    "resolve_policy_config",
    "start_weights",
    "with_settings",
]

_OWN_SECTION = {"checkpoint_every": "checkpoint.every", "keep": "checkpoint.keep", "resume": "checkpoint.resume"}


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
class BanditConfig:
    """What decides which arm the next prompts come from. Further keys are the arguments of the bandit."""

    name: str = setting("space", help="space, uniform, dump, sec, … (a wrong name lists all)")
    options: dict[str, Any] = setting(factory=dict, rest=True, help="arguments of the bandit")


@dataclasses.dataclass(frozen=True)
class FinetuneTrainConfig:
    """The loop. Further keys are the fields of `FinetuneSettings`."""

    steps: int = setting(help="Set train.steps: how many batches of prompts are generated.", at_least=1)
    mesh: dict[str, int] = setting(factory=lambda: {"data": -1}, help="devices along data, fsdp, tensor; -1: the rest")
    settings: dict[str, Any] = setting(factory=dict, rest=True, help="fields of FinetuneSettings")


@dataclasses.dataclass(frozen=True)
class FinetuneConfig:
    """A whole fine-tuning run."""

    tasks: TasksConfig = setting(help="Set tasks: what the prompts are.")
    train: FinetuneTrainConfig = setting(help="Set train: at least train.steps.")
    model: ModelConfig = setting(factory=ModelConfig)
    start: StartConfig = setting(factory=StartConfig)
    bandit: BanditConfig = setting(factory=BanditConfig)
    track: tuple[str, ...] = setting(("jsonl",), help="jsonl (always on), tensorboard, wandb")
    checkpoint: CheckpointConfig = setting(factory=CheckpointConfig)
    out: str | None = setting(None, help="run folder; empty: runs/<name of the configuration file>")


def is_finetune(mapping: Any) -> bool:
    """Whether a configuration is one of fine-tuning: it has tasks, and no sources."""
    return isinstance(mapping, Mapping) and "tasks" in mapping


def load_finetune(path: str, overrides: Sequence[tuple[str, str]] = (), *, out: str | None = None) -> FinetuneConfig:
    """Loads and checks a configuration file; touches no device, and no other file but those that `tasks` names.

    Args:
        path: YAML file in the form of `FinetuneConfig`.
        overrides: dotted names and YAML values from the command line, later ones win.
        out: the run folder, before `out` in the file.

    Raises:
        ConfigError: file, dotted path, value and what to do.
    """
    mapping = read_config_file(path)
    if mapping is not None and not isinstance(mapping, Mapping):
        raise ConfigError(f"the configuration must be a mapping: it is {describe(mapping)}", where=path)
    return finetune_of(mapping or {}, overrides, file=path, out=out)


def finetune_of(
    mapping: Mapping[Any, Any],
    overrides: Sequence[tuple[str, str]] = (),
    *,
    file: str = "configuration",
    out: str | None = None,
) -> FinetuneConfig:
    """As `load_finetune`, from a mapping. `file` is named in errors, and its stem names the default folder."""
    origin = Origin(file, frozenset(name for name, _ in overrides))
    config: FinetuneConfig = build(FinetuneConfig, apply_overrides(mapping, overrides), origin=origin)
    for name in config.track:
        if name not in TRACKER_NAMES:
            raise ConfigError(f"unknown tracker {name!r}", where=origin("track"), fix=nearest(name, TRACKER_NAMES))
    settings = resolve_finetune_settings(config, origin)
    prompts = open_tasks(config, "train", origin, is_sketch=True)
    open_tasks(config, "held_out", origin, is_sketch=True)
    bandit = resolve_bandit(config, prompts, origin)
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
    chosen = out or config.out or f"runs/{Path(file).stem}"
    return dataclasses.replace(config, out=chosen)


# ── sections → objects ───────────────────────────────────────────────────────────────────────────


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
    from jaxmix.train.finetune_settings import FinetuneSettings

    origin = origin or Origin()
    for key, home in _OWN_SECTION.items():
        if key in config.train.settings:
            raise ConfigError(
                f"train.{key} has a place of its own", where=origin(f"train.{key}"), fix=f"Write it as {home}."
            )
    known = {f.name for f in dataclasses.fields(FinetuneSettings)} - set(_OWN_SECTION) | {"mesh"}
    for key in config.train.settings:
        if key not in known:
            raise ConfigError(f"unknown key {key!r}", where=origin(f"train.{key}"), fix=nearest(key, known))
    given = {"steps": config.train.steps, **config.train.settings}
    try:
        settings = build(FinetuneSettings, given, origin=origin, path="train")
        return dataclasses.replace(
            settings,
            checkpoint_every=config.checkpoint.every,
            keep=config.checkpoint.keep,
            resume=config.checkpoint.resume,
        )
    except ConfigError as error:
        raise origin.explain(error) from None


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
    from jaxmix.models.config import TransformerConfig
    from jaxmix.models.presets import preset

    origin = origin or Origin()
    hints = typing.get_type_hints(TransformerConfig)
    overrides: dict[str, Any] = {}
    for key, value in config.model.overrides.items():
        if key not in hints:
            raise ConfigError(f"unknown key {key!r}", where=origin(f"model.{key}"), fix=nearest(key, hints))
        overrides[key] = convert(value, hints[key], origin, f"model.{key}")
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


def with_settings(config: FinetuneConfig) -> FinetuneConfig:
    """The configuration with the loop's defaults written out, so that a later default changes no old run."""
    settings = dataclasses.asdict(resolve_finetune_settings(config))
    for key in ("steps", "checkpoint_every", "keep", "resume"):  # these have keys of their own
        del settings[key]
    return dataclasses.replace(config, train=dataclasses.replace(config.train, settings=settings))


def finetune_hash(config: FinetuneConfig) -> str:
    """SHA-256 over all settings that can change what is trained: folders, trackers and checkpoints do not count."""
    plain = to_plain(config)
    for key in ("out", "track", "checkpoint"):
        plain.pop(key, None)
    return hashlib.sha256(json.dumps(plain, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def _placed(error: ConfigError, origin: Origin, section: str, given: Mapping[str, Any]) -> ConfigError:
    """An error of a factory, which names itself and its argument, at the place in the file."""
    argument = re.match(r"\w+\((\w+)\)", error.where or "")
    if argument and argument[1] in given:
        return ConfigError(error.what, where=origin(f"{section}.{argument[1]}"), fix=error.fix)
    return origin.explain(error) if argument is None else ConfigError(error.what, where=origin(section), fix=error.fix)
