"""Curricula by the size of advantages: DUMP and SEC."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from jaxmix.core.pytree import state
from jaxmix.core.segment import sum_by_domain
from jaxmix.core.types import Array, Bool, Float, Int
from jaxmix.core.validate import Count, Positive, Rate, checked
from jaxmix.curricula.base import (
    ArmSums,
    Bandit,
    Counts,
    counting_update,
    independent_slots,
    initial_counts,
    registry,
)

_EPSILON = 1e-6


@state(version=1)
class DumpState(Counts):
    """State of `dump`.

    Attributes:
        window: the sizes of an arm's latest advantages, a ring.
        rollouts: rollouts so far; the next one is written at this number modulo w.
    """

    window: Float[Array, "k w"]
    rollouts: Int[Array, " k"]


@state(version=1)
class SecState(Counts):
    """State of `sec`.

    Attributes:
        quality: averaged objective Q.
        reward: mean reward at an arm's last visit.
        is_seen: arms that had a slot.
    """

    quality: Float[Array, " k"]
    reward: Float[Array, " k"]
    is_seen: Bool[Array, " k"]


def advantages(rewards: Float[Array, "b g"]) -> Float[Array, "b g"]:
    """`A_bg = (r_bg − q_b) / (std_b + 1e-6)` with the population's deviation; exactly 0 where all are alike."""
    is_alike = jnp.all(rewards == rewards[:, :1], axis=1, keepdims=True)
    centered = rewards - jnp.mean(rewards, axis=1, keepdims=True)
    return jnp.where(is_alike, 0.0, centered / (jnp.std(rewards, axis=1, keepdims=True) + _EPSILON))


@registry.register
@checked
def dump(num_arms: Count, *, window: Count = 300, temperature: Positive = 0.1) -> Bandit:
    """DUMP: an upper confidence bound on the size of an arm's advantages.

        U_k = L_k + sqrt(2 ln(Σ n + 1) / (n_k + 1)),   P = softmax(U / 0.1), slots independent

    L_k = mean |A| over the arm's latest 300 rollouts, n_k = rollouts so far, 300 = `window`, 0.1 = `temperature`.

    Args:
        num_arms: K ≥ 1.
        window: rollouts an arm remembers, ≥ 1.
        temperature: > 0.

    Returns:
        A bandit; `scores` has `advantage` L and `score` U.

    Differs from the paper: the released code renews P only at validation; here it follows every update. With more
    rollouts than `window` for one arm in one batch, the last slots of the batch stay; otherwise the order of the slots
    decides only which rollout of a batch is forgotten first.

    Example:
        >>> bandit = dump(2)
        >>> state = bandit.update(bandit.init(), jnp.array([0, 1]), jnp.array([[1.0, 0.0], [1.0, 1.0]]))
        >>> [round(x, 3) for x in bandit.scores(state)["advantage"].tolist()]
        [1.0, 0.0]

    References:
        Wang et al., arXiv 2504.09710; github.com/ZhentingWang/DUMP.
    """

    def init() -> DumpState:
        return DumpState(
            window=jnp.zeros((num_arms, window), jnp.float32),
            rollouts=jnp.zeros((num_arms,), jnp.int32),
            **initial_counts(num_arms),
        )

    def scores(state: DumpState) -> dict[str, Array]:
        filled = jnp.clip(state.rollouts, 1, window).astype(jnp.float32)
        size = jnp.sum(state.window, axis=1) / filled
        n = state.rollouts.astype(jnp.float32)
        return {"advantage": size, "score": size + jnp.sqrt(2.0 * jnp.log(jnp.sum(n) + 1.0) / (n + 1.0))}

    def probabilities(state: DumpState) -> Float[Array, " k"]:
        return jax.nn.softmax(scores(state)["score"] / temperature)

    def learn(state: DumpState, sums: ArmSums, rewards: Array) -> dict[str, Array]:
        slot, per_slot = sums.arm, rewards.shape[1]
        arm = jnp.maximum(slot, 0)
        # Place of each slot among the batch's slots of the same arm, then of each rollout in the arm's history.
        place = jnp.sum(jnp.tril(slot[:, None] == slot[None, :], -1), axis=1, dtype=jnp.int32)
        fresh = (place * per_slot)[:, None] + jnp.arange(per_slot, dtype=jnp.int32)[None, :]
        total = (sums.pulls * per_slot)[arm][:, None]
        is_written = (slot >= 0)[:, None] & (fresh >= total - window)
        size = jnp.abs(advantages(jnp.where((slot >= 0)[:, None], rewards, 0.0).astype(jnp.float32)))
        row = jnp.where(is_written, slot[:, None], num_arms)
        column = (state.rollouts[arm][:, None] + fresh) % window
        return {
            "window": state.window.at[row, column].set(size, mode="drop"),
            "rollouts": state.rollouts + sums.pulls * per_slot,
        }

    sample, update = independent_slots(probabilities), counting_update(num_arms, learn)
    return Bandit(init, sample, update, probabilities, scores, num_arms=num_arms, name="dump")


@registry.register
@checked
def sec(
    num_arms: Count,
    *,
    step_size: Rate = 0.5,
    temperature: Positive = 0.4,
    objective: Literal["advantage", "reward_change"] = "advantage",
    variant: Literal["paper", "repository"] = "paper",
) -> Bandit:
    """SEC, self-evolving curriculum: a Boltzmann bandit on the size of advantages.

        Q_k ← (1 − a) Q_k + a x_k,   P = softmax(Q / τ), slots independent

    with x_k the mean |A| over the arm's rollouts of the batch, or the change of its mean reward since its last visit.

    Args:
        num_arms: K ≥ 1.
        step_size: a in (0, 1].
        temperature: τ > 0; the authors take 1.0 (countdown), 0.4 (mathematics), 0.2 (puzzles).
        objective: "advantage" or "reward_change" (0 at an arm's first visit).
        variant: "paper" updates arms in the batch only; "repository" lets Q of the others decay to 0, as the released
            code does by writing zero targets for them.

    Returns:
        A bandit; `scores` has `score` Q.

    Differs from the paper: A is per rollout and not averaged over tokens, which is the same where all tokens of a
    rollout share its advantage.

    Example:
        >>> bandit = sec(2)
        >>> state = bandit.update(bandit.init(), jnp.array([0]), jnp.array([[1.0, 0.0]]))
        >>> [round(x, 3) for x in state.quality.tolist()]
        [0.5, 0.0]

    References:
        Chen et al., arXiv 2505.14970; github.com/Vincent-La/cofa, folder sec.
    """

    def init() -> SecState:
        zeros = jnp.zeros((num_arms,), jnp.float32)
        return SecState(
            quality=zeros,
            reward=zeros,
            is_seen=jnp.zeros((num_arms,), jnp.bool_),
            **initial_counts(num_arms),
        )

    def probabilities(state: SecState) -> Float[Array, " k"]:
        return jax.nn.softmax(state.quality / temperature)

    def learn(state: SecState, sums: ArmSums, rewards: Array) -> dict[str, Array]:
        if objective == "advantage":
            clean = jnp.where((sums.arm >= 0)[:, None], rewards, 0.0).astype(jnp.float32)
            total = sum_by_domain(jnp.mean(jnp.abs(advantages(clean)), axis=1), sums.arm, num_arms)
            target = total / jnp.maximum(sums.slots, 1.0)
        else:
            target = jnp.where(state.is_seen, sums.solve_rate - state.reward, 0.0)
        target = jnp.where(sums.is_drawn, target, 0.0)
        moves = sums.is_drawn if variant == "paper" else jnp.broadcast_to(jnp.any(sums.is_drawn), (num_arms,))
        return {
            "quality": jnp.where(moves, (1.0 - step_size) * state.quality + step_size * target, state.quality),
            "reward": jnp.where(sums.is_drawn, sums.solve_rate, state.reward),
            "is_seen": state.is_seen | sums.is_drawn,
        }

    sample, update = independent_slots(probabilities), counting_update(num_arms, learn)
    scores = lambda state: {"score": state.quality}
    return Bandit(init, sample, update, probabilities, scores, num_arms=num_arms, name="sec")
