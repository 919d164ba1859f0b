"""Simulated skills that learn from rewards: how many prompts a bandit needs, without training a model.

A skill per arm has a logit x_k; its prompts are solved with probability `p_k = ceiling_k σ(x_k)`. A group of rollouts
with solve rate q moves the logits as a group-normalized gradient would, whose size on the logit is sqrt(q (1 − q)).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmix.core.segment import sum_by_domain
from jaxmix.core.types import Array, Float, Int, PRNGKeyArray
from jaxmix.core.validate import Count, NonNegative, Positive, Rate, Share, Whole, checked
from jaxmix.curricula.base import Bandit

LEVELS = (1.0, -0.5, -2.0, -3.5, -5.0)
"""Logits of a chain's skills at the start, easy to hard."""


class SkillWorld(NamedTuple):
    """One skill per arm, and how skills influence each other.

    Attributes:
        start: logits before training.
        ceiling: in [0, 1], the highest solve rate of an arm; 0 for arms that cannot be solved.
        transfer: entry (j, i): how far arm i's logit moves when arm j's own would move by 1.
        spread: standard deviation of the logits of the prompts inside an arm.
        gated: rows sum to 1: an arm learns at the rate of this mean of all arms' `p / ceiling`; rows of 0: freely.
        forgetting: share of the way back to the start that a logit goes in a step.
    """

    start: Float[Array, " k"]
    ceiling: Float[Array, " k"]
    transfer: Float[Array, "k k"]
    spread: Float[Array, ""]
    gated: Float[Array, "k k"]
    forgetting: Float[Array, ""]


@checked
def chains(
    num_chains: Count,
    *,
    levels: tuple[float, ...] = LEVELS,
    ceiling: tuple[float, ...] | None = None,
    following: float = 0.5,
    previous: float = 0.3,
    others: float = 0.02,
    spread: NonNegative = 0.0,
    gated: bool = False,
    forgetting: Share = 0.0,
) -> SkillWorld:
    """Chains of skills from easy to hard; arm `c · levels + i` is level i of chain c.

    Args:
        num_chains: ≥ 1.
        levels: logits at the start of a chain's arms.
        ceiling: of a chain's arms; `None`: all 1.
        following, previous, others: share of a move that the next level of the chain, the one before, and all other
            arms make too.
        spread, forgetting: see `SkillWorld`.
        gated: a level learns at the rate at which the one before is solved.
    """
    length = len(levels)
    k = num_chains * length
    transfer, gates = np.full((k, k), others), np.zeros((k, k))
    np.fill_diagonal(transfer, 1.0)
    for arm in range(k):
        if arm % length:
            transfer[arm - 1, arm], transfer[arm, arm - 1] = following, previous
            gates[arm, arm - 1] = float(gated)
    array = lambda values: jnp.asarray(values, jnp.float32)
    return SkillWorld(
        start=array(levels * num_chains),
        ceiling=array((1.0,) * k if ceiling is None else ceiling * num_chains),
        transfer=array(transfer),
        spread=array(spread),
        gated=array(gates),
        forgetting=array(forgetting),
    )


def skill_worlds() -> dict[str, SkillWorld]:
    """The scenarios of the comparison, by name."""
    return {
        "ladder": chains(2),
        "20 % unsolvable": chains(2, ceiling=(1.0, 1.0, 1.0, 1.0, 0.0)),
        "40 % unsolvable": chains(2, ceiling=(1.0, 1.0, 1.0, 0.0, 0.0)),
        "ceilings": chains(2, ceiling=(0.97, 0.75, 0.5, 0.25, 0.0)),
        "prerequisites": chains(2, gated=True),
        "forgetting": chains(2, forgetting=5e-4),
        "impure": chains(2, spread=1.0),
        "independent": chains(2, following=0.0, previous=0.0, others=0.0),
        "half mastered": chains(2, levels=(4.0, 4.0, 4.0, -1.0, -4.0)),
        "40 clusters": chains(8),
    }


@checked
def prompts_to_target(
    bandit: Bandit,
    world: SkillWorld,
    key: PRNGKeyArray,
    *,
    batch: Count = 16,
    rollouts: Count = 8,
    most_prompts: int = 64_000,
    share: Rate = 0.9,
    step_size: Positive = 0.06,
    lag: Whole = 0,
) -> tuple[Int[Array, ""], Float[Array, " k"]]:
    """Prompts until the mean of p over arms reaches `share` of the mean ceiling, and each arm's share of the slots.

    One step, with a rate_k from U(0.5, 1.5) for the whole run:

        arms by the bandit; r_bg ~ Bernoulli(ceiling · σ(x_{a_b} + spread · N(0, 1)));   q_b = mean_g r_bg
        move_k = step_size · rate_k · Σ_{b: a_b = k} sqrt(q_b (1 − q_b)) · gate_k;   x ← x + moveᵀ transfer

    Args:
        bandit: with as many arms as the world.
        world: what is learned.
        key: equal keys give equal rates whatever the bandit: pair by key.
        batch, rollouts: slots per step and rollouts per slot.
        most_prompts: where the count stops; reaching it means "not reached".
        share: of the mean ceiling, in (0, 1).
        step_size: > 0.
        lag: ≥ 0 steps by which the rewards reach the bandit late, as with rollouts made ahead; what is learned from
            them is not late.
    """
    num_arms = world.start.shape[0]
    rate_key, run_key = jax.random.split(key)
    rates = jax.random.uniform(rate_key, (num_arms,), minval=0.5, maxval=1.5)
    target = share * jnp.mean(world.ceiling)
    mean_rate = lambda logits: jnp.mean(world.ceiling * jax.nn.sigmoid(logits))

    def unfinished(carry: tuple[Array, Array, Any, Any]) -> Array:
        step, logits, *_ = carry
        return (mean_rate(logits) < target) & (step * batch < most_prompts)

    def advance(carry: tuple[Array, Array, Any, Any]) -> tuple[Array, Array, Any, Any]:
        step, logits, state, waiting = carry
        arm_key, prompt_key, reward_key = jax.random.split(jax.random.fold_in(run_key, step), 3)
        arms = bandit.sample(arm_key, state, batch)
        prompt = logits[arms] + world.spread * jax.random.normal(prompt_key, (batch,))
        chance = (world.ceiling[arms] * jax.nn.sigmoid(prompt))[:, None]
        rewards = (jax.random.uniform(reward_key, (batch, rollouts)) < chance).astype(jnp.float32)
        solve_rate = jnp.mean(rewards, axis=1)
        gate = jnp.where(
            jnp.sum(world.gated, axis=1) > 0, jnp.sum(world.gated * jax.nn.sigmoid(logits)[None, :], axis=1), 1.0
        )
        moves = step_size * rates * gate * sum_by_domain(jnp.sqrt(solve_rate * (1.0 - solve_rate)), arms, num_arms)
        moved = logits + jnp.sum(moves[:, None] * world.transfer, axis=0)
        moved = moved - world.forgetting * (moved - world.start)
        if lag:
            waiting = jax.tree.map(lambda old, new: jnp.concatenate([old, new[None]]), waiting, (arms, rewards))
            arms, rewards = (queue[0] for queue in waiting)
            waiting = tuple(queue[1:] for queue in waiting)
        new = bandit.update(state, arms, rewards)
        state = jax.tree.map(lambda old, new: jnp.where(step >= lag, new, old), state, new) if lag else new
        return step + 1, moved, state, waiting

    waiting = jnp.zeros((lag, batch), jnp.int32), jnp.zeros((lag, batch, rollouts))
    step, _, state, _ = jax.lax.while_loop(unfinished, advance, (jnp.int32(0), world.start, bandit.init(), waiting))
    pulls = state.pulls.astype(jnp.float32)
    return step * batch, pulls / jnp.maximum(jnp.sum(pulls), 1.0)
