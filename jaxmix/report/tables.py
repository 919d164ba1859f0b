"""Tables of runs as plain rows, for the terminal and the page alike."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from jaxmix.report.run_folder import RunRecord
from jaxmix.report.verdict import Comparison, compare


class Table(NamedTuple):
    """Rows of text.

    Attributes:
        columns: headings.
        rows: cells.
        best: (row, column) of cells to emphasize.
        first_total: index of the first row that sums up; the rows before it are domains.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    best: frozenset[tuple[int, int]] = frozenset()
    first_total: int | None = None


def by_variant(runs: Iterable[RunRecord]) -> dict[str, list[RunRecord]]:
    """Runs grouped by variant, each group ordered by seed."""
    groups: dict[str, list[RunRecord]] = {}
    for run in runs:
        groups.setdefault(run.variant, []).append(run)
    order = sorted(groups, key=lambda v: min(int(r.provenance.get("order", 0)) for r in groups[v]))
    return {variant: sorted(groups[variant], key=lambda r: r.seed) for variant in order}


def unfinished(runs: Iterable[RunRecord]) -> list[RunRecord]:
    """Runs that have not reached their planned last step; they do not take part in a comparison."""
    return [r for r in runs if not r.final_losses() or (r.planned_steps is not None and r.steps < r.planned_steps)]


def natural_shares(run: RunRecord) -> dict[str, float]:
    """Share of every domain in the tokens there are, {} when the run did not record it."""
    return {k: float(v) for k, v in run.provenance.get("natural_shares", {}).items()}


def run_table(run: RunRecord) -> Table:
    """One row per domain of one run."""
    columns = ("domain", "prior", "weight", "average weight", "asked share", "share", "epochs")
    measures = ("training loss", "validation loss", "perplexity", *(("test loss",) if run.test else ()))
    prior = run.provenance.get("prior", {})
    average, losses, tested = run.average_weights(), run.final_losses("eval"), run.final_losses("test")
    rows: list[tuple[str, ...]] = []
    for name in run.domains:
        loss = losses.get(name)
        rows.append(
            (
                name,
                _share(prior.get(name)),
                _share(run.final("train", f"mix/weight/{name}")),
                _share(average.get(name)),
                _share(run.final("train", f"data/asked/{name}")),
                _share(run.final("train", f"data/share/{name}")),
                _number(run.final("train", f"data/epochs/{name}"), 2),
                _number(run.final("train", f"train/loss/{name}"), 4),
                _number(loss, 4),
                _number(None if loss is None else math.exp(min(loss, 700.0)), 2),
                *((_number(tested.get(name), 4),) if run.test else ()),
            )
        )
    total = len(rows)
    for key, label in (("uniform", "mean over domains"), ("prior", "mean, prior-weighted"), ("worst", "worst domain")):
        value = run.final("eval", f"eval/loss/{key}")
        if value is not None:
            perplexity = _number(math.exp(min(value, 700.0)), 2)
            test = (_number(run.final("test", f"test/loss/{key}"), 4),) if run.test else ()
            rows.append((label, *[""] * 7, _number(value, 4), perplexity, *test))
    return Table((*columns, *measures), tuple(rows), first_total=total)


def mean_loss(run: RunRecord, weights: Mapping[str, float] | None = None) -> float:
    """Mean of the final losses over domains, uniform or weighted by `weights`; see `RunRecord.final_losses`."""
    losses = run.final_losses()
    if weights is None:
        return sum(losses.values()) / len(losses)
    total = sum(weights.get(name, 0.0) for name in losses)
    return sum(weights.get(name, 0.0) * loss for name, loss in losses.items()) / total if total > 0 else math.nan


def comparison(runs: Sequence[RunRecord], weights: Mapping[str, float] | None = None) -> Comparison | None:
    """The finished runs ranked by their mean final loss; None when none has finished."""
    left_out = {r.folder for r in unfinished(runs)}
    groups = by_variant(r for r in runs if r.folder not in left_out)
    if not groups:
        return None
    return compare({v: {r.seed: mean_loss(r, weights) for r in group} for v, group in groups.items()})


def comparison_table(runs: Sequence[RunRecord]) -> Table:
    """One row per domain; per variant the final loss, the realized share and the epochs, means over seeds."""
    left_out = {r.folder for r in unfinished(runs)}
    groups = by_variant(r for r in runs if r.folder not in left_out)
    domains = list(dict.fromkeys(name for group in groups.values() for name in group[0].domains))
    columns = ["domain"]
    for variant in groups:
        columns += [f"{variant} loss", "share", "epochs"]
    rows: list[tuple[str, ...]] = []
    best: set[tuple[int, int]] = set()
    for name in domains:
        losses = {v: _mean(r.final_losses().get(name) for r in g) for v, g in groups.items()}
        cells = [name]
        for variant, group in groups.items():
            cells += [
                _number(losses[variant], 4),
                _share(_mean(r.final("train", f"data/share/{name}") for r in group)),
                _number(_mean(r.final("train", f"data/epochs/{name}") for r in group), 2),
            ]
        _mark_best(best, len(rows), list(losses.values()))
        rows.append(tuple(cells))
    total = len(rows)

    def summary(label: str, values: Mapping[str, Any], *, digits: int = 4, is_ranked: bool = True) -> None:
        if is_ranked:
            _mark_best(best, len(rows), [values[v] for v in groups])
        rows.append((label, *(cell for v in groups for cell in (_number(values[v], digits), "", ""))))

    summary("mean over domains", {v: _mean(mean_loss(r) for r in g) for v, g in groups.items()})
    seeds = sorted({r.seed for g in groups.values() for r in g})
    if len(seeds) > 1:
        for seed in seeds:
            found = {v: _mean(mean_loss(r) for r in g if r.seed == seed) for v, g in groups.items()}
            summary(f"  seed {seed}", found)
    natural = next((natural_shares(r) for g in groups.values() for r in g if natural_shares(r)), None)
    if natural:
        weighted = {v: _mean(mean_loss(r, natural) for r in g) for v, g in groups.items()}
        summary("mean, weighted by size", weighted)
    summary("worst domain", {v: _mean(max(r.final_losses().values()) for r in g) for v, g in groups.items()})
    rates = {v: _mean(rate for r in g if (rate := median_rate(r)) is not None) for v, g in groups.items()}
    summary("tokens/s", rates, digits=0, is_ranked=False)
    return Table(tuple(columns), tuple(rows), frozenset(best), first_total=total)


def median_rate(run: RunRecord) -> float | None:
    """Median tokens per second over the log intervals, the first (compilation) left out where there are more."""
    values = run.series("timing", "tokens_per_second")[1]
    return statistics.median(values[1:] or values) if values else None


def _mark_best(best: set[tuple[int, int]], row: int, values: Sequence[float | None]) -> None:
    known = [v for v in values if v is not None]
    if len(known) > 1:
        best.update((row, 1 + 3 * i) for i, v in enumerate(values) if v is not None and v <= min(known))


def _mean(values: Iterable[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None


def _number(value: Any, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _share(value: Any) -> str:
    """A share in per cent; small ones keep two significant digits, and only a true zero reads 0."""
    if value is None:
        return "-"
    if value == 0:
        return "0 %"
    return f"{100 * value:.1f} %" if value >= 0.01 else f"{100 * value:.2g} %"
