"""Fitting a law to a table of runs: many starts at once, the best carried to the end, then shaken and carried again."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmix.core.errors import ConfigError, RunError, nearest
from jaxmix.laws.base import Form, Law, RunTable, Shape
from jaxmix.laws.solve.layout import Layout, Point, lay_out
from jaxmix.laws.solve.levenberg_marquardt import Cells, Solution, build_solver

LOSSES = ("relative", "huber")
_LANES = 16
_FEWEST_LANES = 4
_CACHE_BYTES = 2**23
_LANE_BYTES = 2**28
_BLOCK = 4096
_SCREENING = 25, 60
"""Steps of all starts, and of the best of them on large tables, before the few that go on to the end are chosen."""

_SHAKE = 0.3


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
        objectives: float64[s], where every start stood after the first steps: how much the starts differ. Where
            metrics are fitted one by one: the sum over metrics.
        at_bounds: names of numbers that lie on a bound, such as `irreducible[3]`: the table does not determine them.
        effective_params: how many numbers the table determines, for laws whose priors hold the others; None for laws
            without priors, where it is `num_params`.
        selection: the ranking by which "auto" chose the law (`jaxmix.laws.Selection`); None for laws given by name.
    """

    params: dict[str, np.ndarray]
    objective: float
    num_params: int
    converged: bool
    law: Law
    shape: Shape
    objectives: np.ndarray
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


def fit(
    law: Law,
    table: RunTable,
    *,
    key: Any,
    num_starts: int = 64,
    loss: str = "relative",
    huber_delta: float = 0.02,
    restarts: int = 1,
    max_steps: int = 400,
    tolerance: float = 1e-9,
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
        The fit. Laws with `regress` are called, and only `key` and `table` matter to them; so are laws with `estimate`,
        and only `key`, `table` and `row_weights` do. "auto" returns the fit of the law it has chosen.

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
    _check(num_starts=num_starts, loss=loss, huber_delta=huber_delta, restarts=restarts)
    _check_limits(max_steps, tolerance)
    row_weights = _checked_row_weights(row_weights, table)
    shape = table.shape
    if law.regress is not None:
        return _regressed(law, table, key, row_weights)
    if law.choose is not None:
        given = {"num_starts": num_starts, "loss": loss, "huber_delta": huber_delta, "restarts": restarts, "max_steps": max_steps, "tolerance": tolerance}  # fmt: skip
        return law.choose(table, key, row_weights, given)
    if law.build is None:
        raise ConfigError(f"law {law.name!r} has neither `build` nor `regress`", where="fit(law)")
    if law.estimate is not None:
        return _estimated(law, table, key, row_weights)
    with on_host():
        key = jax.device_put(key, jax.devices("cpu")[0])
        layout = compiled(law, shape).layout
        first = None if start is None else _start_point(start, law, shape, layout)
        delta = huber_delta if loss == "huber" else None
        program = solver_of(law, shape, delta, tolerance)
        cells, row_weights = cells_of(table, row_weights)
        lanes = lanes_for(layout, cells)
        run = functools.partial(solve_all, program, cells, row_weights, lanes)
        few, some = (min(steps, max_steps) for steps in _SCREENING)
        draw, *shakes = jax.random.split(key, restarts + 1)
        points = layout.draw(draw, num_starts)
        if first is not None:
            points = Point(*(np.concatenate([f[None], p[:-1]]) for f, p in zip(first, points, strict=True)))
        solution = run(points, few)
        objectives = solution.cost.sum(axis=1)
        if not np.isfinite(solution.cost).any(axis=0).all():
            raise RunError(
                f"law {law.name!r} has no finite error on this table from any of {num_starts} starts",
                where="fit",
                fix="Leave out (as nan) the cells it cannot express, such as those of zero own weight.",
            )
        if lanes < _LANES < num_starts:
            solution = run(_best(solution, _LANES, layout).point, some)
        best = _best(run(_best(solution, min(lanes, num_starts), layout).point, max_steps), 1, layout)
        for shake in shakes:
            again = run(_shaken(shake, best.point, layout), some if lanes < _LANES else max_steps)
            if lanes < _LANES:
                again = run(_best(again, lanes, layout).point, max_steps)
            best = _best(_joined(best, again), 1, layout)
        point = Point(*(jnp.asarray(value[0]) for value in best.point))
        params = {name: np.asarray(value) for name, value in layout.params(point).items()}
    return LawFit(
        params=params,
        objective=float(best.cost.sum()),
        num_params=layout.form.num_params,
        converged=bool(best.is_converged.all()),
        law=law,
        shape=shape,
        objectives=objectives,
        at_bounds=layout.at_bounds(params),
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


def compiled(law: Law, shape: Shape) -> Compiled:
    """The law laid out for a table; the same object for the same law and outline."""
    return _compiled(law.build, shape)


@functools.lru_cache(maxsize=64)
def _compiled(build: Callable[[Shape], Form], shape: Shape) -> Compiled:
    form = build(shape)
    blocks = lambda params, rows: jax.lax.map(lambda block: form.predict(params, *block), rows)
    return Compiled(form, lay_out(form, shape.num_metrics), jax.jit(blocks))


def solver_of(law: Law, shape: Shape, huber_delta: float | None, tolerance: float) -> Callable[..., Any]:
    """The jitted solver of a law and an outline; the same object for the same arguments."""
    return _solver_of(law.build, shape, huber_delta, tolerance)


@functools.lru_cache(maxsize=64)
def _solver_of(
    build: Callable[[Shape], Form], shape: Shape, huber_delta: float | None, tolerance: float
) -> Callable[..., Any]:
    return build_solver(_compiled(build, shape).layout, huber_delta, tolerance)


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
    block = min(_BLOCK, _rounded(rows))
    count = -(-rows // block)
    fill = count * block - rows
    parts = [np.concatenate([value, value[:1].repeat(fill, axis=0)]) for value in (weights, model_size, tokens)]
    with on_host():
        program = compiled(law, shape).predict
        blocks = tuple(jnp.asarray(part.reshape(count, block, *part.shape[1:])) for part in parts)
        values = program({name: jnp.asarray(value) for name, value in params.items()}, blocks)
        return np.asarray(values).reshape(count * block, -1)[:rows]


def cells_of(table: RunTable, row_weights: np.ndarray) -> tuple[Cells, np.ndarray]:
    """The table as a solver takes it, filled up with runs of weight 0 to a round number of rows."""
    fill = _rounded(len(table)) - len(table)
    more = lambda value, with_: np.concatenate([value, np.broadcast_to(with_, (fill, *value.shape[1:]))])
    is_measured = np.isfinite(table.losses)
    cells = Cells(
        weights=jnp.asarray(more(table.weights, 1.0 / table.weights.shape[1])),
        model_size=jnp.asarray(more(table.model_size, table.model_size[0])),
        tokens=jnp.asarray(more(table.tokens, table.tokens[0])),
        losses=jnp.asarray(more(np.where(is_measured, table.losses, 1.0), 1.0)),
        is_measured=jnp.asarray(more(is_measured.astype(np.float64), 0.0)),
    )
    return cells, more(row_weights, 0.0)


def lanes_for(layout: Layout, cells: Cells) -> int:
    """How many starts advance at once: 16, down to 4 where their derivatives would leave the processor's caches."""
    size = 8 * (layout.low.shared.size + layout.low.local.shape[1]) * cells.losses.size
    wanted = max(_FEWEST_LANES, _CACHE_BYTES // max(1, size))
    return max(1, min(_LANES, wanted, _LANE_BYTES // max(1, size)))


def solve_all(
    program: Any, cells: Cells, row_weights: np.ndarray, lanes: int, points: Point, max_steps: int
) -> Solution:
    """Solves from all points, in groups of `lanes`, so that one compiled program serves any number of them.

    `row_weights` are [r], or [s, r] with those of each point.
    """
    count = points.local.shape[0]
    every = np.broadcast_to(row_weights, (count, row_weights.shape[-1]))
    parts = []
    for first in range(0, count, lanes):
        index = np.minimum(np.arange(first, first + lanes), count - 1)
        group = Point(*(jnp.asarray(np.asarray(value)[index]) for value in points))
        done = jax.device_get(program(group, cells, jnp.asarray(every[index]), jnp.int32(max_steps)))
        kept = min(lanes, count - first)
        parts.append(Solution(Point(*(v[:kept] for v in done.point)), done.cost[:kept], done.is_converged[:kept], 0))
    return functools.reduce(_joined, parts)


def _joined(a: Solution, b: Solution) -> Solution:
    both = lambda x, y: np.concatenate([x, y])
    return Solution(
        Point(both(a.point.shared, b.point.shared), both(a.point.local, b.point.local)),
        both(a.cost, b.cost),
        both(a.is_converged, b.is_converged),
        0,
    )


def _best(solution: Solution, count: int, layout: Layout) -> Solution:
    """The `count` best starts, ascending; where metrics are apart, the best of each metric side by side."""
    order = np.argsort(np.where(np.isfinite(solution.cost), solution.cost, np.inf), axis=0, kind="stable")[:count]
    if not layout.is_separable:
        rows = order[:, 0]
        return Solution(
            Point(*(value[rows] for value in solution.point)), solution.cost[rows], solution.is_converged[rows], 0
        )
    take = lambda value: np.take_along_axis(value, order, axis=0)
    local = np.take_along_axis(solution.point.local, order[..., None], axis=0)
    return Solution(Point(solution.point.shared[:count], local), take(solution.cost), take(solution.is_converged), 0)


def _shaken(key: Any, point: Point, layout: Layout) -> Point:
    """`_LANES` points around one: logarithms moved by a normal of 0.3, other numbers by 0.3 of their size."""
    keys = jax.random.split(key)
    moved = []
    for k, value, low, high in zip(keys, point, layout.low, layout.high, strict=True):
        noise = np.asarray(jax.random.normal(k, (_LANES, *value.shape[1:]), jnp.float64))
        moved.append(np.clip(np.asarray(value) + _SHAKE * noise, low, high))
    return Point(*moved)


def _regressed(law: Law, table: RunTable, key: Any, row_weights: np.ndarray) -> LawFit:
    """A law that fits itself, to the runs of weight above 0."""
    kept = table.take(row_weights > 0)
    predict, num_params = law.regress(kept, key)  # type: ignore[misc]
    error = predict(kept.weights, kept.model_size, kept.tokens) / kept.losses - 1.0
    objective = float(np.nanmean(error**2))
    return LawFit(
        params={},
        objective=objective,
        num_params=num_params,
        converged=True,
        law=law,
        shape=table.shape,
        objectives=np.array([objective]),
        _predict=predict,
    )


def _estimated(law: Law, table: RunTable, key: Any, row_weights: np.ndarray) -> LawFit:
    """A law that has parameters and finds them itself."""
    found = law.estimate(table, key, row_weights)  # type: ignore[misc]
    layout = compiled(law, table.shape).layout
    return LawFit(
        params=found.params,
        objective=found.objective,
        num_params=layout.form.num_params,
        converged=found.converged,
        law=law,
        shape=table.shape,
        objectives=np.array([found.objective]),
        at_bounds=layout.at_bounds(found.params),
        effective_params=found.effective_params,
    )


def _rounded(rows: int) -> int:
    """`rows` rounded up to an eighth of its power of two, at least 8: few distinct sizes, little filling."""
    step = max(8, 2 ** (max(rows, 1).bit_length() - 3))
    return -(-rows // step) * step


def _start_point(start: LawFit, law: Law, shape: Shape, layout: Layout) -> Point:
    wanted = {name: parameter.shape for name, parameter in layout.form.parameters.items()}
    given = {name: np.shape(value) for name, value in start.params.items()}
    if wanted != given or start.law.name != law.name:
        raise ConfigError(
            f"the start is a fit of {start.law.name!r} with parameters {given}, the law {law.name!r} has {wanted}",
            where="fit(start)",
        )
    return layout.point(start.params)


def _check(*, num_starts: int, loss: str, huber_delta: float, restarts: int) -> None:
    if loss not in LOSSES:
        raise ConfigError(f"unknown loss {loss!r}", where="fit(loss)", fix=nearest(str(loss), LOSSES))
    for name, number, least in (("num_starts", num_starts, 1), ("restarts", restarts, 0)):
        if number < least:
            raise ConfigError(f"{name} must be >= {least}, got {number}", where=f"fit({name})")
    if not huber_delta > 0:
        raise ConfigError(f"huber_delta must be > 0, got {huber_delta}", where="fit(huber_delta)")


def _check_limits(max_steps: int, tolerance: float) -> None:
    if max_steps < 1:
        raise ConfigError(f"max_steps must be >= 1, got {max_steps}", where="fit(max_steps)")
    if not 0 < tolerance < 1:
        raise ConfigError(f"tolerance must be in (0, 1), got {tolerance}", where="fit(tolerance)")


def _checked_row_weights(row_weights: Any, table: RunTable) -> np.ndarray:
    weights = np.ones(len(table)) if row_weights is None else np.asarray(row_weights, np.float64)
    if weights.shape != (len(table),) or not (np.isfinite(weights) & (weights >= 0)).all() or not (weights > 0).any():
        raise ConfigError(
            f"row_weights must be {len(table)} finite numbers >= 0, not all 0, got shape {weights.shape}",
            where="fit(row_weights)",
        )
    return weights
