"""A Gaussian process on the square roots of the weights: a strong reference without a formula."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmix.core.types import Array
from jaxmix.core.validate import Count, checked
from jaxmix.laws.base import Law, RunTable, registry
from jaxmix.laws.fit import on_host, regressor
from jaxmix.laws.forms.terms import with_log_scales

_LENGTHS = (0.1, 0.3, 1.0, 3.0)
_NOISES = (1e-5, 1e-3, 1e-1)
_LIMITS = ((np.log(1e-2), np.log(1e2)), (np.log(1e-8), np.log(10.0)))
_BLOCK = 8192


@registry.register
@checked
def gaussian_process(max_steps: Count = 50) -> Law:
    r"""Gaussian-process regression of the logarithm of each loss, with a squared-exponential kernel and white noise.

    With z = √h, and ln N and ln D (in units of their deviation) where they vary:

        ln L_i ~ GP(μ_i, σ_i² (k_i + ν_i δ)),     k(z, z') = exp(−½ Σ_a (z_a − z'_a)² / ℓ_a²)

    One length ℓ for all weights, and one more for each of ln N and ln D. μ is the mean of ln L; ℓ and ν maximize the
    marginal likelihood of each metric, in which σ² has its best value in closed form.

    Args:
        max_steps: of the search from the best of a coarse grid, ≥ 1.

    Returns:
        The law; 4 numbers a metric (μ, σ, ν, ℓ), 1 more for each of N and D that varies, beside all of the data.

    Raises:
        ConfigError: `max_steps` below 1.

    Numerics: float64 on the host's CPU; the marginal likelihood is climbed by damped Newton steps in ln ℓ and ln ν,
    with ℓ in [0.01, 100] and ν in [1e-8, 10]. The work grows with the third power of the runs: a second a metric at
    512 runs.

    Example:
        >>> from jaxmix.laws import RunTable, fit
        >>> x = np.linspace(0, 1, 9)[:, None]
        >>> h = np.concatenate([x, 1 - x], axis=1)
        >>> table = RunTable(h, 2 + x**2, np.ones(9), np.ones(9), ["a", "b"], ["a"])
        >>> found = fit(gaussian_process(), table, key=jax.random.key(0))
        >>> bool(abs(found.predict([0.5, 0.5], 1.0, 1.0).item() - 2.25) < 0.01)
        True

    References:
        Rasmussen, Williams: Gaussian Processes for Machine Learning, sections 2.2 and 5.4.
    """

    def regress(table: RunTable) -> tuple[Callable[..., np.ndarray], int]:
        shape, m = table.shape, table.shape.num_domains
        # ln(N/N₀) and ln(D/D₀) have mean 0 over the table.
        spread = with_log_scales(table.weights, table.model_size, table.tokens, shape)[:, m:].std(axis=0)

        def features(weights: np.ndarray, model_size: np.ndarray, tokens: np.ndarray) -> np.ndarray:
            scales = with_log_scales(weights, model_size, tokens, shape)[:, m:]
            return np.concatenate([np.sqrt(np.maximum(weights, 0.0)), scales / spread], axis=1)

        x = features(table.weights, table.model_size, table.tokens)
        # All weights have the first length, ln N and ln D each their own.
        groups = np.concatenate([np.zeros(m, np.int64), 1 + np.arange(len(spread))])
        fits = []
        for column in np.log(table.losses).T:
            rows = np.flatnonzero(np.isfinite(column))
            level = column[rows].mean()
            hyper = _search(x[rows], column[rows] - level, groups, max_steps)
            fits.append((rows, level, hyper, _dual(x[rows], column[rows] - level, groups, hyper)))

        def predict(weights: np.ndarray, model_size: np.ndarray, tokens: np.ndarray) -> np.ndarray:
            z = features(weights, model_size, tokens)
            out = np.empty((len(z), len(fits)))
            for first in range(0, len(z), _BLOCK):
                block = z[first : first + _BLOCK]
                for i, (rows, level, hyper, dual) in enumerate(fits):
                    scale = np.exp(-hyper[:-1])[groups]
                    out[first : first + _BLOCK, i] = level + _kernel(block * scale, x[rows] * scale) @ dual
            return np.exp(out)

        return predict, (4 + int(groups.max())) * len(fits)

    return regressor("gaussian_process", regress)


def negative_log_likelihood(hyper: Array, x: Array, y: Array, groups: Array, is_run: Array) -> Array:
    """Negative marginal log-likelihood at the best σ², up to a constant.

    Args:
        hyper: [q + 1], ln ℓ of each group of features, then ln ν.
        x: [n, k].
        y: [n], centered.
        groups: i64[k], which ℓ a feature has.
        is_run: [n], 1, or 0 for rows that only fill up the array.
    """
    scaled = x * jnp.exp(-hyper[:-1])[groups][None, :]
    square = jnp.sum(scaled**2, axis=1)
    distance = square[:, None] + square[None, :] - 2.0 * scaled @ scaled.T
    both = is_run[:, None] * is_run[None, :]
    kernel = both * jnp.exp(-0.5 * jnp.maximum(distance, 0.0))
    # 1e-9 beside ν, so that runs of equal mixtures leave the matrix positive definite.
    factor = jnp.linalg.cholesky(kernel + jnp.diag(is_run * (jnp.exp(hyper[-1]) + 1e-9) + (1.0 - is_run)))
    white = jax.scipy.linalg.solve_triangular(factor, y * is_run, lower=True)
    count = jnp.sum(is_run)
    variance = jnp.maximum(jnp.sum(white**2) / count, 1e-30)
    return 0.5 * count * jnp.log(variance) + jnp.sum(jnp.log(jnp.diagonal(factor)))


_value = jax.jit(negative_log_likelihood)
_slope = jax.jit(jax.value_and_grad(negative_log_likelihood))


def _search(x: np.ndarray, y: np.ndarray, groups: np.ndarray, max_steps: int) -> np.ndarray:
    """The hyperparameters [q + 1] of least negative log-likelihood: a grid, then BFGS with halving."""
    fill = -len(x) % max(8, 2 ** max(len(x).bit_length() - 3, 0))
    with on_host():
        data = (
            jnp.asarray(np.pad(x, ((0, fill), (0, 0)))),
            jnp.asarray(np.pad(y, (0, fill))),
            jnp.asarray(groups),
            jnp.asarray(np.pad(np.ones(len(x)), (0, fill))),
        )
        count = int(groups.max()) + 1
        limits: np.ndarray = np.array([_LIMITS[0]] * count + [_LIMITS[1]])
        grid = [np.log([*[length] * count, noise]) for length in _LENGTHS for noise in _NOISES]
        values = [float(_value(jnp.asarray(point), *data)) for point in grid]
        best = grid[int(np.argmin(np.where(np.isfinite(values), values, np.inf)))]
        return _bfgs(lambda point: _slope(jnp.asarray(point), *data), best, limits, max_steps)


def _bfgs(function: Callable[[np.ndarray], Any], point: np.ndarray, limits: np.ndarray, max_steps: int) -> np.ndarray:
    """A minimum of a function of few numbers within limits; `function` returns value and gradient."""
    low, high = limits.T
    evaluate = lambda at: tuple(np.asarray(part, np.float64) for part in function(at))
    value, slope = evaluate(point)
    inverse = np.eye(len(point))
    for _ in range(max_steps):
        is_free = ~(((point <= low) & (slope > 0)) | ((point >= high) & (slope < 0)))
        direction = -np.where(is_free, inverse @ np.where(is_free, slope, 0.0), 0.0)
        if direction @ slope >= 0:
            inverse, direction = np.eye(len(point)), -np.where(is_free, slope, 0.0)
        direction /= max(1.0, np.abs(direction).max())
        step, moved = 1.0, False
        while step > 1e-6 and not moved:
            trial = np.clip(point + step * direction, low, high)
            new_value, new_slope = evaluate(trial)
            moved = bool(new_value < value + 1e-4 * slope @ (trial - point))
            step *= 0.5
        if not moved:
            break
        move, turn, gained = trial - point, new_slope - slope, value - new_value
        point, value, slope = trial, new_value, new_slope
        if (curvature := move @ turn) > 1e-12:
            shift = np.eye(len(point)) - np.outer(move, turn) / curvature
            inverse = shift @ inverse @ shift.T + np.outer(move, move) / curvature
        if gained < 1e-7 * (1.0 + abs(value)):
            break
    return point


def _dual(x: np.ndarray, y: np.ndarray, groups: np.ndarray, hyper: np.ndarray) -> np.ndarray:
    """`(K + ν)⁻¹ y` [n]."""
    scaled = x * np.exp(-hyper[:-1])[groups]
    return np.linalg.solve(_kernel(scaled, scaled) + (np.exp(hyper[-1]) + 1e-9) * np.eye(len(x)), y)


def _kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    distance = np.sum(a**2, axis=1)[:, None] + np.sum(b**2, axis=1)[None, :] - 2.0 * a @ b.T
    return np.exp(-0.5 * np.maximum(distance, 0.0))
