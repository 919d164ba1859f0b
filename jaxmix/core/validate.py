"""Checks of arguments: numbers, counts, named choices, weights, mesh shapes.

They need no JAX, so that a configuration is checked before anything is loaded.
"""

from __future__ import annotations

import functools
import inspect
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from numbers import Integral
from typing import Annotated, Any, Literal, TypeVar

from jaxmix.core.errors import ConfigError, nearest

F = TypeVar("F", bound=Callable[..., Any])
MESH_AXES = ("data", "fsdp", "tensor")
_SUM_TOLERANCE = 0.01


def check_number(
    name: str,
    argument: str,
    value: float,
    at_least: float = -math.inf,
    at_most: float = math.inf,
    *,
    above: float = -math.inf,
    below: float = math.inf,
) -> None:
    """Raises `ConfigError` unless `value` is finite, ≥ `at_least`, ≤ `at_most`, > `above` and < `below`."""
    if not (math.isfinite(value) and at_least <= value <= at_most and above < value < below):
        span = f"above {above:g}" if above > -math.inf else f"at least {at_least:g}"
        span += f" and at most {at_most:g}" if at_most < math.inf else ""
        span += f" and below {below}" if below < math.inf else ""
        raise ConfigError(f"{argument} must be finite and {span}, got {value}", where=f"{name}({argument})")


def check_count(name: str, argument: str, value: int, least: int = 1) -> None:
    """Raises `ConfigError` unless `value` is a whole number ≥ `least`."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ConfigError(f"{argument} must be a whole number ≥ {least}, got {value!r}", where=f"{name}({argument})")


def at_least(least: float) -> Callable[..., None]:
    """A range for `Annotated`: finite and at least `least`."""
    return partial(check_number, at_least=least)


NonNegative = Annotated[float, at_least(0.0)]
Positive = Annotated[float, partial(check_number, above=0.0)]
Share = Annotated[float, partial(check_number, at_least=0.0, at_most=1.0)]
Decay = Annotated[float, partial(check_number, at_least=0.0, below=1.0)]
Rate = Annotated[float, partial(check_number, at_most=1.0, above=0.0)]
Fraction = Annotated[float, partial(check_number, above=0.0, below=1.0)]
Count = Annotated[int, check_count]
Whole = Annotated[int, partial(check_count, least=0)]
"""Ranges as annotations, for functions that are `checked`: ≥ 0, > 0, [0, 1], [0, 1), (0, 1], (0, 1), whole ≥ 1, ≥ 0."""


def checked(function: F) -> F:
    """Decorator: checks a call's arguments by the ranges and choices in the annotations: `decay: Share`."""

    @functools.cache
    def ranges() -> list[tuple[str, Callable[..., None], bool]]:
        found = []
        for argument, hint in typing.get_type_hints(function, include_extras=True).items():
            members = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
            for member in members:
                check = member.__metadata__[0] if typing.get_origin(member) is Annotated else None
                if typing.get_origin(member) is Literal:
                    check = partial(check_choice, known=typing.get_args(member))
                if callable(check):
                    found.append((argument, check, type(None) in members))
        return found

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        given = inspect.signature(function).bind(*args, **kwargs).arguments
        for argument, check, is_optional in ranges():
            if argument in given and not (is_optional and given[argument] is None):
                check(function.__name__, argument, given[argument])
        return function(*args, **kwargs)

    return typing.cast(F, call)


def check_choice(name: str, argument: str, value: str, known: Sequence[str]) -> None:
    """Raises `ConfigError` with the nearest known word unless `value` is one of them."""
    if value not in known:
        raise ConfigError(f"unknown {argument} {value!r}", where=f"{name}({argument})", fix=nearest(str(value), known))


def check_one_per_domain(given: int, num_domains: int, where: str, what: str = "weights") -> None:
    """Raises `ConfigError` unless `given`, the length of a list, is the number of domains."""
    if given != num_domains:
        raise ConfigError(
            f"{given} {what} for {num_domains} domains", where=where, fix="Give one per source, in their order."
        )


def values_in_order(
    values: Mapping[str, Any] | Sequence[Any], names: Sequence[str], where: str, what: str = "value"
) -> list[Any]:
    """Values by name, or in the order of `names` already, as a list in that order.

    Raises:
        ConfigError: a name is unknown (the nearest is suggested) or missing, or the list has another length.
    """
    if isinstance(values, Mapping):
        for name in values:
            if name not in names:
                raise ConfigError(f"unknown source {name!r}", where=where, fix=nearest(str(name), names))
        missing = [name for name in names if name not in values]
        if missing:
            more = f" and {len(missing) - 1} more" if missing[1:] else ""
            raise ConfigError(
                f"no {what} for source {missing[0]!r}{more}",
                where=where,
                fix="Give one for every source; a weight of 0 keeps a source for evaluation only.",
            )
        return [values[name] for name in names]
    if len(values) != len(names):
        raise ConfigError(
            f"{len(values)} {what}s for {len(names)} sources",
            where=where,
            fix=f"Give one per source, in the order {', '.join(names)}; or a mapping by name.",
        )
    return list(values)


def check_weights(
    weights: Mapping[str, float] | Sequence[float], names: Sequence[str], where: str
) -> tuple[float, ...]:
    """Weights by name or in the order of `names`, as numbers in that order: finite, ≥ 0, not all 0, of any sum.

    Raises:
        ConfigError: names the source and its weight; see also `values_in_order`.
    """
    values = _check_parts(values_in_order(weights, names, where, "weight"), [repr(name) for name in names], where)
    if not sum(values) > 0:
        raise ConfigError("all mixture weights are 0", where=where, fix="Give at least one source a weight above 0.")
    return values


def check_simplex(weights: Any, where: str) -> tuple[float, ...]:
    """Checks that a list of numbers lies on the simplex and returns it, divided by its sum.

    The sum may be off by 0.01, so that rounded decimals are accepted.

    Raises:
        ConfigError: not numbers, not finite, negative, or the sum is not 1.
    """
    values = _check_parts(weights, None, where)
    total = math.fsum(values)
    if not abs(total - 1) <= _SUM_TOLERANCE:
        raise ConfigError(
            f"mixture weights must add to 1, these add to {total:.6g}", where=where, fix="Divide each by their sum."
        )
    return tuple(value / total for value in values)


def _check_parts(weights: Any, labels: Sequence[str] | None, where: str) -> tuple[float, ...]:
    try:
        values = tuple(float(weight) for weight in weights)
    except (TypeError, ValueError):
        raise ConfigError(
            f"mixture weights must be a list of numbers, got {weights!r}", where=where, fix="Give one per source."
        ) from None
    for i, value in enumerate(values):
        if not math.isfinite(value) or value < 0:
            one = f"{labels[i]} has" if labels else f"number {i} is"
            raise ConfigError(
                f"mixture weights must be finite and ≥ 0: {one} {value:g}",
                where=where,
                fix="Remove the source, or set 0 to keep it for evaluation only.",
            )
    if not math.isfinite(sum(values)):
        raise ConfigError("mixture weights add to infinity", where=where, fix="Divide each by the largest.")
    return values


def check_mesh_shape(shape: Mapping[str, int], where: str) -> None:
    """Raises `ConfigError` unless each of `MESH_AXES` that is named has ≥ 1 devices, or −1, and at most one has −1."""
    for axis, size in shape.items():
        if axis not in MESH_AXES:
            raise ConfigError(f"unknown mesh axis {axis!r}", where=f"{where}.{axis}", fix=nearest(axis, MESH_AXES))
        if size < 1 and size != -1:
            raise ConfigError(
                f"a mesh axis must have at least 1 device, or -1 for all that are left: {axis!r} has {size}",
                where=f"{where}.{axis}",
                fix="Give a positive number or -1.",
            )
    free = [axis for axis, size in shape.items() if size == -1]
    if len(free) > 1:
        raise ConfigError(
            f"only one mesh axis may be -1: {' and '.join(free)} are", where=where, fix="Give numbers for the others."
        )
