"""Checks of arguments that laws, proposals, designs and diagnosis share."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxmix.core.errors import ConfigError
from jaxmix.laws.base import Shape


def metric_shares(metric_weights: Any, shape: Shape, where: str) -> np.ndarray:
    """Weights of the metrics that add up to 1; `None` gives all the same."""
    return on_simplex(
        np.ones(shape.num_metrics) if metric_weights is None else metric_weights, shape.num_metrics, where
    )


def per_domain(values: Any, size: int, where: str) -> np.ndarray:
    """`size` numbers from a list of them or one for all, float64."""
    try:
        return np.broadcast_to(np.asarray(values, np.float64), (size,))
    except (TypeError, ValueError):
        raise ConfigError(f"must be a number or {size} numbers, got {values!r}", where=where) from None


def on_simplex(values: Any, size: int, where: str) -> np.ndarray:
    """`size` numbers ≥ 0 divided by their sum, float64."""
    found = np.asarray(values, np.float64)
    if found.shape != (size,) or not np.isfinite(found).all() or (found < 0).any() or not found.sum() > 0:
        raise ConfigError(f"must be {size} finite numbers >= 0, not all 0, got {found.tolist()}", where=where)
    return found / found.sum()
