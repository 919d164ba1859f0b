"""Weighted least squares for laws: many random starts, the best refined, then restarts around it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmix.core.errors import ConfigError, RunError
from jaxmix.core.types import PRNGKeyArray
from jaxmix.laws.base import FitOptions, Law, RunTable, Shape
from jaxmix.laws.fit import LawFit, compiled, fit_with_params, on_host, rounded_rows
from jaxmix.laws.solve.layout import Layout, Point
from jaxmix.laws.solve.levenberg_marquardt import Cells, Solution, build_solver

_LANES = 16
_FEWEST_LANES = 4
_CACHE_BYTES = 2**23
_LANE_BYTES = 2**28
_SCREENING = 25, 60
"""Steps of all starts, and of the best of them on large tables, before the few that go on to the end are chosen."""

_PERTURBATION = 0.3


def least_squares(law: Law, table: RunTable, key: PRNGKeyArray, row_weights: np.ndarray, options: FitOptions) -> LawFit:
    """The `fit` of laws with `build` whose parameters are searched; see `jaxmix.laws.fit` for the objective.

    Raises:
        ConfigError: a start of another law.
        RunError: no start has a finite objective.
    """
    shape = table.shape
    with on_host():
        key = jax.device_put(key, jax.devices("cpu")[0])
        layout = compiled(law, shape).layout
        first = None if options.start is None else _start_point(options.start, law, shape, layout)
        delta = options.huber_delta if options.loss == "huber" else None
        program = solver_of(law, shape, delta, options.tolerance)
        cells, row_weights = cells_of(table, row_weights)
        lanes = lanes_for(layout, cells)
        run = functools.partial(solve_all, program, cells, row_weights, lanes)
        few, some = (min(steps, options.max_steps) for steps in _SCREENING)
        start_key, *perturb_keys = jax.random.split(key, options.restarts + 1)
        points = layout.random_points(start_key, options.num_starts)
        if first is not None:
            points = Point(*(np.concatenate([f[None], p[:-1]]) for f, p in zip(first, points, strict=True)))
        solution = run(points, few)
        objectives = solution.cost.sum(axis=1)
        if not np.isfinite(solution.cost).any(axis=0).all():
            raise RunError(
                f"law {law.name!r} has no finite error on this table from any of {options.num_starts} starts",
                where="fit",
                fix="Leave out (as nan) the cells it cannot express, such as those of zero own weight.",
            )
        if lanes < _LANES < options.num_starts:
            solution = run(_best(solution, _LANES, layout).point, some)
        best = _best(run(_best(solution, min(lanes, options.num_starts), layout).point, options.max_steps), 1, layout)
        for perturb_key in perturb_keys:
            again = run(_perturbed(perturb_key, best.point, layout), some if lanes < _LANES else options.max_steps)
            if lanes < _LANES:
                again = run(_best(again, lanes, layout).point, options.max_steps)
            best = _best(_joined(best, again), 1, layout)
        point = Point(*(jnp.asarray(value[0]) for value in best.point))
        params = {name: np.asarray(value) for name, value in layout.params(point).items()}
    return fit_with_params(
        law,
        shape,
        params,
        float(best.cost.sum()),
        converged=bool(best.is_converged.all()),
        objectives=objectives,
    )


@functools.lru_cache(maxsize=64)
def solver_of(law: Law, shape: Shape, huber_delta: float | None, tolerance: float) -> Callable[..., Solution]:
    """The jitted solver of a law and an outline; the same object for the same arguments."""
    return build_solver(compiled(law, shape).layout, huber_delta, tolerance)


def cells_of(table: RunTable, row_weights: np.ndarray) -> tuple[Cells, np.ndarray]:
    """The table as a solver takes it, filled up with runs of weight 0 to a round number of rows."""
    fill = rounded_rows(len(table)) - len(table)
    more = lambda value, with_: np.concatenate([value, np.broadcast_to(with_, (fill, *value.shape[1:]))])
    is_observed = np.isfinite(table.losses)
    cells = Cells(
        weights=jnp.asarray(more(table.weights, 1.0 / table.weights.shape[1])),
        model_size=jnp.asarray(more(table.model_size, table.model_size[0])),
        tokens=jnp.asarray(more(table.tokens, table.tokens[0])),
        losses=jnp.asarray(more(np.where(is_observed, table.losses, 1.0), 1.0)),
        is_observed=jnp.asarray(more(is_observed.astype(np.float64), 0.0)),
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
        parts.append(done)
    # The last group is filled up with its last start.
    return jax.tree.map(lambda value: value[:count], _joined(*parts))


def _joined(*solutions: Solution) -> Solution:
    return jax.tree.map(lambda *values: np.concatenate(values), *solutions)


def _best(solution: Solution, count: int, layout: Layout) -> Solution:
    """The `count` best starts, ascending; where metrics are fitted apart, the best of each metric side by side."""
    order = np.argsort(np.where(np.isfinite(solution.cost), solution.cost, np.inf), axis=0, kind="stable")[:count]
    if not layout.is_separable:
        return jax.tree.map(lambda value: value[order[:, 0]], solution)
    take = lambda value: np.take_along_axis(value, order, axis=0)
    local = np.take_along_axis(solution.point.local, order[..., None], axis=0)
    return Solution(Point(solution.point.shared[:count], local), take(solution.cost), take(solution.is_converged))


def _perturbed(key: Any, point: Point, layout: Layout) -> Point:
    """`_LANES` points around one: logarithms moved by a normal of 0.3, other numbers by 0.3 of their size."""
    keys = jax.random.split(key)
    moved = []
    for k, value, low, high in zip(keys, point, layout.low, layout.high, strict=True):
        noise = np.asarray(jax.random.normal(k, (_LANES, *value.shape[1:]), jnp.float64))
        moved.append(np.clip(np.asarray(value) + _PERTURBATION * noise, low, high))
    return Point(*moved)


def _start_point(start: LawFit, law: Law, shape: Shape, layout: Layout) -> Point:
    wanted = {name: parameter.shape for name, parameter in layout.form.parameters.items()}
    given = {name: np.shape(value) for name, value in start.params.items()}
    if wanted != given or start.law.name != law.name:
        raise ConfigError(
            f"the start is a fit of {start.law.name!r} with parameters {given}, the law {law.name!r} has {wanted}",
            where="fit(start)",
        )
    return layout.point(start.params)
