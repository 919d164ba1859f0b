"""Hides domains from a mixer that are there for evaluation only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmix.core.errors import ConfigError
from jaxmix.core.types import Array, PRNGKeyArray, Weights
from jaxmix.mixers.base import Feedback, Mixer, MixerInfo
from jaxmix.mixers.wrappers.base import InnerState, lift


def keep_out(mixer: Mixer, is_active: Sequence[bool]) -> Mixer:
    """A mixer of the active domains alone, whatever it would do with the others: those have exactly 0 weight.

    The inner mixer never learns that there are other domains. Its prior is the given one on the active domains,
    scaled to add to 1; of every signal it sees the active domains' rows and columns. What it was built with per
    domain (targets, token counts, …) is of the active domains only.

    Args:
        mixer: the inner mixer, with all its wrappers.
        is_active: one entry per domain; false for those that are kept for evaluation.

    Returns:
        The mixer itself if all domains are active. Otherwise a mixer of `len(is_active)` domains. Where nothing is
        known of the domains kept out, `info.score` is 0, its other figures are nan (0 in whole numbers), and
        `loss_weights` are 1. An axis of `info.extra` counts domains if it is as long as there are active domains.

    Raises:
        ConfigError: no domain is active; `init` is given another number of domains.
    """
    total = len(is_active)
    active = np.flatnonzero(np.asarray(is_active, bool))
    if not len(active):
        raise ConfigError(
            "all domains are kept out, none is left to draw", where="keep_out(is_active)", fix="Leave one active."
        )
    if len(active) == total:
        return mixer

    def init(key: PRNGKeyArray, num_domains: int, prior: Weights | None = None) -> InnerState:
        if num_domains != total:
            raise ConfigError(f"{total} values for {num_domains} domains", where="keep_out(is_active)")
        own = None
        if prior is not None:
            own = _gather(jnp.asarray(prior, jnp.result_type(float)), active)
            own = own / jnp.sum(own)
        return InnerState(inner=mixer.init(key, len(active), own))

    def update(key: PRNGKeyArray, state: InnerState, feedback: Feedback) -> tuple[InnerState, MixerInfo]:
        # Every axis of every signal counts domains, see `Feedback`.
        own = jax.tree.map(lambda leaf: _gather(leaf, active), feedback)
        inner, info = mixer.update(key, state.inner, own)
        extra = {name: _spread(jnp.asarray(value), active, total) for name, value in info.extra.items()}
        return InnerState(inner=inner), MixerInfo(score=_scatter(info.score, active, total, 0.0), extra=extra)

    def scattered(function: Any, fill: float) -> Any:
        return function and (lambda state: _scatter(function(state.inner), active, total, fill))

    return lift(
        mixer,
        "keep_out",
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
    """A figure of the inner mixer with the domains kept out marked as unknown along every axis of domains."""
    fill = jnp.nan if jnp.issubdtype(values.dtype, jnp.floating) else 0
    shape = tuple(total if size == len(active) else size for size in values.shape)
    if shape == values.shape:
        return values
    index = [active if size == len(active) else np.arange(size) for size in values.shape]
    return jnp.full(shape, fill, values.dtype).at[np.ix_(*index)].set(values)
