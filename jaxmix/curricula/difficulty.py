"""Curricula by difficulty labels: staged easy-to-hard, AdaRFT, DOTS."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxmix.core.errors import ConfigError
from jaxmix.core.pytree import state
from jaxmix.core.types import Array, Bool, Float, Int, PRNGKeyArray
from jaxmix.core.validate import Count, NonNegative, Positive, Rate, Share, check_number, checked
from jaxmix.curricula.base import (
    ArmSums,
    Bandit,
    Counts,
    check_per_arm,
    counting_update,
    first_visit_average,
    initial_counts,
    registry,
    sample_arms,
)


@state(version=1)
class StagedState(Counts):
    """State of `staged`.

    Attributes:
        stage: place in the order of the arm that is trained now.
        accuracy: its running solve rate.
        is_seen: whether it had a slot since its stage began.
        stage_updates: updates since then.
    """

    stage: Int[Array, ""]
    accuracy: Float[Array, ""]
    is_seen: Bool[Array, ""]
    stage_updates: Int[Array, ""]


@state(version=1)
class AdarftState(Counts):
    """State of `adarft`.

    Attributes:
        target: the difficulty that is asked for now.
    """

    target: Float[Array, ""]


@state(version=1)
class DotsState(Counts):
    """State of `dots`.

    Attributes:
        difficulty: failure rate of each arm: predicted, and measured once it was drawn.
    """

    difficulty: Float[Array, " k"]


@registry.register
@checked
def staged(
    num_arms: Count,
    *,
    order: Sequence[int] | None = None,
    threshold: Share = 0.8,
    averaging: Rate = 0.3,
    updates_per_stage: Count | None = None,
) -> Bandit:
    """Easy-to-hard in stages: all slots on one arm until it is solved well enough, then on the next.

        a ← a + ρ (q − a),   q at the first visit;   next arm when a ≥ threshold

    with q the mean solve rate of the batch's slots on the arm. The last arm stays for good.

    Args:
        num_arms: K ≥ 1.
        order: the arms from easy to hard, each once; `None`: 0, 1, …
        threshold: in [0, 1].
        averaging: ρ in (0, 1], weight of the newest batch in the running accuracy.
        updates_per_stage: a fixed schedule in the place of the threshold.

    Returns:
        A bandit; its state has `stage`, the place in the order.

    Example:
        >>> bandit = staged(3, order=[2, 0, 1])
        >>> state = bandit.update(bandit.init(), jnp.array([2]), jnp.array([[1.0, 1.0]]))
        >>> bandit.sample(jax.random.key(0), state, 2).tolist()
        [0, 0]
    """
    places = tuple(range(num_arms)) if order is None else tuple(order)
    if sorted(places) != list(range(num_arms)):
        raise ConfigError(
            f"order {list(places)} does not name each of the arms 0 … {num_arms - 1} once", where="staged(order)"
        )

    def init() -> StagedState:
        return StagedState(
            stage=jnp.int32(0),
            accuracy=jnp.float32(0.0),
            is_seen=jnp.bool_(False),
            stage_updates=jnp.int32(0),
            **initial_counts(num_arms),
        )

    def current(state: StagedState) -> Int[Array, ""]:
        return jnp.asarray(places, jnp.int32)[state.stage]

    def sample(key: PRNGKeyArray, state: StagedState, batch: int) -> Int[Array, " b"]:
        del key
        return jnp.broadcast_to(current(state), (batch,))

    def learn(state: StagedState, sums: ArmSums, _: Array) -> dict[str, Array]:
        arm = current(state)
        is_drawn = sums.is_drawn[arm]
        accuracy = first_visit_average(state.accuracy, sums.solve_rate[arm], averaging, state.is_seen, is_drawn)
        updates = state.stage_updates + jnp.any(sums.is_drawn).astype(jnp.int32)
        is_seen = state.is_seen | is_drawn
        is_done = is_seen & (accuracy >= threshold) if updates_per_stage is None else updates >= updates_per_stage
        moves = is_done & (state.stage < num_arms - 1)
        return {
            "stage": state.stage + moves.astype(jnp.int32),
            "accuracy": jnp.where(moves, 0.0, accuracy),
            "is_seen": is_seen & ~moves,
            "stage_updates": jnp.where(moves, 0, updates),
        }

    probabilities = lambda state: jax.nn.one_hot(current(state), num_arms, dtype=jnp.float32)
    update = counting_update(num_arms, learn)
    return Bandit(init, sample, update, probabilities, num_arms=num_arms, name="staged")


@registry.register
@checked
def adarft(
    num_arms: Count,
    *,
    difficulty: Sequence[float] | None = None,
    prompts_per_arm: Count = 1,
    initial_target: float = 0.0,
    step_size: NonNegative = 50.0,
    sensitivity: NonNegative = 2.0,
    target_reward: Share = 0.5,
) -> Bandit:
    """AdaRFT: the prompts whose label is nearest to a difficulty that follows the reward.

        batch: the B prompts with the smallest |d_i − T|, no randomness
        T ← clip(T + 50 tanh(2 (R − 0.5)), 0, 100)

    T = `target`, R the mean reward of the batch, 50 = `step_size`, 2 = `sensitivity`, 0.5 = `target_reward`.

    Args:
        num_arms: K ≥ 1; the method's own arms are prompts.
        difficulty: d_i of each arm in [0, 100]; `None`: arms are ordered from easy to hard at equal distances.
        prompts_per_arm: with clusters as arms, how many prompts an arm holds: so many slots go to the nearest arm
            before the next nearest gets one. A batch larger than the pool starts again at the nearest.
        initial_target: in [0, 100].
        step_size: ≥ 0.
        sensitivity: ≥ 0.
        target_reward: in [0, 1].

    Returns:
        A bandit; ties in distance go to the lower arm.

    Example:
        >>> bandit = adarft(3, difficulty=[0.0, 50.0, 100.0])
        >>> bandit.sample(jax.random.key(0), bandit.init(), 2).tolist()
        [0, 1]

    References:
        Shi et al., arXiv 2504.05520; github.com/limenlp/verl.
    """
    check_number("adarft", "initial_target", initial_target, 0.0, 100.0)
    labels = _labels("adarft", difficulty, num_arms, 100.0)

    def init() -> AdarftState:
        return AdarftState(target=jnp.float32(initial_target), **initial_counts(num_arms))

    def distance(state: AdarftState) -> Float[Array, " k"]:
        return jnp.abs(jnp.asarray(labels, jnp.float32) - state.target)

    def nearest_first(state: AdarftState) -> Int[Array, " k"]:
        return jnp.argsort(distance(state), stable=True).astype(jnp.int32)

    def sample(key: PRNGKeyArray, state: AdarftState, batch: int) -> Int[Array, " b"]:
        del key
        return nearest_first(state)[(jnp.arange(batch) // prompts_per_arm) % num_arms]

    def learn(state: AdarftState, sums: ArmSums, _: Array) -> dict[str, Array]:
        slots = jnp.sum(sums.slots)
        reward = jnp.sum(sums.solve) / jnp.maximum(slots, 1.0)
        moved = jnp.clip(state.target + step_size * jnp.tanh(sensitivity * (reward - target_reward)), 0.0, 100.0)
        return {"target": jnp.where(slots > 0, moved, state.target)}

    probabilities = lambda state: jax.nn.one_hot(nearest_first(state)[0], num_arms, dtype=jnp.float32)
    scores, update = lambda state: {"score": -distance(state)}, counting_update(num_arms, learn)
    return Bandit(init, sample, update, probabilities, scores, num_arms=num_arms, name="adarft")


@registry.register
@checked
def dots(
    num_arms: Count,
    *,
    difficulty: Sequence[float] | None = None,
    temperature: Positive = 0.001,
    target: Share = 0.5,
    distinct: bool = True,
) -> Bandit:
    """DOTS' rule: prompts whose predicted failure rate is near one half.

        P(i) ∝ exp(−|d_i − 0.5| / 0.001), without replacement

    Args:
        num_arms: K ≥ 1; the method's own arms are prompts.
        difficulty: d_i in [0, 1] of each arm, as predicted; `None`: 0.5 for all.
        temperature: > 0.
        target: in [0, 1].
        distinct: True draws each arm at most once per batch (a batch larger than K repeats the order);
            False draws slots independently, for arms that hold many prompts.

    Returns:
        A bandit; `scores` has `difficulty`. A drawn arm's prediction is replaced by the failure rate it measured.

    Differs from the paper: there, a predictor renews all d_i from 256 prompts rolled out now and then, and half of each
    batch are stored rollouts; both belong to a trainer. Here d_i changes only where rollouts were made.

    Example:
        >>> bandit = dots(3, difficulty=[0.1, 0.5, 0.9])
        >>> bandit.sample(jax.random.key(0), bandit.init(), 1).tolist()
        [1]

    References:
        Sun et al., arXiv 2506.05316; github.com/ASTRAL-Group/data-efficient-llm-rl.
    """
    labels = (0.5,) * num_arms if difficulty is None else _labels("dots", difficulty, num_arms, 1.0)

    def init() -> DotsState:
        return DotsState(difficulty=jnp.asarray(labels, jnp.float32), **initial_counts(num_arms))

    def logits(state: DotsState) -> Float[Array, " k"]:
        return -jnp.abs(state.difficulty - target) / temperature

    def probabilities(state: DotsState) -> Float[Array, " k"]:
        return jax.nn.softmax(logits(state))

    def sample(key: PRNGKeyArray, state: DotsState, batch: int) -> Int[Array, " b"]:
        if not distinct:
            return sample_arms(key, probabilities(state), batch)
        # The order of log P plus Gumbel noise is that of draws without replacement.
        order = jnp.argsort(-(logits(state) + jax.random.gumbel(key, (num_arms,), jnp.float32)))
        return order[jnp.arange(batch) % num_arms].astype(jnp.int32)

    def learn(state: DotsState, sums: ArmSums, _: Array) -> dict[str, Array]:
        return {"difficulty": jnp.where(sums.is_drawn, 1.0 - sums.solve_rate, state.difficulty)}

    scores, update = lambda state: {"difficulty": state.difficulty}, counting_update(num_arms, learn)
    return Bandit(init, sample, update, probabilities, scores, num_arms=num_arms, name="dots")


def _labels(name: str, difficulty: Sequence[float] | None, num_arms: int, most: float) -> tuple[float, ...]:
    if difficulty is None:
        return tuple(most * arm / max(num_arms - 1, 1) for arm in range(num_arms))
    return check_per_arm(name, "difficulty", difficulty, num_arms, 0.0, most)
