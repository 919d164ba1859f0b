"""Metrics that compare predicted losses with observed ones."""

from __future__ import annotations

import numpy as np

from jaxmix.laws.base import RunTable


def mean_relative_error(losses: np.ndarray, predicted: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Mean of |predicted / loss − 1| over measured cells (and the mask); nan if there are none."""
    return _mean_over(np.abs(predicted / losses - 1.0), losses, predicted, mask)


def mean_absolute_error(losses: np.ndarray, predicted: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Mean of |predicted − loss| over measured cells (and the mask), nats; nan if there are none."""
    return _mean_over(np.abs(predicted - losses), losses, predicted, mask)


def own_weights(table: RunTable) -> np.ndarray:
    """The weight of the domain that each metric validates, float64[r, e]; nan for metrics of no domain."""
    own = table.weights[:, table.metric_domain]
    return np.where(table.metric_domain >= 0, own, np.nan)


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Rank correlation of two vectors, ties sharing their mean rank; nan for fewer than 3 pairs or equal values."""
    both = np.isfinite(a) & np.isfinite(b)
    if both.sum() < 3:
        return float("nan")
    x, y = (_ranks(v[both]) for v in (a, b))
    x, y = x - x.mean(), y - y.mean()
    spread = float(np.sqrt((x**2).sum() * (y**2).sum()))
    return float((x * y).sum() / spread) if spread > 0 else float("nan")


def regret(observed: np.ndarray, predicted: np.ndarray) -> float:
    """`observed[argmin predicted] / min observed − 1`: what choosing by the prediction costs, as a fraction."""
    return float(observed[int(np.argmin(predicted))] / observed.min() - 1.0)


def optimism(observed: np.ndarray, predicted: np.ndarray, *, share: float = 0.1) -> float:
    """Mean of (observed − predicted) / observed over the given share of runs that are predicted best (at least 1)."""
    count = max(1, round(share * len(predicted)))
    best = np.argsort(predicted, kind="stable")[:count]
    return float(np.mean((observed[best] - predicted[best]) / observed[best]))


def _mean_over(errors: np.ndarray, losses: np.ndarray, predicted: np.ndarray, mask: np.ndarray | None) -> float:
    counted = np.isfinite(losses) & ~np.isnan(predicted)
    if mask is not None:
        counted &= mask
    return float(errors[counted].mean()) if counted.any() else float("nan")


def _ranks(values: np.ndarray) -> np.ndarray:
    _, index, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2.0)[index.reshape(-1)]
