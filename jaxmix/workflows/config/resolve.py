"""Resolves a configuration: every section becomes the object that it names, once."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import NamedTuple

from jaxmix.core.errors import ConfigError
from jaxmix.core.validate import check_mesh_shape, check_weights, values_in_order
from jaxmix.mixers.base import Mixer
from jaxmix.models.lm.config import TransformerConfig
from jaxmix.models.lm.presets import preset
from jaxmix.train.lm.settings import TrainSettings
from jaxmix.train.lm.signals import check_mixer
from jaxmix.train.selection.settings import SelectionSettings, check_selection
from jaxmix.workflows.config.build import Origin
from jaxmix.workflows.config.mixer import make_drawing_mixer, make_mixer
from jaxmix.workflows.config.sections import (
    DataConfig,
    ModelConfig,
    ReferenceConfig,
    RunConfig,
    RunFolder,
    Tracker,
    check_sources,
    folder_of,
)


class Sizes(NamedTuple):
    """What is known of the training part of every source.

    Attributes:
        tokens, counts: tokens and records by domain, in order; None where unknown.
        vocab_size: of the tokenizer, None if only its file knows it.
    """

    tokens: Mapping[str, float | None]
    counts: Mapping[str, float | None]
    vocab_size: int | None


@dataclasses.dataclass(frozen=True)
class Run:
    """A training run, resolved: what the workflows, and the loop below them, are given.

    Attributes:
        folder: where it is kept, with its configuration as written there.
        data: how sources become rows, and how many of them are evaluated.
        settings: of the loop.
        selection: None to train on all that is drawn.
        reference: what mixer and selection measure the excess loss against.
        mesh: devices along data, fsdp and tensor.
        trackers: by name.
        mixer_name: what `mixer` was called in the file, without its wrappers.
        sizes: of the sources, as far as they are known.
        prior: weight of every source, adds to 1; None where it follows from sizes that are not known.
        max_epochs: most passes over every source, None for no limit.
        on_exhaust: what to do when a source has given all it may.
        mixer: with its wrappers.
        model: of the learner.
    """

    folder: RunFolder
    data: DataConfig
    settings: TrainSettings
    selection: SelectionSettings | None
    reference: ReferenceConfig
    mesh: Mapping[str, int]
    trackers: tuple[Tracker, ...]
    mixer_name: str
    sizes: Sizes
    prior: dict[str, float] | None
    max_epochs: dict[str, float | None]
    on_exhaust: dict[str, str]
    mixer: Mixer
    model: TransformerConfig

    def drawn(self, *, shards: int = 1) -> int:
        """Rows that the stream draws in a step, divided evenly over so many shards of the mesh."""
        return drawn_rows(self.data, self.selection, multiple=shards)

    @property
    def limits(self) -> dict[str, float]:
        """The most passes over a source, where there is a limit."""
        return {name: limit for name, limit in self.max_epochs.items() if limit is not None}


def drawn_rows(data: DataConfig, selection: SelectionSettings | None, *, multiple: int = 1) -> int:
    """Rows that the stream draws in a step: the super-batch of a selection, or batch_size without one."""
    return data.batch_size if selection is None else selection.candidates(data.batch_size, multiple=multiple)


def resolve_run(
    config: RunConfig, sizes: Sizes | None = None, *, origin: Origin | None = None, is_drawing: bool = False
) -> Run:
    """Resolves a configuration. Opens no file, and without `is_drawing` touches no device.

    Args:
        config: the tree that `load_config` built.
        sizes: of the sources; None where nothing is known but what the configuration says.
        origin: names the file in errors.
        is_drawing: hide sources of weight 0 from a mixer that would draw them, which computes its first weights.

    Raises:
        ConfigError: sections that do not fit each other, by file and dotted path.
    """
    origin = origin or Origin()
    if sizes is None:
        names = config.source_names or ()
        unknown: dict[str, float | None] = dict.fromkeys(names)
        sizes = Sizes(unknown, unknown, None)
    data = config.data
    prior = prior_weights(config, sizes, origin)
    steps = config.train.steps
    length = {"steps": steps, "total_tokens": steps * drawn_rows(data, config.selection) * data.seq_len}
    if length["total_tokens"] >= 2**61:  # see jaxmix.core.counter
        what = f"a run of {length['total_tokens']:.3g} tokens is longer than can be counted"
        raise ConfigError(what, where=origin("train.steps"), fix="Lower steps, batch_size or seq_len.")
    if is_drawing and prior is not None:
        mixer = make_drawing_mixer(config.mixer, prior, sizes.tokens, **length)
    else:
        mixer = make_mixer(config.mixer, sizes.tokens, origin=origin, **length)
    own = config.sources if isinstance(config.sources, Mapping) else {}
    return Run(
        folder=folder_of(config),
        data=data,
        settings=config.train,
        selection=config.selection,
        reference=config.reference,
        mesh=config.mesh,
        trackers=config.track,
        mixer_name=config.mixer.name,
        sizes=sizes,
        prior=prior,
        max_epochs={n: (own[n].max_epochs if n in own else None) or data.max_epochs for n in sizes.tokens},
        on_exhaust={n: (own[n].on_exhaust if n in own else None) or data.on_exhaust for n in sizes.tokens},
        mixer=mixer,
        model=resolve_model(config.model, data, vocab_size=sizes.vocab_size, origin=origin),
    )


def check_run(config: RunConfig, origin: Origin) -> None:
    """Checks everything that can be checked without opening a file. Raises `ConfigError`."""
    _check_sources(config, origin)
    check_mesh_shape(config.mesh, origin("train.mesh"))
    _check_reference(config, origin)
    try:
        run = resolve_run(config, origin=origin)
    except ConfigError as error:
        raise origin.explain(error) from None
    reference, settings, rows = config.reference.kind, config.train, config.data.batch_size
    has_reference, normalization = reference is not None, settings.loss_normalization
    check_mixer(run.mixer, has_reference=has_reference, loss_normalization=normalization, origin=origin)
    if config.selection is not None:
        check_selection(config.selection, run.mixer, reference=reference, batch_size=rows, origin=origin)
    if rows % settings.accumulate:
        raise ConfigError(
            f"data.batch_size {rows} cannot be divided into {settings.accumulate} micro-batches",
            where=origin("train.accumulate"),
            fix="Choose a divisor of data.batch_size.",
        )


def _check_sources(config: RunConfig, origin: Origin) -> None:
    if config.sources is None and config.data.prepared is None:
        raise ConfigError(
            "there is no data: neither sources nor data.prepared is set",
            where=origin("sources"),
            fix="Set `sources: bundled`, name your sources, or give a prepared folder.",
        )
    if config.sources is not None:
        check_sources(config.sources, origin)


def _check_reference(config: RunConfig, origin: Origin) -> None:
    reference = config.reference
    if reference.run is not None and reference.losses is not None:
        raise ConfigError("reference has both run and losses", where=origin("reference"), fix="Set one of them.")
    for name, loss in (reference.losses or {}).items():
        if not (math.isfinite(loss) and loss >= 0):
            raise ConfigError(
                f"reference losses must be finite and ≥ 0: {name!r} has {loss}", where=origin("reference.losses")
            )
    if reference.losses and config.source_names:
        values_in_order(reference.losses, config.source_names, origin("reference.losses"), "loss")


def resolve_model(
    section: ModelConfig, data: DataConfig, *, vocab_size: int | None = None, origin: Origin | None = None
) -> TransformerConfig:
    """The model's settings: the preset, with `seq_len` and the vocabulary of the data unless they are overridden.

    Args:
        section: the section of the file.
        data: gives length and vocabulary.
        vocab_size: of the tokenizer; None leaves the preset's where only the tokenizer's file knows it.
        origin: names the file in errors.

    Raises:
        ConfigError: an unknown preset, settings that do not fit each other, too small a vocabulary.
    """
    if vocab_size is None and data.tokenizer == "byte":
        vocab_size = 256
    return model_of(section, vocab_size=vocab_size, seq_len=data.seq_len, origin=origin or Origin())


def model_of(section: ModelConfig, *, vocab_size: int | None, seq_len: int, origin: Origin) -> TransformerConfig:
    """A preset with the overrides of the section, for data of this vocabulary and length. Raises `ConfigError`."""
    overrides = dict(section.overrides)
    if vocab_size is not None and overrides.setdefault("vocab_size", vocab_size) < vocab_size:
        raise ConfigError(
            f"model.vocab_size {overrides['vocab_size']} is below the vocabulary of the data, {vocab_size}",
            where=origin("model.vocab_size"),
            fix="Leave it out: the vocabulary of the data is taken.",
        )
    overrides.setdefault("seq_len", seq_len)
    try:
        return preset(section.preset, **overrides)
    except ConfigError as error:
        raise origin.explain(error) from None


def prior_weights(config: RunConfig, sizes: Sizes, origin: Origin | None = None) -> dict[str, float] | None:
    """The prior on the simplex, in the order of the sources; None where it follows from sizes that are not known.

    Natural weights are in proportion to what the weights count (`data.unit`): tokens, or records for documents and
    rows.

    Raises:
        ConfigError: weights that do not fit the sources, or natural weights of sources without a token.
    """
    weights, where = config.mixture.weights, (origin or Origin())("mixture.weights")
    known = sizes.tokens if config.data.unit == "tokens" else sizes.counts
    if isinstance(weights, Mapping):
        checked = check_weights(weights, tuple(known) or tuple(weights), where)
        values = dict(zip(known, checked, strict=False))
    elif weights == "uniform":
        values = dict.fromkeys(known, 1.0)
    elif None in known.values():
        return None
    else:
        values = {name: float(size) for name, size in known.items() if size is not None}
        if values and not sum(values.values()) > 0:
            raise ConfigError("natural weights need tokens, and all sources are empty", where=where)
    total = math.fsum(values.values())
    return {name: value / total for name, value in values.items()} or None
