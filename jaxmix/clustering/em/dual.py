r"""The E-step of `gem` over K biases: Newton's method on the dual (9)–(14), one evaluation at a time.

The search does not read rows. It names biases (`trial`), is given the sums there, and names the next; whether those
come from a table in memory, from eight devices or from a stream of blocks makes no difference. An evaluation is
1 + K + K² numbers, or 1 + K where the Hessian is kept. `docs/gem.md` has the mathematics.

**When the K × K matrix Σ w γ γᵀ is worth its price.** It takes 2 N K² operations, an evaluation on a kept posterior
4 N K. There one factor of the Hessian serves on, also over iterations of the fit, until an evaluation fails to halve
the gradient: the chord method, whose limit is Newton's. A stream, where every evaluation costs a pass over the rows,
asks for the matrix every time.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmix.core.types import Array, Bool, Float, Int

MAX_EVALUATIONS = 200
_ARMIJO = 1e-4
_LARGEST_STEP = 60.0  # nats


class Penalty(NamedTuple):
    """λ as it acts per sample, 1/λ (0 for infinity), and the target u."""

    strength: Float[Array, ""]
    inverse: Float[Array, ""]
    target: Float[Array, " k"]


class Evaluation(NamedTuple):
    """Sums over the rows at some biases b, divided by the total weight.

    Attributes:
        value: `Σ w_i lse_i` at the first evaluation of a search; later its change since the first.
        mass: π(b).
        gram: `Σ w_i γ_i γ_iᵀ`; read where `DualSearch.wants_gram`.
    """

    value: Float[Array, ""]
    mass: Float[Array, " k"]
    gram: Float[Array, "k k"]


class DualSearch(NamedTuple):
    """State of the search.

    Attributes:
        base: the biases that changes are counted from.
        change: the best change so far; `gradient`, `value` and `gap` belong to it.
        gradient: ∇D.
        value: `D(base + change) − D(base)`.
        gap: certificate (14); for λ = ∞, `|⟨b, π − u⟩|`.
        level: D(base).
        factor: Cholesky factor of the Hessian at some earlier point.
        direction: Newton's step from `change`.
        step: share of `direction` that is tried.
        trial: the change to evaluate next.
        evaluations: how many there were.
        wants_gram: whether the next evaluation needs the matrix.
        is_done: whether the search has ended.
    """

    base: Float[Array, " k"]
    change: Float[Array, " k"]
    gradient: Float[Array, " k"]
    value: Float[Array, ""]
    gap: Float[Array, ""]
    level: Float[Array, ""]
    factor: Float[Array, "k k"]
    direction: Float[Array, " k"]
    step: Float[Array, ""]
    trial: Float[Array, " k"]
    evaluations: Int[Array, ""]
    wants_gram: Bool[Array, ""]
    is_done: Bool[Array, ""]


def start_search(biases: Array, factor: Array, wants_gram: Array) -> DualSearch:
    """A search whose first evaluation is at `biases`; the factor of an earlier search may serve on."""
    zeros, zero = jnp.zeros_like(biases), jnp.zeros((), biases.dtype)
    return DualSearch(
        base=biases,
        change=zeros,
        gradient=zeros,
        value=zero,
        gap=zero + jnp.inf,
        level=zero,
        factor=factor,
        direction=zeros,
        step=zero + 1,
        trial=zeros,
        evaluations=jnp.int32(0),
        wants_gram=wants_gram,
        is_done=jnp.bool_(False),
    )


def update_search(
    search: DualSearch,
    penalty: Penalty,
    found: Evaluation,
    *,
    always_gram: bool,
    tolerance: float,
    noise: Float[Array, ""] | float = 1.0,
) -> DualSearch:
    """The search after the evaluation at `base + trial`.

    A step is taken if D falls enough (Armijo), or, where the fall to be expected drowns in rounding, if the gradient
    shrinks; else it is halved.

    Args:
        search: before.
        penalty: λ and u.
        found: the evaluation.
        always_gram: ask for the matrix every time.
        tolerance: the search ends where (14) is below `tolerance · max(1, |D|)`; for λ = ∞ where `Σ|π − u|` is below
            its 0.6th power.
        noise: size of the numbers that `found.value` is a difference of; 1 where it is a mean of differences per row.
    """
    b, trial = search.base + search.trial, search.trial
    is_first, is_infinite = search.evaluations == 0, penalty.inverse == 0

    # D and its gradient at the trial.
    # Posterior weights sum to 1, their sums only up to rounding; no biases can mend the difference.
    mass = found.mass / jnp.sum(found.mass)
    level = found.value - jnp.sum(b * penalty.target) + 0.5 * penalty.inverse * jnp.sum(b * b)
    level = jnp.where(is_first, level, search.level)
    value = found.value - jnp.sum(trial * penalty.target)
    value = value + penalty.inverse * (jnp.sum(search.base * trial) + 0.5 * jnp.sum(trial * trial))
    value = jnp.where(is_first, 0, value)
    gradient = mass - penalty.target + penalty.inverse * b
    size, old_size = jnp.sum(gradient**2), jnp.sum(search.gradient**2)
    finite_gap = 0.5 * jnp.where(is_infinite, 0, penalty.strength) * size
    gap = jnp.where(is_infinite, jnp.abs(jnp.sum(b * gradient)), finite_gap)

    # Is the step taken?
    fall = -search.step * jnp.sum(search.gradient * search.direction)
    rounding = 20 * jnp.finfo(b.dtype).eps * (noise + jnp.max(jnp.abs(trial)))
    has_fallen = value <= search.value - _ARMIJO * fall
    is_taken = is_first | jnp.where(fall > rounding, has_fallen, size < old_size)
    point = trial, gradient, value, gap
    best = search.change, search.gradient, search.value, search.gap
    change, best_gradient, best_value, best_gap = (jnp.where(is_taken, *pair) for pair in zip(point, best, strict=True))

    # Where to go from the best point.
    factor = jax.lax.cond(
        is_taken & search.wants_gram,
        lambda: _factor(jnp.diag(mass) - found.gram + penalty.inverse * jnp.eye(b.shape[0], dtype=b.dtype)),
        lambda: search.factor,
    )
    direction = jnp.where(is_taken, _newton(factor, best_gradient), search.direction)
    step = jnp.where(is_taken, 1, search.step / 2).astype(b.dtype)
    is_slow = ~is_first & (~is_taken | (size > 0.25 * old_size))

    # Is it the end?
    evaluations = search.evaluations + 1
    is_small = jnp.where(
        is_infinite,
        jnp.sum(jnp.abs(gradient)) <= tolerance**0.6,
        gap <= tolerance * jnp.maximum(jnp.abs(level + value), 1),
    )
    # Where D no longer tells steps apart and a Newton step does not shrink the gradient, float32 can do no better.
    is_noise = ~is_first & (fall <= rounding) & search.wants_gram & (size > 0.5 * old_size)
    is_lost = is_noise | (step < 1e-6) | (evaluations >= MAX_EVALUATIONS)
    return DualSearch(
        base=search.base,
        change=change,
        gradient=best_gradient,
        value=best_value,
        gap=best_gap,
        level=level,
        factor=factor,
        direction=direction,
        step=step,
        trial=change + step * direction,
        evaluations=evaluations,
        wants_gram=jnp.bool_(True) if always_gram else is_slow,
        is_done=(is_taken & is_small) | is_lost,
    )


def _factor(hessian: Array) -> Float[Array, "k k"]:
    """Cholesky factor of the Hessian.

    Gradient and step sum to 0, so 1 1ᵀ/K changes neither; it lifts the direction in which D is flat at λ = ∞.
    """
    k = hessian.shape[0]
    limits = jnp.finfo(hessian.dtype)
    ridge = 8 * limits.eps * jnp.max(jnp.diagonal(hessian)) + limits.tiny
    return jax.scipy.linalg.cholesky(hessian + 1 / k + ridge * jnp.eye(k, dtype=hessian.dtype), lower=True)


def _newton(factor: Array, gradient: Array) -> Float[Array, " k"]:
    """−H⁻¹ ∇D, no entry above 60 nats."""
    step = -jax.scipy.linalg.cho_solve((factor, True), gradient)
    step = jnp.where(jnp.all(jnp.isfinite(step)), step, -gradient)
    return step * jnp.minimum(1, _LARGEST_STEP / jnp.maximum(jnp.max(jnp.abs(step)), _LARGEST_STEP))
