"""Metrics of a run, kept on the host and in every checkpoint."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np


class Metrics:
    """Named values of any shape in float64, so that a resumed run writes the records of the uninterrupted one.

    Attributes:
        recent: sums since the last record.
        total: sums since the start of the run.
        latest: the newest values, flattened.
        changed: names in `latest` whose value is another one than in the last record.
    """

    def __init__(self) -> None:
        self.recent: dict[str, np.ndarray] = {}
        self.total: dict[str, np.ndarray] = {}
        self.latest: dict[str, np.ndarray] = {}
        self.changed: set[str] = set()

    def add(self, values: Mapping[str, Any]) -> None:
        """Adds to the sums since the last record."""
        _add(self.recent, values)

    def add_total(self, values: Mapping[str, Any]) -> None:
        """Adds to the sums since the start."""
        _add(self.total, values)

    def keep(self, values: Mapping[str, Any]) -> None:
        """Takes the place of earlier values."""
        for name, value in values.items():
            flat = np.asarray(value, np.float64).ravel()
            if name not in self.latest or not np.array_equal(flat, self.latest[name]):
                self.changed.add(name)
            self.latest[name] = flat

    def take(self) -> dict[str, np.ndarray]:
        """Returns the sums since the last record and begins new ones."""
        recent, self.recent = self.recent, {}
        return recent

    def to_json(self) -> dict[str, Any]:
        """Everything as plain numbers, null where not finite. Python's shortest float form keeps every bit."""
        groups = {"recent": self.recent, "total": self.total, "latest": self.latest}
        plain = {key: {name: _plain(x.tolist()) for name, x in group.items()} for key, group in groups.items()}
        return {**plain, "changed": sorted(self.changed)}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Metrics:
        metrics = cls()
        for key in ("recent", "total", "latest"):
            # NumPy reads null as nan.
            setattr(metrics, key, {name: np.asarray(x, np.float64) for name, x in record[key].items()})
        metrics.changed = set(record["changed"])
        return metrics


def _add(sums: dict[str, np.ndarray], values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        sums[name] = np.asarray(sums.get(name, 0.0) + np.asarray(value, np.float64))


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(x) for x in value]
    return value if math.isfinite(value) else None
