"""Fields of a record about selection, since the last record and since the start."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from jaxmix.train.lm.domain_sums import SuperBatchSums
from jaxmix.train.run.metrics import Metrics

_SUMS = ("token_count", "loss_sum", "reference_loss_sum")


def add_selection(metrics: Metrics, drawn: SuperBatchSums) -> None:
    """Adds one step, from the host."""
    names = ("rows", "trained_rows", "trained_tokens")
    metrics.add_total({f"select/{name}": getattr(drawn, name) for name in names})
    found = {name: getattr(drawn.feedback, name) for name in _SUMS}
    sums = {name: np.asarray(value, np.float64) for name, value in found.items() if value is not None}
    # A step does not count for a domain with a loss that is not finite.
    is_sound = np.all([np.isfinite(value) for value in sums.values()], axis=0)
    metrics.add({f"select/{name}": np.where(is_sound, value, 0.0) for name, value in sums.items()})
    metrics.add({"select/trained_tokens": drawn.trained_tokens, "select/score": drawn.score, "select/steps": 1})


def selection_fields(metrics: Metrics, sums: Mapping[str, np.ndarray], names: tuple[str, ...]) -> dict[str, float]:
    """The record's fields, from `sums` since the last record and the totals in `metrics`.

    - `select/rows`, `select/tokens`: trained on since the start; `select/scanned_rows`: drawn since the start.
    - `select/share/<domain>`: of the trained tokens since the start, the implied mixture;
      `select/recent_share/<domain>`: since the last record.
    - `select/loss/<domain>`, `select/reference_loss/<domain>`: nats per token of what was drawn since the last record,
      where it was measured.
    - `select/score/scanned`, `select/score/trained`: mean score of what was drawn and of what was chosen.
    """
    total = metrics.total
    fields: dict[str, float] = {
        "select/rows": int(total["select/trained_rows"].sum()),
        "select/scanned_rows": int(total["select/rows"].sum()),
        "select/tokens": int(total["select/trained_tokens"].sum()),
    }
    fields |= _shares("select/share", names, total["select/trained_tokens"])
    fields |= _shares("select/recent_share", names, sums["select/trained_tokens"])
    count = sums["select/token_count"]
    for name in ("loss", "reference_loss"):
        loss = sums.get(f"select/{name}_sum")
        if loss is not None and np.any(loss):
            fields |= {f"select/{name}/{n}": float(loss[j] / count[j]) for j, n in enumerate(names) if count[j] > 0}
    score = sums["select/score"]
    if np.any(score):
        drawn, trained = (score / sums["select/steps"]).tolist()
        fields |= {"select/score/scanned": drawn, "select/score/trained": trained}
    return fields


def _shares(key: str, names: tuple[str, ...], tokens: np.ndarray) -> dict[str, float]:
    total = float(tokens.sum())
    return {f"{key}/{n}": float(x) / total for n, x in zip(names, tokens.tolist(), strict=True)} if total else {}
