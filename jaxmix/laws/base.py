"""Mixing laws: how each is fitted to a table of runs and, for most, its parameters, bounds and prediction.

A law predicts the loss of every metric from the mixture a model was trained on, and from the model's size and tokens
where it has terms in them.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, ParamSpec

import numpy as np
from jaxtyping import Float64

from jaxmix.core.errors import ConfigError
from jaxmix.core.registry import Registry
from jaxmix.core.types import Array, PRNGKeyArray
from jaxmix.core.validate import check_choice

P = ParamSpec("P")

registry = Registry("law")
"""All laws by name. Register a factory of your own with `@jaxmix.laws.registry.register`."""

make = registry.make
"""`make("capacity", **kwargs)`: the law of that name; unknown names and arguments list the nearest known one."""


def register_law(factory: Callable[P, Law]) -> Callable[P, Law]:
    """Registers a factory that returns the same law for the same arguments: all fits of it share what was compiled."""
    cached = functools.lru_cache(maxsize=None, typed=True)(factory)  # typed: True is not 1

    @functools.wraps(factory)
    def cached_factory(*args: P.args, **kwargs: P.kwargs) -> Law:
        try:
            return cached(*args, **kwargs)  # type: ignore[arg-type]
        except TypeError:  # unhashable arguments, which the factory refuses with a message
            return factory(*args, **kwargs)

    return registry.register(cached_factory)


Params = dict[str, Array]

Predict = Callable[[Params, Array, Array, Array], Array]
"""`(params, weights [r, m], model_size [r], tokens [r]) -> losses [r, e]`, jit-able and differentiable."""


@dataclasses.dataclass(frozen=True, eq=False)
class RunTable:
    """Finished runs: the mixture each was trained on and the losses it ended with.

    Any array-likes are accepted; fields hold the arrays below.

    Attributes:
        weights: float64[r, m], rows on the simplex.
        losses: float64[r, e], nats, > 0; nan where a metric was not measured.
        model_size: float64[r], millions of parameters.
        tokens: float64[r], billions of tokens trained on.
        domain_names: m names.
        metric_names: e names.
        metric_domain: i64[e], index of the domain a metric validates, −1 if none. `None` looks for the domain of the
            same name.
        seed: i64[r], of each run; zeros if not given. Runs of one mixture are never split between fitting and judging,
            whatever their seeds.
        available_tokens: float64[m], billions of tokens there are of each domain; None where that is not known.
        unit: what a weight counts: "tokens", "documents" or "rows".
    """

    weights: Any
    losses: Any
    model_size: Any
    tokens: Any
    domain_names: Sequence[str]
    metric_names: Sequence[str]
    metric_domain: Any = None
    seed: Any = None
    available_tokens: Any = None
    unit: str = "tokens"

    def __post_init__(self) -> None:
        put = lambda name, value: object.__setattr__(self, name, value)
        for name in ("weights", "losses", "model_size", "tokens"):
            put(name, np.asarray(getattr(self, name), np.float64))
        put("domain_names", tuple(map(str, self.domain_names)))
        put("metric_names", tuple(map(str, self.metric_names)))
        _check_shapes(self)
        _check_values(self)
        if self.metric_domain is None:
            found = {name: i for i, name in enumerate(self.domain_names)}
            put("metric_domain", np.asarray([found.get(name, -1) for name in self.metric_names], np.int64))
        else:
            put("metric_domain", np.asarray(self.metric_domain, np.int64))
            _check_metric_domain(self)
        put("seed", np.zeros(len(self.weights), np.int64) if self.seed is None else np.asarray(self.seed, np.int64))
        check_choice("RunTable", "unit", self.unit, ("tokens", "documents", "rows"))
        if self.available_tokens is not None:
            put("available_tokens", check_available(self.available_tokens, len(self.domain_names), "RunTable"))

    def __len__(self) -> int:
        return len(self.weights)

    def take(self, rows: Any) -> RunTable:
        """The runs of the given indices or mask, as a table."""
        rows = np.asarray(rows)
        if rows.dtype != bool:
            rows = rows.astype(np.int64)
        per_run = {name: getattr(self, name)[rows] for name in ("weights", "losses", "model_size", "tokens", "seed")}
        return dataclasses.replace(self, **per_run)

    @property
    def mixture(self) -> np.ndarray:
        """i64[r]: equal for runs of the same weights, whatever their size, tokens and seed."""
        _, index = np.unique(self.weights.round(9), axis=0, return_inverse=True)
        return index.reshape(-1)

    @property
    def shape(self) -> Shape:
        """What a law needs to know of the table to lay out its parameters."""
        return Shape(
            num_domains=self.weights.shape[1],
            metric_domain=tuple(int(i) for i in self.metric_domain),
            model_size_varies=bool(np.ptp(self.model_size) > 0),
            tokens_vary=bool(np.ptp(self.tokens) > 0),
            model_size=float(np.exp(np.mean(np.log(self.model_size)))),
            tokens=float(np.exp(np.mean(np.log(self.tokens)))),
            smallest_model_size=float(np.min(self.model_size)),
        )


class Shape(NamedTuple):
    """The outline of a table.

    Attributes:
        num_domains: m.
        metric_domain: e indices, −1 for a metric of no domain.
        model_size_varies: whether runs differ in size; if not, a law drops its terms in it.
        tokens_vary: likewise.
        model_size: geometric mean, millions: the unit in which a law measures size.
        tokens: geometric mean, billions.
        smallest_model_size: millions.
    """

    num_domains: int
    metric_domain: tuple[int, ...]
    model_size_varies: bool = False
    tokens_vary: bool = False
    model_size: float = 1.0
    tokens: float = 1.0
    smallest_model_size: float = 1.0

    @property
    def num_metrics(self) -> int:
        return len(self.metric_domain)


class Parameter(NamedTuple):
    """One array of parameters.

    Attributes:
        shape: of the array.
        low: lower bound; > 0 if `is_log`.
        high: upper bound.
        start: range that random starts are drawn from, uniform in the logarithm if `is_log`.
        is_log: searched in its logarithm; else as it is.
        per_metric: whether axis 0 runs over the metrics. Where all parameters are, metrics are fitted one by one.
    """

    shape: tuple[int, ...]
    low: float
    high: float
    start: tuple[float, float]
    is_log: bool = True
    per_metric: bool = True


class Form(NamedTuple):
    """A law laid out for one table.

    Attributes:
        parameters: by name.
        predict: see `Predict`. Where every parameter is per metric, metric i is a function of row i of each alone.
        penalty: `(params) -> scalar` added to the mean squared relative error, or None. Natural for priors that keep
            weakly identified parameters apart from nonsense.
        jacobian: `(params, weights, model_size, tokens) -> (losses [r, e], columns)`, for laws whose derivatives by
            hand are much cheaper than `predict`'s by forward mode, or None. `columns` has by name the derivative of
            the losses by each number in its search coordinate, [e, k, r]: k numbers in order for a parameter that
            metrics share; for one per metric, the k numbers of each metric, by its own.
    """

    parameters: Mapping[str, Parameter]
    predict: Predict
    penalty: Callable[[Params], Array] | None = None
    jacobian: Callable[[Params, Array, Array, Array], tuple[Array, Mapping[str, Array]]] | None = None

    @property
    def num_params(self) -> int:
        """Free numbers over all metrics."""
        return sum(int(np.prod(p.shape, dtype=np.int64)) for p in self.parameters.values())


class FitOptions(NamedTuple):
    """Options of the search for parameters; attributes as in `jaxmix.laws.fit`, where laws of other kinds ignore them.

    Attributes:
        start: a `LawFit`, or None.
    """

    num_starts: int = 64
    loss: str = "relative"
    huber_delta: float = 0.02
    restarts: int = 1
    max_steps: int = 400
    tolerance: float = 1e-9
    start: Any = None


Fit = Callable[["Law", RunTable, PRNGKeyArray, Float64[np.ndarray, " r"], FitOptions], Any]
"""`(law, table, key, row_weights, options) -> LawFit`."""


class Law(NamedTuple):
    """A mixing law.

    Attributes:
        name: as in the registry.
        fit: finds what the law predicts by from a table. `least_squares` searches the parameters of `build`;
            `regressor` makes a law of a function that needs no parameters; a law may bring a way of its own.
        build: `(shape) -> Form` for laws with parameters; None for the others.
        extrapolates: whether the law may be asked for model sizes and tokens outside those fitted.
    """

    name: str
    fit: Fit
    build: Callable[[Shape], Form] | None = None
    extrapolates: bool = True


def check_available(values: Any, num_domains: int, where: str) -> np.ndarray:
    """Billions of tokens of every domain as float64[m]: ≥ 0, infinity for no limit."""
    found = np.asarray(values, np.float64)
    if found.shape != (num_domains,) or np.isnan(found).any() or (found < 0).any():
        raise ConfigError(
            f"available_tokens must be {num_domains} numbers >= 0, got {found.tolist()}",
            where=f"{where}(available_tokens)",
        )
    return found


def _check_shapes(table: RunTable) -> None:
    runs, domains, metrics = len(table.weights), len(table.domain_names), len(table.metric_names)
    wanted = {
        "weights": (runs, domains),
        "losses": (runs, metrics),
        "model_size": (runs,),
        "tokens": (runs,),
    }
    for name, shape in wanted.items():
        if getattr(table, name).shape != shape:
            raise ConfigError(
                f"{name} has shape {getattr(table, name).shape}, expected {shape} for {runs} runs, {domains} domains "
                f"and {metrics} metrics",
                where=f"RunTable({name})",
            )
    if runs == 0 or domains == 0 or metrics == 0:
        raise ConfigError(f"{runs} runs, {domains} domains, {metrics} metrics: a table needs all", where="RunTable")
    for name in ("domain_names", "metric_names"):
        values = getattr(table, name)
        if len(set(values)) != len(values):
            raise ConfigError(f"names occur twice in {list(values)}", where=f"RunTable({name})")


def _check_values(table: RunTable) -> None:
    sums = table.weights.sum(axis=1)
    bad = ~np.isfinite(table.weights).all(axis=1) | (table.weights < 0).any(axis=1) | (np.abs(sums - 1) > 1e-6)
    if bad.any():
        row = int(np.argmax(bad))
        raise ConfigError(
            f"row {row} of weights is not on the simplex: {table.weights[row].tolist()} (sum {sums[row]:.9g})",
            where="RunTable(weights)",
            fix="Divide each row by its sum if it was rounded.",
        )
    for name in ("model_size", "tokens"):
        values = getattr(table, name)
        if not (np.isfinite(values) & (values > 0)).all():
            raise ConfigError(f"{name} must be finite and > 0, got {values.tolist()}", where=f"RunTable({name})")
    if np.isinf(table.losses).any() or (table.losses <= 0).any():
        raise ConfigError("losses must be > 0, and nan where not measured", where="RunTable(losses)")
    empty = np.isnan(table.losses).all(axis=0)
    if empty.any():
        name = table.metric_names[int(np.argmax(empty))]
        raise ConfigError(f"metric {name!r} was measured in no run", where="RunTable(losses)", fix="Leave it out.")


def _check_metric_domain(table: RunTable) -> None:
    found, domains = table.metric_domain, len(table.domain_names)
    if found.shape != (len(table.metric_names),) or (found < -1).any() or (found >= domains).any():
        raise ConfigError(
            f"metric_domain must hold {len(table.metric_names)} numbers from -1 to {domains - 1}, got {found.tolist()}",
            where="RunTable(metric_domain)",
        )
