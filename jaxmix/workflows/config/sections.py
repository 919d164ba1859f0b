"""The sections of a run's configuration file as frozen dataclasses, checked before any file is opened.

Sources and mixture are kept apart, so that one list of sources serves many mixtures. `train` and `selection` are the
settings of the loop themselves; `mixer` and `model` take the arguments of what they name as further keys, checked
against its signature.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jaxmix.curricula  # registers the mixer that is any bandit  # noqa: F401
from jaxmix import mixers
from jaxmix.core.errors import ConfigError
from jaxmix.core.settings import setting
from jaxmix.data.files import check_apart
from jaxmix.data.sources.specs import SourceSpec
from jaxmix.data.tokenizers import load_tokenizer
from jaxmix.mixers.wrappers.build import registry as wrappers
from jaxmix.models.lm.config import TransformerConfig
from jaxmix.train.lm.settings import TrainSettings
from jaxmix.train.selection.settings import SelectionSettings
from jaxmix.workflows.config.build import Origin, arguments, to_plain

OnExhaust = Literal["repeat", "stop", "drop", "error"]
Tracker = Literal["jsonl", "tensorboard", "wandb"]
Unit = Literal["tokens", "documents", "rows"]


@dataclass(frozen=True)
class SourceConfig:
    """One domain: where its documents are."""

    path: str | tuple[str, ...] | None = setting(
        None, is_path=True, help="file, folder or glob pattern, or a list of them"
    )
    tfds: str | None = setting(None, help="name of a tensorflow-datasets dataset that is already on disk")
    hf: str | None = setting(None, is_path=True, help="name of a Hugging Face dataset (needs the extra `hf`)")
    config_name: str | None = setting(None, help="configuration (subset) of `hf`, where it has several")
    split: str = setting("train", help="split of `tfds` or `hf`")
    format: str = setting("auto", help="auto, text, jsonl, parquet or array_record")
    text_field: str = setting("text", help="the field that holds the text")
    tokens: float | None = setting(None, above=0, help="known size in tokens, for `plan` before `prepare` has run")
    max_epochs: float | None = setting(None, above=0, help="most passes over this source; overrides data.max_epochs")
    on_exhaust: OnExhaust | None = setting(None, help="overrides data.on_exhaust")

    def spec(self, name: str) -> SourceSpec:
        """What reads the documents."""
        keys = ("path", "tfds", "hf", "config_name", "split", "format", "text_field")
        return SourceSpec(name=name, **{key: getattr(self, key) for key in keys})

    def checked(self, origin: Origin, path: str) -> SourceConfig:
        """The section, whose keys fit each other. Opens no file."""
        self.spec(path.partition(".")[2])
        return self


def check_sources(sources: Any, origin: Origin) -> None:
    """Raises `ConfigError` for a section `sources` without any, or with two that have one folder."""
    if not sources:
        raise ConfigError("sources is empty", where=origin("sources"), fix="Name at least one source.")
    if isinstance(sources, Mapping):
        check_apart(sources, "sources", where=origin("sources"))


@dataclass(frozen=True)
class DataConfig:
    """How sources become rows of tokens."""

    prepared: str | None = setting(
        None, is_path=True, help="folder of prepared token files: read, or written by `prepare`"
    )
    tokenizer: str = setting("byte", is_path=True, help="`byte`, or the path of a tokenizer.json")
    end_of_document: str | None = setting(
        None, help="the token of a tokenizer.json that ends a document; empty: the first of the usual ones"
    )
    seq_len: int = setting(256, at_least=2, help="tokens per row")
    batch_size: int = setting(16, at_least=1, help="rows per optimizer step, over all devices and micro-batches")
    block: int = setting(8, at_least=1, help="batches drawn by the same weights")
    unit: Unit = setting("tokens", help="what a mixture weight counts")
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
    workers: int | None = setting(None, at_least=1, help="threads of `prepare`; empty: one per core")

    def checked(self, origin: Origin, path: str) -> DataConfig:
        """The section, whose keys fit each other. Opens no file."""
        if self.tokenizer == "byte":
            load_tokenizer(self.tokenizer, end_of_document=self.end_of_document)
        return self


@dataclass(frozen=True)
class MixtureConfig:
    """The prior: the weights that training starts from."""

    weights: Literal["natural", "uniform"] | dict[str, float] = setting(
        "natural", help="natural (by tokens), uniform, or a weight for every source; need not sum to 1"
    )


@dataclass(frozen=True)
class MixerConfig:
    """What moves the weights during training.

    Where a mixer or wrapper takes one value per source, they may be given by name: such values stay a mapping until
    the sources are known.
    """

    name: str = setting("static", help="static, scheduled, odm, … (a wrong name lists all)")
    wrap: tuple[dict[str, Any], ...] = setting((), help="wrappers, innermost first, e.g. [{floor: 0.001}, {ema: 0.9}]")
    options: dict[str, Any] = setting(factory=dict, rest=True, help="arguments of the mixer")

    def checked(self, origin: Origin, path: str) -> MixerConfig:
        """The section, all arguments converted to the types of the mixer's and the wrappers' parameters."""
        factory = mixers.registry.get(self.name, where=origin(f"{path}.name"))
        options = arguments(factory, self.options, origin=origin, path=path, takes_names=True)
        wrap = tuple(_checked_wrapper(entry, origin, f"{path}.wrap[{i}]") for i, entry in enumerate(self.wrap))
        return replace(self, options=options, wrap=wrap)


def _checked_wrapper(entry: Mapping[str, Any], origin: Origin, path: str) -> dict[str, Any]:
    """A wrapper's name, with its arguments or its first one alone, as the file has it."""
    if len(entry) != 1:
        raise ConfigError(
            f"a wrapper is one name with its argument, got {len(entry)} names",
            where=origin(path),
            fix="Write one list entry per wrapper, for example {floor: 0.001}.",
        )
    ((name, value),) = entry.items()
    factory = wrappers.get(name, where=origin(path))
    path = f"{path}.{name}"
    convert = functools.partial(arguments, factory, path=path, skip=1, takes_names=True)
    if value is None or isinstance(value, Mapping):
        return {name: convert(value or {}, origin=origin)}
    alone = first_argument(name)
    origin = replace(origin, places={**origin.places, f"{path}.{alone}": path})
    (converted,) = convert({alone: value}, origin=origin).values()
    return {name: converted}


def first_argument(wrapper: str) -> str:
    """The argument of a wrapper that may be given alone; one that it has not, where it takes none."""
    _, *names = inspect.signature(wrappers.get(wrapper)).parameters
    return "max_epochs" if wrapper == "epoch_cap" else names[0] if names else "argument"


@dataclass(frozen=True)
class ReferenceConfig:
    """What mixers and selection measure the excess loss against: a frozen model, or a known loss for every source."""

    run: str | None = setting(
        None, is_path=True, help="folder of a finished run with the same tokenizer: its last parameters"
    )
    losses: dict[str, float] | None = setting(None, help="nats per token, for every source")

    @property
    def kind(self) -> Literal["model", "table"] | None:
        """What the reference is, None for a run without one."""
        return "model" if self.run is not None else None if self.losses is None else "table"


@dataclass(frozen=True)
class ModelConfig:
    """The language model."""

    preset: str = setting("lm-1m", help="name of a preset (a wrong name lists all)")
    overrides: dict[str, Any] = setting(factory=dict, rest=True, help="fields of the preset to change")

    def checked(self, origin: Origin, path: str) -> ModelConfig:
        """The section, its overrides converted to the types of the preset's fields."""
        return replace(self, overrides=arguments(TransformerConfig, self.overrides, origin=origin, path=path))


@dataclass(frozen=True)
class RunConfig:
    """A whole run."""

    train: TrainSettings = setting(help="Set train: at least train.steps.")
    sources: Literal["bundled"] | dict[str, SourceConfig] | None = setting(
        None,
        help="`bundled`, a mapping from domain name to source, or the folder of a discovery; "
        "empty: the names in data.prepared",
    )
    data: DataConfig = setting(factory=DataConfig)
    mixture: MixtureConfig = setting(factory=MixtureConfig)
    mixer: MixerConfig = setting(factory=MixerConfig)
    reference: ReferenceConfig = setting(factory=ReferenceConfig)
    selection: SelectionSettings | None = setting(None, help="empty: train on all that is drawn")
    model: ModelConfig = setting(factory=ModelConfig)
    track: tuple[Tracker, ...] = setting(("jsonl",), help="jsonl (always on), tensorboard, wandb")
    mesh: dict[str, int] = setting(
        factory=lambda: {"data": -1}, place="train.mesh", help="devices along data, fsdp, tensor; -1: the rest"
    )
    out: str | None = setting(None, is_path=True, help="run folder; empty: runs/<name of the configuration file>")

    @property
    def source_names(self) -> tuple[str, ...] | None:
        """Domain names in the order of the file, or None where only an index file knows them."""
        return tuple(self.sources) if isinstance(self.sources, Mapping) else None


@dataclass(frozen=True)
class RunFolder:
    """The folder of a run, with the configuration that it keeps.

    Attributes:
        path: of the folder.
        plain: the configuration with every key written out, as config.yaml holds it.
    """

    path: Path
    plain: dict[str, Any]

    @functools.cached_property
    def config_hash(self) -> str:
        """SHA-256 over all settings that can change what is trained, see `what_is_trained`."""
        text = json.dumps(what_is_trained(self.plain), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def starts_anew(self) -> bool:
        """Whether checkpoints in the folder are passed over."""
        return bool(self.plain["checkpoint"]["resume"] == "never")


def folder_of(config: Any) -> RunFolder:
    """The folder of a run of any kind, from its configuration."""
    return RunFolder(folder_path(config), to_plain(config))


def folder_path(config: Any) -> Path:
    """Where a run of any kind is kept."""
    return Path(config.out or "")


def config_hash(config: Any) -> str:
    """The hash of a configuration, see `RunFolder.config_hash`."""
    return folder_of(config).config_hash


def what_is_trained(plain: Mapping[str, Any]) -> dict[str, Any]:
    """A written configuration without folders, trackers and checkpoints, which do not change what is trained."""
    kept = {key: value for key, value in plain.items() if key not in ("out", "track", "checkpoint")}
    if kept.get("selection") is None:  # as before there was such a section
        kept.pop("selection", None)
    if isinstance(kept.get("sources"), Mapping):  # as before there was such a key
        kept["sources"] = {
            name: {key: value for key, value in source.items() if (key, value) != ("config_name", None)}
            for name, source in kept["sources"].items()
        }
    if "data" in kept:
        kept["data"] = {key: value for key, value in kept["data"].items() if key not in ("prepared", "workers")}
        if kept["data"].get("end_of_document") is None:  # as before there was such a key
            kept["data"].pop("end_of_document", None)
    return kept
