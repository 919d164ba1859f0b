"""From configuration sections to the objects they name, with every mistake reported by file and dotted path."""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
import typing
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jaxmix.core.errors import ConfigError, nearest
from jaxmix.workflows.config.sections import TRACKER_NAMES, ModelConfig, RunConfig, check_weights
from jaxmix.workflows.config.strict import Origin, arguments, build, convert

if TYPE_CHECKING:
    from jaxmix.mixers.base import Mixer
    from jaxmix.models.lm.config import TransformerConfig
    from jaxmix.train.lm.settings import TrainSettings


_OWN_SECTION = {"checkpoint_every": "checkpoint.every", "keep": "checkpoint.keep", "resume": "checkpoint.resume"}
_MESH_AXES = ("data", "fsdp", "tensor")


def check_config(config: RunConfig, origin: Origin) -> None:
    """Checks everything that can be checked without opening a file. Raises `ConfigError`."""
    from jaxmix.train.lm.signals import check_mixer
    from jaxmix.workflows.train.selection import check_selection_config

    _check_sources(config, origin)
    _check_mesh(config, origin)
    for name in config.track:
        if name not in TRACKER_NAMES:
            raise ConfigError(f"unknown tracker {name!r}", where=origin("track"), fix=nearest(name, TRACKER_NAMES))
    if isinstance(config.mixture.weights, Mapping):
        names = config.source_names or tuple(config.mixture.weights)
        check_weights(config.mixture.weights, names, origin("mixture.weights"))
    settings = resolve_settings(config, origin)
    _check_reference(config, origin)
    mixer = resolve_mixer(config, origin)
    check_mixer(
        mixer,
        has_reference=config.reference.run is not None or config.reference.losses is not None,
        loss_normalization=settings.loss_normalization,
        origin=origin,
    )
    check_selection_config(config, mixer, origin)
    resolve_model_config(config, origin=origin)
    if config.data.batch_size % (accumulate := config.train.settings.get("accumulate", 1)):
        raise ConfigError(
            f"data.batch_size {config.data.batch_size} cannot be cut into {accumulate} micro-batches",
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
    if not isinstance(config.sources, Mapping):
        return
    if not config.sources:
        raise ConfigError("sources is empty", where=origin("sources"), fix="Name at least one source.")
    for name, source in config.sources.items():
        here = f"sources.{name}"
        if not name or "/" in name or name.startswith(".") or name != name.strip():
            raise ConfigError(
                f"{name!r} cannot be the name of a source", where=origin(here), fix="Use letters, digits, - and _."
            )
        given = [kind for kind in ("path", "tfds", "hf") if getattr(source, kind) is not None]
        if len(given) != 1:
            what = (
                f"source {name!r} has {' and '.join(given)}" if given else f"source {name!r} does not say where it is"
            )
            raise ConfigError(what, where=origin(here), fix="Give exactly one of path, tfds and hf.")


def _check_reference(config: RunConfig, origin: Origin) -> None:
    reference = config.reference
    if reference.run is not None and reference.losses is not None:
        raise ConfigError("reference has both run and losses", where=origin("reference"), fix="Give one of them.")
    for name, loss in (reference.losses or {}).items():
        if not (math.isfinite(loss) and loss >= 0):
            raise ConfigError(
                f"reference losses must be finite and ≥ 0: {name!r} has {loss}", where=origin("reference.losses")
            )
    if reference.losses and config.source_names:
        _by_name(reference.losses, config.source_names, origin("reference.losses"))


def _check_mesh(config: RunConfig, origin: Origin) -> None:
    mesh = config.train.mesh
    for axis, size in mesh.items():
        if axis not in _MESH_AXES:
            raise ConfigError(
                f"unknown mesh axis {axis!r}", where=origin(f"train.mesh.{axis}"), fix=nearest(axis, _MESH_AXES)
            )
        if size != -1 and size < 1:
            raise ConfigError(
                f"a mesh axis must have at least 1 device, or -1 for the rest: {axis!r} has {size}",
                where=origin(f"train.mesh.{axis}"),
                fix="Give a positive number or -1.",
            )
    free = [axis for axis, size in mesh.items() if size == -1]
    if len(free) > 1:
        raise ConfigError(
            f"only one mesh axis may be -1: {' and '.join(free)} are",
            where=origin("train.mesh"),
            fix="Give numbers for the others.",
        )


def resolve_settings(config: RunConfig, origin: Origin | None = None) -> TrainSettings:
    """The loop's settings out of the sections `train` and `checkpoint`."""
    from jaxmix.train.lm.settings import TrainSettings

    return loop_settings(TrainSettings, config, origin)


def loop_settings(kind: type, config: Any, origin: Origin | None = None) -> Any:
    """Settings of a loop, a dataclass, out of the sections `train` and `checkpoint` of a configuration."""
    origin = origin or Origin()
    for key, home in _OWN_SECTION.items():
        if key in config.train.settings:
            raise ConfigError(
                f"train.{key} has a place of its own", where=origin(f"train.{key}"), fix=f"Write it as {home}."
            )
    known = {f.name for f in dataclasses.fields(kind)} - set(_OWN_SECTION) | {"mesh"}
    for key in config.train.settings:
        if key not in known:
            raise ConfigError(f"unknown key {key!r}", where=origin(f"train.{key}"), fix=nearest(key, known))
    given = {"steps": config.train.steps, **config.train.settings}
    try:
        settings: Any = build(kind, given, origin=origin, path="train")
        return dataclasses.replace(
            settings,
            checkpoint_every=config.checkpoint.every,
            keep=config.checkpoint.keep,
            resume=config.checkpoint.resume,
        )
    except ConfigError as error:
        raise origin.explain(error) from None


def resolve_mixer(
    config: RunConfig,
    origin: Origin | None = None,
    *,
    sizes: Mapping[str, float | None] | None = None,
) -> Mixer:
    """The mixer with its wrappers, innermost first.

    Weights may be given by name wherever a mixer or wrapper takes one number per source; `epoch_cap` gets the sizes
    of the sources and the length of the run where they are left out.

    Args:
        config: the run.
        origin: names the file in errors.
        sizes: tokens of the training part of every source, in order. None or unknown sizes do for a check of the
            arguments; a mixer that is to run needs them where `epoch_cap` is used.
    """
    import jax

    import jaxmix.curricula  # registers the mixer that is any bandit  # noqa: F401
    from jaxmix import mixers

    origin = origin or Origin()
    names = tuple(sizes) if sizes is not None else config.source_names
    try:
        factory = mixers.registry.get(config.mixer.name, where=origin("mixer.name"))
        options = {k: _by_name(v, names, origin(f"mixer.{k}")) for k, v in config.mixer.options.items()}
        if "total_steps" in inspect.signature(factory).parameters:
            options.setdefault("total_steps", config.train.steps)
        options = arguments(factory, options, origin=origin, path="mixer")
        wrap = [
            _complete_wrapper(entry, config, names, sizes or {}, origin, f"mixer.wrap[{i}]")
            for i, entry in enumerate(config.mixer.wrap)
        ]
        mixer = mixers.build(config.mixer.name, options, wrap)
        if names:
            # Some bounds depend on the number of domains; an abstract start checks them and computes nothing.
            jax.eval_shape(lambda: mixer.init(jax.random.key(0), len(names)))
        return mixer
    except ConfigError as error:
        argument = re.fullmatch(r"\w+\((\w+)\)", error.where or "")  # a factory names itself and the argument
        if argument and argument[1] in config.mixer.options:
            raise ConfigError(error.what, where=origin(f"mixer.{argument[1]}"), fix=error.fix) from None
        raise origin.explain(error) from None


def _by_name(value: Any, names: Sequence[str] | None, where: str) -> Any:
    """Numbers given by source name as a list in the order of the sources: vectors, matrices, points of a schedule."""
    from jaxmix.core.validate import values_in_order

    order = names if names is not None else tuple(value) if isinstance(value, Mapping) else ()
    if isinstance(value, Mapping) and value and all(isinstance(v, (int, float)) for v in value.values()):
        return values_in_order(value, order, where=where)
    if isinstance(value, Mapping) and value and all(isinstance(v, Mapping) for v in value.values()):
        values_in_order(dict.fromkeys(value, 0.0), order, where=where)  # every source once, and no other
        return [_by_name(value[name], order, where) for name in order]
    if isinstance(value, (list, tuple)):
        return [
            {k: _by_name(v, names, where) for k, v in item.items()} if isinstance(item, Mapping) else item
            for item in value
        ]
    return value


def _complete_wrapper(
    entry: Any,
    config: RunConfig,
    names: Sequence[str] | None,
    sizes: Mapping[str, float | None],
    origin: Origin,
    path: str,
) -> dict[str, Any]:
    """One wrapper with named weights in order, and `epoch_cap` with the sizes that the run knows."""
    from jaxmix.mixers.wrappers.build import registry as wrappers
    from jaxmix.workflows.train.selection import drawn_rows

    if len(entry) != 1:
        raise ConfigError(
            f"a wrapper is one name with its argument: there are {len(entry)} names",
            where=origin(path),
            fix="Write one list entry per wrapper, for example {floor: 0.001}.",
        )
    ((name, value),) = entry.items()
    factory = wrappers.get(name, where=origin(path))
    if isinstance(value, Mapping):
        options = {k: _by_name(v, names, origin(path)) for k, v in value.items()}
    else:
        first = "max_epochs" if name == "epoch_cap" else list(inspect.signature(factory).parameters)[1]
        options = {first: value}
    options = arguments(factory, options, origin=origin, path=path, skip=1)
    if name != "epoch_cap":
        return {name: options}
    known = [size for size in sizes.values() if size is not None]
    is_known = bool(known) and len(known) == len(sizes)
    # For a check of the other arguments before the sizes are known, no source can be too small.
    options.setdefault("available_tokens", known if is_known else [1e18] * max(len(names or ()), 1))
    options.setdefault("total_tokens", config.train.steps * drawn_rows(config) * config.data.seq_len)
    return {name: options}


def model_overrides(section: ModelConfig, origin: Origin) -> dict[str, Any]:
    """The fields of a preset that a `model` section changes, checked one by one."""
    from jaxmix.models.lm.config import TransformerConfig

    hints = typing.get_type_hints(TransformerConfig)
    overrides: dict[str, Any] = {}
    for key, value in section.overrides.items():
        if key not in hints:
            raise ConfigError(f"unknown key {key!r}", where=origin(f"model.{key}"), fix=nearest(key, hints))
        overrides[key] = convert(value, hints[key], origin, f"model.{key}")
    return overrides


def resolve_model_config(
    config: RunConfig, *, vocab_size: int | None = None, origin: Origin | None = None
) -> TransformerConfig:
    """The model's settings: the preset, with `seq_len` and the vocabulary of the data unless they are overridden.

    Args:
        config: the run.
        vocab_size: of the tokenizer; None leaves the preset's where only the tokenizer's file knows it.
        origin: names the file in errors.

    Raises:
        ConfigError: an unknown preset or setting, settings that do not fit each other, too small a vocabulary.
    """
    from jaxmix.models.lm.presets import preset

    origin = origin or Origin()
    if vocab_size is None and config.data.tokenizer == "byte":
        vocab_size = 256
    overrides = model_overrides(config.model, origin)
    if vocab_size is not None and overrides.setdefault("vocab_size", vocab_size) < vocab_size:
        raise ConfigError(
            f"model.vocab_size {overrides['vocab_size']} is below the tokenizer's {vocab_size}",
            where=origin("model.vocab_size"),
            fix="Leave it out: the tokenizer's is taken.",
        )
    overrides.setdefault("seq_len", config.data.seq_len)
    try:
        return preset(config.model.preset, **overrides)
    except ConfigError as error:
        raise origin.explain(error) from None


def resolve_max_epochs(config: RunConfig, names: Sequence[str]) -> dict[str, float | None]:
    """The most passes over every source, None for no limit."""
    sources = config.sources if isinstance(config.sources, Mapping) else {}
    return {
        name: source.max_epochs if (source := sources.get(name)) and source.max_epochs else config.data.max_epochs
        for name in names
    }


def resolve_on_exhaust(config: RunConfig, names: Sequence[str]) -> dict[str, str]:
    """What to do when a source has given all it may, per source."""
    sources = config.sources if isinstance(config.sources, Mapping) else {}
    return {
        name: source.on_exhaust if (source := sources.get(name)) and source.on_exhaust else config.data.on_exhaust
        for name in names
    }


def prior_weights(config: RunConfig, sizes: Mapping[str, float | None]) -> dict[str, float] | None:
    """The prior on the simplex, in the order of `sizes`; None where it follows from sizes that are not known.

    Args:
        config: the run.
        sizes: of the training part of every source, in what the weights count (`data.unit`): tokens, or records for
            documents and rows; None where unknown. Natural weights are in proportion to them.

    Raises:
        ConfigError: weights that do not fit the sources, or natural weights of sources without a token.
    """
    weights = config.mixture.weights
    where = "mixture.weights"
    if weights == "uniform":
        return {name: 1.0 / len(sizes) for name in sizes}
    if isinstance(weights, Mapping):
        if not sizes:
            return None
        check_weights(weights, tuple(sizes), where)
        values = {name: float(weights[name]) for name in sizes}
    else:
        if not sizes or any(size is None for size in sizes.values()):
            return None
        values = {name: float(size) for name, size in sizes.items() if size is not None}
        if not sum(values.values()) > 0:
            raise ConfigError("natural weights need tokens, and all sources are empty", where=where)
    total = math.fsum(values.values())
    return {name: value / total for name, value in values.items()}
