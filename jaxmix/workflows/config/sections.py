"""The form of a run's configuration: YAML sections as frozen dataclasses, checked before any file is opened.

Sources and mixture are kept apart, so that one list of sources serves many mixtures. Sections `mixer`, `model` and
`train` take the arguments of what they name (a mixer's factory, a model's preset, `TrainSettings`) as further keys.
"""

# ruff: noqa: RUF009 (`setting` returns dataclasses.field, which the rule allows)
from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from jaxmix.core.errors import ConfigError, nearest
from jaxmix.workflows.config.strict import Origin, apply_overrides, build, describe, parse_yaml, setting, to_plain

OnExhaust = Literal["repeat", "stop", "drop", "error"]
TRACKER_NAMES = ("jsonl", "tensorboard", "wandb")


@dataclass(frozen=True)
class SourceConfig:
    """One domain: where its documents are."""

    path: str | tuple[str, ...] | None = setting(None, help="file, folder or glob pattern, or a list of them")
    tfds: str | None = setting(None, help="name of a tensorflow-datasets dataset that is already on disk")
    hf: str | None = setting(None, help="name of a Hugging Face dataset (needs the extra `hf`)")
    split: str = setting("train", help="split of `tfds` or `hf`")
    format: str = setting("auto", help="auto, text, jsonl, parquet or array_record")
    text_field: str = setting("text", help="the field that holds the text")
    tokens: float | None = setting(None, above=0, help="known size in tokens, for `plan` before `prepare` has run")
    max_epochs: float | None = setting(None, above=0, help="most passes over this source; overrides data.max_epochs")
    on_exhaust: OnExhaust | None = setting(None, help="overrides data.on_exhaust")


@dataclass(frozen=True)
class DataConfig:
    """How sources become rows of tokens."""

    prepared: str | None = setting(None, help="folder of prepared token files: read, or written by `prepare`")
    tokenizer: str = setting("byte", help="`byte`, or the path of a tokenizer.json")
    seq_len: int = setting(256, at_least=2, help="tokens per row")
    batch_size: int = setting(16, at_least=1, help="rows per optimizer step, over all devices and micro-batches")
    block: int = setting(8, at_least=1, help="batches drawn by the same weights")
    unit: Literal["tokens", "documents", "rows"] = setting("tokens", help="what a mixture weight counts")
    on_exhaust: OnExhaust = setting("repeat", help="what to do when a source has given its max_epochs")
    max_epochs: float | None = setting(None, above=0, help="most passes over any source; empty: no limit")
    validation_fraction: float = setting(0.05, above=0, at_most=0.5, help="share of documents held out, per source")
    validation_rows: int = setting(32, at_least=1, help="rows per domain in an evaluation")
    control_rows: int | None = setting(
        None, at_least=1, help="rows per domain, out of these, that a mixer's own evaluations use; empty: all"
    )
    test_rows: int = setting(
        0, at_least=0, help="rows per domain of a held-out part that is evaluated once, at the end, and steers nothing"
    )
    workers: int | None = setting(None, at_least=1, help="processes of `prepare`; empty: one per core")


@dataclass(frozen=True)
class MixtureConfig:
    """The prior: the weights that training starts from."""

    weights: Literal["natural", "uniform"] | dict[str, float] = setting(
        "natural", help="natural (by tokens), uniform, or a weight for every source; need not sum to 1"
    )


@dataclass(frozen=True)
class MixerConfig:
    """What moves the weights during training."""

    name: str = setting("static", help="static, scheduled, odm, … (a wrong name lists all)")
    wrap: tuple[dict[str, Any], ...] = setting((), help="wrappers, innermost first, e.g. [{floor: 0.001}, {ema: 0.9}]")
    options: dict[str, Any] = setting(factory=dict, rest=True, help="arguments of the mixer")


@dataclass(frozen=True)
class ReferenceConfig:
    """What mixers and selection measure the excess loss against: a frozen model, or a known loss for every source."""

    run: str | None = setting(None, help="folder of a finished run with the same tokenizer: its last parameters")
    losses: dict[str, float] | None = setting(None, help="nats per token, for every source")


@dataclass(frozen=True)
class SelectionConfig:
    """Which of the drawn rows or tokens are trained on. Further keys are the fields of `SelectionSettings`."""

    method: Literal["learnability", "easy_reference", "hard_learner", "uniform"] | None = setting(
        None, help="learnability, easy_reference, hard_learner or uniform; empty: train on all that is drawn"
    )
    settings: dict[str, Any] = setting(factory=dict, rest=True, help="fields of SelectionSettings")


@dataclass(frozen=True)
class ModelConfig:
    """The language model."""

    preset: str = setting("lm-1m", help="name of a preset (a wrong name lists all)")
    overrides: dict[str, Any] = setting(factory=dict, rest=True, help="fields of the preset to change")


@dataclass(frozen=True)
class TrainConfig:
    """The loop. Further keys are the fields of `jaxmix.train.TrainSettings`."""

    steps: int = setting(help="Set train.steps: the length of the run in optimizer steps.", at_least=1)
    mesh: dict[str, int] = setting(factory=lambda: {"data": -1}, help="devices along data, fsdp, tensor; -1: the rest")
    settings: dict[str, Any] = setting(factory=dict, rest=True, help="fields of TrainSettings")


@dataclass(frozen=True)
class CheckpointConfig:
    """When the run's state is saved, and whether a run continues."""

    every: int = setting(200, at_least=1, help="optimizer steps between checkpoints")
    keep: int = setting(3, at_least=1, help="checkpoints kept")
    resume: Literal["auto", "never", "must"] = setting("auto", help="continue what the run folder holds")


@dataclass(frozen=True)
class RunConfig:
    """A whole run."""

    train: TrainConfig
    sources: Literal["bundled"] | dict[str, SourceConfig] | None = setting(
        None,
        help="`bundled`, a mapping from domain name to source, or the folder of a discovery; "
        "empty: the names in data.prepared",
    )
    data: DataConfig = setting(factory=DataConfig)
    mixture: MixtureConfig = setting(factory=MixtureConfig)
    mixer: MixerConfig = setting(factory=MixerConfig)
    reference: ReferenceConfig = setting(factory=ReferenceConfig)
    selection: SelectionConfig = setting(factory=SelectionConfig)
    model: ModelConfig = setting(factory=ModelConfig)
    track: tuple[str, ...] = setting(("jsonl",), help="jsonl (always on), tensorboard, wandb")
    checkpoint: CheckpointConfig = setting(factory=CheckpointConfig)
    out: str | None = setting(None, help="run folder; empty: runs/<name of the configuration file>")

    @property
    def source_names(self) -> tuple[str, ...] | None:
        """Domain names in the order of the file, or None where only an index file knows them."""
        return tuple(self.sources) if isinstance(self.sources, Mapping) else None


def read_config_file(path: str) -> Any:
    """The parsed YAML of a configuration file."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        folder = Path(path).parent
        others = sorted(p.name for p in folder.glob("*.yaml")) if folder.is_dir() else []
        fix = nearest(Path(path).name, others) if others else "Name an existing YAML file."
        raise ConfigError(f"there is no configuration file {path!r}", where="command line", fix=fix) from None
    except (OSError, UnicodeDecodeError) as error:
        reason = "it is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else (error.strerror or str(error))
        raise ConfigError(f"cannot read {path!r}: {reason}", where="command line", fix="Name a YAML file.") from None
    return parse_yaml(text, where=path)


def read_config_mapping(path: str) -> Mapping[Any, Any]:
    """A configuration file as a mapping; an empty file is an empty one. Raises `ConfigError` for anything else."""
    mapping = read_config_file(path)
    if mapping is not None and not isinstance(mapping, Mapping):
        raise ConfigError(f"the configuration must be a mapping: it is {describe(mapping)}", where=path)
    return mapping or {}


def load_config(path: str, overrides: Sequence[tuple[str, str]] = (), *, cls: type[Any] = RunConfig) -> Any:
    """Loads and checks a configuration file; touches no other file and no device.

    Args:
        path: YAML file.
        overrides: dotted names and YAML values from the command line, later ones win.
        cls: `RunConfig`, or another configuration built of the same sections.

    Raises:
        ConfigError: file, dotted path, value and what to do.
    """
    return from_mapping(read_config_mapping(path), overrides, file=path, cls=cls)


def from_mapping(
    mapping: Mapping[Any, Any],
    overrides: Sequence[tuple[str, str]] = (),
    *,
    file: str = "configuration",
    cls: type[Any] = RunConfig,
) -> Any:
    """As `load_config`, from a mapping. `file` is named in errors, and its stem names the default folders."""
    from jaxmix.workflows.config.resolve import check_config

    origin = Origin(file, frozenset(name for name, _ in overrides))
    plain = apply_overrides(mapping, overrides)
    if isinstance(plain.get("sources"), str) and plain["sources"] != "bundled":
        plain["sources"] = _discovered(plain["sources"], origin("sources"))
    config = build(cls, plain, origin=origin)
    if isinstance(config, RunConfig):
        check_config(config, origin)
        config = _with_folders(config, Path(file).stem)
    return config


def _discovered(folder: str, where: str) -> Any:
    """The domains that `jaxmix discover` has left in `folder`, as a section `sources`."""
    path = Path(folder) / "sources.yaml"
    try:
        return parse_yaml(path.read_text(encoding="utf-8"), where=str(path))["sources"]
    except (OSError, KeyError, TypeError):
        raise ConfigError(
            f"sources cannot be {folder!r}: there is no finished discovery with a sources.yaml",
            where=where,
            fix="Write `bundled`, a mapping from domain name to source, or the folder of `jaxmix discover`.",
        ) from None


def _with_folders(config: RunConfig, stem: str) -> RunConfig:
    """Names the folders that the file leaves open after the configuration file."""
    if config.out is None:
        config = replace(config, out=f"runs/{stem}")
    if config.data.prepared is None:
        config = replace(config, data=replace(config.data, prepared=f"prepared/{stem}"))
    return config


def check_weights(weights: Mapping[str, float], names: Sequence[str], where: str) -> None:
    """Raises `ConfigError` unless there is one finite weight ≥ 0 for every name, and not all are 0."""
    for name, weight in weights.items():
        if name not in names:
            raise ConfigError(f"mixture weight for unknown source {name!r}", where=where, fix=nearest(name, names))
        if not math.isfinite(weight) or weight < 0:
            raise ConfigError(
                f"mixture weights must be finite and ≥ 0: {name!r} has {weight}",
                where=where,
                fix="Remove the source or set 0 to keep it for evaluation only.",
            )
    missing = [name for name in names if name not in weights]
    if missing:
        raise ConfigError(
            f"no mixture weight for source {missing[0]!r}" + (f" and {len(missing) - 1} more" if missing[1:] else ""),
            where=where,
            fix="Give every source a weight; 0 keeps it for evaluation only.",
        )
    if sum(weights.values()) <= 0:
        raise ConfigError("all mixture weights are 0", where=where, fix="Give at least one source a weight above 0.")


def config_hash(config: Any) -> str:
    """SHA-256 over all settings that can change what is trained: folders, trackers and checkpoints do not count."""
    plain = to_plain(config)
    for key in ("out", "track", "checkpoint"):
        plain.pop(key, None)
    if plain.get("selection", {}).get("method") is None:  # as before there was such a section
        plain.pop("selection", None)
    for key in ("prepared", "workers"):
        plain.get("data", {}).pop(key, None)
    return hashlib.sha256(json.dumps(plain, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
