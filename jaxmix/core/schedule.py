"""Mixture schedules: weights as a pure function of the position in training.

A schedule is a list of points, each a position and the weights that hold from there. Positions are counted in
optimizer steps or in tokens; the unit is part of the schedule. Weights are held before the first point and after
the last. At a point's position the weights are exactly that point's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxmix.core.counter import Counter, counter, difference, is_at_least
from jaxmix.core.errors import ConfigError, nearest
from jaxmix.core.types import Array, Float, Int, Weights
from jaxmix.core.validate import check_choice, check_one_per_domain, check_simplex

INTERPOLATIONS = ("step", "linear", "cosine")
UNITS = ("steps", "tokens")


class MixtureSchedule(NamedTuple):
    """A checked schedule; static, so it may be closed over by a jitted function.

    Attributes:
        at: r positions, strictly increasing, in `unit`.
        rows: r rows of weights that each add to 1; or the name of a row that is known later ("prior", "uniform").
        interpolation: "step", "linear" or "cosine".
        unit: "steps" or "tokens".
    """

    at: tuple[int, ...]
    rows: tuple[tuple[float, ...] | Literal["prior", "uniform"], ...]
    interpolation: str
    unit: str


def mixture_schedule(
    points: Sequence[Any],
    *,
    interpolation: str = "step",
    unit: str = "steps",
    where: str = "schedule",
) -> MixtureSchedule:
    """Checks the points of a schedule as a configuration file gives them.

    Args:
        points: mappings with `at` (whole number ≥ 0, strictly increasing) and `weights`: a list that adds to 1, or
            "prior" (the weights that the mixer is initialized with) or "uniform".
        interpolation: between two points: "step" holds the earlier one's weights until the position of the later
            one, "linear" goes straight, "cosine" goes along half a cosine, flat at both points.
        unit: of `at`: optimizer "steps" or "tokens" (all domains together, as counted in the loss).
        where: the configuration key, for error messages.

    Raises:
        ConfigError: names the point and the value that is wrong.
    """
    check_choice(where, "interpolation", interpolation, INTERPOLATIONS)
    check_choice(where, "unit", unit, UNITS)
    if not points:
        raise ConfigError("a schedule needs at least one point", where=where, fix="Give {at: 0, weights: [...]}.")
    at: list[int] = []
    rows: list[Any] = []
    for i, point in enumerate(points):
        place = f"{where}.points[{i}]"
        _check_keys(point, place)
        at.append(_check_position(point["at"], at[-1] if at else None, f"{place}.at"))
        row = point["weights"]
        rows.append(row if row in ("prior", "uniform") else check_simplex(row, f"{place}.weights"))
    lengths = {len(row): i for i, row in enumerate(rows) if not isinstance(row, str)}
    if len(lengths) > 1:
        raise ConfigError(
            f"all points need equally many weights, got {sorted(lengths)}",
            where=where,
            fix="Give every source a weight at every point; 0 is allowed.",
        )
    return MixtureSchedule(tuple(at), tuple(rows), interpolation, unit)


def schedule_weights(schedule: MixtureSchedule, position: Counter | int | Int[Array, ""], prior: Weights) -> Weights:
    """Returns the weights at `position`, f32[m].

    Args:
        schedule: static.
        position: in the schedule's unit: a Python integer, an int32 scalar, or a `Counter`.
        prior: f32[m], what the row "prior" stands for; its length is the number of domains.

    Raises:
        ConfigError: the schedule's rows have another number of weights than `prior`.
    """
    table = _table(schedule, prior)
    if isinstance(position, int):
        position = counter(position)
    elif not isinstance(position, Counter):
        position = Counter(high=position // 2**30, low=position % 2**30)
    starts = counter(np.asarray(schedule.at, np.int64))
    here = Counter(
        high=jnp.broadcast_to(position.high, starts.high.shape), low=jnp.broadcast_to(position.low, starts.low.shape)
    )
    passed = jnp.sum(is_at_least(here, starts).astype(jnp.int32))
    index = jnp.maximum(passed - 1, 0)
    following = jnp.minimum(index + 1, len(schedule.at) - 1)
    if schedule.interpolation == "step":
        return table[index]
    width = jnp.asarray(
        [b - a for a, b in zip(schedule.at, (*schedule.at[1:], schedule.at[-1] + 1), strict=True)], jnp.float32
    )
    start = Counter(high=starts.high[index], low=starts.low[index])
    fraction = jnp.clip(difference(position, start) / width[index], 0.0, 1.0)
    if schedule.interpolation == "cosine":
        fraction = jnp.sin(0.5 * jnp.pi * fraction) ** 2  # (1 − cos πf) / 2 without cancellation
    return (1.0 - fraction) * table[index] + fraction * table[following]


def mean_schedule_weights(schedule: MixtureSchedule, length: int, prior: Sequence[float]) -> np.ndarray:
    """Mean of the weights over the positions 0, …, `length` − 1, f64[m], in NumPy; touches no device.

    Args:
        schedule: as for `schedule_weights`.
        length: ≥ 1, in the schedule's unit. Between two points at most 100,000 positions are taken, evenly spaced.
        prior: [m], what the row "prior" stands for.
    """
    names = {"prior": np.asarray(prior, np.float64), "uniform": np.full(len(prior), 1.0 / len(prior))}
    table = [names[row] if isinstance(row, str) else np.asarray(row, np.float64) for row in schedule.rows]
    total = min(schedule.at[0], length) * table[0]
    for i, (start, row) in enumerate(zip(schedule.at, table, strict=True)):
        is_last = i + 1 == len(table)
        end, following = (length, row) if is_last else (schedule.at[i + 1], table[i + 1])
        count = min(end, length) - start
        if count <= 0:
            break
        fraction = np.linspace(0, count - 1, min(count, 100_000)).round() / (end - start)
        if schedule.interpolation == "step":
            fraction = np.zeros(1)
        elif schedule.interpolation == "cosine":
            fraction = np.sin(0.5 * np.pi * fraction) ** 2
        total = total + count * (row + fraction.mean() * (following - row))
    return total / length


def _table(schedule: MixtureSchedule, prior: Weights) -> Float[Array, "r m"]:
    m = prior.shape[0]
    rows = []
    for i, row in enumerate(schedule.rows):
        if row == "prior":
            rows.append(prior)
        elif row == "uniform":
            rows.append(jnp.full((m,), 1.0 / m, jnp.float32))
        else:
            check_one_per_domain(len(row), m, f"schedule.points[{i}].weights")
            rows.append(jnp.asarray(row, jnp.float32))
    return jnp.stack(rows)


def _check_keys(point: Any, place: str) -> None:
    if not isinstance(point, Mapping):
        raise ConfigError(f"a point must be {{at, weights}}, got {point!r}", where=place)
    for key in point:
        if key not in ("at", "weights"):
            raise ConfigError(f"a point has no key {key!r}", where=place, fix=nearest(str(key), ("at", "weights")))
    for key in ("at", "weights"):
        if key not in point:
            raise ConfigError(f"the point has no {key!r}", where=place, fix="Give {at: 0, weights: [...]}.")


def _check_position(value: Any, previous: int | None, place: str) -> int:
    is_whole = isinstance(value, (int, float)) and not isinstance(value, bool) and value == value // 1
    if not is_whole or value < 0:
        raise ConfigError(f"a position must be a whole number ≥ 0, got {value!r}", where=place)
    if previous is not None and value <= previous:
        raise ConfigError(
            f"positions must increase: {int(value)} follows {previous}", where=place, fix="Sort the points."
        )
    return int(value)
