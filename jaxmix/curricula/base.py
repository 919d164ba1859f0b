"""The interface of bandits over prompts: pure functions that choose the arm of each slot of the next batch.

    arms  = bandit.sample(key, state, batch)          the arm of each of `batch` slots
    state = bandit.update(state, arms, rewards)       after the rewards of those slots' rollouts

An arm is a group of prompts: a cluster, a difficulty level, a data source, or a single prompt.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from jaxmix.core.errors import ConfigError
from jaxmix.core.registry import Registry
from jaxmix.core.segment import sum_by_domain
from jaxmix.core.types import Array, Bool, Float, Int, PRNGKeyArray
from jaxmix.core.validate import check_number

registry = Registry("bandit")
"""All bandits by name. Register a factory of your own with `@jaxmix.curricula.registry.register`."""

make = registry.make
"""`make("dump", 10, **kwargs)`: the bandit of that name; unknown names and arguments list the nearest known one."""


class _Update(Protocol):
    def __call__(
        self, state: Any, arms: Int[Array, " b"], rewards: Float[Array, "b g"], valid: Bool[Array, " b"] | None = None
    ) -> Any: ...


class Bandit(NamedTuple):
    """A bandit as a bundle of pure functions; all may be jitted, mapped over seeds and scanned over steps.

    Attributes:
        init: `() -> state`, a pytree whose structure, shapes and dtypes never change. Every state counts `pulls` i32[k]
            (slots per arm so far) and `step` i32[].
        sample: `(key, state, batch) -> i32[batch]`, the arm of each slot; `batch` is static.
        update: `(state, arms i32[b], rewards f32[b, g], valid bool[b] = None) -> state`. Rewards are those of the g
            rollouts of a slot's prompt, in [0, 1]; `rescale_rewards` brings other ranges there, such as −1 and 1. A
            slot counts only if it is valid, its arm is in [0, k), and its rewards are finite: padding, evaluation
            prompts (arm −1) and rollouts whose verifier failed (nan) change nothing. A slot that counts with a reward
            outside [0, 1] is an error; within jit, where no value can be looked at, it changes nothing. The order of
            the slots has no influence.
        probabilities: `(state) -> f32[k]` on the simplex, how the first slot of the next batch is distributed; for
            rules that draw slots independently that is every slot.
        scores: `(state) -> {name: f32[k]}`, the statistics by which the rule ranks arms; for logs.
        keep: `(rewards, valid=None) -> bool[b]`, which groups the rule trains on; `None` for all.
        num_arms: k.
        name: for logs and error messages.
    """

    init: Callable[[], Any]
    sample: Callable[[PRNGKeyArray, Any, int], Int[Array, " b"]]
    update: _Update
    probabilities: Callable[[Any], Float[Array, " k"]]
    scores: Callable[[Any], dict[str, Array]] = lambda state: {}
    keep: Callable[..., Bool[Array, " b"]] | None = None
    num_arms: int = 0
    name: str = "bandit"


@dataclasses.dataclass(frozen=True)
class Counts:
    """What every state counts.

    Attributes:
        pulls: slots so far.
        step: updates so far.
    """

    pulls: Int[Array, " k"]
    step: Int[Array, ""]


def initial_counts(num_arms: int) -> dict[str, Any]:
    """The fields of `Counts` in a first state."""
    return {"pulls": jnp.zeros((num_arms,), jnp.int32), "step": jnp.int32(0)}


class ArmSums(NamedTuple):
    """Sums of a batch per arm, over the slots that count.

    Attributes:
        slots: how many there were.
        solve: summed group solve rate `q_b = mean_g r_bg`.
        signal: summed group signal `s_b = 2 std_g r_bg`, see `signal_of`.
        arm: the arm of each slot, −1 for slots that do not count.
    """

    slots: Float[Array, " k"]
    solve: Float[Array, " k"]
    signal: Float[Array, " k"]
    arm: Int[Array, " b"]

    @property
    def is_drawn(self) -> Bool[Array, " k"]:
        """Arms that had a slot."""
        return self.slots > 0

    @property
    def solve_rate(self) -> Float[Array, " k"]:
        """Mean solve rate of the arm's slots; 0 where it had none."""
        return self.solve / jnp.maximum(self.slots, 1.0)

    @property
    def pulls(self) -> Int[Array, " k"]:
        """`slots` as whole numbers."""
        return self.slots.astype(jnp.int32)


def is_usable(arms: Array, rewards: Array, valid: Array | None, num_arms: int) -> Bool[Array, " b"]:
    """bool[b]: slots that are valid, of a known arm, with all rewards finite and in [0, 1].

    Raises:
        ConfigError: outside of jit, rewards beyond [0, 1] in a slot that would count.
    """
    if rewards.ndim != 2 or arms.shape != rewards.shape[:1]:
        raise ConfigError(
            f"rewards of shape {rewards.shape} do not fit arms of shape {arms.shape}",
            where="Bandit.update(rewards)",
            fix="Give arms [batch] and rewards [batch, rollouts].",
        )
    counts = (arms >= 0) & (arms < num_arms) & jnp.all(jnp.isfinite(rewards), axis=1)
    counts = counts if valid is None else counts & valid
    is_inside = jnp.all((rewards >= 0) & (rewards <= 1), axis=1)
    if not isinstance(counts & is_inside, jax.core.Tracer) and (outside := counts & ~is_inside).any():
        found = rewards[outside]
        raise ConfigError(
            f"rewards must be in [0, 1], got {float(found.min()):g} to {float(found.max()):g}",
            where="Bandit.update(rewards)",
            fix="Rewards of -1 and 1: rescale_rewards(rewards, -1, 1).",
        )
    return counts & is_inside


def signal_of(rewards: Float[Array, "b g"]) -> Float[Array, " b"]:
    """`s_b = 2 sqrt(mean_g (r_bg − q_b)²)`, in [0, 1] for rewards in [0, 1].

    For 0/1 rewards it equals `2 sqrt(q (1 − q))`, the mean size of a group's normalized advantages: 0 for a group
    without any gradient, 1 for one that is half solved.
    """
    return 2.0 * jnp.std(rewards, axis=1)


def arm_sums(arms: Array, rewards: Array, valid: Array | None, num_arms: int) -> ArmSums:
    """Sums of a batch per arm, the same bits on every run; see `ArmSums`."""
    usable = is_usable(arms, rewards, valid, num_arms)
    slot = jnp.where(usable, arms, -1).astype(jnp.int32)
    clean = jnp.where(usable[:, None], rewards, 0.0).astype(jnp.float32)
    add = lambda values: sum_by_domain(values, slot, num_arms)
    return ArmSums(
        slots=add(jnp.ones(slot.shape, jnp.float32)),
        solve=add(jnp.mean(clean, axis=1)),
        signal=add(signal_of(clean)),
        arm=slot,
    )


def counting_update(
    num_arms: int, learn: Callable[[Any, ArmSums, Float[Array, "b g"]], dict[str, Array]] = lambda *_: {}
) -> Callable[..., Any]:
    """The `update` of a bandit: its counts, and the fields that `learn(state, sums, rewards)` changes."""

    def update(state: Any, arms: Array, rewards: Array, valid: Array | None = None) -> Any:
        sums = arm_sums(arms, rewards, valid, num_arms)
        counts = {"pulls": state.pulls + sums.pulls, "step": state.step + 1}
        return dataclasses.replace(state, **counts, **learn(state, sums, rewards))

    return update


def first_visit_average(old: Array, new: Array, rate: float, is_seen: Array, is_drawn: Array) -> Array:
    """`old + rate (new − old)` for drawn arms, `new` itself at an arm's first visit, `old` for the others."""
    return jnp.where(is_drawn, jnp.where(is_seen, old + rate * (new - old), new), old)


def sample_arms(key: PRNGKeyArray, probabilities: Float[Array, " k"], batch: int) -> Int[Array, " b"]:
    """`batch` independent arms."""
    return jax.random.categorical(key, jnp.log(probabilities), shape=(batch,)).astype(jnp.int32)


def independent_slots(
    probabilities: Callable[[Any], Float[Array, " k"]],
) -> Callable[[PRNGKeyArray, Any, int], Int[Array, " b"]]:
    """The `sample` of a rule that draws slots independently."""
    return lambda key, state, batch: sample_arms(key, probabilities(state), batch)


def race(distribution: Float[Array, "k x"], presence: float = 1.0) -> Float[Array, " k"]:
    """The probability that each of k independent random numbers is the smallest.

        P_k ∝ ∫ Π_{j≠k} (1 − presence · F_j(x)) dF_k(x)

    by the midpoint rule in the values of F, then normalized.

    Args:
        distribution: f[k, x], the distribution functions F_k at the same increasing points, from about 0 to about 1.
        presence: how likely each rival takes part at all, independently.
    """
    mass = jnp.diff(distribution, axis=1)
    survival = 1.0 - 0.5 * presence * (distribution[:, 1:] + distribution[:, :-1])
    log = jnp.log(jnp.maximum(survival, 1e-30))
    others = jnp.exp(jnp.sum(log, axis=0, keepdims=True) - log)
    chance = jnp.sum(jnp.maximum(mass, 0.0) * others, axis=1)
    return chance / jnp.sum(chance)


def rescale_rewards(rewards: Float[Array, "b g"], low: float, high: float) -> Float[Array, "b g"]:
    """Rewards of the declared range [low, high] as numbers in [0, 1]: `(r − low) / (high − low)`.

    Those outside the range stay outside [0, 1], which `update` refuses.
    """
    check_number("rescale_rewards", "low", low, -math.inf)
    check_number("rescale_rewards", "high", high, above=low)
    return (rewards - low) / (high - low)


def check_per_arm(
    name: str, argument: str, values: Any, num_arms: int, least: float, most: float = math.inf
) -> tuple[float, ...]:
    """One number per arm as a tuple; `ConfigError` if there are not `num_arms` of them in [least, most]."""
    numbers = tuple(float(value) for value in values)
    if len(numbers) != num_arms:
        raise ConfigError(f"{len(numbers)} numbers for {num_arms} arms", where=f"{name}({argument})")
    for arm, number in enumerate(numbers):
        if not math.isfinite(number) or not least <= number <= most:
            span = f"≥ {least:g}" if most == math.inf else f"in [{least:g}, {most:g}]"
            raise ConfigError(
                f"number {arm} of {argument} must be finite and {span}, got {number}", where=f"{name}({argument})"
            )
    return numbers
