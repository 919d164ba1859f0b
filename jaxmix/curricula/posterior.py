"""Curricula by a Beta posterior of the solve rate: MoPPS, BOTS, and p (1 − p) as in LILO."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from jaxmix.core.errors import ConfigError
from jaxmix.core.pytree import state
from jaxmix.core.types import Array, Float, Int, PRNGKeyArray
from jaxmix.core.validate import Count, Positive, Share, checked
from jaxmix.curricula.base import (
    ArmSums,
    Bandit,
    Counts,
    check_per_arm,
    counting_update,
    independent_slots,
    initial_counts,
    race,
    registry,
)

_CELLS = 256  # of the integral over the distance to the target


@state(version=1)
class BetaState(Counts):
    """State of the bandits with a Beta posterior.

    Attributes:
        solved: α: solved rollouts, with the prior's.
        failed: β: failed rollouts, with the prior's.
    """

    solved: Float[Array, " k"]
    failed: Float[Array, " k"]


@registry.register
@checked
def mopps(
    num_arms: Count,
    *,
    kept: Share = 1.0,
    prior: Positive = 1.0,
    target: Share = 0.5,
    candidates: Count | None = None,
) -> Bandit:
    """MoPPS: posterior draws of the solve rate, and the arms whose draw is nearest to one half.

        θ_i ~ Beta(α_i, β_i);   the B arms of a random candidate set with the smallest (θ_i − 0.5)²
        α ← λ α + (1 − λ) α₀ + Σ q G,   β ← λ β + (1 − λ) β₀ + Σ (1 − q) G      for the arms of the batch

    λ = `kept`, α₀ = β₀ = `prior`, 0.5 = `target`, G rollouts per group, sums over the arm's groups in the batch.

    Args:
        num_arms: K ≥ 1; the method's own arms are prompts.
        kept: λ in [0, 1], the share of the evidence that an update keeps; 1 (default file) or 0.5 (countdown).
        prior: > 0.
        target: in [0, 1].
        candidates: size of the random candidate set, from which each arm is drawn once at most: the method for
            prompts. `None`: every slot makes a draw of its own for every arm, for arms that hold many prompts.

    Returns:
        A bandit; `scores` has `solve_rate` α / (α + β). With `candidates`, `probabilities` treats the candidates' entry
        into the set as independent (exact as K grows).

    Raises:
        ConfigError: arguments outside their ranges; in `sample`, a batch larger than the candidate set.

    Differs from the paper: the released one-line update has a slip of operator precedence; this is the README's.

    Example:
        >>> bandit = mopps(2, kept=0.5)
        >>> state = bandit.update(bandit.init(), jnp.array([0]), jnp.array([[1.0, 1.0, 1.0, 0.0]]))
        >>> state.solved.tolist(), state.failed.tolist()
        ([4.0, 1.0], [2.0, 1.0])

    References:
        Qu et al., arXiv 2507.04632; github.com/thu-rllab/MoPPS.
    """

    def learn(state: BetaState, sums: ArmSums, rollouts: int) -> tuple[Array, Array]:
        solved = kept * state.solved + (1.0 - kept) * prior + sums.solve * rollouts
        failed = kept * state.failed + (1.0 - kept) * prior + (sums.slots - sums.solve) * rollouts
        return jnp.where(sums.is_drawn, solved, state.solved), jnp.where(sums.is_drawn, failed, state.failed)

    return _nearest_draw("mopps", num_arms, prior, target, candidates, learn)


@registry.register
@checked
def bots(
    num_arms: Count,
    *,
    kept: Share = 0.9,
    interpolated: Share = 0.1,
    difficulty: Sequence[float] | None = None,
    bandwidth: Positive = 0.1,
    prior: Positive = 1.0,
    target: Share = 0.5,
    candidates: Count | None = None,
) -> Bandit:
    """BOTS: as MoPPS, with evidence for arms that were not drawn interpolated from those that were.

        α ← λ α + (1 − λ) α₀ + (1 − ρ) Σ q G          drawn arms
        α ← λ α + (1 − λ) α₀ + ρ q̃ G                  the others; β alike with 1 − q
        q̃_k = Σ_j w_kj c_j q_j / Σ_j w_kj c_j,   w_kj = exp(−|d_k − d_j| / h)     over drawn arms j, c_j groups each

    λ = `kept`, ρ = `interpolated`, d = `difficulty`, h = `bandwidth`, G rollouts per group.

    Args:
        num_arms: K ≥ 1.
        kept: λ in [0, 1].
        interpolated: ρ in [0, 1].
        difficulty: d_k, one finite number ≥ 0 per arm; `None`: all alike, so that q̃ is the batch's mean solve rate.
        bandwidth: h > 0, in units of `difficulty`.
        prior, target, candidates: as in `mopps`.

    Returns:
        A bandit; `scores` has `solve_rate` α / (α + β).

    Differs from the paper: λ and ρ have no published default here, and the paper interpolates between reference models;
    the kernel above takes its place.

    Example:
        >>> bandit = bots(2, kept=1.0, interpolated=0.25)
        >>> state = bandit.update(bandit.init(), jnp.array([0]), jnp.array([[1.0, 1.0, 1.0, 1.0]]))
        >>> state.solved.tolist()
        [4.0, 2.0]

    References:
        arXiv 2510.26374.
    """
    labels = (0.0,) * num_arms if difficulty is None else check_per_arm("bots", "difficulty", difficulty, num_arms, 0.0)

    def learn(state: BetaState, sums: ArmSums, rollouts: int) -> tuple[Array, Array]:
        d = jnp.asarray(labels, jnp.float32)
        distance = jnp.abs(d[:, None] - d[None, :]) / bandwidth
        # Relative to the nearest drawn arm: the weights of a far one must not all round to 0.
        distance = jnp.where(sums.is_drawn[None, :], distance, jnp.inf)
        nearest = jnp.min(distance, axis=1, keepdims=True)
        weight = jnp.exp(jnp.where(jnp.isfinite(nearest), nearest, 0.0) - distance)
        groups = jnp.sum(weight * sums.slots[None, :], axis=1)
        rate = jnp.sum(weight * sums.solve[None, :], axis=1) / jnp.where(groups > 0, groups, 1.0)
        solved = jnp.where(sums.is_drawn, (1.0 - interpolated) * sums.solve, interpolated * rate)
        failed = jnp.where(sums.is_drawn, (1.0 - interpolated) * (sums.slots - sums.solve), interpolated * (1.0 - rate))
        any_drawn = jnp.any(sums.is_drawn)
        grow = lambda old, new: jnp.where(any_drawn, kept * old + (1.0 - kept) * prior + new * rollouts, old)
        return grow(state.solved, solved), grow(state.failed, failed)

    return _nearest_draw("bots", num_arms, prior, target, candidates, learn)


@registry.register
@checked
def lilo(num_arms: Count, *, kept: Share = 0.5, prior: Positive = 1.0) -> Bandit:
    """LILO's learnability: arms in proportion to p (1 − p), the expected improvement under the current policy.

        p = α / (α + β),   P ∝ p (1 − p), slots independent;   α, β as in `mopps`

    Args:
        num_arms: K ≥ 1.
        kept: λ in [0, 1], the share of the evidence that an update of an arm keeps.
        prior: > 0.

    Returns:
        A bandit; `scores` has `solve_rate` p and `score` p (1 − p).

    Differs from the paper: there, p comes from fresh rollouts of every candidate, which are then thrown away.

    Example:
        >>> bandit = lilo(2, kept=0.0)
        >>> state = bandit.update(bandit.init(), jnp.array([0]), jnp.array([[1.0, 1.0]]))
        >>> [round(x, 3) for x in bandit.probabilities(state).tolist()]     # 3/16 against 1/4
        [0.429, 0.571]

    References:
        Foster et al., arXiv 2502.12272.
    """
    base = mopps(num_arms, kept=kept, prior=prior)

    def scores(state: BetaState) -> dict[str, Array]:
        rate = _solve_rate(state)
        return {"solve_rate": rate, "score": rate * (1.0 - rate)}

    def probabilities(state: BetaState) -> Float[Array, " k"]:
        value = scores(state)["score"]
        return value / jnp.sum(value)

    return base._replace(
        sample=independent_slots(probabilities),
        probabilities=probabilities,
        scores=scores,
        name="lilo",
    )


def _solve_rate(state: BetaState) -> Float[Array, " k"]:
    return state.solved / (state.solved + state.failed)


def _nearest_draw(
    name: str,
    num_arms: int,
    prior: float,
    target: float,
    candidates: int | None,
    learn: Callable[[BetaState, ArmSums, int], tuple[Array, Array]],
) -> Bandit:
    """A bandit that draws solve rates from its posterior and takes the arms nearest to the target."""
    if candidates is not None and candidates > num_arms:
        raise ConfigError(f"{candidates} candidates of {num_arms} arms", where=f"{name}(candidates)")

    def init() -> BetaState:
        return BetaState(
            solved=jnp.full((num_arms,), prior, jnp.float32),
            failed=jnp.full((num_arms,), prior, jnp.float32),
            **initial_counts(num_arms),
        )

    def sample(key: PRNGKeyArray, state: BetaState, batch: int) -> Int[Array, " b"]:
        rows = batch if candidates is None else 1
        set_key, draw_key = jax.random.split(key)
        solved, failed = (jnp.broadcast_to(x, (rows, num_arms)) for x in (state.solved[None], state.failed[None]))
        distance = jnp.abs(jax.random.beta(draw_key, solved, failed, dtype=jnp.float32) - target)
        if candidates is None:
            return jnp.argmin(distance, axis=1).astype(jnp.int32)
        if batch > candidates:
            raise ConfigError(
                f"a batch of {batch} does not fit {candidates} candidates",
                where=f"{name}(candidates)",
                fix="Give more candidates, or None for arms that hold many prompts.",
            )
        chosen = jax.random.permutation(set_key, num_arms)[:candidates]
        return chosen[jnp.argsort(distance[0, chosen])[:batch]].astype(jnp.int32)

    def probabilities(state: BetaState) -> Float[Array, " k"]:
        # The distribution function of |θ − target| per arm, and the probability that it is the smallest.
        radius = jnp.linspace(0.0, max(target, 1.0 - target), _CELLS + 1, dtype=jnp.float32)[None, :]
        below = lambda x: jax.scipy.special.betainc(state.solved[:, None], state.failed[:, None], jnp.clip(x, 0.0, 1.0))
        distribution = below(target + radius) - below(target - radius)
        presence = 1.0 if candidates is None or num_arms == 1 else (candidates - 1) / (num_arms - 1)
        return race(distribution, presence)

    def evidence(state: BetaState, sums: ArmSums, rewards: Array) -> dict[str, Array]:
        solved, failed = learn(state, sums, rewards.shape[1])
        return {"solved": solved, "failed": failed}

    scores = lambda state: {"solve_rate": _solve_rate(state)}
    return Bandit(
        init, sample, counting_update(num_arms, evidence), probabilities, scores, num_arms=num_arms, name=name
    )
