"""Checks of arguments that factories share: numbers, counts, named choices."""

from __future__ import annotations

import math
from collections.abc import Sequence

from jaxmix.core.errors import ConfigError, nearest


def check_number(
    name: str, argument: str, value: float, least: float, most: float = math.inf, *, is_open: bool = False
) -> None:
    """Raises `ConfigError` unless `value` is finite and in [least, most] (above `least` if `is_open`)."""
    is_low = value <= least if is_open else value < least
    if not math.isfinite(value) or is_low or value > most:
        span = f"{'above' if is_open else 'at least'} {least:g}" + (f" and at most {most:g}" if most < math.inf else "")
        raise ConfigError(f"{argument} must be finite and {span}, got {value}", where=f"{name}({argument})")


def check_count(name: str, argument: str, value: int, least: int = 1) -> None:
    """Raises `ConfigError` unless `value` is a whole number ≥ `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{argument} must be a whole number ≥ {least}, got {value!r}", where=f"{name}({argument})")


def check_choice(name: str, argument: str, value: str, known: Sequence[str]) -> None:
    """Raises `ConfigError` with the nearest known word unless `value` is one of them."""
    if value not in known:
        raise ConfigError(f"unknown {argument} {value!r}", where=f"{name}({argument})", fix=nearest(str(value), known))
