"""SPaCe: draws the arms whose groups of rollouts disagree, measured inside the groups and discounted over time.

Do, Nguyen, Venkatesh, Le: "SPaCe: Unlocking Sample-Efficient Large Language Models Training With Self-Pace Curriculum
Learning", arXiv 2508.05015 (version 1: SPaRFT).
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from jaxmix.core.pytree import state
from jaxmix.core.types import Array, Bool, Float, Int, PRNGKeyArray
from jaxmix.core.validate import Count, NonNegative, Positive, Rate, Share, checked
from jaxmix.curricula.base import (
    ArmSums,
    Bandit,
    Counts,
    counting_update,
    first_visit_average,
    initial_counts,
    race,
    registry,
    sample_arms,
)

RULES = {
    "proportional": {"signal_power": 1.0, "hardness_power": 0.25, "progress_weight": 0.0},
    "thompson": {"signal_power": 0.5, "hardness_power": 0.75, "progress_weight": 0.1},
    "literal": {"signal_power": 0.0, "hardness_power": 1.0, "progress_weight": 0.5},
}
"""What the score weighs under each rule, unless given."""

_REACH = 5.0  # standard deviations that the integral over a normal distribution runs to
_GRID = 4096  # about so many points for all arms together


@state(version=1)
class SpaceState(Counts):
    """State of `space`.

    Attributes:
        count: discounted number of slots n.
        solve: discounted sum of group solve rates m.
        signal: discounted sum of group signals h.
        fast: fast average of the solve rate.
        slow: slow average of the solve rate.
        is_seen: arms that had a slot.
    """

    count: Float[Array, " k"]
    solve: Float[Array, " k"]
    signal: Float[Array, " k"]
    fast: Float[Array, " k"]
    slow: Float[Array, " k"]
    is_seen: Bool[Array, " k"]


@state(version=1)
class SparftState(Counts):
    """State of `sparft_v1`.

    Attributes:
        mean: mean solve rate over all history; 0 for arms without a slot.
    """

    mean: Float[Array, " k"]


def gaussian_argmax(mean: Float[Array, " k"], deviation: Float[Array, " k"]) -> Float[Array, " k"]:
    """The probability that each of k independent normal numbers is the largest, by quadrature (errors about 1e-3)."""
    arms = mean.shape[0]
    points = jnp.linspace(-_REACH, _REACH, max(5, min(41, _GRID // arms)), dtype=mean.dtype)
    grid = jnp.sort((-mean[:, None] + deviation[:, None] * points[None, :]).ravel())
    return race(jax.scipy.special.ndtr((grid[None, :] + mean[:, None]) / deviation[:, None]))


@registry.register
@checked
def space(
    num_arms: Count,
    *,
    rule: Literal["proportional", "thompson", "literal"] = "proportional",
    signal_power: NonNegative | None = None,
    hardness_power: NonNegative | None = None,
    progress_weight: Share | None = None,
    memory: Positive = 32.0,
    floor: Share = 0.15,
    sharpness: Positive = 2.0,
    noise: Positive = 0.2,
    prior_strength: Positive = 1.0,
    prior_signal: Share = 0.9,
    fast_rate: Rate = 0.3,
    slow_rate: Rate = 0.08,
    progress_scale: Positive = 0.1,
) -> Bandit:
    r"""SPaCe: draws arms by how much signal their groups carry, with a preference for the hard ones.

    Of each arm, with history that fades after M prompts: n slots, their summed solve rates m and signals h (a group's
    signal is `2 std(r_b1 … r_bG)`), and a fast and a slow average of the solve rate. With K arms

        p = (m + n₀/2) / (n + n₀),   s = (h + 0.9 n₀) / (n + n₀)
        u = (1 − λ) s^α (1 − p)^β / v + λ min(1, |fast − slow| / 0.1)
        v = (4 t (1 − t))^{α/2} (1 − t)^β,   t = (α/2) / (α + β)

        proportional:       P = (1 − f) u^κ / Σ u^κ + f / K, slots independent
        thompson, literal:  θ ~ Normal(u, σ² / (n + 1)) per slot, its arm argmax θ; with probability f a uniform one

    α = `signal_power`, β = `hardness_power`, λ = `progress_weight`, M = `memory`, f = `floor`, κ = `sharpness`,
    σ = `noise`, n₀ = `prior_strength`, 0.9 = `prior_signal`, 0.1 = `progress_scale`. `docs/space.md` has the updates of
    these statistics and the reasons for them.

    Args:
        num_arms: K ≥ 1. Keep K below about (all prompts of the run) / (8 `memory`).
        rule: "proportional" (α 1, β 1/4, λ 0; gentle, best where arms share one small model), "thompson" (α 1/2, β 3/4,
            λ 0.1; best where they do not disturb each other) or "literal" (α 0, β 1, λ 1/2: solve rate and progress
            only, as the paper's second version reports).
        signal_power, hardness_power: ≥ 0; `None` for the rule's own.
        progress_weight: in [0, 1]; `None` for the rule's own.
        memory: prompts per arm after which history fades, > 0, whatever the number of arms or the batch.
        floor: in [0, 1], share of the slots that is uniform.
        sharpness: > 0, only for "proportional".
        noise: > 0, only for the other two.
        prior_strength: > 0, how many slots the prior counts for. It is optimistic: an arm without history has p = 1/2
            and nearly full signal, and arms not visited return to it.
        prior_signal: in [0, 1].
        fast_rate, slow_rate: in (0, 1], weights of a batch's mean solve rate in the two averages.
        progress_scale: > 0, the difference of the averages that counts as full progress.

    Returns:
        A bandit; `scores` has `solve_rate` p, `signal` s, `progress` |fast − slow| and `score` u.

    Raises:
        ConfigError: an argument outside its range, an unknown rule.

    Numerics: float32. With rewards all 0 or all 1 the score of an arm tends to 0 and stays finite; where all scores
    are 0, "proportional" is uniform. `probabilities` of the argmax rules integrates over the noise (error about 1e-3).
    Without a slot that counts, an update changes nothing but `step`. B is the number of slots that count, so padding
    does not discount.

    Differs from the paper: the paper's text was not available; "literal" is a reading of its reviews (solve rate and
    learning progress, Gaussian draw, argmax), with this file's discount and floor. The group signal, the discount and
    "proportional" are additions.

    Example:
        >>> bandit = space(3)
        >>> key, state = jax.random.key(0), bandit.init()
        >>> for step in range(30):     # arm 0 is always solved, arm 1 half the time, arm 2 never
        ...     arms = bandit.sample(jax.random.fold_in(key, step), state, 8)
        ...     rewards = (jnp.arange(4)[None, :] < jnp.array([4, 2, 0])[arms][:, None]).astype(jnp.float32)
        ...     state = bandit.update(state, arms, rewards)
        >>> int(jnp.argmax(bandit.probabilities(state)))
        1

    References:
        arXiv 2508.05015; ACL 2026 Findings 171.
    """
    given = {"signal_power": signal_power, "hardness_power": hardness_power, "progress_weight": progress_weight}
    alpha, beta, progress_share = (RULES[rule][name] if value is None else value for name, value in given.items())
    largest = _largest_value(alpha, beta)

    def init() -> SpaceState:
        zeros = dict.fromkeys(("count", "solve", "signal", "fast", "slow"), jnp.zeros((num_arms,), jnp.float32))
        return SpaceState(**zeros, is_seen=jnp.zeros((num_arms,), jnp.bool_), **initial_counts(num_arms))

    def scores(state: SpaceState) -> dict[str, Array]:
        size = state.count + prior_strength
        solve_rate = (state.solve + 0.5 * prior_strength) / size
        signal = (state.signal + prior_signal * prior_strength) / size
        # Rounding may put a mean of numbers up to 1 above 1, and its complement below 0.
        value = signal**alpha * jnp.maximum(1.0 - solve_rate, 0.0) ** beta / largest
        progress = jnp.abs(state.fast - state.slow)
        score = (1.0 - progress_share) * value + progress_share * jnp.minimum(1.0, progress / progress_scale)
        return {"solve_rate": solve_rate, "signal": signal, "progress": progress, "score": score}

    def proportional(state: SpaceState) -> Float[Array, " k"]:
        power = scores(state)["score"] ** sharpness
        total = jnp.sum(power)
        share = jnp.where(total > 0, power / jnp.where(total > 0, total, 1.0), 1.0 / num_arms)
        return (1.0 - floor) * share + floor / num_arms

    def deviation(state: SpaceState) -> Float[Array, " k"]:
        return noise / jnp.sqrt(state.count + 1.0)

    def probabilities(state: SpaceState) -> Float[Array, " k"]:
        if rule == "proportional":
            return proportional(state)
        return (1.0 - floor) * gaussian_argmax(scores(state)["score"], deviation(state)) + floor / num_arms

    def sample(key: PRNGKeyArray, state: SpaceState, batch: int) -> Int[Array, " b"]:
        if rule == "proportional":
            return sample_arms(key, proportional(state), batch)
        noise_key, uniform_key, arm_key = jax.random.split(key, 3)
        best = _argmax_draw(noise_key, scores(state)["score"], deviation(state), batch)
        is_uniform = jax.random.bernoulli(uniform_key, floor, (batch,))
        return jnp.where(is_uniform, jax.random.randint(arm_key, (batch,), 0, num_arms, jnp.int32), best)

    def learn(state: SpaceState, sums: ArmSums, _: Array) -> dict[str, Array]:
        kept = jnp.maximum(0.5, 1.0 - jnp.sum(sums.slots) / (memory * num_arms))
        average = lambda old, rate: first_visit_average(old, sums.solve_rate, rate, state.is_seen, sums.is_drawn)
        return {
            "count": kept * state.count + sums.slots,
            "solve": kept * state.solve + sums.solve,
            "signal": kept * state.signal + sums.signal,
            "fast": average(state.fast, fast_rate),
            "slow": average(state.slow, slow_rate),
            "is_seen": state.is_seen | sums.is_drawn,
        }

    update = counting_update(num_arms, learn)
    return Bandit(init, sample, update, probabilities, scores, num_arms=num_arms, name=f"space({rule})")


@registry.register
@checked
def sparft_v1(num_arms: Count) -> Bandit:
    """SPaRFT, the paper's first version: Thompson sampling that prefers the arm solved least.

        θ_k ~ Normal(−μ_k, 1 / (n_k + 1)) per slot,   its arm argmax θ
        n_k ← n_k + 1,   μ_k ← μ_k + (q_b − μ_k) / n_k

    n = `pulls`, μ = `mean`, q_b the solve rate of the slot's group.

    For comparison only: an arm that nothing solves stays the hardest for ever and takes nearly every slot.

    Args:
        num_arms: K ≥ 1.

    Returns:
        A bandit; `scores` has `solve_rate` μ.

    Differs from the paper: the variance 1 / (n + 1) is the textbook's; reviews say only that it shrinks with use.

    Example:
        >>> bandit = sparft_v1(2)
        >>> state = bandit.update(bandit.init(), jnp.array([0, 1]), jnp.array([[1.0, 1.0], [0.0, 0.0]]))
        >>> state.mean.tolist()
        [1.0, 0.0]

    References:
        arXiv 2508.05015v1, equations 3 and 4 as quoted by its reviews.
    """

    def init() -> SparftState:
        return SparftState(mean=jnp.zeros((num_arms,), jnp.float32), **initial_counts(num_arms))

    def deviation(state: SparftState) -> Float[Array, " k"]:
        return 1.0 / jnp.sqrt(state.pulls.astype(jnp.float32) + 1.0)

    def sample(key: PRNGKeyArray, state: SparftState, batch: int) -> Int[Array, " b"]:
        return _argmax_draw(key, -state.mean, deviation(state), batch)

    def learn(state: SparftState, sums: ArmSums, _: Array) -> dict[str, Array]:
        pulls = jnp.maximum(state.pulls + sums.pulls, 1).astype(jnp.float32)
        return {"mean": state.mean + (sums.solve - sums.slots * state.mean) / pulls}

    update = counting_update(num_arms, learn)
    probabilities = lambda state: gaussian_argmax(-state.mean, deviation(state))
    scores = lambda state: {"solve_rate": state.mean}
    return Bandit(init, sample, update, probabilities, scores, num_arms=num_arms, name="sparft_v1")


def _largest_value(alpha: float, beta: float) -> float:
    """Maximum over p of `(2 sqrt(p (1 − p)))^α (1 − p)^β`."""
    if alpha == 0:
        return 1.0
    target = 0.5 * alpha / (alpha + beta)
    return float((4.0 * target * (1.0 - target)) ** (0.5 * alpha) * (1.0 - target) ** beta)


def _argmax_draw(key: PRNGKeyArray, mean: Array, deviation: Array, batch: int) -> Int[Array, " b"]:
    noise = jax.random.normal(key, (batch, mean.shape[0]), mean.dtype)
    return jnp.argmax(mean[None, :] + deviation[None, :] * noise, axis=1).astype(jnp.int32)
