"""Sections of a page about a mixer's weights, and about differences over paired seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence

from jaxmix.report import charts, html
from jaxmix.report.charts import Dot, Matrix
from jaxmix.report.cost import cost_sentence
from jaxmix.report.diagnosis import interaction_snapshots, lag_sentence, warnings
from jaxmix.report.html import Html
from jaxmix.report.intervals import LEVEL, Interval
from jaxmix.report.numbers import DEFINITIONS
from jaxmix.report.paired import domain_tables, paired_sentences, paired_table, pairings
from jaxmix.report.run_folder import RunRecord
from jaxmix.report.widgets import curve, domains_shown


def mixer_section(run: RunRecord, *, prefix: str = "mixer", level: int = 2) -> list[Html]:
    """Entropy, warnings, weight lag, cost and the estimated interaction of a run whose weights moved.

    Args:
        run: to show.
        prefix: of the ids in its charts, one for each section of a page.
        level: of its heading.
    """
    if not run.has_moving_weights:
        return []
    title = "What the mixer did" + (f": {run.name}" if level > 2 else "")
    parts = [html.heading(title, level)]
    parts += [html.paragraph(text, "verdict") for text in warnings(run)]
    effective = curve(run, "train", "mix/entropy", "mixture", 0)
    if effective.x:
        effective = effective._replace(y=[math.exp(h) for h in effective.y])
        top = 1.05 * len(run.domains)
        chart = charts.lines(
            [effective], name=f"{prefix}-entropy", y_label="equal domains", y_from_zero=True, y_top=top
        )
        note = f"exp(H), H the entropy of the weights: so many equally weighted domains; at most {len(run.domains)}."
        parts.append(html.figure(chart, note))
    parts += [html.paragraph(text) for text in (lag_sentence(run), cost_sentence(run)) if text]
    return parts + _interaction(run, prefix)


def _interaction(run: RunRecord, prefix: str) -> list[Html]:
    snapshots = interaction_snapshots(run)
    if not snapshots:
        return []
    names = domains_shown(run)
    kept = [i for i, name in enumerate(run.domains) if name in names]
    matrices = [
        Matrix(
            f"steps {s.start} to {s.end}" + ("" if s.correlation is None else f"\ncorrelation {s.correlation:+.2f}"),
            [[s.matrix[i][j] for j in kept] for i in kept],
            [s.realized[i] for i in kept],
        )
        for s in snapshots
    ]
    chart = charts.heat_maps(
        matrices,
        names,
        name=f"{prefix}-interaction",
        x_label="training domain",
        y_label="evaluated domain",
        beside_label="realized",
    )
    note = (
        "The mixer's estimate of how much training on one domain (column) lowers the loss of another (row): orange "
        "lowers it, purple raises it. Beside it, the realized drop of the validation loss between the two evaluations. "
        "Each has its own scale. Correlation: between predicted and realized drop, over domains; the prediction is "
        "the estimate times the weights."
    )
    return [html.figure(chart, note)]


def paired_section(runs: Sequence[RunRecord]) -> list[Html]:
    """Differences to the first variant, with intervals where there are paired seeds, as tables and dot plots."""
    pairs = pairings(runs)
    if len(pairs) < 2:
        return []
    first = pairs[0].variant
    losses, differences = domain_tables(runs)
    parts = [html.table(paired_table(runs), f"Differences to {first} over paired seeds")]
    parts.append(html.note(_HOW_TO_READ))
    parts += map(html.paragraph, paired_sentences(runs))
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
        by_domain = {n: rows([p.domain_differences.get(n) for p in shown]) for n in domains_shown(*runs)}
        parts.append(html.figure(charts.dots(mean, name="differences", x_label=label), f"Mean over domains. {what}"))
        by_domain = {n: group for n, group in by_domain.items() if len(group) == len(shown)}
        if by_domain:
            chart = charts.dots(by_domain, name="domain-differences", x_label=label)
            parts.append(html.figure(chart, "By domain, all panels with one scale."))
    parts.append(html.table(losses, f"{kind.capitalize()} loss (perplexity) by domain"))
    parts.append(html.table(differences, f"Difference to {first} by domain, with half the width of its interval"))
    return parts


_HOW_TO_READ = (
    f"Of the last evaluation, on test rows where there are any. {DEFINITIONS} Seconds cover all steps and their "
    "evaluations, at the pace after the first log interval, which includes compilation. The last column counts the "
    "evaluations that only the mixer asked for."
)
