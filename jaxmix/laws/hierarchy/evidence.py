"""The prior and the noise of the hierarchical law, learned from all metrics together by the evidence framework.

MacKay, "Bayesian Interpolation", Neural Computation 4(3), 1992.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float64

from jaxmix.core.types import Array, Bool
from jaxmix.laws.hierarchy.posterior import NUM_SCALARS, Mode, Prior, Runs, find_mode

GROUPS = (
    "irreducible", "reducible", "exponent", "exponent_growth", "floor_share", "size_exponent", "token_exponent",
    "own_rate", "other_rate", "own_weight_exponent", "other_weight_exponent", "competition",
)  # fmt: skip
"""Coordinates that share a prior: the scalars of all metrics, and the numbers of domains, own and other."""

MEAN = dict(
    zip(GROUPS, (0.5, np.log(10), np.log(0.4), 0.09, 0.4, np.log(0.2), np.log(0.7), 4.5, 1.5, np.log(0.6),
                 np.log(0.7), 0.0), strict=True)
)  # fmt: skip
DEVIATION = dict(zip(GROUPS, (1.0, 0.4, 0.5, 0.03, 0.5, 0.3, 0.3, 0.7, 1.5, 0.3, 0.3, 0.2), strict=True))
WIDE = {"exponent_growth": 0.1, "floor_share": 1.0, "size_exponent": 0.7, "token_exponent": 0.5}
"""Deviations of the terms in size and tokens where the table's runs differ in them."""

_OTHER_RATE, _COMPETITION = GROUPS.index("other_rate"), GROUPS.index("competition")
_ROUNDS = 7
_STEPS = 8
_LAST_STEPS = 200
_NOISE = 0.05
_LEAST_NOISE = 1e-5
_LEAST_FREE = 0.15
_POOLED_RUNS = 6.0
_MEAN_COUNT = 3.0
_DEVIATION_COUNT = 4.0
_METRIC_COUNT, _DOMAIN_COUNT = 4.0, 2.0
_MIRROR_COUNT, _MOST_MIRROR = 2.5, 0.6


class Switches(NamedTuple):
    """The law's options, as arrays: one program serves all variants."""

    competition: Bool[Array, ""]
    structure: Bool[Array, ""]
    robust: Bool[Array, ""]


class Evidence(NamedTuple):
    """A fit.

    Attributes:
        mode: the last one.
        lowest: the lowest loss of each metric among the runs that count.
        noise: σ of log losses.
        deviation: τ by group.
        effective: numbers that the runs determine.
    """

    mode: Mode
    lowest: Float64[Array, " e"]
    noise: Float64[Array, " e"]
    deviation: Float64[Array, " 12"]
    effective: Float64[Array, " e"]


class _Hyper(NamedTuple):
    """The state of the rounds: coordinates, their prior and the noise."""

    theta: Float64[Array, "e p"]
    mean: Float64[Array, "e p"]
    deviation: Float64[Array, " 12"]
    noise: Float64[Array, " e"]


def deviations(*, size_varies: bool, tokens_vary: bool) -> np.ndarray:
    """τ at the start, by group."""
    wide = {*(["exponent_growth", "floor_share", "size_exponent"] * size_varies), *(["token_exponent"] * tokens_vary)}
    return np.asarray([WIDE[name] if name in wide else DEVIATION[name] for name in GROUPS])


@functools.partial(jax.jit, static_argnames=("metric_domain",))
def fit_hierarchy(
    metric_domain: tuple[int, ...], runs: Runs, losses: Array, counts: Array, deviation: Array, switches: Switches
) -> Evidence:
    """Rounds of mode, noise and prior, and a last mode; see docs/laws.md for the equations.

    Args:
        metric_domain: e domains, −1 for none; what the program is compiled for beside the shapes.
        runs: n of them.
        losses: float64[n, e], any number > 0 where `counts` is 0.
        counts: float64[n, e], weight of every cell, ≥ 0.
        deviation: float64[12], τ at the start.
        switches: options.
    """
    m, e = runs.weights.shape[1], len(metric_domain)
    is_own = np.asarray(metric_domain)[:, None] == np.arange(m)[None, :]
    group = _groups(is_own)
    center = jnp.asarray([MEAN[name] for name in GROUPS])
    runs = runs._replace(competing=jnp.where(switches.competition, runs.competing, 0.0))
    counts, logs = counts.T, jnp.log(losses).T
    lowest = jnp.exp(jnp.min(jnp.where(counts > 0, logs, jnp.inf), axis=1))
    lowest = jnp.where(jnp.isfinite(lowest), lowest, 1.0)

    def mode(hyper: _Hyper, max_steps: int) -> tuple[Mode, Array, Array]:
        prior = Prior(hyper.mean, 1.0 / hyper.deviation[group] ** 2)
        found = find_mode(hyper.theta, lowest, runs, logs, counts, hyper.noise, prior, jnp.int32(max_steps))
        variance = jax.vmap(_variance)(found.information, prior.precision)
        return found, variance, jnp.sum(1.0 - prior.precision * variance, axis=1)

    def one_round(_: Array, hyper: _Hyper) -> _Hyper:
        found, variance, effective = mode(hyper, _STEPS)
        noise = learn_noise(found, hyper.noise, counts, effective, switches.robust)
        mean, spread = learn_prior(found.theta, variance, hyper.deviation, deviation, is_own, switches.structure)
        return _Hyper(found.theta, mean, spread, noise)

    start = center[group]
    hyper = jax.lax.fori_loop(0, _ROUNDS, one_round, _Hyper(start, start, deviation, jnp.full(e, _NOISE)))
    found, _, effective = mode(hyper, _LAST_STEPS)
    return Evidence(found, lowest, hyper.noise, hyper.deviation, effective)


def _groups(is_own: np.ndarray) -> np.ndarray:
    """i64[e, p], the group of every coordinate."""
    e, m = is_own.shape
    index = GROUPS.index
    blocks = [
        np.tile(np.arange(NUM_SCALARS), (e, 1)),
        np.where(is_own, index("own_rate"), index("other_rate")),
        np.where(is_own, index("own_weight_exponent"), index("other_weight_exponent")),
        np.full((e, m), index("competition")),
    ]
    return np.concatenate(blocks, axis=1)


def _variance(information: Array, precision: Array) -> Array:
    """Diagonal of the posterior's covariance by Laplace's method, never above the prior's."""
    factor = jnp.linalg.cholesky(information + jnp.diag(precision))
    inverse = jax.scipy.linalg.solve_triangular(factor, jnp.eye(precision.shape[0]), lower=True)
    return jnp.clip(jnp.sum(inverse**2, axis=0), 1e-12, 1.0 / precision)


def learn_noise(found: Mode, noise: Array, counts: Array, effective: Array, robust: Array) -> Array:
    """σ [e] from the residuals left by the numbers spent, drawn to the geometric mean over metrics."""
    num_runs = jnp.sum(counts, axis=1)
    used = jnp.where(robust, found.pull * noise[:, None] ** 2, counts)
    free = jnp.maximum(num_runs - effective, _LEAST_FREE * num_runs)
    is_seen = num_runs > 0
    squared = jnp.sum(used * found.residual**2, axis=1) / jnp.where(is_seen, free, 1.0) + _LEAST_NOISE**2
    mean_log = jnp.sum(jnp.where(is_seen, jnp.log(squared), 0.0)) / jnp.sum(is_seen, dtype=jnp.float64)
    return jnp.sqrt((free * squared + _POOLED_RUNS * jnp.exp(mean_log)) / (free + _POOLED_RUNS))


def learn_prior(
    theta: Array, variance: Array, deviation: Array, start: Array, is_own: np.ndarray, structure: Array
) -> tuple[Array, Array]:
    """μ [e, p] and τ [12] from where a mode lies and how wide it is.

    Args:
        theta: [e, p].
        variance: [e, p], V.
        deviation: [12], τ of the round before.
        start: [12], τ₀.
        is_own: bool[e, m].
        structure: whether metrics, domains and swapped pairs shape the prior of C.
    """
    group, m = _groups(is_own), is_own.shape[1]
    size = jnp.asarray(np.bincount(group.reshape(-1), minlength=len(GROUPS)).astype(np.float64))
    total = lambda values: jax.ops.segment_sum(values.reshape(-1), group.reshape(-1), len(GROUPS))
    center = jnp.asarray([MEAN[name] for name in GROUPS])
    mean = (total(theta) + _MEAN_COUNT * center) / (size + _MEAN_COUNT)
    mean = mean.at[_COMPETITION].set(0.0)
    means = mean[group]
    rates = slice(NUM_SCALARS, NUM_SCALARS + m)
    shaped = _transfer_means(theta[:, rates], mean[_OTHER_RATE], deviation[_OTHER_RATE], is_own)
    means = means.at[:, rates].set(jnp.where(structure & jnp.asarray(~is_own), shaped, means[:, rates]))
    spread = total((theta - means) ** 2 + variance)
    return means, jnp.sqrt((spread + _DEVIATION_COUNT * start**2) / (size + _DEVIATION_COUNT))


def _transfer_means(rates: Array, mean: Array, deviation: Array, is_own: np.ndarray) -> Array:
    """Prior mean of log rates off the own domain [e, m]: metric, domain, and what the swapped pair shows."""
    e, m = is_own.shape
    own, is_other = jnp.asarray(is_own, jnp.float64), jnp.asarray(~is_own, jnp.float64)
    of_metric, of_domain = jnp.zeros((e, 1)), jnp.zeros((1, m))
    for _ in range(3):
        of_domain = jnp.sum((rates - mean - of_metric) * is_other, axis=0, keepdims=True) / (e + _DOMAIN_COUNT)
        of_metric = jnp.sum((rates - mean - of_domain) * is_other, axis=1, keepdims=True) / (m + _METRIC_COUNT)
    shaped = mean + of_metric + of_domain
    left = (rates - shaped) * is_other
    # Domain j's use for metric i beside the use of i's domain for j's metrics: how alike they are counts both ways.
    per_domain = np.maximum(is_own.sum(axis=0), 1).astype(np.float64)
    mirrored = (own @ left.T) @ own * is_other / jnp.asarray(per_domain)[None, :]
    likeness = jnp.sum(mirrored * left) / (jnp.sum(mirrored**2) + _MIRROR_COUNT * deviation**2 + 1e-9)
    return shaped + jnp.clip(likeness, 0.0, _MOST_MIRROR) * mirrored
