"""Tables of runs as plain rows, for the terminal and the page alike."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from jaxmix.report.numbers import FEW_TOKENS, mean_of_known, number, percent, perplexity
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


def shared_domains(runs: Sequence[RunRecord]) -> list[str]:
    """The domains that all runs have a final loss of: means over others could not be compared."""
    losses = [run.final_losses() for run in runs]
    return [name for name in (runs[0].domains if runs else ()) if all(name in found for found in losses)]


def domain_label(run: RunRecord, name: str, *, is_full: bool = True) -> str:
    """The name of a domain, and what to know of its numbers.

    Args:
        run: it is a domain of.
        name: of the domain.
        is_full: also say that it left or ran out, not only that few tokens were held out of it.
    """
    held_out = run.held_out_tokens().get(name, FEW_TOKENS)
    marks = [f"only {held_out:,} evaluated tokens"] if held_out < FEW_TOKENS else []
    if is_full:
        marks += [f"left after step {run.left[name]}"] if name in run.left else []
        marks += [f"ran out at step {run.ran_out[name]}"] if name in run.ran_out else []
    return f"{name} ({', '.join(marks)})" if marks else name


def run_table(run: RunRecord) -> Table:
    """One row per domain of one run, also of those that left."""
    columns = ("domain", "prior", "weight", "average weight", "asked share", "share of tokens", "tokens", "epochs")
    metrics = ("training loss", "validation loss", "perplexity", *(("test loss",) if run.test else ()))
    prior, average, shares = run.provenance.get("prior", {}), run.average_weights(), run.token_shares()
    losses, tested = run.final_losses("eval"), run.final_losses("test")
    last = run.train[-1] if run.train else {}  # a domain that left has earlier values

    def held_out(loss: float | None, test: float | None) -> tuple[str, ...]:
        cells = (number(loss, 4), number(None if loss is None else perplexity(loss), 2))
        return (*cells, number(test, 4)) if run.test else cells

    rows: list[tuple[str, ...]] = [
        (
            domain_label(run, name),
            percent(prior.get(name)),
            percent(last.get(f"mix/weight/{name}")),
            percent(average.get(name)),
            percent(last.get(f"data/asked/{name}")),
            percent(shares.get(name)),
            number(last.get(f"data/tokens/{name}"), 0),
            number(last.get(f"data/epochs/{name}"), 2),
            number(run.final("train", f"train/loss/{name}"), 4),
            *held_out(losses.get(name), tested.get(name)),
        )
        for name in (*run.domains, *run.left)
    ]
    domains = len(rows)
    if losses:
        both = (losses, tested)
        rows.append(("mean over domains", *[""] * 8, *held_out(*map(mean_over_domains, both))))
        if prior:
            means = (mean_over_domains(values, prior) for values in both)
            rows.append(("mean, prior-weighted", *[""] * 8, *held_out(*means)))
        worst = (max(values.values(), default=None) for values in both)
        rows.append(("worst domain", *[""] * 8, *held_out(*worst)))
    return Table((*columns, *metrics), tuple(rows), first_total=domains)


def mean_over_domains(losses: Mapping[str, float], weights: Mapping[str, float] | None = None) -> float:
    """Mean of losses by domain, plain or weighted by `weights`; nan where there is nothing to average."""
    of = dict.fromkeys(losses, 1.0) if weights is None else {name: weights.get(name, 0.0) for name in losses}
    total = sum(of.values())
    return sum(of[name] * loss for name, loss in losses.items()) / total if total > 0 else math.nan


def mean_loss(run: RunRecord, weights: Mapping[str, float] | None = None, among: Sequence[str] | None = None) -> float:
    """`mean_over_domains` of the final losses, of the domains in `among` if given; see `RunRecord.final_losses`."""
    losses = run.final_losses()
    return mean_over_domains({n: x for n, x in losses.items() if among is None or n in among}, weights)


def comparison(runs: Sequence[RunRecord], weights: Mapping[str, float] | None = None) -> Comparison | None:
    """The finished runs ranked by their mean final loss over shared domains; None when there is nothing to rank."""
    groups = finished_by_variant(runs)
    among = shared_domains([run for group in groups.values() for run in group])
    if not among:
        return None
    return compare({v: {r.seed: mean_loss(r, weights, among) for r in group} for v, group in groups.items()})


def comparison_table(runs: Sequence[RunRecord]) -> Table:
    """One row per domain; per variant the final loss, the realized share and the epochs, means over seeds."""
    groups = finished_by_variant(runs)
    finished = [run for group in groups.values() for run in group]
    among = shared_domains(finished)
    domains = list(dict.fromkeys(name for run in finished for name in run.domains))
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

    mean = partial(mean_loss, among=among)
    for name in domains:
        shares = map(percent, means(partial(_share_of, name=name)))
        epochs = [number(x, 2) for x in means(partial(RunRecord.final, kind="train", key=f"data/epochs/{name}"))]
        losses = [mean_of_known(r.final_losses().get(name) for r in group) for group in groups.values()]
        add(domain_label(finished[0], name, is_full=False), losses, list(zip(shares, epochs, strict=True)))
    of_all = "" if len(among) == len(domains) else f"{len(among)} of {len(domains)} "
    add(f"mean over {of_all}domains", means(mean))
    seeds = sorted({run.seed for run in finished})
    for seed in seeds if len(seeds) > 1 else ():
        of_seed = [[run for run in group if run.seed == seed] for group in groups.values()]
        add(f"  seed {seed}", [mean_of_known(map(mean, group)) for group in of_seed])
    natural = next(filter(None, map(natural_shares, finished)), None)
    if natural:
        add("mean, weighted by size", means(partial(mean, weights=natural)))
    add("worst domain", means(lambda run: max(run.final_losses()[name] for name in among) if among else None))
    rows.append(("tokens/s", *(cell for rate in means(median_rate) for cell in (number(rate, 0), "", ""))))
    return Table(columns, tuple(rows), frozenset(best), first_total=len(domains))


def _share_of(run: RunRecord, name: str) -> float | None:
    return run.token_shares().get(name)


def median_rate(run: RunRecord) -> float | None:
    """Median tokens per second over the log intervals, the first (compilation) left out where there are more."""
    values = run.series("timing", "tokens_per_second")[1]
    return statistics.median(values[1:] or values) if values else None
