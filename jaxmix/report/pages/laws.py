"""Tables and the page of a fitted law: its errors, and the effect of each domain's weight."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxmix.report import charts, html
from jaxmix.report.numbers import number
from jaxmix.report.tables import Table

if TYPE_CHECKING:
    from jaxmix.laws.base import RunTable
    from jaxmix.laws.fit import LawFit
    from jaxmix.laws.judge.diagnose import Diagnosis


_POINTS = 41
_MAX_PANELS = 24


def laws_table(diagnoses: Mapping[str, Diagnosis]) -> Table:
    """One row per law, best first, and the mean predictor; errors in per cent, of runs whose mixtures were not seen."""
    errors = ("MRE %", "± %", "own > 0 %", "MAE")
    columns = ("law", "parameters", *errors, "rank", "rank of mean", "regret %", "optimism %", "at bounds")
    rows: list[tuple[str, ...]] = []
    for name, found in diagnoses.items():
        rank = float(np.nanmean(found.spearman)) if np.isfinite(found.spearman).any() else math.nan
        values = (
            (100 * found.mre, 3),
            (100 * found.standard_error, 2),
            (100 * found.mre_positive, 3),
            (found.mae, 4),
            (rank, 3),
            (found.spearman_mean, 3),
            (100 * found.regret, 2),
            (100 * found.optimism, 2),
        )
        cells = (number(value, digits) for value, digits in values)
        rows.append((name, str(found.num_params), *cells, str(len(found.at_bounds))))
    first = next(iter(diagnoses.values()))
    own = number(100 * first.mean_mre_positive, 3)
    rows.append(("(mean of the other runs)", str(len(first.spearman)), number(100 * first.mean_mre, 3), "", own,
                 *[""] * 6))  # fmt: skip
    return Table(columns, tuple(rows), frozenset({(0, 2)}), first_total=len(rows) - 1)


def proposal_table(about: Mapping[str, Any], average: np.ndarray) -> Table:
    """One row per domain: proposed weight, without bounds, the runs' average, cap and epochs where they are known.

    Args:
        about: a proposal as plain values, see `jaxmix.workflows.law.make_proposal`.
        average: [m], mean weights of the runs.
    """
    share = lambda value: f"{100 * value:.2f} %" if value < 1 else "-"
    shown: dict[str, Callable[[str], str]] = {}
    if about["caps"] is not None:
        shown["cap"] = lambda name: share(about["caps"][name]) + (" (reached)" if name in about["capped"] else "")
    if about["epochs"] is not None:
        shown["epochs"] = lambda name: f"{about['epochs'][name]:,.2f}" if name in about["epochs"] else "-"
    rows: list[tuple[str, ...]] = []
    for (name, weight), mean in zip(about["weights"].items(), average, strict=True):
        values = (weight, about["unconstrained_weights"][name], mean)
        rows.append((name, *(f"{100 * value:.2f} %" for value in values), *(cell(name) for cell in shown.values())))
    return Table(("domain", "weight", "without bounds", "average of the runs", *shown), tuple(rows))


def sensitivity(fit: LawFit, table: RunTable, shares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Predicted mean loss when one domain's weight moves and the others keep their ratios.

    Starts from the average mixture of the runs, at the largest scale there is.

    Args:
        fit: of a law.
        table: the runs it was fitted to.
        shares: [e], weights of the metrics.

    Returns:
        Weights float64[m, p] from 0 to the largest weight each domain has in the table, and losses [m, p].
    """
    average = table.weights.mean(axis=0)
    size, tokens = float(table.model_size.max()), float(table.tokens.max())
    grid = np.linspace(0.0, 1.0, _POINTS) * table.weights.max(axis=0)[:, None]
    mixtures = []
    for domain, values in enumerate(grid):
        rest = average.copy()
        rest[domain] = 0.0
        rest = rest / rest.sum() if rest.sum() > 0 else rest
        rows = (1.0 - values)[:, None] * rest
        rows[:, domain] += values
        mixtures.append(rows / rows.sum(axis=1, keepdims=True))
    losses = fit.predict(np.concatenate(mixtures), size, tokens)
    return grid, (np.where(shares > 0, losses, 0.0) @ shares).reshape(len(grid), _POINTS)


def law_page(
    fit: LawFit,
    table: RunTable,
    diagnoses: Mapping[str, Diagnosis],
    chosen: str,
    *,
    title: str,
    shares: np.ndarray,
    origin: Mapping[str, Any],
) -> str:
    """The page's HTML.

    Args:
        fit: the chosen law, fitted to all runs.
        table: the runs.
        diagnoses: of all laws that were compared, by name.
        chosen: name of the fitted one.
        title: heading.
        shares: [e], weights of the metrics in means.
        origin: facts about where the result came from.
    """
    found = diagnoses[chosen]
    subtitle = (
        f"{len(table)} runs of {len(np.unique(table.mixture))} mixtures, {len(table.domain_names)} domains, "
        f"{len(table.metric_names)} metrics"
    )
    body = [
        html.table(laws_table(diagnoses), "Errors on mixtures the law has not seen"),
        html.note(
            "MRE: mean relative error. Rank: Spearman correlation within one scale. Regret: excess loss of the run the "
            "law ranks first. Optimism: how far the tenth of runs it thinks best falls short."
        ),
        html.table(_metric_table(found, table), "By metric"),
    ]
    panels = range(min(len(table.metric_names), _MAX_PANELS))
    observed = {table.metric_names[i]: (list(table.losses[:, i]), list(found.predicted[:, i])) for i in panels}
    errors = 100 * (found.predicted / table.losses - 1)
    residual = {table.metric_names[i]: (list(_against(table, i)), list(errors[:, i])) for i in panels}
    body += [
        html.heading("Predicted and observed"),
        html.figure(
            charts.scatters(observed, name="observed", x_label="observed loss", y_label="predicted loss"),
            "Every run, predicted by a fit that saw no run of its mixture.",
        ),
        html.heading("Residuals"),
        html.figure(
            charts.scatters(
                residual, name="residual", x_label="own weight (or the loss, where the metric has no domain)",
                y_label="error, %", line="zero",
            ),
            "A trend along the weight says that the law has the wrong shape there.",
        ),
    ]  # fmt: skip
    grid, losses = sensitivity(fit, table, shares)
    curves = [charts.Line(n, list(grid[i]), list(losses[i]), i) for i, n in enumerate(table.domain_names)]
    body += [
        html.heading("What each domain is worth"),
        html.figure(
            charts.lines(curves, name="sensitivity", x_label="weight of the domain", y_label="predicted mean loss"),
            "From the runs' average mixture: one weight moves, the others keep their ratios; at the largest scale run.",
        ),
    ]
    if found.at_bounds:
        names = ", ".join(found.at_bounds)
        body.append(html.paragraph(f"The table does not determine these parameters, which ended at a bound: {names}."))
    body += [html.heading("How this was made"), html.fact_table(origin)]
    return html.page(title, subtitle, [" ".join(verdict(chosen, found))], body)


def verdict(name: str, found: Diagnosis) -> list[str]:
    """The diagnosis in sentences."""
    sentences = [
        f"{name}, {found.num_params} parameters: mean relative error {100 * found.mre:.2f} % on mixtures it has not "
        f"seen; predicting the mean of the other runs errs by {100 * found.mean_mre:.2f} %."
    ]
    if math.isfinite(found.spearman_mean):
        sentences.append(f"It ranks runs by their mean loss with a correlation of {found.spearman_mean:.3f}.")
    if math.isfinite(found.regret):
        sentences.append(f"The run it ranks first is {100 * found.regret:.2f} % above the best.")
    if found.mre >= found.mean_mre:
        sentences.append("It is no better than the mean: do not choose a mixture by it.")
    return sentences


def _metric_table(found: Diagnosis, table: RunTable) -> Table:
    rows = [
        (name, number(100 * found.mre_per_metric[i], 3), number(found.spearman[i], 3))
        for i, name in enumerate(table.metric_names)
    ]
    return Table(("metric", "MRE %", "rank"), tuple(rows))


def _against(table: RunTable, metric: int) -> np.ndarray:
    domain = table.metric_domain[metric]
    return table.weights[:, domain] if domain >= 0 else table.losses[:, metric]
