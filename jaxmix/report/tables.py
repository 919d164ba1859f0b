"""Tables of runs as plain rows, for the terminal and the page alike."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from jaxmix.report.numbers import mean_of_known, number, percent, perplexity
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


RunGroups = dict[str, list[RunRecord]]
"""variant → its runs, ordered by seed."""


def by_variant(runs: Iterable[RunRecord]) -> RunGroups:
    """Runs grouped by variant, each group ordered by seed."""
    groups: RunGroups = {}
    for run in runs:
        groups.setdefault(run.variant, []).append(run)
    order = sorted(groups, key=lambda v: min(int(r.provenance.get("order", 0)) for r in groups[v]))
    return {variant: sorted(groups[variant], key=lambda r: r.seed) for variant in order}


def unfinished(runs: Iterable[RunRecord]) -> list[RunRecord]:
    """Runs that have not reached their planned last step; they do not take part in a comparison."""
    return [r for r in runs if not r.final_losses() or (r.planned_steps is not None and r.steps < r.planned_steps)]


def finished_by_variant(runs: Iterable[RunRecord]) -> RunGroups:
    """The runs that take part in a comparison, see `unfinished`."""
    runs = list(runs)
    left_out = {run.folder for run in unfinished(runs)}
    return by_variant(run for run in runs if run.folder not in left_out)


def natural_shares(run: RunRecord) -> dict[str, float]:
    """Share of every domain in all tokens, {} when the run did not record it."""
    return {k: float(v) for k, v in run.provenance.get("natural_shares", {}).items()}


def run_table(run: RunRecord) -> Table:
    """One row per domain of one run."""
    columns = ("domain", "prior", "weight", "average weight", "asked share", "share", "epochs")
    metrics = ("training loss", "validation loss", "perplexity", *(("test loss",) if run.test else ()))
    prior, average = run.provenance.get("prior", {}), run.average_weights()
    losses, tested = run.final_losses("eval"), run.final_losses("test")

    def held_out(loss: float | None, test: float | None) -> tuple[str, ...]:
        cells = (number(loss, 4), number(None if loss is None else perplexity(loss), 2))
        return (*cells, number(test, 4)) if run.test else cells

    rows: list[tuple[str, ...]] = [
        (
            name,
            percent(prior.get(name)),
            percent(run.final("train", f"mix/weight/{name}")),
            percent(average.get(name)),
            percent(run.final("train", f"data/asked/{name}")),
            percent(run.final("train", f"data/share/{name}")),
            number(run.final("train", f"data/epochs/{name}"), 2),
            number(run.final("train", f"train/loss/{name}"), 4),
            *held_out(losses.get(name), tested.get(name)),
        )
        for name in run.domains
    ]
    for key, label in (("uniform", "mean over domains"), ("prior", "mean, prior-weighted"), ("worst", "worst domain")):
        value = run.final("eval", f"eval/loss/{key}")
        if value is not None:
            rows.append((label, *[""] * 7, *held_out(value, run.final("test", f"test/loss/{key}"))))
    return Table((*columns, *metrics), tuple(rows), first_total=len(run.domains))


def mean_loss(run: RunRecord, weights: Mapping[str, float] | None = None) -> float:
    """Mean of the final losses over domains, uniform or weighted by `weights`; see `RunRecord.final_losses`."""
    losses = run.final_losses()
    if weights is None:
        return sum(losses.values()) / len(losses)
    total = sum(weights.get(name, 0.0) for name in losses)
    return sum(weights.get(name, 0.0) * loss for name, loss in losses.items()) / total if total > 0 else math.nan


def comparison(runs: Sequence[RunRecord], weights: Mapping[str, float] | None = None) -> Comparison | None:
    """The finished runs ranked by their mean final loss; None when none has finished."""
    groups = finished_by_variant(runs)
    if not groups:
        return None
    return compare({v: {r.seed: mean_loss(r, weights) for r in group} for v, group in groups.items()})


def comparison_table(runs: Sequence[RunRecord]) -> Table:
    """One row per domain; per variant the final loss, the realized share and the epochs, means over seeds."""
    groups = finished_by_variant(runs)
    domains = list(dict.fromkeys(name for group in groups.values() for name in group[0].domains))
    columns = ("domain", *(title for variant in groups for title in (f"{variant} loss", "share", "epochs")))
    rows: list[tuple[str, ...]] = []
    best: set[tuple[int, int]] = set()

    def means(metric: Callable[[RunRecord], float | None]) -> list[float | None]:
        return [mean_of_known(map(metric, group)) for group in groups.values()]

    def add(label: str, losses: list[float | None], beside: Sequence[tuple[str, str]] = ()) -> None:
        known = [loss for loss in losses if loss is not None]
        if len(known) > 1:
            best.update((len(rows), 1 + 3 * i) for i, v in enumerate(losses) if v is not None and v <= min(known))
        pairs = zip(losses, beside or [("", "")] * len(losses), strict=True)
        rows.append((label, *(cell for loss, others in pairs for cell in (number(loss, 4), *others))))

    for name in domains:
        shares = map(percent, means(partial(RunRecord.final, kind="train", key=f"data/share/{name}")))
        epochs = [number(x, 2) for x in means(partial(RunRecord.final, kind="train", key=f"data/epochs/{name}"))]
        losses = [mean_of_known(r.final_losses().get(name) for r in group) for group in groups.values()]
        add(name, losses, list(zip(shares, epochs, strict=True)))
    add("mean over domains", means(mean_loss))
    finished = [run for group in groups.values() for run in group]
    seeds = sorted({run.seed for run in finished})
    for seed in seeds if len(seeds) > 1 else ():
        of_seed = [[run for run in group if run.seed == seed] for group in groups.values()]
        add(f"  seed {seed}", [mean_of_known(map(mean_loss, group)) for group in of_seed])
    natural = next(filter(None, map(natural_shares, finished)), None)
    if natural:
        add("mean, weighted by size", means(partial(mean_loss, weights=natural)))
    add("worst domain", means(lambda run: max(run.final_losses().values())))
    rows.append(("tokens/s", *(cell for rate in means(median_rate) for cell in (number(rate, 0), "", ""))))
    return Table(columns, tuple(rows), frozenset(best), first_total=len(domains))


def median_rate(run: RunRecord) -> float | None:
    """Median tokens per second over the log intervals, the first (compilation) left out where there are more."""
    values = run.series("timing", "tokens_per_second")[1]
    return statistics.median(values[1:] or values) if values else None
