"""Builds the mixer of a section `mixer` with its wrappers, and hides sources of weight 0 that it would draw."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxmix import mixers
from jaxmix.core.errors import ConfigError
from jaxmix.core.validate import values_in_order
from jaxmix.mixers.base import Mixer
from jaxmix.mixers.wrappers.build import wrap_with
from jaxmix.workflows.config.build import Origin
from jaxmix.workflows.config.sections import MixerConfig, first_argument


def make_mixer(
    section: MixerConfig,
    sizes: Mapping[str, float | None],
    *,
    steps: int,
    total_tokens: float,
    origin: Origin | None = None,
) -> Mixer:
    """The mixer with its wrappers, innermost first.

    Weights may be given by name wherever a mixer or wrapper takes one value per source; `epoch_cap` gets the sizes of
    the sources and the length of the run where they are left out.

    Args:
        section: the section of the file.
        sizes: tokens of the training part of every source, in order; {} where the names are not known. Unknown sizes
            do for a check of the arguments; a mixer that is to run needs them where `epoch_cap` is used.
        steps: length of the run.
        total_tokens: that the run draws.
        origin: names the file in errors.
    """
    origin, names = origin or Origin(), tuple(sizes) or None
    place, given = "mixer", dict[str, Any](section.options)

    def checked(mixer: Mixer) -> Mixer:
        if names:
            # Some bounds depend on the number of domains; an abstract start checks them and computes nothing.
            jax.eval_shape(lambda: mixer.init(jax.random.key(0), len(names)))
        return mixer

    try:
        factory = mixers.registry.get(section.name)
        options = {k: by_name(v, names, origin(f"mixer.{k}")) for k, v in section.options.items()}
        if "total_steps" in inspect.signature(factory).parameters:
            options.setdefault("total_steps", steps)
        mixer = checked(mixers.build(section.name, options))
        for i, entry in enumerate(section.wrap):
            ((name, value),) = entry.items()
            place, given = f"mixer.wrap[{i}].{name}", dict(value) if isinstance(value, Mapping) else {}
            mixer = checked(wrap_with(mixer, [_complete_wrapper(entry, sizes, total_tokens, origin, place)]))
        return mixer
    except ConfigError as error:
        raise place_argument(error, origin, place, given) from None


def place_argument(error: ConfigError, origin: Origin, section: str, given: Mapping[str, Any]) -> ConfigError:
    """The error of a factory, which names itself and its argument, with the place of that argument in the file."""
    argument = re.match(r"\w+\((\w+)\)", error.where or "")
    if argument is None:
        return origin.explain(error)
    place = f"{section}.{argument[1]}" if argument[1] in given else section
    return ConfigError(error.what, where=origin(place), fix=error.fix)


def make_drawing_mixer(
    section: MixerConfig,
    prior: Mapping[str, float],
    sizes: Mapping[str, float | None],
    *,
    steps: int,
    total_tokens: float,
) -> Mixer:
    """The mixer, with the sources of weight 0 hidden from it where it would draw them: they are for evaluation.

    Hidden from every mixer that learns: exploration, floors and validation losses reach for all sources. A mixer
    that needs no signal draws what is written down for it, a schedule also sources whose prior is 0; they are
    hidden if its wrappers alone would draw them.

    Args:
        section: the section of the file.
        prior: weight of every source, in order.
        sizes: tokens of the training part of every source, in the same order.
        steps, total_tokens: of the run.

    Raises:
        ConfigError: the mixer's arguments are wrong, or what is given per source does not fit the drawn ones alone.
    """
    make = functools.partial(make_mixer, steps=steps, total_tokens=total_tokens)
    mixer, is_active = make(section, sizes), [weight > 0 for weight in prior.values()]
    # Whether wrappers around a mixer that needs no signal draw what it would not draw alone.
    wrappers_draw = _draws(mixer, prior) and not _draws(make(dataclasses.replace(section, wrap=()), sizes), prior)
    if all(is_active) or not (mixer.needs or wrappers_draw):
        return mixer
    own = dataclasses.replace(
        section,
        options=_of_active(section.options, tuple(prior), is_active),
        wrap=tuple(_of_active(entry, tuple(prior), is_active) for entry in section.wrap),
    )
    drawn = {name: sizes[name] for name, weight in prior.items() if weight > 0}
    try:
        return mixers.mask(make(own, drawn), is_active)
    except ConfigError as error:
        hidden = next(name for name in prior if name not in drawn)
        why = f"Source {hidden!r} has weight 0 and is hidden from the mixer: what is left must fit the others."
        raise ConfigError(error.what, where=error.where, fix=why) from None


def inactive_names(plain: Mapping[str, Any]) -> list[str]:
    """The sources that a written configuration keeps for evaluation, by name."""
    weights = plain.get("mixture", {}).get("weights")
    return sorted(name for name, weight in weights.items() if weight == 0) if isinstance(weights, Mapping) else []


def by_name(value: Any, names: Sequence[str] | None, where: str) -> Any:
    """Values given by source name as a list in the order of the sources: vectors, matrices, points of a schedule."""
    order = names if names is not None else tuple(value) if isinstance(value, Mapping) else ()
    if isinstance(value, Mapping) and value and all(isinstance(v, (int, float)) for v in value.values()):
        return values_in_order(value, order, where)
    if isinstance(value, Mapping) and value and all(isinstance(v, Mapping) for v in value.values()):
        return [by_name(row, order, where) for row in values_in_order(value, order, where)]
    if isinstance(value, (list, tuple)):
        return [
            {k: by_name(v, names, where) for k, v in item.items()} if isinstance(item, Mapping) else item
            for item in value
        ]
    return value


def _complete_wrapper(
    entry: Mapping[str, Any], sizes: Mapping[str, float | None], total_tokens: float, origin: Origin, path: str
) -> dict[str, Any]:
    """One wrapper with named weights in order, and `epoch_cap` with the sizes that the run knows."""
    ((name, value),) = entry.items()
    given = value if isinstance(value, Mapping) else {first_argument(name): value}
    options = {k: by_name(v, tuple(sizes) or None, origin(path)) for k, v in given.items()}
    if name == "epoch_cap":
        known = [size for size in sizes.values() if size is not None]
        is_known = bool(known) and len(known) == len(sizes)
        # For a check of the other arguments before the sizes are known, no source can be too small.
        options.setdefault("available_tokens", known if is_known else [max(total_tokens, 1.0)] * max(len(sizes), 1))
        options.setdefault("total_tokens", total_tokens)
    return {name: options}


def _draws(mixer: Mixer, prior: Mapping[str, float]) -> bool:
    """Whether a mixer starts by drawing a source of weight 0."""
    start = mixer.init(jax.random.key(0), len(prior), jnp.asarray(list(prior.values()), jnp.result_type(float)))
    weights = mixer.weights(start).tolist()
    return any(weight > 0 for weight, share in zip(weights, prior.values(), strict=True) if share == 0)


def _of_active(value: Any, names: Sequence[str], is_active: Sequence[bool]) -> Any:
    """An argument without the values of inactive sources, given by name or as one value per source."""
    if isinstance(value, Mapping):
        active = dict(zip(names, is_active, strict=True))
        is_by_name = bool(value) and set(value) <= set(names)
        return {k: _of_active(v, names, is_active) for k, v in value.items() if not is_by_name or active[k]}
    if isinstance(value, (list, tuple)):
        is_per_source = len(value) == len(names) and all(_is_value(v, len(names)) for v in value)
        kept = [v for i, v in enumerate(value) if not is_per_source or is_active[i]]
        return [_of_active(v, names, is_active) for v in kept]
    return value


def _is_value(value: Any, length: int) -> bool:
    """A number, or the row of a matrix over the sources."""
    return isinstance(value, (int, float)) or (isinstance(value, (list, tuple)) and len(value) == length)
