"""TiKMiX-D: the mixture with the largest, most even and most varied influence that harms no evaluation group.

"TiKMiX: Take Data Influence into Dynamic Mixture for Language Model Pre-training", arXiv 2508.17677.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmix.core.errors import ConfigError
from jaxmix.core.types import Array, Float, Weights
from jaxmix.core.validate import NonNegative, check_simplex, checked

_ADDED = 1e-8  # to the normalizer, as in the paper
_SLACK = 1e-7  # of a constraint, relative to the row's spread: gives the feasible set an interior
_BARRIERS = np.logspace(0, -11, 23)  # multiplied by the number of constraints, the distance from the optimum
_NEWTON_STEPS = 100
_HALVINGS = 40


def tikmix_objective(
    weights: Weights,
    influence: Float[Array, "n m"],
    *,
    balance: float | Float[Array, ""] = 1.0,
    gain: float | Float[Array, ""] = 1.0,
    diversity: float | Float[Array, ""] = 1.0,
    width: float | Float[Array, ""] = 0.0,
) -> Float[Array, ""]:
    """`balance · std(P) − gain · Σ P − diversity · H(w)` with `P_i = (S w)_i / (max_j S_ij + 1e-8)`.

    Args:
        weights: w f32[m] on the simplex.
        influence: S f32[n, m].
        balance: weight of the spread over evaluation groups.
        gain: weight of the total.
        diversity: weight of the entropy in nats.
        width: rounds the kink of the standard deviation at 0: `sqrt(variance + width²)`.
    """
    effect = influence @ weights / (jnp.max(influence, axis=1) + _ADDED)
    variance = jnp.mean((effect - jnp.mean(effect)) ** 2) + width**2
    is_even = variance <= 0
    spread = jnp.where(is_even, 0.0, jnp.sqrt(jnp.where(is_even, 1.0, variance)))
    safe = jnp.where(weights > 0, weights, 1.0)
    return balance * spread - gain * jnp.sum(effect) + diversity * jnp.sum(weights * jnp.log(safe))


@checked
def tikmix_weights(
    influence: Any, prior: Any, *, balance: NonNegative = 1.0, gain: NonNegative = 1.0, diversity: NonNegative = 1.0
) -> Weights:
    r"""Weights for the next stage of a run, from an influence matrix (the paper's D variant).

    With S_ij the influence of training domain j on evaluation group i (positive: helpful) and q the prior:

        minimize over w    balance · std_i(P_i) − gain · Σ_i P_i − diversity · H(w)
        with               P_i = (S w)_i / (max_j S_ij + 1e-8)
        subject to         w on the simplex,   S w ≥ S q

    The problem is convex, with one solution for diversity > 0. A stage's weights are the next stage's prior.

    Args:
        influence: S [n, m]. In the paper, `−∇L_iᵀ H⁻¹ Σ ∇l` over the examples of domain j, with signs such that
            positive is helpful.
        prior: q, m weights that add to 1; no evaluation group may be served worse than by it.
        balance: ≥ 0.
        gain: ≥ 0.
        diversity: ≥ 0.

    Returns:
        f32[m] on the simplex, for `static` or a point of `scheduled`.

    Raises:
        ConfigError: an argument out of its range or of the wrong shape; an evaluation group that every domain harms
            (the paper's normalizer would reverse its sign).

    Numerics: a barrier method (Newton's steps on `objective − μ Σ log(slack)`, μ falling to 1e-11), compiled, in
    float64 whatever JAX's setting; so do not call it under `jit`. The objective is within about 1e-8 of its minimum,
    constraints hold to 1e-7 of the spread of a group's influences. The result does not depend on a starting point.

    Differs from the paper: the same problem, solved by a barrier method instead of sequential quadratic programming
    from the uniform mixture. Computing the influence, and the M variant (proxy runs), are not included.

    Example:
        >>> weights = tikmix_weights([[2.0, 0.5, 0.0], [0.0, 0.5, 1.0]], [0.3, 0.4, 0.3])
        >>> [f"{w:.2f}" for w in weights]
        ['0.37', '0.26', '0.37']

    References:
        arXiv 2508.17677, TiKMiX-D.
        `docs/mixers.md` has the formulas beside the other methods'.
    """
    rows = np.asarray(influence, np.float64)
    start = np.asarray(check_simplex(prior, "tikmix_weights(prior)"), np.float64)
    if rows.ndim != 2 or rows.shape[0] < 1 or rows.shape[1] != len(start) or not np.isfinite(rows).all():
        raise ConfigError(
            f"the influence must be finite numbers [evaluation groups, {len(start)} domains], got shape {rows.shape}",
            where="tikmix_weights(influence)",
        )
    if (rows.max(1) < 0).any():
        raise ConfigError(
            f"every domain harms evaluation group {int(np.argmax(rows.max(1) < 0))}: its row has no value ≥ 0",
            where="tikmix_weights(influence)",
            fix="Leave the group out.",
        )
    factors = np.asarray([balance, gain, diversity], np.float64)
    with jax.enable_x64(True):
        solution = np.asarray(_minimize(jnp.asarray(rows), jnp.asarray(start), jnp.asarray(factors)))
    return jnp.asarray(solution / solution.sum(), jnp.result_type(float))


@jax.jit
def _minimize(influence: Float[Array, "n m"], prior: Weights, factors: Array) -> Weights:
    """The barrier method from just beside the prior, which keeps every constraint."""
    margin = influence - (influence @ prior)[:, None]
    largest = jnp.max(jnp.abs(margin), axis=1)
    margin = margin / jnp.where(largest > 0, largest, 1.0)[:, None]
    balance, gain, diversity = factors

    def slack(w: Weights) -> Array:
        return jnp.concatenate([w, margin @ w + _SLACK])

    def objective(w: Weights, barrier: Array) -> Array:
        value = tikmix_objective(w, influence, balance=balance, gain=gain, diversity=diversity, width=barrier)
        return value - barrier * jnp.sum(jnp.log(slack(w)))

    def center(w: Weights, barrier: Array) -> tuple[Weights, None]:
        return _newton(lambda w: objective(w, barrier), slack, w), None

    # margin @ prior = 0 and |margin| ≤ 1: half of the slack is left.
    inside = prior + 0.5 * _SLACK * (1.0 / prior.shape[0] - prior)
    return jax.lax.scan(center, inside, jnp.asarray(_BARRIERS, influence.dtype))[0]


def _newton(objective: Callable[[Weights], Array], slack: Callable[[Weights], Array], w: Weights) -> Weights:
    """Minimizes within `Σ w` = constant and `slack > 0`: damped Newton's steps until none of them helps."""
    m = w.shape[0]

    def step(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        w, count, _ = carry
        gradient, hessian = jax.grad(objective)(w), jax.hessian(objective)(w)
        # Scaled by 1 / sqrt of the diagonal, because the barrier's curvatures span many orders of magnitude.
        unit = jax.lax.rsqrt(jnp.maximum(jnp.diagonal(hessian), 1e-30))
        system = jnp.zeros((m + 1, m + 1), w.dtype)
        system = system.at[:m, :m].set(hessian * unit[:, None] * unit[None, :])
        system = system.at[:m, m].set(unit / jnp.max(unit)).at[m, :m].set(unit / jnp.max(unit))
        direction = unit * jnp.linalg.solve(system, jnp.append(-gradient * unit, 0.0))[:m]
        direction = direction - jnp.mean(direction)  # the sum stays, whatever the rounding
        decrease = -jnp.sum(gradient * direction)
        size = _step_size(objective, slack, w, direction, decrease)
        goes_on = (decrease > 1e-14) & (size > 0)
        return jnp.where(goes_on, w + size * direction, w), count + 1, goes_on

    start = (w, jnp.int32(0), jnp.bool_(True))
    return jax.lax.while_loop(lambda carry: carry[2] & (carry[1] < _NEWTON_STEPS), step, start)[0]


def _step_size(
    objective: Callable[[Weights], Array],
    slack: Callable[[Weights], Array],
    w: Array,
    direction: Array,
    decrease: Array,
) -> Array:
    """The largest of 1, 1/2, 1/4, … that stays inside and takes a tenth of the promised decrease; 0 if none does."""
    value = objective(w)

    def is_refused(size: Array) -> Array:
        there = w + size * direction
        is_inside = jnp.all(slack(there) > 0)
        safe = jnp.where(is_inside, there, w)
        return ~is_inside | ~(objective(safe) <= value - 0.1 * size * decrease)

    size, count = jax.lax.while_loop(
        lambda carry: is_refused(carry[0]) & (carry[1] < _HALVINGS),
        lambda carry: (0.5 * carry[0], carry[1] + 1),
        (jnp.ones((), w.dtype), jnp.int32(0)),
    )
    return jnp.where(count < _HALVINGS, size, 0.0)
