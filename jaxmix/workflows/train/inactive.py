"""Sources of weight 0 are kept for evaluation: a mixer that would draw them never learns that they exist."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jaxmix.core.errors import ConfigError
from jaxmix.workflows.config.resolve import resolve_mixer
from jaxmix.workflows.config.sections import RunConfig

if TYPE_CHECKING:
    from jaxmix.mixers.base import Mixer


def resolve_drawing_mixer(config: RunConfig, prior: Mapping[str, float], sizes: Mapping[str, float | None]) -> Mixer:
    """The run's mixer, with the sources of weight 0 hidden from it where it would draw them.

    Hidden from every mixer that learns: exploration, floors and validation losses reach for all sources. A mixer
    that needs no signal draws what is written down for it, a schedule also sources whose prior is 0; they are
    hidden if its wrappers alone would draw them.

    Args:
        config: the run.
        prior: weight of every source, in order.
        sizes: tokens of the training part of every source, in the same order.

    Raises:
        ConfigError: the mixer's arguments are wrong, or what is given per source does not fit the drawn ones alone.
    """
    from jaxmix.mixers import mask

    mixer = resolve_mixer(config, sizes=sizes)
    is_active = [weight > 0 for weight in prior.values()]
    if all(is_active) or not (mixer.needs or _wrappers_draw(config, mixer, prior, sizes)):
        return mixer
    own = dataclasses.replace(
        config.mixer,
        options=_of_active(config.mixer.options, tuple(prior), is_active),
        wrap=tuple(_of_active(entry, tuple(prior), is_active) for entry in config.mixer.wrap),
    )
    drawn = {name: sizes[name] for name, weight in prior.items() if weight > 0}
    try:
        return mask(resolve_mixer(dataclasses.replace(config, mixer=own), sizes=drawn), is_active)
    except ConfigError as error:
        hidden = next(name for name in prior if name not in drawn)
        why = f"Source {hidden!r} has weight 0 and is hidden from the mixer: what is left must fit the others."
        raise ConfigError(error.what, where=error.where, fix=why) from None


def kept_out_names(plain: Mapping[str, Any]) -> list[str]:
    """The sources that a written configuration keeps for evaluation, by name."""
    weights = plain.get("mixture", {}).get("weights")
    return sorted(name for name, weight in weights.items() if weight == 0) if isinstance(weights, Mapping) else []


def _wrappers_draw(
    config: RunConfig, mixer: Mixer, prior: Mapping[str, float], sizes: Mapping[str, float | None]
) -> bool:
    """Whether a mixer that needs no signal starts by drawing a source of weight 0, and without wrappers would not."""
    bare = dataclasses.replace(config, mixer=dataclasses.replace(config.mixer, wrap=()))
    return _draws(mixer, prior) and not _draws(resolve_mixer(bare, sizes=sizes), prior)


def _draws(mixer: Mixer, prior: Mapping[str, float]) -> bool:
    import jax
    import jax.numpy as jnp

    start = mixer.init(jax.random.key(0), len(prior), jnp.asarray(list(prior.values()), jnp.result_type(float)))
    weights = mixer.weights(start).tolist()
    return any(weight > 0 for weight, share in zip(weights, prior.values(), strict=True) if share == 0)


def _of_active(value: Any, names: Sequence[str], is_active: Sequence[bool]) -> Any:
    """An argument without the figures of sources that are kept out, given by name or as one number per source."""
    if isinstance(value, Mapping):
        active = dict(zip(names, is_active, strict=True))
        is_by_name = bool(value) and set(value) <= set(names)
        return {k: _of_active(v, names, is_active) for k, v in value.items() if not is_by_name or active[k]}
    if isinstance(value, (list, tuple)):
        is_per_source = len(value) == len(names) and all(_is_figure(v, len(names)) for v in value)
        kept = [v for i, v in enumerate(value) if not is_per_source or is_active[i]]
        return [_of_active(v, names, is_active) for v in kept]
    return value


def _is_figure(value: Any, length: int) -> bool:
    """A number, or the row of a matrix over the sources."""
    return isinstance(value, (int, float)) or (isinstance(value, (list, tuple)) and len(value) == length)
