"""The fields of a run's records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxmix.train.lm.evaluate import aggregates
from jaxmix.train.run.metrics import Metrics


def held_out_fields(losses: np.ndarray, names: tuple[str, ...], prior: np.ndarray) -> dict[str, float]:
    """Held-out losses f32[m] by domain, and their `aggregates`."""
    by_domain = {f"loss/{n}": float(x) for n, x in zip(names, losses, strict=True)}
    return by_domain | {f"loss/{k}": v for k, v in aggregates(losses, prior).items()}


def loss_fields(sums: Mapping[str, np.ndarray], names: tuple[str, ...]) -> dict[str, float]:
    """Mean losses per token from sums by domain; a domain that was not drawn has no field."""
    fields: dict[str, float] = {}
    total = float(sums["token_count"].sum())
    if total > 0:
        fields["train/loss"] = float(sums["loss_sum"].sum()) / total
    for name, loss, count in zip(names, sums["loss_sum"].tolist(), sums["token_count"].tolist(), strict=True):
        if count > 0:
            fields[f"train/loss/{name}"] = loss / count
    return fields


def mixer_fields(metrics: Metrics, names: tuple[str, ...]) -> dict[str, float]:
    """A mixer's latest scalars, vectors [m] and matrices [m, m].

    A matrix is written only after it has changed: entry (i, j) of `extra` as `mix/extra/<name i>/<name j>`.
    """
    fields: dict[str, float] = {}
    for extra in sorted(metrics.latest):
        values = metrics.latest[extra].tolist()
        if len(values) == len(names):
            fields |= {f"mix/{extra}/{name}": v for name, v in zip(names, values, strict=True)}
        elif len(values) == 1:
            fields[f"mix/{extra}"] = values[0]
        elif len(values) == len(names) ** 2 and extra in metrics.changed:
            pairs = [(row, column) for row in names for column in names]
            fields |= {f"mix/{extra}/{r}/{c}": v for (r, c), v in zip(pairs, values, strict=True)}
    metrics.changed.clear()
    return fields


def weight_fields(weights: np.ndarray, sums: Mapping[str, np.ndarray], names: tuple[str, ...]) -> dict[str, float]:
    """The weights f64[m] that rows are drawn by, their entropy, and their mean over the steps since the last record."""
    means = sums["weights"] / sums["steps"]
    fields = {f"mix/weight/{n}": float(w) for n, w in zip(names, weights, strict=True)}
    fields |= {f"mix/mean_weight/{n}": float(w) for n, w in zip(names, means, strict=True)}
    return fields | {"mix/entropy": float(-np.sum(weights * np.log(np.maximum(weights, 1e-30))))}


def weights_in_force(weights: Any, is_used_up: np.ndarray) -> np.ndarray:
    """The weights f64[m] that rows are drawn by: a source that is used up has none, the others share it."""
    given = np.asarray(weights, np.float64)
    left = np.where(is_used_up, 0.0, given)
    return left / left.sum() if is_used_up.any() and left.sum() > 0 else given


def stream_fields(realized: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Rows and tokens drawn since the start, see `MixtureStream.realized`."""
    fields: dict[str, float] = {}
    for name, drawn in realized.items():
        fields[f"data/share/{name}"] = drawn["share"]
        fields[f"data/asked/{name}"] = drawn["asked_share"]
        fields[f"data/epochs/{name}"] = drawn["epochs"]
        fields[f"data/tokens/{name}"] = drawn["tokens"]
    return fields
