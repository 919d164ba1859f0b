"""Weights that follow a written schedule in steps or tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxmix.core.counter import Counter, add, counter, total
from jaxmix.core.errors import ConfigError
from jaxmix.core.pytree import state
from jaxmix.core.schedule import MixtureSchedule, mixture_schedule, schedule_weights
from jaxmix.core.types import PRNGKeyArray, Weights
from jaxmix.mixers.base import Feedback, Mixer, MixerInfo, initial_weights, registry, require


@state(version=1)
class ScheduledState:
    """Attributes:
    position: i32 counter of what has been trained so far, in the schedule's unit.
    prior: f32[m], what the row "prior" stands for.
    """

    position: Counter
    prior: Weights


@registry.register
def scheduled(
    schedule: MixtureSchedule | None = None,
    *,
    points: Sequence[Mapping[str, Any]] | None = None,
    interpolation: str = "step",
    unit: str = "steps",
) -> Mixer:
    """A mixer whose weights follow a schedule.

    Args:
        schedule: a `MixtureSchedule`; or the arguments of `jaxmix.core.schedule.mixture_schedule`:
        points: list of `{at, weights}`; weights are m numbers that add to 1, "prior" or "uniform".
        interpolation: "step", "linear" or "cosine".
        unit: "steps" or "tokens". With "tokens" the mixer needs `token_count` and adds up all domains' counts.

    Returns:
        A mixer whose weights after s updates are the schedule's at position s (or at the tokens seen), exactly
        from the boundary on. The prior given to `init` acts only through the row "prior". `info.score` is 0.

    Raises:
        ConfigError: a point is wrong; or (in `init`) its number of weights is not that of the domains.

    Example:
        >>> import jax
        >>> mixer = scheduled(points=[{"at": 0, "weights": [1, 0]}, {"at": 1, "weights": [0.5, 0.5]}])
        >>> key = jax.random.key(0)
        >>> state = mixer.init(key, 2)
        >>> state, info = mixer.update(key, state, Feedback())
        >>> mixer.weights(state).tolist()
        [0.5, 0.5]
    """
    if (schedule is None) == (points is None):
        raise ConfigError(
            "give either a schedule or points",
            where="scheduled(points)",
            fix="For example points: [{at: 0, weights: prior}].",
        )
    if schedule is None:
        schedule = mixture_schedule(points or (), interpolation=interpolation, unit=unit, where="scheduled")
    plan, in_tokens = schedule, schedule.unit == "tokens"
    needs = frozenset({"token_count"} if in_tokens else ())

    def init(key: PRNGKeyArray, num_domains: int, prior: Weights | None = None) -> ScheduledState:
        del key
        state = ScheduledState(position=counter(0), prior=initial_weights(num_domains, prior))
        weights(state)  # a row of the wrong length is an error here and not in the middle of a trace
        return state

    def weights(state: ScheduledState) -> Weights:
        return schedule_weights(plan, state.position, state.prior)

    def update(key: PRNGKeyArray, state: ScheduledState, feedback: Feedback) -> tuple[ScheduledState, MixerInfo]:
        del key
        require(feedback, needs, "scheduled")
        position = state.position
        if in_tokens:
            # Added domain by domain: each count is exact in float32, their sum may not be.
            counts = add(counter(np.zeros(state.prior.shape, np.int64)), feedback.token_count)
            position = add(position, total(counts))
        else:
            position = add(position, jnp.int32(1))
        return ScheduledState(position, state.prior), MixerInfo(score=jnp.zeros_like(state.prior), extra={})

    return Mixer(init=init, update=update, weights=weights, needs=needs, name="scheduled", schedule=plan)
