"""Weights that never change: the baseline of every comparison."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from jaxmix.core.errors import ConfigError
from jaxmix.core.pytree import state
from jaxmix.core.schedule import check_weights
from jaxmix.core.types import PRNGKeyArray, Weights
from jaxmix.mixers.base import Feedback, Mixer, MixerInfo, initial_weights, registry

__all__ = ["StaticState", "static"]


@state(version=1)
class StaticState:
    """Attributes:
    weights: f32[m].
    """

    weights: Any


@registry.register
def static(weights: Sequence[float] | None = None) -> Mixer:
    """A mixer whose weights stay as they are.

    Args:
        weights: m numbers ≥ 0 that add to 1; the prior given to `init` if `None`.

    Returns:
        A mixer that needs no signals. `info.score` is 0: it has no opinion.

    Raises:
        ConfigError: the weights are not on the simplex, or (in `init`) their number is not that of the domains.

    Example:
        >>> import jax
        >>> mixer = static([0.75, 0.25])
        >>> mixer.weights(mixer.init(jax.random.key(0), 2)).tolist()
        [0.75, 0.25]
    """
    fixed = None if weights is None else check_weights(weights, where="static(weights)")

    def init(key: PRNGKeyArray, num_domains: int, prior: Weights | None = None) -> StaticState:
        del key
        if fixed is None:
            return StaticState(weights=initial_weights(num_domains, prior))
        if len(fixed) != num_domains:
            raise ConfigError(
                f"{len(fixed)} weights for {num_domains} domains",
                where="static(weights)",
                fix="Give one weight per source, in the order of the sources.",
            )
        return StaticState(weights=jnp.asarray(fixed, jnp.float32))

    def update(key: PRNGKeyArray, state: StaticState, feedback: Feedback) -> tuple[StaticState, MixerInfo]:
        del key, feedback
        return state, MixerInfo(score=jnp.zeros_like(state.weights), extra={})

    return Mixer(init=init, update=update, weights=lambda state: state.weights, name="static")
