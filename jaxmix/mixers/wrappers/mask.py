"""The wrapper that hides domains which are only evaluated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmix.core.errors import ConfigError
from jaxmix.core.types import Array, PRNGKeyArray, Weights
from jaxmix.core.validate import check_one_per_domain
from jaxmix.mixers.base import Feedback, Mixer, MixerInfo
from jaxmix.mixers.wrappers.base import InnerState, wrapped


def mask(mixer: Mixer, active: Sequence[bool]) -> Mixer:
    """Shows the mixer the active domains alone; the others have a weight of exactly 0.

    The inner mixer never learns that there are other domains. Its prior is the given one on the active domains,
    scaled to add to 1; of every signal it sees the active domains' rows and columns. Arguments that it was built with
    per domain (targets, token counts, …) must be those of the active domains alone.

    Args:
        mixer: the inner mixer, with all its wrappers.
        active: one entry per domain; false for those that are only evaluated.

    Returns:
        The mixer itself if all domains are active. Otherwise a mixer of `len(active)` domains. For the hidden ones
        `info.score` is 0, values in `info.extra` are nan (0 in whole numbers), and `loss_weights` are 1. An axis of
        `info.extra` counts domains if it is as long as there are active domains.

    Raises:
        ConfigError: no domain is active; `init` is given another number of domains.
    """
    total, shown = len(active), np.flatnonzero(np.asarray(active, bool))
    if not len(shown):
        raise ConfigError(
            "no domain is active, so none can be drawn", where="mask(active)", fix="Leave at least one active."
        )
    if len(shown) == total:
        return mixer

    def init(key: PRNGKeyArray, num_domains: int, prior: Weights | None = None) -> InnerState:
        check_one_per_domain(total, num_domains, "mask(active)", "values")
        if prior is not None:
            prior = _gather(jnp.asarray(prior, jnp.result_type(float)), shown)
            prior = prior / jnp.sum(prior)
        return InnerState(inner=mixer.init(key, len(shown), prior))

    def update(key: PRNGKeyArray, state: InnerState, feedback: Feedback) -> tuple[InnerState, MixerInfo]:
        # Every axis of every signal counts domains, see `Feedback`.
        own = jax.tree.map(lambda leaf: _gather(leaf, shown), feedback)
        inner, info = mixer.update(key, state.inner, own)
        extra = {name: _spread(jnp.asarray(value), shown, total) for name, value in info.extra.items()}
        return InnerState(inner=inner), MixerInfo(score=_scatter(info.score, shown, total, 0.0), extra=extra)

    def scattered(function: Any, fill: float) -> Any:
        return function and (lambda state: _scatter(function(state.inner), shown, total, fill))

    return wrapped(
        mixer,
        "mask",
        init=init,
        update=update,
        weights=scattered(mixer.weights, 0.0),
        loss_weights=scattered(mixer.loss_weights, 1.0),
        final=scattered(mixer.final, 0.0),
    )


def _gather(leaf: Array, active: np.ndarray) -> Array:
    """The active domains' part of an array whose axes all count domains."""
    return leaf[np.ix_(*[active] * leaf.ndim)] if leaf.ndim else leaf


def _scatter(values: Array, active: np.ndarray, total: int, fill: float) -> Array:
    """A vector of the active domains as one of all."""
    return jnp.full((total,), fill, values.dtype).at[active].set(values)


def _spread(values: Array, active: np.ndarray, total: int) -> Array:
    """An array of the inner mixer over all domains: the hidden ones are nan (or 0) along every axis of domains."""
    fill = jnp.nan if jnp.issubdtype(values.dtype, jnp.floating) else 0
    shape = tuple(total if size == len(active) else size for size in values.shape)
    if shape == values.shape:
        return values
    index = [active if size == len(active) else np.arange(size) for size in values.shape]
    return jnp.full(shape, fill, values.dtype).at[np.ix_(*index)].set(values)
