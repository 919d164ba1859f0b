"""What selection did since the last metrics record and since the start, kept on the host and in every checkpoint."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxmix.train.lm.domain_sums import Scanned


class SelectionLog:
    """Adds up what steps scanned and trained on, in float64, and turns it into fields of a record.

    `to_json` and `from_json` keep every bit, so that a resumed run writes the record that the uninterrupted one did.
    """

    def __init__(self, num_domains: int):
        self._rows = np.zeros(num_domains)
        self._trained_rows = np.zeros(num_domains)
        self._trained_tokens = np.zeros(num_domains)
        self._forget(num_domains)

    def _forget(self, num_domains: int) -> None:
        """Starts a new interval."""
        self._recent = np.zeros(num_domains)
        self._sums = {name: np.zeros(num_domains) for name in ("token_count", "loss_sum", "reference_loss_sum")}
        self._score = np.zeros(2)
        self._steps = 0

    def add(self, scanned: Scanned) -> None:
        """Adds one step, from the host."""
        self._rows += scanned.rows.astype(np.float64)
        self._trained_rows += scanned.trained_rows.astype(np.float64)
        self._trained_tokens += scanned.trained_tokens.astype(np.float64)
        self._recent += scanned.trained_tokens.astype(np.float64)
        found = {name: getattr(scanned.feedback, name) for name in self._sums}
        known = {name: np.asarray(value, np.float64) for name, value in found.items() if value is not None}
        # A domain one of whose rows had a loss that is not finite: this step says nothing of it.
        is_sound = np.all([np.isfinite(value) for value in known.values()], axis=0)
        for name, value in known.items():
            self._sums[name] += np.where(is_sound, value, 0.0)
        self._score += scanned.score.astype(np.float64)
        self._steps += 1

    def take(self, names: tuple[str, ...]) -> dict[str, float]:
        """Returns the record's fields and starts a new interval.

        - `select/rows`, `select/tokens`: trained on since the start; `select/scanned_rows`: drawn since the start.
        - `select/share/<domain>`: of the trained tokens since the start, the implied mixture;
          `select/recent_share/<domain>`: in the interval.
        - `select/loss/<domain>`, `select/reference_loss/<domain>`: nats per token of what was drawn in the interval,
          where it was measured.
        - `select/score/scanned`, `select/score/trained`: mean score of what was drawn and of what was chosen.
        """
        fields: dict[str, float] = {
            "select/rows": int(self._trained_rows.sum()),
            "select/scanned_rows": int(self._rows.sum()),
            "select/tokens": int(self._trained_tokens.sum()),
        }
        fields |= _shares("select/share", names, self._trained_tokens)
        fields |= _shares("select/recent_share", names, self._recent)
        count = self._sums["token_count"]
        for name, key in (("loss_sum", "select/loss"), ("reference_loss_sum", "select/reference_loss")):
            total = self._sums[name]
            if np.any(total):
                fields |= {f"{key}/{n}": float(total[j] / count[j]) for j, n in enumerate(names) if count[j] > 0}
        if self._steps and np.any(self._score):
            scanned, trained = (self._score / self._steps).tolist()
            fields |= {"select/score/scanned": scanned, "select/score/trained": trained}
        self._forget(len(names))
        return fields

    def to_json(self) -> dict[str, Any]:
        """Everything as plain numbers; Python's shortest float form reads back to the same bits."""
        return {
            "rows": self._rows.tolist(),
            "trained_rows": self._trained_rows.tolist(),
            "trained_tokens": self._trained_tokens.tolist(),
            "recent": self._recent.tolist(),
            "sums": {name: total.tolist() for name, total in self._sums.items()},
            "score": self._score.tolist(),
            "steps": self._steps,
        }

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> SelectionLog:
        log = cls(len(record["rows"]))
        log._rows = np.asarray(record["rows"])
        log._trained_rows = np.asarray(record["trained_rows"])
        log._trained_tokens = np.asarray(record["trained_tokens"])
        log._recent = np.asarray(record["recent"])
        log._sums = {name: np.asarray(total) for name, total in record["sums"].items()}
        log._score = np.asarray(record["score"])
        log._steps = int(record["steps"])
        return log


def _shares(key: str, names: tuple[str, ...], tokens: np.ndarray) -> dict[str, float]:
    total = float(tokens.sum())
    return {f"{key}/{n}": float(x) / total for n, x in zip(names, tokens.tolist(), strict=True)} if total else {}
