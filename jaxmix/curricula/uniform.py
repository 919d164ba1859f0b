"""Curricula that ignore the rewards when they draw: uniform over clusters or over the pool, and DAPO's filtering."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp

from jaxmix.core.errors import ConfigError
from jaxmix.core.pytree import state
from jaxmix.core.types import Array, Bool, Float
from jaxmix.core.validate import Count, Share, check_number, checked
from jaxmix.curricula.base import (
    Bandit,
    Counts,
    check_per_arm,
    counting_update,
    independent_slots,
    initial_counts,
    registry,
)

OVERSAMPLING = 3
"""DAPO generates batches of so many times the training batch, "gen_prompt_bsz" in its recipe, …"""
MAX_REFILLS = 10
"""… and at most so many of them until the training batch is full."""


@state(version=1)
class CountState(Counts):
    """State of the bandits that only count."""


@registry.register
@checked
def uniform(num_arms: Count, *, sizes: Sequence[float] | None = None) -> Bandit:
    """Uniform over arms, or over the pool of prompts: `P_k = 1 / K`, or `P_k = size_k / Σ size`.

    Args:
        num_arms: K ≥ 1.
        sizes: prompts of each arm, ≥ 0 and not all 0: draws as if arms did not exist. `None`: all arms alike.

    Raises:
        ConfigError: sizes negative, all 0, or not one per arm.

    Example:
        >>> uniform(2, sizes=[30, 10]).probabilities(uniform(2).init()).tolist()
        [0.75, 0.25]
    """
    return _counting(num_arms, sizes, "uniform")


@registry.register
@checked
def dapo(num_arms: Count, *, sizes: Sequence[float] | None = None, low: Share = 0.0, high: float = 1.0) -> Bandit:
    """DAPO's dynamic sampling: draws uniformly and trains on the groups that are neither all solved nor all failed.

    `keep` is `std(r_b) > 0`, and `low < q_b < high` for a narrower band around one half (online difficulty filtering).
    The trainer generates batches of `OVERSAMPLING` times its own until enough groups are kept, at most `MAX_REFILLS`,
    drops the surplus, and trains on what there is. This buys gradient quality, not rollouts.

    Args:
        num_arms: K ≥ 1.
        sizes: as in `uniform`.
        low, high: bounds of the solve rate, 0 ≤ low < high ≤ 1, both excluded.

    Example:
        >>> dapo(1).keep(jnp.array([[0.0, 0.0], [0.0, 1.0], [1.0, 1.0]])).tolist()
        [False, True, False]

    References:
        Yu et al., arXiv 2503.14476, section 3.2; online difficulty filtering: arXiv 2504.03380.
    """
    check_number("dapo", "high", high, at_most=1.0, above=low)

    def keep(rewards: Float[Array, "b g"], valid: Bool[Array, " b"] | None = None) -> Bool[Array, " b"]:
        solve_rate = jnp.mean(rewards, axis=1)
        return live_groups(rewards, valid) & (solve_rate > low) & (solve_rate < high)

    return _counting(num_arms, sizes, "dapo")._replace(keep=keep)


def live_groups(rewards: Float[Array, "b g"], valid: Bool[Array, " b"] | None = None) -> Bool[Array, " b"]:
    """Groups that have a gradient: valid, finite, and not all rewards alike."""
    is_live = jnp.any(rewards != rewards[:, :1], axis=1) & jnp.all(jnp.isfinite(rewards), axis=1)
    return is_live if valid is None else is_live & valid


def _counting(num_arms: int, sizes: Sequence[float] | None, name: str) -> Bandit:
    weights = (1.0,) * num_arms if sizes is None else check_per_arm(name, "sizes", sizes, num_arms, 0.0)
    total = sum(weights)
    if total <= 0:
        raise ConfigError("all sizes are 0", where=f"{name}(sizes)", fix="Give the number of prompts of each arm.")
    shares = tuple(weight / total for weight in weights)

    def init() -> CountState:
        return CountState(**initial_counts(num_arms))

    def probabilities(state: CountState) -> Float[Array, " k"]:
        del state
        return jnp.asarray(shares, jnp.float32)

    sample, update = independent_slots(probabilities), counting_update(num_arms)
    return Bandit(init, sample, update, probabilities, num_arms=num_arms, name=name)
