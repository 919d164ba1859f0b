"""Wrappers that draw by an average of the weights over time."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from jaxmix.core.pytree import state
from jaxmix.core.simplex import normalize
from jaxmix.core.types import Array, Int, Weights
from jaxmix.core.validate import Decay, checked
from jaxmix.mixers.base import Feedback, Mixer
from jaxmix.mixers.wrappers.base import registry, wrapped


@state(version=1)
class EmaState:
    """Attributes:
    inner: the wrapped mixer's state.
    average: f32[m] on the simplex.
    """

    inner: Any
    average: Weights


@registry.register
@checked
def ema(mixer: Mixer, decay: Decay) -> Mixer:
    """Draws by a moving average of the weights: `average ← decay · average + (1 − decay) · weights`.

    Args:
        mixer: the inner mixer.
        decay: in [0, 1), per update; 0 does nothing. The average starts at the inner mixer's first weights.
    """

    def start(inner: Any, *_: Any) -> EmaState:
        return EmaState(inner=inner, average=mixer.weights(inner))

    def advance(state: EmaState, inner: Any, _: Feedback) -> EmaState:
        average = decay * state.average + (1.0 - decay) * mixer.weights(inner)
        return EmaState(inner=inner, average=normalize(average))

    return wrapped(mixer, "ema", start=start, advance=advance, weights=lambda state: state.average)


@state(version=1)
class TimeAverageState:
    """Attributes:
    inner: the wrapped mixer's state.
    count: i32[], updates so far.
    average: f32[m] on the simplex.
    """

    inner: Any
    count: Int[Array, ""]
    average: Weights


@registry.register
def time_average(mixer: Mixer) -> Mixer:
    """Draws by the mean of all weights so far, the starting weights included: `(q_0 + … + q_t) / (t + 1)`.

    Args:
        mixer: the inner mixer.
    """

    def start(inner: Any, *_: Any) -> TimeAverageState:
        return TimeAverageState(inner=inner, count=jnp.int32(0), average=mixer.weights(inner))

    def advance(state: TimeAverageState, inner: Any, _: Feedback) -> TimeAverageState:
        count = state.count + 1
        share = 1.0 / (count + 1).astype(state.average.dtype)
        average = (1.0 - share) * state.average + share * mixer.weights(inner)
        return TimeAverageState(inner=inner, count=count, average=normalize(average))

    return wrapped(mixer, "time_average", start=start, advance=advance, weights=lambda state: state.average)
