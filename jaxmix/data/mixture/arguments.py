"""What a stream's arguments may be, and errors that say so."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxmix.core.errors import ConfigError, nearest
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
    if isinstance(weights, Mapping):
        for name in weights:
            if name not in names:
                raise ConfigError(f"weight for unknown source {name!r}", where="weights", fix=nearest(name, names))
        missing = [name for name in names if name not in weights]
        if missing:
            raise ConfigError(f"no weight for source {missing[0]!r}", where="weights", fix="Give 0 not to draw it.")
        weights = [weights[name] for name in names]
    values = np.asarray(weights, np.float64)
    if values.shape != (len(names),):
        raise ConfigError(f"weights have shape {list(values.shape)}, there are {len(names)} sources", where="weights")
    for name, value, rows in zip(names, values.tolist(), lengths, strict=True):
        if not math.isfinite(value) or value < 0:
            raise ConfigError(
                f"mixture weights must be finite and ≥ 0: {name!r} has {value}",
                where="weights",
                fix="Remove the source or set 0 to keep it for evaluation only.",
            )
        if value > 0 and rows == 0:
            raise ConfigError(
                f"source {name!r} has weight {value} and no tokens", where="weights", fix="Give it weight 0."
            )
    if not values.sum() > 0:
        raise ConfigError(
            "all mixture weights are 0", where="weights", fix="Give at least one source a weight above 0."
        )
    return values / values.sum()


def check_arguments(
    sources: Mapping[str, Any],
    batch_size: int,
    seq_len: int,
    unit: str,
    block: int,
    shard: tuple[int, int],
    prefetch: int,
    num_threads: int,
) -> None:
    """Raises `ConfigError` for what is out of range."""
    if not sources:
        raise ConfigError("there are no sources", where="MixtureStream", fix="Give at least one.")
    if unit not in UNITS:
        raise ConfigError(f"unknown unit {unit!r}", where="MixtureStream(unit)", fix=nearest(unit, UNITS))
    for name, value, least in (
        ("batch_size", batch_size, 1),
        ("seq_len", seq_len, 1),
        ("block", block, 1),
        ("prefetch", prefetch, 0),
        ("num_threads", num_threads, 1),
    ):
        if value < least:
            raise ConfigError(f"{name} must be at least {least}, got {value}", where=f"MixtureStream({name})")
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
    """Raises `ConfigError` for an unknown policy or a bound on epochs that is none."""
    for name, policy, bound in zip(names, policies, epochs, strict=True):
        if policy not in POLICIES:
            raise ConfigError(
                f"unknown policy {policy!r} for {name!r}",
                where="MixtureStream(on_exhaust)",
                fix=nearest(str(policy), POLICIES),
            )
        if bound is not None and not (math.isfinite(bound) and bound > 0):
            raise ConfigError(
                f"max_epochs must be finite and > 0: {name!r} has {bound}", where="MixtureStream(max_epochs)"
            )


def by_name(value: Any, names: Sequence[str], argument: str) -> list[Any]:
    """One value per source, from one for all or from some by name."""
    if not isinstance(value, Mapping):
        return [value] * len(names)
    for name in value:
        if name not in names:
            raise ConfigError(
                f"{argument} for unknown source {name!r}", where="MixtureStream", fix=nearest(name, names)
            )
    default = "repeat" if argument == "on_exhaust" else None
    return [value.get(name, default) for name in names]


def row_limit(rows: int, policy: str, epochs: float | int | None) -> int:
    """How many rows may be drawn of a source of `rows` rows."""
    if epochs is None:
        return UNLIMITED if policy == "repeat" else rows
    return math.floor(rows * epochs + 1e-9)
