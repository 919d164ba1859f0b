"""How a law's parameters are laid out in the vectors that a solver moves.

A point is a pair: what all metrics share, [ps], and what belongs to one metric each, [e, pl]; both in search
coordinates (logarithms where a parameter is searched so). The split is what makes fits cheap: a residual of metric i
depends on the shared part and on row i of the other, so that one derivative per *column* covers all metrics, and the
normal equations are an arrow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmix.core.types import PRNGKeyArray
from jaxmix.laws.base import Form, Parameter, Params


class Point(NamedTuple):
    """Parameters in search coordinates: JAX arrays within programs, NumPy arrays on the host.

    Attributes:
        shared: float64[..., ps].
        local: float64[..., e, pl].
    """

    shared: Any
    local: Any


class Layout(NamedTuple):
    """The layout of one form.

    Attributes:
        form: the law laid out for a table.
        num_metrics: e.
        shared: names of the parameters all metrics share, in order.
        local: names of those of one metric each.
        low: lower bounds, a point of numpy arrays.
        high: upper bounds.
    """

    form: Form
    num_metrics: int
    shared: tuple[str, ...]
    local: tuple[str, ...]
    low: Point
    high: Point

    @property
    def is_separable(self) -> bool:
        """Whether metrics can be fitted one by one."""
        return self.low.shared.size == 0 and self.form.penalty is None

    def params(self, point: Point) -> Params:
        """The law's parameters at a point (without leading axes), in their own coordinates."""
        values = {}
        for names, part, axes in ((self.shared, point.shared, 0), (self.local, point.local, 1)):
            at = 0
            for name in names:
                parameter = self.form.parameters[name]
                width = int(np.prod(parameter.shape[axes:], dtype=np.int64))
                value = part[..., at : at + width].reshape(parameter.shape)
                values[name] = jnp.exp(value) if parameter.is_log else value
                at += width
        return values

    def point(self, params: Mapping[str, Any]) -> Point:
        """The point of given parameters, as numpy arrays; values outside the bounds are moved to them."""
        find = lambda name: _inside(self.form.parameters[name], params[name])
        point = _join(self, find)
        return Point(*(np.clip(value, low, high) for value, low, high in zip(point, self.low, self.high, strict=True)))

    def random_points(self, key: PRNGKeyArray, count: int) -> Point:
        """`count` random starts, uniform over each parameter's range of starts."""
        ends = (_bound(self, lambda parameter: parameter.start[0]), _bound(self, lambda parameter: parameter.start[1]))
        keys = jax.random.split(key)
        spread = lambda key, low, high: jax.random.uniform(
            key, (count, *low.shape), jnp.float64, jnp.asarray(low)[None], jnp.asarray(high)[None]
        )
        return Point(*(spread(k, low, high) for k, low, high in zip(keys, *ends, strict=True)))

    def at_bounds(self, params: Mapping[str, Any]) -> tuple[str, ...]:
        """Names of the numbers that lie on a bound, such as `irreducible[3]`."""
        names = []
        for name, parameter in self.form.parameters.items():
            values = _inside(parameter, params[name])
            low, high = (_inside(parameter, bound) for bound in (parameter.low, parameter.high))
            margin = 1e-9 * (high - low)
            for index in zip(*np.nonzero((values <= low + margin) | (values >= high - margin)), strict=True):
                names.append(f"{name}[{', '.join(str(int(i)) for i in index)}]")
        return tuple(names)


def lay_out(form: Form, num_metrics: int) -> Layout:
    """Sorts the parameters of a form into shared ones and those of a metric."""
    shared = tuple(name for name, parameter in form.parameters.items() if not parameter.per_metric)
    local = tuple(name for name, parameter in form.parameters.items() if parameter.per_metric)
    nothing = Point(np.zeros(0), np.zeros((num_metrics, 0)))
    empty = Layout(form, num_metrics, shared, local, nothing, nothing)
    return empty._replace(
        low=_bound(empty, lambda parameter: parameter.low), high=_bound(empty, lambda parameter: parameter.high)
    )


def _bound(layout: Layout, value: Callable[[Parameter], float]) -> Point:
    """The point at which each parameter has one value throughout."""
    parameters = layout.form.parameters
    fill = lambda name: np.broadcast_to(_inside(parameters[name], value(parameters[name])), parameters[name].shape)
    return _join(layout, fill)


def _join(layout: Layout, find: Callable[[str], np.ndarray]) -> Point:
    """A point from a function that gives each parameter's array in search coordinates."""
    e = layout.num_metrics
    shared = [np.reshape(find(name), -1) for name in layout.shared]
    local = [np.reshape(find(name), (e, -1)) for name in layout.local]
    return Point(
        np.concatenate([*shared, np.zeros(0)]),
        np.concatenate([*local, np.zeros((e, 0))], axis=1),
    )


def _inside(parameter: Parameter, value: Any) -> np.ndarray:
    value = np.asarray(value, np.float64)
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(value)) if parameter.is_log else value
