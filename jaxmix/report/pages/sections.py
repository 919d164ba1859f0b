"""Sections of a page: what a mixer did, and how variants differ over paired seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from jaxmix.report import charts
from jaxmix.report.charts import Dot, Grid
from jaxmix.report.cost import cost_sentence
from jaxmix.report.diagnosis import interaction_snapshots, lag_sentence, warnings
from jaxmix.report.paired import LEVEL, Interval, domain_tables, paired_sentences, paired_table, pairings
from jaxmix.report.run_folder import RunRecord
from jaxmix.report.widgets import curve, domains_shown, figure_html, moves, table_html


def mixer_section(run: RunRecord, *, prefix: str = "mixer", level: int = 2) -> list[str]:
    """Entropy, warnings, weight lag, cost and the estimated interaction of a run whose weights moved.

    Args:
        run: what to show.
        prefix: of the ids in its charts, one for each section of a page.
        level: of its heading.
    """
    if not moves(run):
        return []
    title = "What the mixer did" + (f": {run.name}" if level > 2 else "")
    parts = [f"<h{level}>{escape(title)}</h{level}>"]
    parts += [f'<p class="verdict">{escape(text)}</p>' for text in warnings(run)]
    effective = curve(run, "train", "mix/entropy", "mixture", 0)
    if effective.x:
        effective = effective._replace(y=[math.exp(h) for h in effective.y])
        chart = charts.lines(
            [effective], name=f"{prefix}-entropy", x_label="step", y_label="equal domains", y_from_zero=True
        )
        note = f"Entropy H of the weights as a number of equal domains, exp(H): at most {len(run.domains)}."
        parts.append(figure_html(chart, note))
    parts += [f"<p>{escape(text)}</p>" for text in (lag_sentence(run), cost_sentence(run)) if text]
    return parts + _interaction(run, prefix)


def _interaction(run: RunRecord, prefix: str) -> list[str]:
    snapshots = interaction_snapshots(run)
    if not snapshots:
        return []
    names = domains_shown(run)
    kept = [i for i, name in enumerate(run.domains) if name in names]
    grids = [
        Grid(
            f"steps {s.start} to {s.end}" + ("" if s.correlation is None else f"\ncorrelation {s.correlation:+.2f}"),
            [[s.matrix[i][j] for j in kept] for i in kept],
            [s.realized[i] for i in kept],
        )
        for s in snapshots
    ]
    chart = charts.heat_maps(
        grids,
        names,
        name=f"{prefix}-interaction",
        x_label="training domain",
        y_label="evaluated domain",
        beside_label="realized",
    )
    note = (
        "The mixer's estimate of how much training on a domain (column) lowers the loss of a domain (row): orange "
        "lowers, purple raises. Beside it the drop of the validation loss that came about between the two evaluations. "
        "Each has its own scale. Correlation: over domains, of the drop that estimate and weights predict with it."
    )
    return [figure_html(chart, note)]


def paired_section(runs: Sequence[RunRecord]) -> list[str]:
    """Differences to the first variant, with intervals where there are paired seeds, as tables and dot plots."""
    pairs = pairings(runs)
    if len(pairs) < 2:
        return []
    first = pairs[0].variant
    losses, differences = domain_tables(runs)
    parts = [table_html(paired_table(runs), f"Differences to {first} over paired seeds")]
    parts.append(f'<p class="note">{escape(_HOW_TO_READ)}</p>')
    parts += [f"<p>{escape(text)}</p>" for text in paired_sentences(runs)]
    shown = [p for p in pairs[1:] if p.difference.values]
    kind = next(r.judged_by for r in runs if r.final_losses())
    label = f"{kind} loss minus that of {first}, nats per token"
    what = f"Dots: means over paired seeds; lines: {LEVEL:.0%} intervals; strokes: single seeds. Left of 0 is better."

    def rows(intervals: Sequence[Interval | None]) -> list[Dot]:
        return [
            Dot(p.variant, i.mean, i.low, i.high, i.values, pairs.index(p))
            for p, i in zip(shown, intervals, strict=True)
            if i is not None and i.values
        ]

    if shown:
        mean = {"mean over domains": rows([p.difference for p in shown])}
        by_domain = {n: rows([p.domain_differences.get(n) for p in shown]) for n in domains_shown(runs[0])}
        parts.append(figure_html(charts.dots(mean, name="differences", x_label=label), f"Mean over domains. {what}"))
        by_domain = {n: group for n, group in by_domain.items() if len(group) == len(shown)}
        if by_domain:
            chart = charts.dots(by_domain, name="domain-differences", x_label=label)
            parts.append(figure_html(chart, "By domain, each panel with its own scale."))
    parts.append(table_html(losses, f"{kind.capitalize()} loss (perplexity) by domain"))
    parts.append(table_html(differences, f"Difference to {first} by domain, with half the width of its interval"))
    return parts


_HOW_TO_READ = (
    "Loss and perplexity are means over domains and seeds of the last evaluation, on test rows where there are any. "
    "Seconds are of all steps with their evaluations, at the pace after the first log interval, which holds "
    "compilation. The last column counts the evaluations that only the mixer asked for."
)
