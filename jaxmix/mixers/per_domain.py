"""Arguments that are one number for all domains or one per domain."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from jaxmix.core.errors import ConfigError
from jaxmix.core.types import DomainVector
from jaxmix.core.validate import check_one_per_domain


def check_values(name: str, argument: str, value: float | Sequence[float]) -> float | tuple[float, ...]:
    """Returns one finite number for all domains, or one per domain; `domain_values` checks how many."""
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


def domain_values(
    name: str, argument: str, value: float | tuple[float, ...], num_domains: int, dtype: Any
) -> DomainVector:
    """What `check_values` returned as an array [m]; `ConfigError` if it is not one number and not m."""
    if isinstance(value, tuple):
        check_one_per_domain(len(value), num_domains, f"{name}({argument})", "numbers")
    return jnp.broadcast_to(jnp.asarray(value, dtype), (num_domains,))
