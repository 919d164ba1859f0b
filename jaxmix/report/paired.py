"""Differences between variants over paired seeds, with intervals."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from jaxmix.report.cost import Cost, cost_of
from jaxmix.report.intervals import LEVEL, Interval, student_interval
from jaxmix.report.numbers import number, perplexity
from jaxmix.report.run_folder import RunRecord
from jaxmix.report.tables import Table, domain_label, finished_by_variant, mean_loss, shared_domains

Metric = Callable[[RunRecord], float]


class Pairing(NamedTuple):
    """One variant against the first.

    Attributes:
        variant: its name.
        seeds: that both have finished; for the first variant, all of its own.
        loss: mean over seeds and domains of the final loss (of test rows where there are any), nats per token.
        by_domain: loss of every domain, mean over seeds.
        difference: of the mean loss to the first variant's, by seed; empty for the first itself.
        domain_differences: the same of every domain.
        cost: means over seeds.
    """

    variant: str
    seeds: tuple[int, ...]
    loss: float
    by_domain: dict[str, float]
    difference: Interval
    domain_differences: dict[str, Interval]
    cost: Cost


def pairings(runs: Sequence[RunRecord]) -> list[Pairing]:
    """Every variant with a finished run against the first one, in their order; [] if none has finished."""
    groups = finished_by_variant(runs)
    if not groups:
        return []
    among = shared_domains([run for group in groups.values() for run in group])
    first = {r.seed: r for r in next(iter(groups.values()))}
    return [_pair(variant, group, first, among, is_first=i == 0) for i, (variant, group) in enumerate(groups.items())]


def _pair(
    variant: str, group: Sequence[RunRecord], first: Mapping[int, RunRecord], among: Sequence[str], *, is_first: bool
) -> Pairing:
    shared = [] if is_first else [(r, first[r.seed]) for r in group if r.seed in first]

    def over_seeds(metric: Metric) -> float:
        return statistics.fmean(map(metric, group))

    def difference(metric: Metric) -> Interval:
        return student_interval(metric(mine) - metric(other) for mine, other in shared)

    domains = [n for n in group[0].domains if all(n in r.final_losses() for r in (*group, *first.values()))]
    losses, mean = {n: partial(domain_loss, domain=n) for n in domains}, partial(mean_loss, among=among)
    return Pairing(
        variant=variant,
        seeds=tuple(r.seed for r in (group if is_first else [mine for mine, _ in shared])),
        loss=over_seeds(mean),
        by_domain={n: over_seeds(loss) for n, loss in losses.items()},
        difference=difference(mean),
        domain_differences={n: difference(loss) for n, loss in losses.items()},
        cost=Cost.mean([cost_of(r) for r in group]),
    )


def domain_loss(run: RunRecord, domain: str) -> float:
    """Final loss of a domain, nats per token, see `RunRecord.final_losses`."""
    return run.final_losses()[domain]


def paired_table(runs: Sequence[RunRecord]) -> Table:
    """One row per variant: loss, perplexity, difference to the first variant, and cost."""
    pairs = pairings(runs)
    first = pairs[0].variant if pairs else ""
    columns = ("variant", "seeds", "mean loss", "perplexity", f"minus {first}", f"{LEVEL:.0%} interval", "tokens")
    rows = tuple(
        (
            p.variant,
            str(len(p.seeds)),
            f"{p.loss:.4f}",
            f"{perplexity(p.loss):.3f}",
            "-" if i == 0 else number(p.difference.mean, 4, sign=True),
            "-" if i == 0 else _span(p.difference),
            *(number(v, 0) for v in (p.cost.tokens, p.cost.seconds, p.cost.evaluations, p.cost.extra_evaluations)),
        )
        for i, p in enumerate(pairs)
    )
    best = {(i, 2) for i, p in enumerate(pairs) if len(pairs) > 1 and p.loss <= min(q.loss for q in pairs)}
    return Table((*columns, "seconds", "evaluations", "for the mixer"), rows, frozenset(best))


def domain_tables(runs: Sequence[RunRecord]) -> tuple[Table, Table]:
    """One row per domain, one column per variant: loss with perplexity; difference to the first with its interval."""
    pairs = pairings(runs)
    domains = list(dict.fromkeys(n for p in pairs for n in p.by_domain))
    losses, differences, best = [], [], set()
    for i, name in enumerate(domains):
        found = [p.by_domain.get(name) for p in pairs]
        label = domain_label(runs[0], name, is_full=False)
        losses.append((label, *("-" if f is None else f"{f:.4f} ({perplexity(f):.2f})" for f in found)))
        lowest = min(f for f in found if f is not None)
        best |= {(i, 1 + j) for j, f in enumerate(found) if len(pairs) > 1 and f is not None and f <= lowest}
        gaps = [p.domain_differences.get(name) for p in pairs[1:]]
        differences.append((label, *("-" if g is None or not g.values else _with_width(g) for g in gaps)))
    names = [p.variant for p in pairs]
    return (
        Table(("domain", *names), tuple(losses), frozenset(best)),
        Table(("domain", *names[1:]), tuple(differences)),
    )


def paired_sentences(runs: Sequence[RunRecord]) -> list[str]:
    """Conclusions that the intervals support, one sentence per variant, and how to read them."""
    pairs = pairings(runs)
    if len(pairs) < 2:
        return []
    first, sentences = pairs[0].variant, []
    for p in pairs[1:]:
        gap = p.difference
        if not gap.values:
            sentences.append(f"{p.variant} has no finished seed in common with {first}: no difference can be paired.")
        elif gap.half_width is None:
            sentences.append(f"{p.variant} minus {first}: {gap.mean:+.4f} with one paired seed.")
        else:
            verdict = ("lower" if gap.mean < 0 else "higher") if gap.excludes_zero else "not told apart"
            sentences.append(f"{p.variant} minus {first}: {gap.mean:+.4f} {_span(gap)}, {verdict}.")
    if any(p.difference.half_width is not None for p in pairs):
        sentences.append(
            f"Differences pair equal seeds; intervals are Student's at {LEVEL:.0%} over paired seeds, one variant at "
            "a time."
        )
    if any(len(p.difference.values) < 2 for p in pairs[1:]):
        sentences.append("With fewer than two paired seeds there is no interval: use --seeds 2 or more.")
    return sentences


def _span(interval: Interval) -> str:
    if interval.half_width is None:
        return "-" if not interval.values else "one seed"
    return f"[{interval.low:+.4f}, {interval.high:+.4f}]"


def _with_width(interval: Interval) -> str:
    width = "" if interval.half_width is None else f" ± {interval.half_width:.4f}"
    return f"{interval.mean:+.4f}{width}"
