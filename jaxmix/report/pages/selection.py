"""Sections about runs that train on part of what they draw: their cost in every measure, and the implied mixture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxmix.report import charts, html
from jaxmix.report.charts import Line
from jaxmix.report.cost import cost_of
from jaxmix.report.html import Html
from jaxmix.report.numbers import mean_of_all
from jaxmix.report.run_folder import RunRecord
from jaxmix.report.tables import Table, by_variant
from jaxmix.report.widgets import curve, domain_values, domains_shown, seed_curves


class Axes(NamedTuple):
    """The cost of a run in every measure by which selection methods are compared.

    Attributes:
        steps: optimizer steps.
        trained, scanned: rows trained on, and rows drawn; None where the run did not record its compute.
        flops: operations of training, scoring and the reference; None likewise.
        seconds: wall time of all steps with their evaluations; None without timing records.
    """

    steps: float
    trained: float | None
    scanned: float | None
    flops: float | None
    seconds: float | None


_TITLES = ("steps", "rows trained", "rows scanned", "operations", "seconds")


def selects(run: RunRecord) -> bool:
    """Whether the run trained on part of what it drew."""
    return bool(run.train) and "select/tokens" in run.train[-1]


def axes_of(run: RunRecord, step: float | None = None) -> Axes:
    """The cost of a run's first `step` steps, of all that are done if None."""
    steps = float(run.steps if step is None else step)
    compute: dict[str, Any] = run.provenance.get("compute") or {}
    names = ("rows_trained_per_step", "rows_scanned_per_step", "flops_per_step")
    trained, scanned, flops = (None if (x := compute.get(name)) is None else steps * float(x) for name in names)
    seconds = cost_of(run).seconds
    return Axes(steps, trained, scanned, flops, seconds * steps / run.steps if seconds and run.steps else None)


def axes_table(runs: Sequence[RunRecord]) -> Table:
    """One row per variant, means over seeds; each value with its ratio to the first variant's."""
    rows: list[tuple[str, ...]] = []
    first: list[float | None] = []
    for variant, group in by_variant(runs).items():
        values = [mean_of_all(column) for column in zip(*(axes_of(run) for run in group), strict=True)]
        first = first or values
        cells = [_shown(value, base, not rows) for value, base in zip(values, first, strict=True)]
        tokens = mean_of_all([run.final("train", "select/tokens") or float(run.tokens) for run in group])
        rows.append((variant, *cells, _shown(tokens, None, True)))
    return Table(("variant", *_TITLES, "tokens in the loss"), tuple(rows))


def _shown(value: float | None, base: float | None, is_first: bool) -> str:
    if value is None:
        return "?"
    text = f"{value:,.0f}" if value < 1e9 else f"{value:.3g}"
    return text if is_first or not base else f"{text} ({value / base:.2f}x)"


def axes_section(runs: Sequence[RunRecord]) -> list[Html]:
    """The costs of several runs, as a table and as curves of the loss against each; empty if none selects."""
    if not any(selects(run) for run in runs):
        return []
    parts = [
        html.table(axes_table(runs), "Cost on every axis"),
        html.note(
            "Ratios are to the first variant. Operations: training, scoring and the reference, without its training."
        ),
        html.heading("Validation loss against every axis"),
    ]
    groups = by_variant(runs)
    members = [run for group in groups.values() for run in group]
    losses = seed_curves(groups, "eval", "eval/loss/uniform")
    for index, title in enumerate(_TITLES):
        lines = []
        for run, line in zip(members, losses, strict=True):
            x = [cost for step in line.x if (cost := axes_of(run, step)[index]) is not None]
            if x:
                lines.append(line._replace(x=x))
        if lines:  # one chart per cost, because their scales differ
            chart = charts.lines(lines, name=f"axis{index}", x_label=title, y_label="nats per token")
            parts.append(html.figure(chart, "Mean over domains; one curve per seed." if index == 0 else ""))
    return parts


def selection_section(run: RunRecord, *, prefix: str = "selection", level: int = 2) -> list[Html]:
    """Drawn and trained shares by domain and over time, and the scores of both.

    Args:
        run: to show; empty unless it selects.
        prefix: of the ids in its charts.
        level: of its heading.
    """
    if not selects(run):
        return []
    title = "What selection did" + (f": {run.name}" if level > 2 else "")
    parts = [html.heading(title, level)]
    if level == 2:
        parts.append(html.table(axes_table([run]), "Cost on every axis"))
    domains = domains_shown(run)
    prefixes = {"asked": "data/asked", "scanned": "data/share", "trained": "select/share"}
    shares = {label: domain_values(run, domains, prefix) for label, prefix in prefixes.items()}
    chart = charts.bars(domains, shares, name=f"{prefix}-shares", y_label="share since the start")
    text = (
        "Asked: by the mixture. Scanned: share of the rows drawn. Trained: share of the tokens trained on, the mixture "
        "that selection implies."
    )
    parts.append(html.figure(chart, text))
    recent = [curve(run, "train", f"select/recent_share/{n}", n, i) for i, n in enumerate(domains)]
    chart = charts.lines(recent, name=f"{prefix}-recent", y_label="share of trained", y_from_zero=True, y_top=1)
    parts.append(html.figure(chart, "Share of the trained tokens between two records."))
    scores = [curve(run, "train", f"select/score/{kind}", kind, i) for i, kind in enumerate(("scanned", "trained"))]
    if all(line.x for line in scores):
        method = run.config.get("selection", {}).get("method", "selection")
        chart = charts.lines(scores, name=f"{prefix}-score", y_label="mean score (nats)")
        parts.append(html.figure(chart, f"Mean {method} score of all rows drawn, and of those trained on."))
    gaps = [gap for i, n in enumerate(domains) if (gap := _learnability(run, n, i)).x]
    if gaps:
        chart = charts.lines(gaps, name=f"{prefix}-gap", y_label="nats per token")
        parts.append(html.figure(chart, "Learnability of each domain: the learner's loss minus the reference's."))
    return parts


def _learnability(run: RunRecord, name: str, style: int) -> Line:
    loss, reference = f"select/loss/{name}", f"select/reference_loss/{name}"
    pairs = [
        (int(r["step"]), float(r[loss]) - float(r[reference]))
        for r in run.train
        if isinstance(r.get(loss), (int, float)) and isinstance(r.get(reference), (int, float))
    ]
    return Line(name, [step for step, _ in pairs], [gap for _, gap in pairs], style)
