"""Weights that never change: the baselines of every comparison."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp

from jaxmix.core.pytree import state
from jaxmix.core.simplex import normalize
from jaxmix.core.types import PRNGKeyArray, Weights
from jaxmix.core.validate import Positive, check_one_per_domain, check_simplex, checked
from jaxmix.mixers.base import Feedback, Mixer, MixerInfo, initial_weights, registry
from jaxmix.mixers.wrappers.bounds import tempered


@state(version=1)
class StaticState:
    """Attributes:
    weights: f32[m].
    """

    weights: Weights


@registry.register
@checked
def static(weights: Sequence[float] | None = None, *, temperature: Positive = 1.0) -> Mixer:
    """A mixer whose weights stay as they are: `p ∝ q^(1/temperature)`.

    Args:
        weights: q, m numbers ≥ 0 that add to 1; the prior given to `init` if `None`.
        temperature: > 0. With a prior of token shares, 1 is natural sampling, larger values favor small domains
            (multilingual models use 1/0.3 to 1/0.7), and the limit is `stratified`. A weight of 0 stays 0.

    Returns:
        A mixer that needs no signals. `info.score` is 0: it has no opinion.

    Raises:
        ConfigError: the weights are not on the simplex, the temperature is not above 0, or (in `init`) the number of
            weights is not that of the domains.

    Example:
        >>> import jax
        >>> mixer = static([0.75, 0.25])
        >>> mixer.weights(mixer.init(jax.random.key(0), 2)).tolist()
        [0.75, 0.25]
    """
    fixed = None if weights is None else check_simplex(weights, "static(weights)")

    def init(key: PRNGKeyArray, num_domains: int, prior: Weights | None = None) -> StaticState:
        del key
        if fixed is None:
            chosen = initial_weights(num_domains, prior)
        else:
            check_one_per_domain(len(fixed), num_domains, "static(weights)")
            chosen = jnp.asarray(fixed, jnp.result_type(float))
        return StaticState(weights=tempered(chosen, temperature))

    return Mixer(init=init, update=_stay, weights=lambda state: state.weights, name="static")


@registry.register
def stratified() -> Mixer:
    """A mixer that draws all domains equally often, whatever the prior: the reference of most comparisons.

    A domain whose prior is 0 keeps 0, since that is how a source is kept for evaluation only.

    Returns:
        A mixer that needs no signals. `info.score` is 0: it has no opinion.

    Example:
        >>> import jax
        >>> mixer = stratified()
        >>> state = mixer.init(jax.random.key(0), 4, jnp.array([0.7, 0.2, 0.1, 0.0]))
        >>> [round(w, 3) for w in mixer.weights(state).tolist()]
        [0.333, 0.333, 0.333, 0.0]
    """

    def init(key: PRNGKeyArray, num_domains: int, prior: Weights | None = None) -> StaticState:
        del key
        weights = initial_weights(num_domains, prior)
        return StaticState(weights=normalize((weights > 0).astype(weights.dtype)))

    return Mixer(init=init, update=_stay, weights=lambda state: state.weights, name="stratified")


def _stay(key: PRNGKeyArray, state: StaticState, feedback: Feedback) -> tuple[StaticState, MixerInfo]:
    del key, feedback
    return state, MixerInfo(score=jnp.zeros_like(state.weights), extra={})
