r"""The E-step of `gem` over K numbers: Newton's method on the dual (9)–(14), asked one evaluation at a time.

For a fixed state the best posterior weights are γ_i = softmax(l_i + b), and b minimizes

    D(b) = Σ_i w_i logsumexp_k(l_ik + b_k) − ⟨b, u⟩ + |b|² / (2λ)                    (9)
    ∇D(b) = π(b) − u + b/λ,     ∇²D(b) = diag(π) − Σ_i w_i γ_i γ_iᵀ + I/λ            (11), (12)
    D(b) − log K − F(γ(b)) = (λ/2) |∇D(b)|²                                          (14)

The search does not touch rows. It names biases (`trial`), is told the sums there, and names the next; whether the
sums come from a table in memory, from eight devices or from a stream of blocks is all the same to it. The message of
an evaluation is 1 + K + K² numbers, or 1 + K where the Hessian is kept.

**When the K × K matrix Σ w γ γᵀ is worth its price.** It takes 2 N K² operations, an evaluation on a kept posterior
4 N K. There one factor of the Hessian serves on, also over iterations of the fit, until an evaluation fails to halve
the gradient: the chord method, whose limit is Newton's. A stream, where every evaluation costs a pass over the rows,
asks for the matrix every time.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmix.core.types import Array

MAX_EVALUATIONS = 200
_ARMIJO = 1e-4
_LARGEST_STEP = 60.0  # nats


class Penalty(NamedTuple):
    """λ as it acts per sample, 1/λ (0 for infinity), and the target u."""

    strength: Any
    inverse: Any
    target: Any


class DualSearch(NamedTuple):
    """Attributes:
    base: f[k], the biases that changes are counted from.
    change: f[k], best change so far.
    mass: f[k], π there.
    gradient: f[k].
    value: f[], `D(base + change) − D(base)`.
    level: f[], D(base).
    factor: f[k, k], Cholesky's of the Hessian at some point so far.
    direction: f[k]; step: f[], share of it that is tried.
    trial: f[k], the change to evaluate next.
    gap: f[], certificate (14) at `change`; for λ = ∞, `|⟨b, π − u⟩|`.
    evaluations: i32[].
    wants_gram: bool[], whether the next evaluation needs the matrix.
    is_done: bool[].
    """

    base: Any
    change: Any
    mass: Any
    gradient: Any
    value: Any
    level: Any
    factor: Any
    direction: Any
    step: Any
    trial: Any
    gap: Any
    evaluations: Any
    wants_gram: Any
    is_done: Any


def start_search(biases: Array, factor: Array, wants_gram: Array) -> DualSearch:
    """A search whose first evaluation is at `biases`; the factor of an earlier search may serve on."""
    zeros, zero = jnp.zeros_like(biases), jnp.zeros((), biases.dtype)
    return DualSearch(
        base=biases,
        change=zeros,
        mass=zeros,
        gradient=zeros,
        value=zero,
        level=zero,
        factor=factor,
        direction=zeros,
        step=zero + 1,
        trial=zeros,
        gap=zero + jnp.inf,
        evaluations=jnp.int32(0),
        wants_gram=wants_gram,
        is_done=jnp.bool_(False),
    )


def tell(
    search: DualSearch,
    penalty: Penalty,
    value: Array,
    mass: Array,
    gram: Array,
    *,
    always_gram: bool,
    tolerance: Any,
    noise: Any = 1.0,
) -> DualSearch:
    """The search after an evaluation at `base + trial`.

    Args:
        search: before.
        penalty: λ and u.
        value: `Σ w_i lse_i` over the weight in all: at the first evaluation itself, later its change since then.
        mass: π(b).
        gram: `Σ w_i γ_i γ_iᵀ` over the weight in all; read where `search.wants_gram`.
        always_gram: ask for the matrix every time.
        tolerance: the search ends where (14) is below `tolerance · max(1, |D|)`; for λ = ∞ where `Σ|π − u|` is below
            its 0.6th power.
        noise: size of the numbers that `value` is a difference of; 1 where it is a mean of differences per row.

    A step is taken if D falls enough (Armijo), or, where the fall to be expected drowns in rounding, if the gradient
    shrinks; else it is halved.
    """
    b, trial = search.base + search.trial, search.trial
    is_first = search.evaluations == 0
    # Posterior weights sum to 1, their sums only to rounding; the difference is one that no biases can mend.
    mass = mass / jnp.sum(mass)
    level = value - jnp.sum(b * penalty.target) + 0.5 * penalty.inverse * jnp.sum(b * b)
    level = jnp.where(is_first, level, search.level)
    change = value - jnp.sum(trial * penalty.target)
    change = change + penalty.inverse * (jnp.sum(search.base * trial) + 0.5 * jnp.sum(trial * trial))
    change = jnp.where(is_first, 0, change)
    gradient = mass - penalty.target + penalty.inverse * b
    size, old_size = jnp.sum(gradient**2), jnp.sum(search.gradient**2)

    fall = -search.step * jnp.sum(search.gradient * search.direction)
    rounding = 20 * jnp.finfo(b.dtype).eps * (noise + jnp.max(jnp.abs(trial)))
    has_fallen = change <= search.value - _ARMIJO * fall
    is_taken = is_first | jnp.where(fall > rounding, has_fallen, size < old_size)

    pick = lambda new, old: jnp.where(is_taken, new, old)
    factor = jax.lax.cond(
        is_taken & search.wants_gram,
        lambda: _factor(jnp.diag(mass) - gram + penalty.inverse * jnp.eye(b.shape[0], dtype=b.dtype)),
        lambda: search.factor,
    )
    new_gradient, new_change = pick(gradient, search.gradient), pick(trial, search.change)
    direction = pick(_newton(factor, new_gradient), search.direction)
    step = jnp.where(is_taken, 1, search.step / 2).astype(b.dtype)
    is_infinite = penalty.inverse == 0
    finite_gap = 0.5 * jnp.where(is_infinite, 0, penalty.strength) * size
    gap = jnp.where(is_infinite, jnp.abs(jnp.sum(b * gradient)), finite_gap)
    is_small = jnp.where(
        is_infinite,
        jnp.sum(jnp.abs(gradient)) <= tolerance**0.6,
        gap <= tolerance * jnp.maximum(jnp.abs(level + change), 1),
    )
    evaluations = search.evaluations + 1
    # Where D no longer tells steps apart and a Newton step does not shrink the gradient, that is what float32 can do.
    is_noise = ~is_first & (fall <= rounding) & search.wants_gram & (size > 0.5 * old_size)
    is_lost = is_noise | (step < 1e-6) | (evaluations >= MAX_EVALUATIONS)
    is_slow = ~is_first & (~is_taken | (size > 0.25 * old_size))
    return DualSearch(
        base=search.base,
        change=new_change,
        mass=pick(mass, search.mass),
        gradient=new_gradient,
        value=pick(change, search.value),
        level=level,
        factor=factor,
        direction=direction,
        step=step,
        trial=new_change + step * direction,
        gap=pick(gap, search.gap),
        evaluations=evaluations,
        wants_gram=jnp.bool_(True) if always_gram else is_slow,
        is_done=(is_taken & is_small) | is_lost,
    )


def _factor(hessian: Array) -> Array:
    """Cholesky's factor of the Hessian.

    Gradient and step sum to 0, so 1 1ᵀ/K changes neither; it lifts the direction in which D is flat at λ = ∞.
    """
    k = hessian.shape[0]
    limits = jnp.finfo(hessian.dtype)
    ridge = 8 * limits.eps * jnp.max(jnp.diagonal(hessian)) + limits.tiny
    return jax.scipy.linalg.cholesky(hessian + 1 / k + ridge * jnp.eye(k, dtype=hessian.dtype), lower=True)


def _newton(factor: Array, gradient: Array) -> Array:
    """−H⁻¹ ∇D, no entry above 60 nats."""
    step = -jax.scipy.linalg.cho_solve((factor, True), gradient)
    step = jnp.where(jnp.all(jnp.isfinite(step)), step, -gradient)
    return step * jnp.minimum(1, _LARGEST_STEP / jnp.maximum(jnp.max(jnp.abs(step)), _LARGEST_STEP))
