"""The sections of a discovery's configuration file, checked before any other file is opened."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from jaxmix.clustering import fit
from jaxmix.clustering.base import registry
from jaxmix.core.errors import ConfigError
from jaxmix.core.settings import setting
from jaxmix.models.encoders.base import BUILTIN
from jaxmix.models.encoders.hashed import fit_hashed_encoder
from jaxmix.models.encoders.load import checkpoint_encoder
from jaxmix.models.student.training import train_student
from jaxmix.workflows.config.build import Origin, arguments, read
from jaxmix.workflows.config.load import read_config_mapping
from jaxmix.workflows.config.sections import SourceConfig, check_sources
from jaxmix.workflows.config.yaml import apply_overrides


@dataclass(frozen=True)
class DocumentsConfig:
    """Which documents clusters are found on."""

    share: float = setting(1.0, above=0, at_most=1, help="share of the documents, drawn by a hash of their text")
    held_out: float = setting(0.1, above=0, at_most=0.5, help="share of those that the student is judged on alone")
    seed: int = setting(0, at_least=0, help="of both draws")


@dataclass(frozen=True)
class EncoderConfig:
    """What turns documents into vectors. Further keys are options of `jaxmix.models.load_encoder`."""

    name: str = setting("builtin", is_path=True, help="builtin, or the folder of a checkpoint")
    sample: int = setting(20_000, at_least=1, help="documents that the built-in encoder is fitted to")
    dtype: Literal["float16", "bfloat16"] = setting("float16", help="of the stored vectors")
    options: dict[str, Any] = setting(factory=dict, rest=True, help="options of the encoder")

    def checked(self, origin: Origin, path: str) -> EncoderConfig:
        """The section, its options checked against the signature of what loads the encoder."""
        factory = fit_hashed_encoder if self.name == BUILTIN else checkpoint_encoder
        return replace(
            self, options=arguments(factory, self.options, origin=origin, path=path, skip=1, taken=("mesh",))
        )


@dataclass(frozen=True)
class ClustererConfig:
    """What finds the clusters. Further keys are arguments of the clusterer."""

    name: str = setting("gem", help="gem, vmf_mixture, spherical_kmeans, kmeans (a wrong name lists all)")
    num_clusters: int = setting(24, at_least=2, help="number of clusters")
    options: dict[str, Any] = setting(factory=dict, rest=True, help="arguments of the clusterer, such as balance")

    def checked(self, origin: Origin, path: str) -> ClustererConfig:
        """The section, its options checked against the clusterer's signature and ranges."""
        factory = registry.get(self.name, where=origin(f"{path}.name"))
        options = arguments(factory, self.options, origin=origin, path=path, skip=1)
        factory(self.num_clusters, **options)
        return replace(self, options=options)


@dataclass(frozen=True)
class FitConfig:
    """How clusters are fitted. Further keys are arguments of `jaxmix.clustering.fit`."""

    seed: int = setting(0, at_least=0, help="of the start")
    weigh_by: Literal["documents", "words"] = setting("words", help="what balance and sizes count")
    memory: float = setting(2e9, above=0, help="bytes of vectors held in memory; a larger store is streamed")
    options: dict[str, Any] = setting(factory=dict, rest=True, help="init, restarts, max_iters, tol")

    def checked(self, origin: Origin, path: str) -> FitConfig:
        """The section, its options checked against the signature of `fit`."""
        taken = ("key", "mesh", "sample_weight")
        return replace(self, options=arguments(fit, self.options, origin=origin, path=path, skip=2, taken=taken))


@dataclass(frozen=True)
class StudentSettings:
    """The classifier that labels raw text. Further keys are arguments of `train_student`."""

    rule: Literal["random", "confidence", "center", "gis"] = setting("random", help="which documents it learns from")
    per_cluster: int = setting(20_000, at_least=1, help="most documents of every cluster")
    soft: bool = setting(False, help="learn the teacher's posterior instead of its label")
    match_mass: bool = setting(True, help="correct its prior from the drawn documents to the sizes of the clusters")
    seed: int = setting(0, at_least=0, help="of draws and training")
    options: dict[str, Any] = setting(factory=dict, rest=True, help="epochs, batch_size, buckets, width, …")

    def checked(self, origin: Origin, path: str) -> StudentSettings:
        """The section, its options checked against the signature of `train_student`."""
        taken = ("num_clusters", "key", "mass", "mesh", "progress")
        options = arguments(train_student, self.options, origin=origin, path=path, skip=2, taken=taken)
        return replace(self, options=options)


@dataclass(frozen=True)
class TaxonomyConfig:
    """How the clusters are described."""

    terms: int = setting(12, at_least=1, help="top terms of a cluster")
    documents: int = setting(5, at_least=1, help="nearest documents and representatives of a cluster")
    namer: str | None = setting(
        None, help="module:function that names a cluster from its representatives, such as a call of a language model"
    )


@dataclass(frozen=True)
class DiscoverConfig:
    """A whole discovery."""

    sources: Literal["bundled"] | dict[str, SourceConfig] = setting(help="Set sources: `bundled`, or name → source.")
    documents: DocumentsConfig = setting(factory=DocumentsConfig)
    encoder: EncoderConfig = setting(factory=EncoderConfig)
    clusterer: ClustererConfig = setting(factory=ClustererConfig)
    fit: FitConfig = setting(factory=FitConfig)
    student: StudentSettings = setting(factory=StudentSettings)
    taxonomy: TaxonomyConfig = setting(factory=TaxonomyConfig)
    label_with: Literal["teacher", "student"] = setting(
        "teacher", help="whose labels sort the documents into domains; documents without a vector take the student's"
    )
    out: str | None = setting(None, is_path=True, help="folder; empty: runs/<name of the configuration file>")


def load_discovery(path: str, overrides: Sequence[tuple[str, str]] = (), *, out: str | None = None) -> DiscoverConfig:
    """Loads and checks a configuration file; touches no other file and no device.

    Raises:
        ConfigError: file, dotted path, value and what to do.
    """
    return discovery_from(read_config_mapping(path), overrides, file=path, out=out)


def discovery_from(
    mapping: Mapping[str, Any], overrides: Sequence[tuple[str, str]] = (), *, file: str, out: str | None = None
) -> DiscoverConfig:
    """As `load_discovery`, from a mapping; `file` is named in errors, and its stem names the default folder."""
    origin = Origin(file, frozenset(name for name, _ in overrides))
    config = read(DiscoverConfig, apply_overrides(mapping, overrides), origin=origin)
    check_sources(config.sources, origin)
    find_namer(config.taxonomy.namer, origin("taxonomy.namer"))
    return replace(config, out=out or config.out or f"runs/{Path(file).stem}")


def find_namer(name: str | None, where: str) -> Callable[..., str] | None:
    """The function that `module:function` names: `(representatives, terms) -> name`. None stays None."""
    if name is None:
        return None
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except Exception as error:  # the module is the user's own
        raise ConfigError(f"cannot find {name!r}: {error}", where=where, fix="Write module:function.") from None
    if not callable(found):
        raise ConfigError(f"{name!r} is not a function", where=where, fix="Write module:function.")
    return found  # type: ignore[no-any-return]
