"""Diagnosis of a mixer: collapsed weights, delay, and its estimates beside the realized losses."""

from __future__ import annotations

import math
import statistics
from typing import Any, NamedTuple

from jaxmix.report.run_folder import RunRecord

MIN_EFFECTIVE = 1.5
"""exp(entropy of the weights), the effective number of domains, below which a mixture counts as near one-hot."""

MAX_WEIGHT = 0.95
"""A domain's weight above which a mixture counts as near one-hot."""


_REMEDIES = (
    "Known remedies: a smaller step size; the wrappers floor or kl_to_prior; batches that hold every "
    "domain; for methods that compare with a reference model, a reference trained on natural proportions."
)


class _End(NamedTuple):
    """The mean mixture over the last tenth of a run: the heaviest domain, its weight, exp(entropy).

    Of the mean mixture, because a method that probes draws lopsided mixtures in turn.
    """

    domain: str
    weight: float
    effective: float


def _end(run: RunRecord) -> _End | None:
    weights = run.average_weights(since=0.9 * run.train[-1]["step"]) if run.train else {}
    if len(run.domains) < 2 or abs(sum(weights.values()) - 1) > 1e-3:  # unknown, or not finite
        return None
    heaviest = max(weights, key=weights.__getitem__)
    entropy = -sum(w * math.log(w) for w in weights.values() if w > 0)
    return _End(heaviest, weights[heaviest], math.exp(entropy))


def _is_learned(run: RunRecord) -> bool:
    """Whether a mixer learned the weights; otherwise the configuration gives them."""
    mixer = run.provenance.get("mixer")
    return bool(mixer["needs"]) if isinstance(mixer, dict) and "needs" in mixer else run.has_moving_weights


def is_near_one_hot(run: RunRecord) -> bool:
    """Whether nearly all weight was on one domain at the end, by a mixer, a schedule or as it was set.

    Weights that put everything on one source are a choice: the others are there for evaluation only.
    """
    end = _end(run)
    if end is None or (end.weight == 1.0 and not _is_learned(run) and not run.ran_out):
        return False
    return end.effective < MIN_EFFECTIVE or end.weight > MAX_WEIGHT


def warnings(run: RunRecord) -> list[str]:
    """Sentences about probable problems, with known remedies."""
    end = _end(run)
    if end is None or not is_near_one_hot(run):
        return []
    if run.ran_out:
        advice = f"{', '.join(run.ran_out)} ran out."
    elif _is_learned(run):
        advice = _REMEDIES
    else:
        advice = "The configuration sets these weights. The losses of other domains say little about training on them."
    return [
        f"Warning: the mixture is near one-hot. Over the last tenth of the run {end.domain} had "
        f"{100 * end.weight:.1f} % of the weight, and the entropy was that of {end.effective:.2f} equal domains. "
        f"{advice}"
    ]


def lag_sentence(run: RunRecord) -> str:
    """Age of the weights that batches were drawn with; empty where it was not measured."""
    lags = run.series("train", "data/weight_lag")[1]
    if not lags:
        return ""
    return (
        f"Weight lag: the weights that batches were drawn with were {statistics.fmean(lags):.1f} optimizer steps old "
        f"on average, {max(lags):.0f} at most."
    )


class Snapshot(NamedTuple):
    """A mixer's estimate of how domains act on each other, and what happened to the losses meanwhile.

    Attributes:
        step: when it was logged.
        start, end: the evaluations between which the losses are compared, the interval of the estimate as far as
            there are evaluations.
        matrix: entry (i, j): drop of the loss of domain i per unit of the weight of domain j, in the mixer's scale;
            nan where unknown.
        realized: drop of every domain's validation loss from `start` to `end`, nats per token; nan where unknown.
        correlation: Pearson's, over domains, of the drop that the matrix and the weights predict with the realized
            one; None where fewer than three domains or no spread allow none.
    """

    step: int
    start: int
    end: int
    matrix: list[list[float]]
    realized: list[float]
    correlation: float | None


def interaction_snapshots(run: RunRecord, *, at_most: int = 4) -> list[Snapshot]:
    """Up to `at_most` of the logged estimates, spread evenly from the first to the last.

    They are the fields `mix/interaction/<evaluated domain>/<training domain>`.
    """
    names = run.domains
    keys = [[f"mix/interaction/{row}/{column}" for column in names] for row in names]
    logged = [r for r in run.train if any(key in r for row in keys for key in row)]
    if not logged:
        return []
    last = len(logged) - 1
    count = min(at_most, len(logged))
    chosen = sorted({round(last * i / (count - 1)) for i in range(count)}) if count > 1 else [last]
    result = []
    for index in chosen:
        record = logged[index]
        before = logged[index - 1]["step"] if index > 0 else 0
        start, end = _evaluations(run, before, record["step"])
        matrix = [[_known(record.get(key)) for key in row] for row in keys]
        realized = [_drop(run, name, start, end) for name in names]
        predicted = _predicted(run, matrix, start, end)
        result.append(Snapshot(record["step"], start, end, matrix, realized, _correlation(predicted, realized)))
    return result


def _evaluations(run: RunRecord, start: int, end: int) -> tuple[int, int]:
    """The last evaluations up to `start` and up to `end`; where they are the same one, the one before it."""
    steps = [int(r["step"]) for r in _evaluated(run)[1] if r["step"] <= end]
    if len(steps) < 2:
        return (steps[0], steps[0]) if steps else (start, start)
    first = max((s for s in steps if s <= start), default=steps[0])
    return (first if first < steps[-1] else steps[-2]), steps[-1]


def _evaluated(run: RunRecord) -> tuple[str, list[dict[str, Any]]]:
    """The evaluations that the mixer saw, and their kind."""
    return ("control", run.control) if run.control else ("eval", run.eval)


def _drop(run: RunRecord, name: str, start: int, end: int) -> float:
    kind, records = _evaluated(run)
    losses = {int(r["step"]): _known(r.get(f"{kind}/loss/{name}")) for r in records}
    return losses.get(start, math.nan) - losses.get(end, math.nan) if start < end else math.nan


def _predicted(run: RunRecord, matrix: list[list[float]], start: int, end: int) -> list[float]:
    """The matrix times the mean weights of the interval; a domain that is not drawn has no part in it."""
    records = [r for r in run.train if start < r["step"] <= end] or run.train[-1:]
    weights = [statistics.fmean(_known(r.get(f"mix/weight/{n}")) for r in records) for n in run.domains]
    return [sum(a * w for a, w in zip(row, weights, strict=True) if w > 0) for row in matrix]


def _correlation(x: list[float], y: list[float]) -> float | None:
    pairs = [(a, b) for a, b in zip(x, y, strict=True) if math.isfinite(a) and math.isfinite(b)]
    if len(pairs) < 3 or any(len({p[i] for p in pairs}) < 2 for i in (0, 1)):
        return None
    return statistics.correlation(*zip(*pairs, strict=True))


def _known(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) else math.nan
