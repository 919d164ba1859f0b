"""The page of fine-tuning runs: solve rates over time, what was drawn, and the cost in each currency."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from functools import partial

from jaxmix.report import charts, html
from jaxmix.report.charts import Line
from jaxmix.report.html import Html
from jaxmix.report.numbers import mean_of_all, number
from jaxmix.report.pages import finetune_metrics as metrics
from jaxmix.report.run_folder import RunRecord
from jaxmix.report.tables import Table, by_variant
from jaxmix.report.widgets import curve

_TITLES = {"rollouts": "rollouts", "prompts": "prompts", "unique_prompts": "unique prompts"}
"""Currencies of cost: completions generated, prompts drawn, unique prompts seen so far."""

_LARGEST_SHARE = 0.25
_LOST = 0.03


def describe_finetune(runs: Sequence[RunRecord]) -> list[str]:
    """The result in sentences, the most important first."""
    if len(runs) == 1:
        return _one(runs[0])
    groups = {v: [a for r in g if (a := metrics.final_accuracy(r)) is not None] for v, g in by_variant(runs).items()}
    known = {variant: values for variant, values in groups.items() if values}
    if not known:
        return ["No run has been evaluated yet."]
    best = max(known, key=lambda v: statistics.fmean(known[v]))
    listed = "; ".join(f"{v} {statistics.fmean(a):.3f} ({len(a)} seed{'s'[: len(a) > 1]})" for v, a in known.items())
    sentences = [f"{best} solves the most held-out prompts at the end. Means over the learnable arms: {listed}."]
    for run in runs:
        sentences += [f"{run.name}: {text}" for text in _warnings(run)]
    behind = [r.name for r in runs if r.planned_steps is not None and r.steps < r.planned_steps]
    if behind:
        sentences.append(f"Not finished: {', '.join(behind)}.")
    return sentences


def _one(run: RunRecord) -> list[str]:
    planned = f" of {run.planned_steps}" if run.planned_steps is not None else ""
    curve_ = metrics.accuracy(run)
    spent = {key: max((int(r.get(key, 0)) for r in (*run.train, *run.eval)), default=0) for key in _TITLES}
    sentences = [
        f"Step {run.steps}{planned}: {spent['prompts']:,} prompts, {spent['unique_prompts']:,} of them unique, "
        f"{spent['rollouts']:,} rollouts."
    ]
    if curve_.value:
        start = f", from {curve_.value[0]:.3f} at the start" if len(curve_.value) > 1 else ""
        arms = len(metrics.learnable_arms(run))
        over = f" (mean over {arms} arms)" if arms > 1 else ""
        sentences.append(f"Solved {curve_.value[-1]:.3f} of the held-out prompts{start}{over}.")
        if run.steps and not run.eval[-1].get("updates", 1):
            sentences.append(
                "The policy was never updated: in too few groups the completions had different rewards. What differs "
                "from the start is chance."
            )
    return sentences + _warnings(run)


def _warnings(run: RunRecord) -> list[str]:
    found = []
    mastered = metrics.mastered_change(run)
    if mastered is not None and mastered[1] < -_LOST:
        found.append(f"The {mastered[0]} arms that were solved at the start have lost {-mastered[1]:.3f}.")
    series = {name: run.series("train", f"bandit/probability/{name}")[1] for name in metrics.arms_of(run)}
    largest, arm = max(((max(values), name) for name, values in series.items() if values), default=(0.0, ""))
    if largest > _LARGEST_SHARE and len(series) > 1:
        found.append(f"{arm} took {largest:.0%} of the prompts at times; above a quarter, other arms may be forgotten.")
    return found


# ── tables ───────────────────────────────────────────────────────────────────────────────────────


def finetune_table(run: RunRecord) -> Table:
    """One row per arm: solve rate at the start and the end, share of the prompts, probability at the end."""
    end = metrics.solve_rates(run)
    rows = []
    for name in metrics.arms_of(run):
        start = run.series("eval", f"eval/solve/{name}")[1]
        probability = run.final("train", f"bandit/probability/{name}")
        values = (start[0] if start else None, end.get(name), metrics.share_of(run, [name]), probability)
        rows.append((name, *map(_number, values)))
    curve_ = metrics.accuracy(run)
    if curve_.value:
        share = metrics.share_of(run, metrics.learnable_arms(run))
        rows.append(("mean", _number(curve_.value[0]), _number(curve_.value[-1]), _number(share), ""))
    return Table(("arm", "solved at start", "solved at end", "share of prompts", "probability now"), tuple(rows),
                 first_total=len(rows) - 1)  # fmt: skip


def finetune_comparison_table(runs: Sequence[RunRecord]) -> Table:
    """One row per variant, means over seeds; prompts to where the first variant ends, by paired seed."""
    columns = ("variant", "seeds", "solved at end (last four evaluations)", "mean over prompts",
               "prompts to the first's end", "gain", "live groups", "unique prompts", "mastered arms",
               "on noise")  # fmt: skip
    groups = by_variant(runs)
    first = {run.seed: run for run in next(iter(groups.values()))}
    rows = []
    for variant, group in groups.items():
        reached = []
        for run in group:
            base = first.get(run.seed)
            level = None if base is None else metrics.final_accuracy(base)
            taken = None if level is None else metrics.prompts_to(run, level)
            spent = 0 if base is None else metrics.accuracy(base).prompts[-1] if metrics.accuracy(base).prompts else 0
            reached.append((taken, math.log(spent / taken) if taken else None))
        log_gain = mean_of_all(log for _, log in reached)
        noise = [
            metrics.share_of(r, [n for n in metrics.arms_of(r) if n not in metrics.learnable_arms(r)]) for r in group
        ]
        moved = [m[1] if (m := metrics.mastered_change(r)) else None for r in group]
        live = [mean_of_all(r.series("train", "reward/live_share")[1]) for r in group]
        rows.append(
            (
                variant,
                str(len(group)),
                _number(mean_of_all([metrics.final_accuracy(r) for r in group])),
                _number(mean_of_all([metrics.area(r) for r in group])),
                number(mean_of_all(taken for taken, _ in reached), 0, missing="?"),
                "?" if log_gain is None else f"{math.exp(log_gain):.2f}x",
                _number(mean_of_all(live)),
                number(
                    mean_of_all(u[-1] if (u := metrics.accuracy(r).unique_prompts) else None for r in group),
                    0,
                    missing="?",
                ),
                _number(mean_of_all(moved), sign=True),
                _number(mean_of_all(noise)),
            )
        )
    scored = [(float(row[2]), i) for i, row in enumerate(rows) if row[2] != "?"]
    return Table(columns, tuple(rows), best=frozenset({(max(scored)[1], 2)} if scored else ()))


_number = partial(number, digits=3, missing="?")


# ── sections ─────────────────────────────────────────────────────────────────────────────────────


def finetune_sections(runs: Sequence[RunRecord]) -> list[Html]:
    """The body of the page under its verdict."""
    if len(runs) > 1:
        parts = [html.table(finetune_comparison_table(runs), "Variants (means over seeds)")]
        text = (
            "Solved: share of held-out prompts, mean over the learnable arms and the last four evaluations. Prompts to "
            "the first's end: prompts until the curve, smoothed by the median of three, stays for two evaluations at "
            "or above the first variant's final value. Gain: the first variant's prompts divided by these, geometric "
            "mean over paired seeds; ? where a seed never gets there. Mastered arms: change in the arms that start "
            "above 0.9."
        )
        parts.append(html.note(text))
    else:
        parts = [html.table(finetune_table(runs[0]), "Arms")]
    parts += _currencies(runs) + _families(runs)
    shown = runs if len(runs) <= 8 else [group[0] for group in by_variant(runs).values()]
    records = (record for run in shown for record in run.train)
    known = [x for r in records for key, x in r.items() if key.startswith("bandit/probability/") and x is not None]
    for index, run in enumerate(shown):
        parts += _heat(run, index, len(runs) > 1) + _allocation(run, index, most=max([0.05, *known]))
    return parts


def _accuracy_lines(runs: Sequence[RunRecord], currency: str, arms: Sequence[str] | None = None) -> list[Line]:
    """Accuracy over the learnable arms, or over `arms`: a curve per run, a style per variant."""
    return [
        Line(variant, getattr(found, currency), found.value, style, is_thin=len(group) > 1)
        for style, (variant, group) in enumerate(by_variant(runs).items())
        for run in group
        if (found := metrics.accuracy(run, arms)).value
    ]


def _currencies(runs: Sequence[RunRecord]) -> list[Html]:
    """Accuracy against rollouts, prompts and unique prompts: any one of them alone can flatter a method."""
    if not _accuracy_lines(runs, "prompts"):
        return []
    parts = [html.heading("Accuracy in three currencies")]
    text = "Held-out prompts, mean over the learnable arms" + (", one curve per seed." if runs[1:] else ".")
    for index, (currency, title) in enumerate(_TITLES.items()):
        lines = _accuracy_lines(runs, currency)
        chart = charts.lines(lines, name=f"currency{index}", x_label=title, y_label="solved")
        parts.append(html.figure(chart, text if index == 0 else ""))
    return parts


def _families(runs: Sequence[RunRecord]) -> list[Html]:
    """Accuracy of every family over the run."""
    groups = {family: _accuracy_lines(runs, "prompts", arms) for family, arms in metrics.families_of(runs[0]).items()}
    if not groups:
        return []
    chart = charts.panels(groups, name="families", x_label="prompts", y_label="solved")
    return [html.heading("Accuracy by family"), html.figure(chart, "Mean over the levels of each family.")]


def _heat(run: RunRecord, index: int, is_one_of_many: bool) -> list[Html]:
    arms = [name for names in metrics.families_of(run).values() for name in names]
    records = [r for r in run.eval if all(isinstance(r.get(f"eval/solve/{n}"), (int, float)) for n in arms)]
    if not arms or not records:
        return []
    title = "Solve rates over the run" + (f": {run.name}" if is_one_of_many else "")
    chart = charts.heat_over_steps(
        arms,
        [int(r["step"]) for r in records],
        [[float(r[f"eval/solve/{name}"]) for r in records] for name in arms],
        name=f"heat{index}",
        value_label="solved",
    )
    return [html.heading(title), html.figure(chart, "Held-out prompts of every arm, by family and level.")]


def _allocation(run: RunRecord, index: int, *, most: float) -> list[Html]:
    """Shares of the prompts: of families, stacked, and of every arm as a heat map whose scale ends at `most`."""
    families = metrics.families_of(run)
    prefix = "arm/share/"
    drawn_names = [key[len(prefix) :] for key in (run.train[-1] if run.train else {}) if key.startswith(prefix)]
    if not set(drawn_names) <= set(metrics.arms_of(run)):  # clusters: their arms are not those that are evaluated
        families = {name: [name] for name in drawn_names}
    arms = [name for names in families.values() for name in names]
    records = [r for r in run.train if any(f"arm/share/{name}" in r for name in arms)]
    if not records:
        return []
    steps = [int(r["step"]) for r in records]
    bands = [
        Line(family, steps, [sum(float(r.get(f"arm/share/{n}", 0.0)) for n in names) for r in records], style)
        for style, (family, names) in enumerate(families.items())
    ]
    parts = []
    if len(bands) > 1 and len(steps) > 1:
        chart = charts.stacked(bands, name=f"allocation{index}", y_label="share of the prompts")
        parts.append(html.figure(chart, f"What was drawn, by family: {run.name}."))
    probabilities = [curve(run, "train", f"bandit/probability/{name}", name, 0) for name in arms]
    drawn = [line for line in probabilities if line.x]
    if drawn and len(drawn) == len(arms) and all(line.x == drawn[0].x for line in drawn):
        chart = charts.heat_over_steps(
            arms,
            drawn[0].x,
            [line.y for line in drawn],
            name=f"probability{index}",
            value_label="probability",
            most=most,
        )
        parts.append(html.figure(chart, "How likely the bandit was to draw each arm."))
    return [html.heading("Allocation"), *parts] if parts else []
