"""What has been measured since the last metrics record, kept on the host and in every checkpoint."""

from __future__ import annotations

import math
from typing import Any

import numpy as np


class LogWindow:
    """Sums per-domain losses over the steps between two records, in float64.

    `to_json` and `from_json` keep every bit, so that a resumed run writes the record that the uninterrupted one did.
    """

    def __init__(self, num_domains: int):
        self._loss_sum = np.zeros(num_domains)
        self._token_count = np.zeros(num_domains)
        self._extras: dict[str, list[float]] = {}
        self._unwritten: set[str] = set()

    def add(self, loss_sum: np.ndarray, token_count: np.ndarray, extras: dict[str, Any]) -> None:
        """Adds one step's sums; `extras` are the mixer's latest named matrices [m, m], vectors [m] or scalars."""
        self._loss_sum += loss_sum.astype(np.float64)
        self._token_count += token_count.astype(np.float64)
        for name, value in extras.items():
            plain = np.asarray(value, np.float64).ravel().tolist()
            if plain != self._extras.get(name):
                self._unwritten.add(name)
            self._extras[name] = plain

    def take(self, names: tuple[str, ...]) -> dict[str, float]:
        """Returns the record's fields and starts afresh.

        A domain that was not drawn has no field. A matrix is written only after it has changed: entry (i, j) of
        `extra` as `mix/extra/<name i>/<name j>`.
        """
        fields: dict[str, float] = {}
        total = float(self._token_count.sum())
        if total > 0:
            fields["train/loss"] = float(self._loss_sum.sum()) / total
        for name, loss, count in zip(names, self._loss_sum.tolist(), self._token_count.tolist(), strict=True):
            if count > 0:
                fields[f"train/loss/{name}"] = loss / count
        for extra, values in sorted(self._extras.items()):
            if len(values) == len(names):
                fields.update({f"mix/{extra}/{name}": v for name, v in zip(names, values, strict=True)})
            elif len(values) == 1:
                fields[f"mix/{extra}"] = values[0]
            elif len(values) == len(names) ** 2 and extra in self._unwritten:
                pairs = [(row, column) for row in names for column in names]
                fields.update({f"mix/{extra}/{r}/{c}": v for (r, c), v in zip(pairs, values, strict=True)})
        self._unwritten.clear()
        self._loss_sum[:] = 0.0
        self._token_count[:] = 0.0
        return fields

    def to_json(self) -> dict[str, Any]:
        """Everything as plain numbers; Python's shortest float form reads back to the same bits."""
        extras = {k: [v if math.isfinite(v) else None for v in values] for k, values in self._extras.items()}
        return {
            "loss_sum": self._loss_sum.tolist(),
            "token_count": self._token_count.tolist(),
            "extras": extras,
            "unwritten": sorted(self._unwritten),
        }

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> LogWindow:
        window = cls(len(record["loss_sum"]))
        window._loss_sum += np.asarray(record["loss_sum"])
        window._token_count += np.asarray(record["token_count"])
        window._extras = {k: [math.nan if v is None else v for v in vs] for k, vs in record["extras"].items()}
        window._unwritten = set(record.get("unwritten", ()))
        return window
