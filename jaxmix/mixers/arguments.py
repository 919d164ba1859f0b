"""Checks of arguments that several mixers take: numbers, step counts, named choices, figures per domain."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from jaxmix.core.errors import ConfigError, nearest
from jaxmix.core.types import DomainVector

__all__ = ["check_choice", "check_figures", "check_number", "check_steps", "figures_of"]


def check_number(
    name: str, argument: str, value: float, least: float, most: float = math.inf, *, is_open: bool = False
) -> None:
    """Raises `ConfigError` unless `value` is finite and in [least, most] (above `least` if `is_open`)."""
    is_low = value <= least if is_open else value < least
    if not math.isfinite(value) or is_low or value > most:
        span = f"{'above' if is_open else 'at least'} {least:g}" + (f" and at most {most:g}" if most < math.inf else "")
        raise ConfigError(f"{argument} must be finite and {span}, got {value}", where=f"{name}({argument})")


def check_steps(name: str, argument: str, value: int) -> None:
    """Raises `ConfigError` unless `value` is a whole number ≥ 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{argument} must be a whole number ≥ 1, got {value!r}", where=f"{name}({argument})")


def check_choice(name: str, argument: str, value: str, known: Sequence[str]) -> None:
    """Raises `ConfigError` with the nearest known word unless `value` is one of them."""
    if value not in known:
        raise ConfigError(f"unknown {argument} {value!r}", where=f"{name}({argument})", fix=nearest(str(value), known))


def check_figures(name: str, argument: str, value: float | Sequence[float]) -> float | tuple[float, ...]:
    """Returns one finite number for all domains, or one per domain; `figures_of` checks how many there must be."""
    is_one = isinstance(value, (int, float))
    try:
        numbers = [float(value)] if is_one else [float(number) for number in value]  # type: ignore[arg-type,union-attr]
    except (TypeError, ValueError):
        raise ConfigError(
            f"{argument} must be a number or a list of numbers, got {value!r}", where=f"{name}({argument})"
        ) from None
    for i, number in enumerate(numbers):
        if not math.isfinite(number):
            place = "" if is_one else f"number {i} of "
            raise ConfigError(f"{place}{argument} must be finite, got {number}", where=f"{name}({argument})")
    return numbers[0] if is_one else tuple(numbers)


def figures_of(
    name: str, argument: str, value: float | tuple[float, ...], num_domains: int, dtype: Any
) -> DomainVector:
    """What `check_figures` returned as an array [m]; `ConfigError` if it is not one number and not m."""
    if isinstance(value, tuple) and len(value) != num_domains:
        raise ConfigError(
            f"{len(value)} numbers for {num_domains} domains",
            where=f"{name}({argument})",
            fix="Give one per source, in the order of the sources, or one for all.",
        )
    return jnp.broadcast_to(jnp.asarray(value, dtype), (num_domains,))
