"""Bootstrap intervals of a law: fits to mixtures drawn with replacement."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float64

from jaxmix.core.errors import ConfigError
from jaxmix.core.types import PRNGKeyArray
from jaxmix.core.validate import check_count
from jaxmix.laws.base import FitOptions, RunTable
from jaxmix.laws.fit import LawFit, compiled, on_host
from jaxmix.laws.solve.layout import Point
from jaxmix.laws.solve.least_squares import cells_of, lanes_for, least_squares, solve_all, solver_of


@dataclasses.dataclass(frozen=True, eq=False)
class Bootstrap:
    """Fits to resampled tables.

    Attributes:
        fit: what was resampled.
        params: by name, float64[s, ...]: one entry per resample.
        objectives: of each fit on its own resample.
        converged: of each fit.
    """

    fit: LawFit
    params: dict[str, np.ndarray]
    objectives: Float64[np.ndarray, " s"]
    converged: Bool[np.ndarray, " s"]

    def interval(self, level: float = 0.9) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Percentile interval of each parameter: (low, high), of the parameter's shape."""
        ends = _ends(level)
        return {name: tuple(np.quantile(value, ends, axis=0)) for name, value in self.params.items()}

    def predict(self, weights: Any, model_size: Any, tokens: Any) -> np.ndarray:
        """Losses float64[s, r, e] by every resample; arguments as `LawFit.predict`."""
        one = lambda i: dataclasses.replace(self.fit, params={name: value[i] for name, value in self.params.items()})
        return np.stack([one(i).predict(weights, model_size, tokens) for i in range(len(self.objectives))])

    def predicted_interval(
        self, weights: Any, model_size: Any, tokens: Any, level: float = 0.9
    ) -> tuple[np.ndarray, np.ndarray]:
        """Percentile interval of the expected loss, (low, high) float64[r, e]; without the noise of a single run."""
        low, high = np.quantile(self.predict(weights, model_size, tokens), _ends(level), axis=0)
        return low, high


def bootstrap(
    fit: LawFit,
    table: RunTable,
    *,
    key: PRNGKeyArray,
    num_resamples: int = 100,
    max_steps: int = 200,
    tolerance: float = 1e-8,
) -> Bootstrap:
    """Fits the law again to tables whose mixtures are drawn with replacement from this one's.

    Mixtures are drawn, not runs: runs of one mixture at several sizes, budgets and seeds come and go together, since
    they say the same about the mixture. All resamples advance together, each from the fit, by the squared relative
    error; laws with a `fit` of their own are fitted to one resample after the other. The intervals therefore say how
    far the fitted optimum moves with the data; they do not cover other optima.

    Args:
        fit: of a law with parameters, to this table.
        table: what it was fitted to.
        key: typed JAX key.
        num_resamples: s ≥ 2; 100 for a glance, 1000 for the ends of a 95 % interval.
        max_steps: limit of steps of each resample.
        tolerance: as in `jaxmix.laws.fit`.

    Returns:
        The resampled parameters, with intervals of parameters and predictions.

    Raises:
        ConfigError: a law without parameters, a table of another outline, fewer than two resamples.

    Example:
        >>> from jaxmix.laws import RunTable, fit, make
        >>> rng = np.random.default_rng(0)
        >>> h = rng.dirichlet(np.ones(2), 30)
        >>> losses = (2 + 0.5 * (h + 0.1) ** -0.3) * np.exp(0.01 * rng.standard_normal(h.shape))
        >>> table = RunTable(h, losses, np.ones(30), np.ones(30), ["a", "b"], ["a", "b"])
        >>> found = fit(make("capacity", competition=False), table, key=jax.random.key(0), num_starts=8)
        >>> low, high = bootstrap(found, table, key=jax.random.key(1)).predicted_interval([0.5, 0.5], 1.0, 1.0)
        >>> bool((low < high).all() and (high - low < 0.05).all())
        True
    """
    if fit.law.build is None:
        raise ConfigError(
            f"law {fit.law.name!r} has no parameters to resample",
            where="bootstrap(fit)",
            fix="Use a law with parameters, or judge it by its out-of-fold error.",
        )
    check_count("bootstrap", "num_resamples", num_resamples, 2)
    if table.shape != fit.shape:
        raise ConfigError(
            "the table is not the one the law was fitted to: its outline differs",
            where="bootstrap(table)",
            fix=f"Give the table with outline {fit.shape}.",
        )
    with on_host():
        key = jax.device_put(key, jax.devices("cpu")[0])
        mixture = table.mixture
        count = int(mixture.max()) + 1
        drawn = np.asarray(jax.random.randint(key, (num_resamples, count), 0, count))
        times = np.stack([np.bincount(row, minlength=count) for row in drawn]).astype(np.float64)
        if fit.law.fit is not least_squares:
            return _refitted(fit, table, key, times[:, mixture])
        layout = compiled(fit.law, fit.shape).layout
        cells, _ = cells_of(table, np.ones(len(table)))
        weights = np.zeros((num_resamples, cells.losses.shape[0]))
        weights[:, : len(table)] = times[:, mixture]
        program = solver_of(fit.law, fit.shape, None, tolerance)
        start = layout.point(fit.params)
        points = Point(*(np.broadcast_to(value, (num_resamples, *value.shape)) for value in start))
        solution = solve_all(program, cells, weights, lanes_for(layout, cells), points, max_steps)
        params = jax.device_get(jax.vmap(layout.params)(Point(*map(jax.numpy.asarray, solution.point))))
    return Bootstrap(fit, params, solution.cost.sum(axis=1), solution.is_converged.all(axis=1))


def _refitted(fit: LawFit, table: RunTable, key: PRNGKeyArray, row_weights: np.ndarray) -> Bootstrap:
    """Every resample [s, r] fitted by the law's own `fit`."""
    found = [fit.law.fit(fit.law, table, key, weights, FitOptions()) for weights in row_weights]
    params = {name: np.stack([resample.params[name] for resample in found]) for name in fit.params}
    return Bootstrap(fit, params, np.array([f.objective for f in found]), np.array([f.converged for f in found]))


def _ends(level: float) -> tuple[float, float]:
    if not 0 < level < 1:
        raise ConfigError(f"level must be in (0, 1), got {level}", where="Bootstrap(level)")
    return (1 - level) / 2, (1 + level) / 2
