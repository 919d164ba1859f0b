"""Rows asked for and drawn so far, per source; JSON keeps them to the last bit."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxmix.core.types import Float, Int


@dataclasses.dataclass(frozen=True)
class Ledger:
    """Attributes:
    cursors: i64[m], rows drawn since the beginning; also where each source continues.
    carry: f64[m], rows owed (asked minus drawn, including those that exhausted sources passed on); adds to 0.
    asked: f64[m], rows asked since the beginning.
    tokens: i64[m], tokens with a target among the rows drawn.
    """

    cursors: Int[np.ndarray, " m"]
    carry: Float[np.ndarray, " m"]
    asked: Float[np.ndarray, " m"]
    tokens: Int[np.ndarray, " m"]

    @classmethod
    def empty(cls, num_sources: int) -> Ledger:
        whole, real = np.zeros(num_sources, np.int64), np.zeros(num_sources)
        return cls(whole, real, real, whole)

    def to_json(self, names: Sequence[str]) -> dict[str, dict[str, Any]]:
        """`{field: {name: value}}`; Python's shortest float form reads back to the same bits."""
        fields = dataclasses.fields(self)
        return {f.name: dict(zip(names, getattr(self, f.name).tolist(), strict=True)) for f in fields}

    @classmethod
    def from_json(cls, record: dict[str, dict[str, Any]], names: Sequence[str]) -> Ledger:
        """Reads the sources in `names`; one that is not in the record starts at 0."""
        empty = cls.empty(len(names))
        return cls(
            **{
                f.name: np.asarray([record[f.name].get(name, 0) for name in names], getattr(empty, f.name).dtype)
                for f in dataclasses.fields(cls)
            }
        )
