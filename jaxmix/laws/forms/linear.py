"""Laws in closed form: the mean, and ridge regression on the mixture or on its products (RegMix's linear law)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from jaxmix.core.errors import ConfigError
from jaxmix.laws.base import Law, RunTable, registry
from jaxmix.laws.fit import regressor
from jaxmix.laws.forms.terms import with_log_scales

Features = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]

RIDGES = tuple(10.0 ** np.arange(-8.0, 3.01, 0.5))
"""Tried by leave-one-out, as fractions of the features' mean square."""


@registry.register
def mean() -> Law:
    """Each metric's mean over the runs, whatever the mixture: what a law has to beat.

    Returns:
        The law; one number a metric. Cells of nan are left out.

    Example:
        >>> import jax
        >>> from jaxmix.laws import RunTable, fit
        >>> table = RunTable([[1, 0], [0, 1]], [[2.0], [4.0]], [1, 1], [1, 1], ["a", "b"], ["a"])
        >>> fit(mean(), table, key=jax.random.key(0)).predict([0.5, 0.5], 1.0, 1.0).item()
        3.0
    """

    def regress(table: RunTable) -> tuple[Callable[..., np.ndarray], int]:
        level = np.nanmean(table.losses, axis=0)
        predict = lambda weights, model_size, tokens: np.broadcast_to(level, (len(weights), len(level))).copy()
        return predict, len(level)

    return regressor("mean", regress)


@registry.register
def linear(ridge: float | str = "leave_one_out") -> Law:
    r"""Linear regression of each loss on the mixture, with ln N and ln D where they vary.

        L_i = w_i + Σ_j W_ij h_j + α_i ln(N/N₀) + β_i ln(D/D₀)
        W, α, β = argmin Σ_r (L_ri − L̂_ri)² + λ_i n s² ‖(W_i, α_i, β_i)‖²,     s² the features' mean square

    in which features are centered and the constant w is free of λ.

    Args:
        ridge: λ ≥ 0, or "leave_one_out": the one of 23 from 1e-8 to 1e3 with the least squared error on mixtures left
            out one by one (all runs of one mixture together), for each metric.

    Returns:
        The law; K numbers a metric (the weights add up to 1), one more for each of N and D that varies.

    Raises:
        ConfigError: a ridge that is neither.

    Numerics: numpy float64 on the host, by one singular value decomposition for all λ and, where no cell is nan, all
    metrics. λ = 0 is the least-squares solution of least norm.

    Differs from the paper: RegMix uses plain least squares (`ridge=0`).

    Example:
        >>> import jax
        >>> from jaxmix.laws import RunTable, fit
        >>> h = np.array([[1, 0], [0, 1], [0.5, 0.5]])
        >>> table = RunTable(h, h @ [[2.0], [4.0]], np.ones(3), np.ones(3), ["a", "b"], ["a"])
        >>> round(fit(linear(0), table, key=jax.random.key(0)).predict([0.25, 0.75], 1.0, 1.0).item(), 6)
        3.5

    References:
        arXiv 2407.01492.
    """
    _check_ridge(ridge, "linear(ridge)")

    def regress(table: RunTable) -> tuple[Callable[..., np.ndarray], int]:
        features = functools.partial(with_log_scales, shape=table.shape)
        per_metric = table.shape.num_domains + table.shape.model_size_varies + table.shape.tokens_vary
        return _ridge_regression(table, features, ridge), per_metric * table.shape.num_metrics

    return regressor("linear", regress)


@registry.register
def quadratic(ridge: float | str = "leave_one_out") -> Law:
    r"""Ridge regression of each loss on the mixture and all products of two weights.

    With z the weights, and ln(N/N₀), ln(D/D₀) where they vary:

        L_i = w_i + Σ_a W_ia z_a + Σ_{a ≤ b} Q_iab z_a z_b,     ridge as in `linear`

    Args:
        ridge: λ ≥ 0, or "leave_one_out", see `linear`.

    Returns:
        The law; (K + q) (K + q + 1) / 2 numbers a metric with q of N and D varying: since the weights add up to 1, the
        constant and the linear part are combinations of the products.

    Raises:
        ConfigError: a ridge that is neither.

    Numerics: see `linear`. It must not be asked for sizes and tokens outside those fitted: a parabola turns.

    Example:
        >>> quadratic(1e-3).name
        'quadratic'
    """
    _check_ridge(ridge, "quadratic(ridge)")

    def regress(table: RunTable) -> tuple[Callable[..., np.ndarray], int]:
        shape = table.shape

        def features(weights: np.ndarray, model_size: np.ndarray, tokens: np.ndarray) -> np.ndarray:
            z = with_log_scales(weights, model_size, tokens, shape)
            first, second = np.triu_indices(z.shape[1])
            return np.concatenate([z, z[:, first] * z[:, second]], axis=1)

        wide = shape.num_domains + shape.model_size_varies + shape.tokens_vary
        return _ridge_regression(table, features, ridge), wide * (wide + 1) // 2 * shape.num_metrics

    return regressor("quadratic", regress)


def _ridge_regression(table: RunTable, features: Features, ridge: float | str) -> Callable[..., np.ndarray]:
    x = features(table.weights, table.model_size, table.tokens)
    coefficients = np.zeros((x.shape[1], table.losses.shape[1]))
    constant = np.zeros(table.losses.shape[1])
    for rows, metrics in _by_observed_runs(table.losses):
        found = _ridge_fit(x[rows], table.losses[np.ix_(rows, metrics)], table.mixture[rows], ridge)
        coefficients[:, metrics], constant[metrics] = found

    def predict(weights: np.ndarray, model_size: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        return features(weights, model_size, tokens) @ coefficients + constant

    return predict


def _by_observed_runs(losses: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(rows, metrics) of the metrics that were measured in the same runs."""
    patterns, which = np.unique(np.isfinite(losses), axis=1, return_inverse=True)
    for i, pattern in enumerate(patterns.T):
        yield np.flatnonzero(pattern), np.flatnonzero(which.reshape(-1) == i)


class _Decomposed(NamedTuple):
    """Centered features `u diag(size) vt` [n, k] and centered targets [n, e]."""

    u: np.ndarray
    size: np.ndarray
    vt: np.ndarray
    y: np.ndarray


def _ridge_fit(x: np.ndarray, y: np.ndarray, group: np.ndarray, ridge: float | str) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients [k, e] and constants [e]; λ by leaving out groups of rows where `ridge` is a word."""
    x_mean, y_mean = x.mean(axis=0), y.mean(axis=0)
    u, size, vt = np.linalg.svd(x - x_mean, full_matrices=False)
    kept = size > 1e-12 * max(size.max(initial=0.0), 1e-300)
    parts = _Decomposed(u[:, kept], size[kept], vt[kept], y - y_mean)
    unit = float(np.sum(parts.size**2)) / x.shape[1]
    if isinstance(ridge, str):
        errors = np.stack([_left_out_error(parts, r * unit, group) for r in RIDGES])
        chosen = np.asarray(RIDGES)[errors.argmin(axis=0)]
    else:
        chosen = np.full(y.shape[1], float(ridge))
    gain = parts.size[:, None] / (parts.size[:, None] ** 2 + (chosen * unit)[None, :])
    coefficients = parts.vt.T @ (gain * (parts.u.T @ parts.y))
    return coefficients, y_mean - x_mean @ coefficients


def _left_out_error(parts: _Decomposed, penalty: float, group: np.ndarray) -> np.ndarray:
    """Squared error [e] on groups of rows predicted from the others: (I − H_gg)⁻¹ r_g for the hat matrix H."""
    n = len(parts.y)
    shrunk = parts.u * (parts.size**2 / (parts.size**2 + penalty))[None, :]
    residual = parts.y - shrunk @ (parts.u.T @ parts.y)
    leverage = np.sum(shrunk * parts.u, axis=1) + 1.0 / n
    members = np.bincount(group)[group]
    alone = members == 1
    left_out = np.array(residual)
    left_out[alone] = residual[alone] / np.maximum(1.0 - leverage[alone], 1e-10)[:, None]
    for g in np.unique(group[~alone]):
        rows = np.flatnonzero(group == g)
        block = np.eye(len(rows)) - shrunk[rows] @ parts.u[rows].T - 1.0 / n
        left_out[rows] = np.linalg.lstsq(block, residual[rows], rcond=1e-10)[0]
    return np.sum(left_out**2, axis=0)


def _check_ridge(ridge: float | str, where: str) -> None:
    if isinstance(ridge, str):
        if ridge != "leave_one_out":
            raise ConfigError(f"ridge must be a number or 'leave_one_out', got {ridge!r}", where=where)
    elif not (np.isfinite(ridge) and ridge >= 0):
        raise ConfigError(f"ridge must be finite and >= 0, got {ridge}", where=where)
