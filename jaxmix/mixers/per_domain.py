"""Figures that mixers take for all domains at once or one per domain."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from jaxmix.core.errors import ConfigError
from jaxmix.core.types import DomainVector


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
