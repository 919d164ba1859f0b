"""Checks of the stream's arguments."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxmix.core.errors import ConfigError
from jaxmix.core.validate import check_choice, check_count, check_number, check_weights
from jaxmix.data.mixture.plan import POLICIES, UNLIMITED

UNITS = ("tokens", "documents", "rows")


def checked_weights(weights: Any, names: Sequence[str], lengths: Sequence[int]) -> np.ndarray:
    """Weights in the order of `names`, or by name, as f64[m] that adds to 1.

    Args:
        weights: finite, ≥ 0, not all 0.
        names: of the sources.
        lengths: rows of each source; one without rows must have weight 0.

    Raises:
        ConfigError: names the source and its weight.
    """
    if not isinstance(weights, Mapping):
        given = np.asarray(weights, np.float64)
        if given.shape != (len(names),):
            raise ConfigError(
                f"weights have shape {list(given.shape)}, there are {len(names)} sources", where="weights"
            )
        weights = given.tolist()
    values = np.asarray(check_weights(weights, names, "weights"))
    for name, value, rows in zip(names, values.tolist(), lengths, strict=True):
        if value > 0 and rows == 0:
            raise ConfigError(
                f"source {name!r} has weight {value} and no tokens", where="weights", fix="Give it weight 0."
            )
    return values / values.sum()


def check_arguments(
    sources: Mapping[str, Any], unit: str, shard: tuple[int, int], *, batch_size: int, prefetch: int, **counts: int
) -> None:
    """Raises `ConfigError` for a value that is out of range; `counts` are the other numbers, all ≥ 1."""
    if not isinstance(sources, Mapping):
        raise ConfigError(
            f"sources must be a mapping from names to sources, got a {type(sources).__name__}",
            where="MixtureStream(sources)",
            fix='Write {"web": source}; a source has `len` and `read(indices)`, as those of `open_prepared`.',
        )
    if not sources:
        raise ConfigError("there are no sources", where="MixtureStream", fix="Give at least one.")
    check_choice("MixtureStream", "unit", unit, UNITS)
    for name, value in {"batch_size": batch_size, **counts}.items():
        check_count("MixtureStream", name, value)
    check_count("MixtureStream", "prefetch", prefetch, 0)
    index, count = shard
    if not 0 <= index < count:
        raise ConfigError(
            f"shard must be (index, count) with 0 ≤ index < count, got {shard}", where="MixtureStream(shard)"
        )
    if batch_size % count:
        raise ConfigError(
            f"a batch of {batch_size} rows cannot be shared by {count} processes",
            where="MixtureStream(batch_size)",
            fix=f"Choose a multiple of {count}.",
        )


def check_policies(names: Sequence[str], policies: Sequence[Any], epochs: Sequence[Any]) -> None:
    """Raises `ConfigError` for an unknown policy, or a bound on epochs that is not above 0."""
    for name, policy, bound in zip(names, policies, epochs, strict=True):
        place = f"source {name!r}: MixtureStream"
        check_choice(place, "on_exhaust", policy, POLICIES)
        if bound is not None:
            check_number(place, "max_epochs", bound, above=0)


def one_per_source(value: Any, names: Sequence[str], argument: str, default: Any) -> list[Any]:
    """One value per source, from one for all or from some by name."""
    if not isinstance(value, Mapping):
        return [value] * len(names)
    for name in value:
        check_choice(f"MixtureStream({argument})", "source", name, names)
    return [value.get(name, default) for name in names]


def row_limit(rows: int, policy: str, epochs: float | int | None) -> int:
    """The number of rows that may be drawn from a source of `rows` rows."""
    if epochs is None:
        return UNLIMITED if policy == "repeat" else rows
    return math.floor(rows * epochs + 1e-9)
