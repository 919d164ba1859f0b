"""The sections of a labeling's configuration file, checked before any other file is opened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from jaxmix.core.errors import ConfigError
from jaxmix.core.settings import setting
from jaxmix.workflows.config.build import Origin, read
from jaxmix.workflows.config.load import read_config_mapping
from jaxmix.workflows.config.sections import SourceConfig, check_sources
from jaxmix.workflows.config.yaml import apply_overrides


@dataclass(frozen=True)
class RayConfig:
    """Workers of the Ray engine. Every worker must see inputs, labels and the discovery under the same paths."""

    address: str | None = setting(
        None, help="of a running cluster (auto: the one of this machine); empty: start one here"
    )
    workers: int = setting(2, at_least=1, help="how many shards are labeled at once")
    cpus: float = setting(1.0, at_least=0, help="processors of a worker")
    gpus: float = setting(0.0, at_least=0, help="GPUs of a worker, for the teacher")
    resources: dict[str, float] = setting(factory=dict, help="further resources of a worker, such as {TPU: 4}")


@dataclass(frozen=True)
class LabelConfig:
    """A whole labeling."""

    domains: str = setting(is_path=True, help="Set domains: the folder of a finished `jaxmix discover`.")
    sources: Literal["bundled"] | dict[str, SourceConfig] = setting(help="Set sources: name → source.")
    method: Literal["student", "teacher"] = setting(
        "student", help="student: from the words alone; teacher: embed and assign"
    )
    labels: str | None = setting(
        None, is_path=True, help="folder for the labels of all sources; empty: each file's labels are written beside it"
    )
    batch_documents: int = setting(
        1024, at_least=1, help="documents labeled at a time; changes no label of the student"
    )
    engine: Literal["local", "ray"] = setting("local", help="local: in this process; ray: see the section ray")
    ray: RayConfig = setting(factory=RayConfig)
    out: str | None = setting(
        None, is_path=True, help="folder of the summary; empty: runs/<name of the configuration file>"
    )


def load_labeling(path: str, overrides: Sequence[tuple[str, str]] = (), *, out: str | None = None) -> LabelConfig:
    """Loads and checks a configuration file; touches no other file.

    Raises:
        ConfigError: file, dotted path, value and what to do.
    """
    return label_from(read_config_mapping(path), overrides, file=path, out=out)


def label_from(
    mapping: Mapping[str, Any], overrides: Sequence[tuple[str, str]] = (), *, file: str, out: str | None = None
) -> LabelConfig:
    """As `load_labeling`, from a mapping; `file` is named in errors, and its stem names the default folder."""
    origin = Origin(file, frozenset(name for name, _ in overrides))
    config = read(LabelConfig, apply_overrides(mapping, overrides), origin=origin)
    check_sources(config.sources, origin)
    if config.labels is None:
        if config.sources == "bundled":
            raise ConfigError(
                "labels of the bundled texts need a folder: nothing is written into the package",
                where=origin("labels"),
                fix="Set labels: a folder.",
            )
        for name, source in config.sources.items():
            if source.path is None:
                raise ConfigError(
                    f"source {name!r} has no files to write labels beside",
                    where=origin(f"sources.{name}"),
                    fix="Set labels: a folder.",
                )
    return replace(config, out=out or config.out or f"runs/{Path(file).stem}")
