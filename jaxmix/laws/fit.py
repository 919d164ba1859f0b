"""Fitting a law to a table of runs, and predicting from the fit."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float64

from jaxmix.core.errors import ConfigError
from jaxmix.core.types import PRNGKeyArray
from jaxmix.core.validate import Count, Fraction, Positive, Whole, checked
from jaxmix.laws.base import FitOptions, Form, Law, RunTable, Shape
from jaxmix.laws.solve.layout import Layout, lay_out

_BLOCK = 4096


@dataclasses.dataclass(frozen=True, eq=False)
class LawFit:
    """A law with its parameters.

    Attributes:
        params: by name, float64 arrays; empty for laws that fit themselves.
        objective: mean over measured cells of the squared (or Huber's) relative error, with the law's penalty.
        num_params: free numbers over all metrics.
        converged: whether the best start stopped by itself and not by the limit of steps.
        law: the law.
        shape: the outline of the table it was laid out for.
        objectives: where every start stood after the first steps: how much the starts differ. Where
            metrics are fitted one by one: the sum over metrics.
        at_bounds: names of numbers that lie on a bound, such as `irreducible[3]`: the table does not determine them.
        effective_params: how many numbers the table determines, for laws whose priors hold the others; None for laws
            without priors, where it is `num_params`.
        selection: the ranking by which "auto" chose the law (`jaxmix.laws.LawSelection`); None for laws given by name.
    """

    params: dict[str, np.ndarray]
    objective: float
    num_params: int
    converged: bool
    law: Law
    shape: Shape
    objectives: Float64[np.ndarray, " s"]
    at_bounds: tuple[str, ...] = ()
    effective_params: float | None = None
    selection: Any = None
    _predict: Callable[..., np.ndarray] | None = dataclasses.field(default=None, repr=False)

    def predict(self, weights: Any, model_size: Any, tokens: Any) -> np.ndarray:
        """Losses float64[r, e] of mixtures [r, m] (or one, [m]) at sizes (millions) and tokens (billions), [r] or one.

        Rows are worked through in blocks, so that a million of them need little memory.
        """
        weights = np.atleast_2d(np.asarray(weights, np.float64))
        if weights.ndim != 2 or weights.shape[1] != self.shape.num_domains:
            raise ConfigError(
                f"weights have shape {weights.shape}, and the law was fitted to {self.shape.num_domains} domains",
                where="predict(weights)",
            )
        rows = len(weights)
        model_size, tokens = (np.broadcast_to(np.asarray(value, np.float64), (rows,)) for value in (model_size, tokens))
        if self._predict is not None:
            return np.asarray(self._predict(weights, model_size, tokens), np.float64)
        return predict_rows(self.law, self.shape, self.params, weights, model_size, tokens)


@checked
def fit(
    law: Law,
    table: RunTable,
    *,
    key: PRNGKeyArray,
    num_starts: Count = 64,
    loss: Literal["relative", "huber"] = "relative",
    huber_delta: Positive = 0.02,
    restarts: Whole = 1,
    max_steps: Count = 400,
    tolerance: Fraction = 1e-9,
    row_weights: Any = None,
    start: LawFit | None = None,
) -> LawFit:
    r"""Fits a law to a table of runs.

    With L the measured losses, L̂ the law's, w_r the weights of runs and P the law's penalty, if it has one:

        minimize  Σ_{measured r, i} w_r ρ(L̂_ri / L_ri − 1) / Σ_{measured r, i} w_r + P

    with ρ(z) = z², or Huber's function, which is z² up to `huber_delta` and 2 `huber_delta` |z| − `huber_delta`²
    beyond. Parameters are searched in their logarithms, within their bounds, from `num_starts` random starts that
    advance together; after a few steps the best 16, and of these on large tables soon the best four, go on to the
    end; the best is shaken (its logarithms by a normal of deviation 0.3) into 16 more starts, `restarts` times. A law
    all of whose parameters belong to one metric each, and that has no penalty, is fitted metric by metric: each
    metric keeps its own best start.

    Args:
        law: from `jaxmix.laws.make`.
        table: cells of nan are left out.
        key: typed JAX key: draws the starts.
        num_starts: ≥ 1.
        loss: "relative" (squared relative error) or "huber".
        huber_delta: where Huber's function turns linear, in relative error; > 0. Only for loss="huber".
        restarts: rounds of shaken restarts, ≥ 0.
        max_steps: limit of steps of each start.
        tolerance: a start is at its end when three steps in a row lower its objective by less than this fraction.
        row_weights: [r], ≥ 0; None: all 1. A run of weight 0 is as if left out, and nothing recompiles.
        start: an earlier fit of the same law and outline, to start from beside the random starts.

    Returns:
        What the law's own `fit` returns: that of "auto" is the fit of the law it has chosen. Only laws that are fitted
        by the search above (`jaxmix.laws.least_squares`) read the options from `num_starts` on. The others read the
        key, the table and `row_weights`; regressors use all runs of weight above 0 alike.

    Raises:
        ConfigError: unknown option, number out of range, weights of runs that fit no table, a start of another law.
        RunError: no start has a finite objective.

    Numerics: float64 on the host's CPU, whatever the caller's settings and devices. Compiled once per law object,
    outline of the table and number of rows (rounded up), so that fitting one law object to many tables is cheap.

    Example:
        >>> from jaxmix.laws import RunTable, make
        >>> rng = np.random.default_rng(0)
        >>> h = rng.dirichlet(np.ones(2), 20)
        >>> table = RunTable(h, 2 + 0.5 * (h + 0.1) ** -0.3, np.ones(20), np.ones(20), ["a", "b"], ["a", "b"])
        >>> found = fit(make("capacity", competition=False), table, key=jax.random.key(0), num_starts=8)
        >>> bool(found.objective < 1e-8)
        True
    """
    options = FitOptions(num_starts, loss, huber_delta, restarts, max_steps, tolerance, start)
    return law.fit(law, table, key, _checked_row_weights(row_weights, table), options)


def regressor(
    name: str, regress: Callable[[RunTable], tuple[Callable[..., np.ndarray], int]], *, extrapolates: bool = False
) -> Law:
    """A law without parameters, such as trees: it is fitted to the runs of weight above 0.

    Args:
        name: as in the registry.
        regress: `table -> (predict, num_params)` with `predict(weights, model_size, tokens) -> float64[r, e]`.
        extrapolates: see `Law`.
    """

    def fit(law: Law, table: RunTable, key: PRNGKeyArray, row_weights: np.ndarray, options: FitOptions) -> LawFit:
        del key, options
        kept = table.take(row_weights > 0)
        predict, num_params = regress(kept)
        objective = float(np.nanmean((predict(kept.weights, kept.model_size, kept.tokens) / kept.losses - 1.0) ** 2))
        return LawFit({}, objective, num_params, True, law, table.shape, np.array([objective]), _predict=predict)

    return Law(name, fit, extrapolates=extrapolates)


def fit_with_params(
    law: Law,
    shape: Shape,
    params: dict[str, np.ndarray],
    objective: float,
    *,
    converged: bool,
    objectives: np.ndarray | None = None,
    effective_params: float | None = None,
) -> LawFit:
    """The fit of a law with `build` whose parameters have been found; arguments as in `LawFit`."""
    layout = compiled(law, shape).layout
    return LawFit(
        params=params,
        objective=objective,
        num_params=layout.form.num_params,
        converged=converged,
        law=law,
        shape=shape,
        objectives=np.array([objective]) if objectives is None else objectives,
        at_bounds=layout.at_bounds(params),
        effective_params=effective_params,
    )


@contextlib.contextmanager
def on_host() -> Iterator[None]:
    """Float64 on the host's CPU, without touching the caller's settings."""
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        yield


class Compiled(NamedTuple):
    """A law laid out for an outline, with its jitted prediction by blocks."""

    form: Form
    layout: Layout
    predict: Callable[..., Any]


@functools.lru_cache(maxsize=64)
def compiled(law: Law, shape: Shape) -> Compiled:
    """The law laid out for a table; the same object for the same law and outline."""
    assert law.build is not None
    form = law.build(shape)
    blocks = lambda params, rows: jax.lax.map(lambda block: form.predict(params, *block), rows)
    return Compiled(form, lay_out(form, shape.num_metrics), jax.jit(blocks))


def predict_rows(
    law: Law,
    shape: Shape,
    params: dict[str, np.ndarray],
    weights: np.ndarray,
    model_size: np.ndarray,
    tokens: np.ndarray,
) -> np.ndarray:
    """A law's losses float64[r, e], in blocks of rows that stay in the processor's caches."""
    rows = len(weights)
    block = min(_BLOCK, rounded_rows(rows))
    count = -(-rows // block)
    fill = count * block - rows
    parts = [np.concatenate([value, value[:1].repeat(fill, axis=0)]) for value in (weights, model_size, tokens)]
    with on_host():
        program = compiled(law, shape).predict
        blocks = tuple(jnp.asarray(part.reshape(count, block, *part.shape[1:])) for part in parts)
        values = program({name: jnp.asarray(value) for name, value in params.items()}, blocks)
        return np.asarray(values).reshape(count * block, -1)[:rows]


def rounded_rows(rows: int) -> int:
    """`rows` rounded up to an eighth of its power of two, at least 8: few distinct sizes, little filling."""
    step = max(8, 2 ** (max(rows, 1).bit_length() - 3))
    return -(-rows // step) * step


def _checked_row_weights(row_weights: Any, table: RunTable) -> np.ndarray:
    weights = np.ones(len(table)) if row_weights is None else np.asarray(row_weights, np.float64)
    if weights.shape != (len(table),) or not (np.isfinite(weights) & (weights >= 0)).all() or not (weights > 0).any():
        raise ConfigError(
            f"row_weights must be {len(table)} finite numbers >= 0, not all 0, got shape {weights.shape}",
            where="fit(row_weights)",
        )
    return weights
