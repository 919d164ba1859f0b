"""Coordinates of the hierarchical law, and the mode of their posterior under a given prior.

Every metric has one vector of coordinates, unbounded: `NUM_SCALARS` numbers and then three of each domain. Metrics are
independent once the prior is given, so that everything here is written for one metric and carried over all by `vmap`.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float64

from jaxmix.core.types import Array, Bool

NUM_SCALARS = 7
LEAST_WEIGHT = 1e-9
"""Below this weight a power below 1 is replaced by its chord, whose slope at 0 is finite."""

_MAX_LOG = 30.0
_MAX_STEP = 2.0
_STALL = 1e-5
_PATIENCE = 3


class Coordinates(NamedTuple):
    """The numbers of a metric's vector of coordinates, by name.

    Attributes:
        irreducible: logit of E over the lowest loss of the metric.
        reducible: log R.
        exponent: log g.
        exponent_growth: η.
        floor_share: logit ρ.
        size_exponent: log α.
        token_exponent: log ψ.
        rates: log C.
        weight_exponents: log γ.
        competition: W.
    """

    irreducible: Float64[Array, " *x"]
    reducible: Float64[Array, " *x"]
    exponent: Float64[Array, " *x"]
    exponent_growth: Float64[Array, " *x"]
    floor_share: Float64[Array, " *x"]
    size_exponent: Float64[Array, " *x"]
    token_exponent: Float64[Array, " *x"]
    rates: Float64[Array, "*x m"]
    weight_exponents: Float64[Array, "*x m"]
    competition: Float64[Array, "*x m"]


class Runs(NamedTuple):
    """Mixtures and scales of n runs, as the fit reads them.

    Attributes:
        weights: mixtures.
        competing: the weights, or zeros where domains do not compete.
        log_size: log(N/N₀).
        log_tokens: log(D/D₀).
    """

    weights: Float64[Array, "n m"]
    competing: Float64[Array, "n m"]
    log_size: Float64[Array, " n"]
    log_tokens: Float64[Array, " n"]


class Prior(NamedTuple):
    """Normal, every coordinate by itself."""

    mean: Float64[Array, "e p"]
    precision: Float64[Array, "e p"]


class Mode(NamedTuple):
    """Coordinates of every metric, where the posterior is highest or on the way there.

    Attributes:
        theta: coordinates.
        objective: twice the negative log posterior up to a constant.
        information: what the runs add to the prior's precision.
        slope: half the derivative of the objective.
        residual: log L̂ − log L.
        pull: weight of each run in the normal equations, over the squared noise.
        is_converged: whether the last steps lowered no metric's objective by more than a 1e-5th; None on the way.
    """

    theta: Float64[Array, "e p"]
    objective: Float64[Array, " e"]
    information: Float64[Array, "e p p"]
    slope: Float64[Array, "e p"]
    residual: Float64[Array, "e n"]
    pull: Float64[Array, "e n"]
    is_converged: Bool[Array, ""] | None = None


def split(theta: Array, num_domains: int) -> Coordinates:
    """The coordinates in a vector [..., 7 + 3 m]."""
    ends = [NUM_SCALARS + k * num_domains for k in range(4)]
    blocks = (theta[..., a:b] for a, b in itertools.pairwise(ends))
    return Coordinates(*(theta[..., k] for k in range(NUM_SCALARS)), *blocks)


def log_losses(theta: Array, lowest: Array, runs: Runs) -> tuple[Array, Array]:
    """Log losses [n] of one metric and their derivatives [n, p], by hand: a thirtieth of the cost of forward mode.

    Args:
        theta: [p].
        lowest: the lowest loss of the metric, the unit of its irreducible loss.
        runs: n of them.
    """
    at = split(theta, runs.weights.shape[1])
    gamma, psi = jnp.exp(at.weight_exponents)[None, :], jnp.exp(at.token_exponent)
    exponent = jnp.exp(at.exponent + at.exponent_growth * runs.log_size)
    is_drawn = runs.weights > 0
    log_weight = jnp.log(jnp.where(is_drawn, runs.weights, 1.0))
    # Below the least weight a power h^γ, γ ≤ 1, is h · least^(γ − 1), as in the prediction.
    is_chord = is_drawn & (runs.weights < LEAST_WEIGHT) & (gamma <= 1)
    log_base = jnp.where(is_chord, np.log(LEAST_WEIGHT), log_weight)
    reach = log_base + (psi * runs.log_tokens)[:, None]
    parts = jnp.where(is_drawn, jnp.exp(at.rates[None, :] + (log_weight - log_base) + gamma * reach), 0.0)
    amount = 1.0 + jnp.sum(parts, axis=1)
    log_amount = jnp.log(amount) - runs.competing @ at.competition

    falling = jnp.exp(jnp.clip(at.reducible - exponent * log_amount, -_MAX_LOG, _MAX_LOG))
    share, floor, rate = jax.nn.sigmoid(at.irreducible), jax.nn.sigmoid(at.floor_share), jnp.exp(at.size_exponent)
    decay = jnp.exp(-rate * runs.log_size)
    scale = floor + (1.0 - floor) * decay
    loss = lowest * share * scale + falling

    rest = 1.0 - falling / loss
    slope = -falling / loss * exponent
    by_rates = (slope / amount)[:, None] * parts
    scalars = [
        rest * (1.0 - share),
        1.0 - rest,
        slope * log_amount,
        slope * log_amount * runs.log_size,
        rest / scale * (1.0 - decay) * floor * (1.0 - floor),
        -rest / scale * (1.0 - floor) * decay * runs.log_size * rate,
        jnp.sum(by_rates * gamma, axis=1) * psi * runs.log_tokens,
    ]
    blocks = [by_rates, by_rates * reach * gamma, -slope[:, None] * runs.competing]
    return jnp.log(loss), jnp.concatenate([jnp.stack(scalars, axis=1), *blocks], axis=1)


class _State(NamedTuple):
    step: Array
    damping: Array
    stalled: Array
    point: Mode


def find_mode(
    start: Array, lowest: Array, runs: Runs, losses: Array, counts: Array, noise: Array, prior: Prior, max_steps: Array
) -> Mode:
    """Minimizes for every metric, by damped Gauss–Newton steps,

        Σ_r w_r 2 (√(1 + z_r²) − 1) + Σ_p (θ_p − μ_p)² / τ_p²,     z_r = (log L̂_r − log L_r) / σ

    Args:
        start: [e, p].
        lowest: [e].
        runs: n of them.
        losses: [e, n], log L; any finite number where `counts` is 0.
        counts: [e, n], w ≥ 0.
        noise: [e], σ.
        prior: μ and 1/τ².
        max_steps: limit.

    Numerics: damping starts at 0.01 of the diagonal, is divided by 4 where a step lowers the objective and multiplied
    by 5 where not; no coordinate moves more than 2 in a step. It ends when three steps in a row lowered no metric's
    objective by more than a 1e-5th of it.
    """
    point = lambda theta: jax.vmap(_evaluate, in_axes=(0, 0, None, 0, 0, 0, 0))(
        theta, lowest, runs, losses, counts, noise, prior
    )

    def advance(state: _State) -> _State:
        here = state.point
        moved = here.theta - jnp.clip(jax.vmap(_step)(here, prior, state.damping), -_MAX_STEP, _MAX_STEP)
        there = point(moved)
        is_lower = there.objective < here.objective
        best = jax.tree.map(lambda a, b: jnp.where(_like(is_lower, a), a, b), there, here)
        gained = (here.objective - best.objective) / (jnp.abs(here.objective) + 1e-12)
        return _State(
            step=state.step + 1,
            damping=jnp.clip(jnp.where(is_lower, state.damping / 4, state.damping * 5), 1e-9, 1e6),
            stalled=jnp.where(jnp.max(gained) < _STALL, state.stalled + 1, 0),
            point=best,
        )

    goes_on = lambda state: (state.step < max_steps) & (state.stalled < _PATIENCE)
    zero = jnp.zeros((), jnp.int32)
    end = jax.lax.while_loop(goes_on, advance, _State(zero, jnp.full(start.shape[:1], 1e-2), zero, point(start)))
    return end.point._replace(is_converged=end.stalled >= _PATIENCE)


def _evaluate(
    theta: Array, lowest: Array, runs: Runs, losses: Array, counts: Array, noise: Array, prior: Prior
) -> Mode:
    """One metric."""
    predicted, columns = log_losses(theta, lowest, runs)
    residual = jnp.where(counts > 0, predicted - losses, 0.0)
    root = jnp.sqrt(1.0 + (residual / noise) ** 2)
    pull = counts / (root * noise**2)
    pulled = (columns * pull[:, None]).T
    away = theta - prior.mean
    return Mode(
        theta=theta,
        objective=jnp.sum(counts * 2.0 * (root - 1.0)) + jnp.sum(prior.precision * away**2),
        information=pulled @ columns,
        slope=pulled @ residual + prior.precision * away,
        residual=residual,
        pull=pull,
    )


def _step(point: Mode, prior: Prior, damping: Array) -> Array:
    """One metric; nan where the system is not positive definite, which no objective is lower than."""
    system = point.information + jnp.diag(prior.precision)
    system = system + jnp.diag(damping * jnp.diagonal(system))
    return jax.scipy.linalg.cho_solve((jnp.linalg.cholesky(system), True), point.slope)


def _like(flags: Array, value: Array) -> Array:
    return flags.reshape(flags.shape + (1,) * (value.ndim - 1))
