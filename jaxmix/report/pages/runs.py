"""One self-contained HTML page for a run or a folder of runs: works offline, without scripts, and on paper."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from jaxmix.core.errors import ConfigError
from jaxmix.report import charts
from jaxmix.report.diagnosis import is_near_one_hot, warnings
from jaxmix.report.html import html_page, write_page
from jaxmix.report.pages.finetune import describe_finetune, finetune_sections
from jaxmix.report.pages.finetune_metrics import arms_of, is_finetune
from jaxmix.report.pages.sections import mixer_section, paired_section
from jaxmix.report.pages.selection import axes_section, selection_section
from jaxmix.report.run_folder import RunRecord, find_runs, load_run
from jaxmix.report.tables import (
    by_variant,
    comparison,
    comparison_table,
    natural_shares,
    run_table,
    unfinished,
)
from jaxmix.report.widgets import curve, domains_shown, figure_html, moves, note_shown, table_html, trained


def write_report(folder: str | Path, *, out: str | Path | None = None) -> Path:
    """Reads the runs at or below `folder` and writes their page.

    Args:
        folder: a run folder, or a folder of run folders.
        out: file to write; `report.html` in `folder` if None.

    Returns:
        The file written, replaced as a whole.
    """
    folder = Path(folder)
    page = build_page([load_run(path) for path in find_runs(folder)], title=folder.resolve().name)
    target = folder / "report.html" if out is None else Path(out)
    return write_page(target, page)


def describe_result(runs: Sequence[RunRecord]) -> list[str]:
    """The result in sentences, the most important first."""
    if _all_finetune(runs):
        return describe_finetune(runs)
    if len(runs) == 1:
        return _single_verdict(runs[0])
    result = comparison(runs)
    if result is None:
        return ["No run has finished yet."]
    sentences = [result.sentence(f"mean {_judged_by(runs)} loss over domains")]
    left_out = unfinished(runs)
    if left_out:
        sentences.append(f"Not finished, and left out: {', '.join(r.name for r in left_out)}.")
    finished = [r for r in runs if r not in left_out]
    # The padded last row of a source holds fewer tokens, so that equal rows are not always equal tokens.
    if max(r.tokens for r in finished) > 1.001 * min(r.tokens for r in finished):
        sizes = ", ".join(f"{r.name} {r.tokens:,}" for r in finished)
        sentences.append(f"The runs saw different numbers of tokens, so this is no comparison at equal cost: {sizes}.")
    collapsed = [r.name for r in finished if is_near_one_hot(r)]
    if collapsed:
        sentences.append(f"The mixture ended near one-hot, almost all of it one domain, in {', '.join(collapsed)}.")
    natural = natural_shares(finished[0])
    if natural:
        weighted = comparison(finished, natural)
        if weighted is not None and len(weighted.standings) > 1:
            sentences.append(
                "Weighted by the sizes of the domains instead: "
                + "; ".join(f"{s.variant} {s.mean:.4f}" for s in weighted.standings)
                + "."
            )
    return sentences


def _single_verdict(run: RunRecord) -> list[str]:
    losses = run.final_losses("eval")
    planned = f" of {run.planned_steps}" if run.planned_steps is not None else ""
    sentences = [f"Step {run.steps}{planned}, {run.tokens:,} tokens."]
    if losses:
        steps, values = run.series("eval", "eval/loss/uniform")
        fall = f", from {values[0]:.4f} at step {steps[0]}" if len(values) > 1 else ""
        mean = sum(losses.values()) / len(losses)
        sentences.append(f"Mean validation loss over {len(losses)} domains: {mean:.4f} nats per token{fall}.")
        lowest, highest = min(losses, key=losses.__getitem__), max(losses, key=losses.__getitem__)
        if lowest != highest:
            sentences.append(f"Lowest: {lowest} ({losses[lowest]:.4f}); highest: {highest} ({losses[highest]:.4f}).")
    tested = run.final_losses("test")
    if tested:
        sentences.append(f"Mean test loss: {sum(tested.values()) / len(tested):.4f}.")
    moves = {}
    for name in run.domains:
        weights = run.series("train", f"mix/weight/{name}")[1]
        if weights:
            start = run.provenance.get("prior", {}).get(name, weights[0])
            moves[name] = (start, weights[-1])
    if moves:
        name = max(moves, key=lambda n: abs(moves[n][1] - moves[n][0]))
        start, end = moves[name]
        moved = f"{name} moved most, from {start:.3f} to {end:.3f}" if abs(end - start) > 1e-6 else "they did not move"
        sentences.append(f"Mixture weights: {moved}.")
    sentences += warnings(run)
    skipped = run.final("train", "train/skipped")
    if skipped:
        sentences.append(f"{skipped:.0f} updates were skipped because loss or gradient was not finite.")
    return sentences


def build_page(runs: Sequence[RunRecord], *, title: str) -> str:
    """The page's HTML.

    Args:
        runs: one run, or several to compare.
        title: heading of the page.
    """
    first, *others = describe_result(runs)
    if len(runs) == 1:
        first, others = " ".join([first, *others]), []
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="note">{escape(_subtitle(runs))}</p>',
        f'<p class="verdict">{escape(first)}</p>',
        *(f"<p>{escape(s)}</p>" for s in others),
    ]
    if _all_finetune(runs):
        body += finetune_sections(runs)
    else:
        body += _single(runs[0]) if len(runs) == 1 else _several(runs)
    body += _origin(runs)
    return html_page(title, body)


def _all_finetune(runs: Sequence[RunRecord]) -> bool:
    """Whether these are runs of fine-tuning; a page cannot show them beside others."""
    kinds = {is_finetune(run) for run in runs}
    if len(kinds) > 1:
        raise ConfigError(
            "these runs are of two kinds, training on mixtures and fine-tuning",
            where="command line",
            fix="Name a run folder, or a folder that holds runs of one kind.",
        )
    return kinds == {True}


def _judged_by(runs: Sequence[RunRecord]) -> str:
    return next((r.judged_by for r in runs if r.final_losses()), "validation")


def _subtitle(runs: Sequence[RunRecord]) -> str:
    what = f"{len(runs)} runs" if len(runs) > 1 else "1 run"
    made = runs[-1].provenance.get("finished") or runs[-1].provenance.get("started")
    each = " each" if runs[1:] else ""
    if _all_finetune(runs):
        prompts = max((int(r.get("prompts", 0)) for run in runs for r in (*run.train, *run.eval)), default=0)
        parts = [what, f"{len(arms_of(runs[0]))} arms", f"{prompts:,} prompts{each}"]
    else:
        parts = [what, f"{len(runs[0].domains)} domains", f"{max(r.tokens for r in runs):,} tokens{each}"]
    return " · ".join([*parts, str(made)] if made else parts)


# ── sections ─────────────────────────────────────────────────────────────────────────────────────


def _single(run: RunRecord) -> list[str]:
    domains = domains_shown(run)
    style = {name: i for i, name in enumerate(domains)}
    weights = [curve(run, "train", f"mix/weight/{n}", n, style[n]) for n in domains]
    parts = [table_html(run_table(run), "Domains")]
    parts += ["<h2>Mixture weights</h2>", note_shown(run)]
    if any(line.x for line in weights):
        parts.append(
            figure_html(charts.lines(weights, name="weights", x_label="step", y_label="weight", y_from_zero=True))
        )
        if len(domains) == len(run.domains):
            bands = charts.stacked(weights, name="stacked", x_label="step", y_label="share of the mixture")
            parts.append(figure_html(bands, "The same weights, stacked: they add up to 1."))
    parts += mixer_section(run) + selection_section(run)
    for kind, prefix, heading in (
        ("eval", "eval/loss/", "Validation loss"),
        ("train", "train/loss/", "Training loss"),
    ):
        curves = [trained(curve(run, kind, prefix + n, n, style[n])) for n in domains]
        curves = [c for c in curves if c.x]
        if curves:
            chart = charts.lines(curves, name=kind, x_label="step", y_label="nats per token")
            parts += [f"<h2>{heading} by domain</h2>", figure_html(chart)]
    return parts + _shares([run], domains) + _epochs([run], domains) + _throughput([run])


def _several(runs: Sequence[RunRecord]) -> list[str]:
    heading = f"{_judged_by(runs).capitalize()} loss, realized share, epochs (means over seeds)"
    parts = [table_html(comparison_table(runs), heading)]
    parts.append('<p class="note">Bold: the lowest loss of a row. Losses are in nats per token.</p>')
    parts += paired_section(runs) + axes_section(runs)
    groups = by_variant(runs)
    style = {variant: i for i, variant in enumerate(groups)}
    domains = domains_shown(runs[0])
    curves = {
        name: [
            trained(curve(r, "eval", f"eval/loss/{name}", v, style[v]))._replace(is_thin=len(g) > 1)
            for v, g in groups.items()
            for r in g
        ]
        for name in domains
    }
    mean = [
        trained(curve(r, "eval", "eval/loss/uniform", v, style[v]))._replace(is_thin=len(g) > 1)
        for v, g in groups.items()
        for r in g
    ]
    parts += [
        "<h2>Validation loss</h2>",
        figure_html(
            charts.lines(mean, name="mean", x_label="step", y_label="nats per token"),
            "Mean over domains; one curve per seed, without the untrained model at step 0.",
        ),
        note_shown(runs[0]),
        figure_html(
            charts.panels(curves, name="domains", x_label="step", y_label="nats per token"),
            "By domain, each panel with its own scale; one curve per seed.",
        ),
    ]
    for variant, group in groups.items():
        if moves(group[0]):
            lines = [
                curve(r, "train", f"mix/weight/{n}", n, i)._replace(is_thin=len(group) > 1)
                for i, n in enumerate(domains)
                for r in group
            ]
            chart = charts.lines(
                lines, name=f"weights{style[variant]}", x_label="step", y_label="weight", y_from_zero=True
            )
            bands = charts.stacked(
                [curve(group[0], "train", f"mix/weight/{n}", n, i) for i, n in enumerate(domains)],
                name=f"stacked{style[variant]}",
                x_label="step",
                y_label="share of the mixture",
            )
            parts += [
                f"<h2>Mixture weights: {escape(variant)}</h2>",
                figure_html(chart, "One curve per domain and seed."),
                figure_html(bands, f"The weights of {group[0].name}, stacked."),
                *mixer_section(group[0], prefix=f"mixer{style[variant]}", level=3),
            ]
        parts += selection_section(group[0], prefix=f"selection{style[variant]}", level=3)
    training = [
        curve(r, "train", "train/loss", v, style[v])._replace(is_thin=len(g) > 1) for v, g in groups.items() for r in g
    ]
    parts += [
        "<h2>Training loss</h2>",
        figure_html(
            charts.lines(training, name="training", x_label="step", y_label="nats per token"),
            "On each run's own mixture: not comparable between mixtures.",
        ),
    ]
    first_seed = [group[0] for group in groups.values()]
    return parts + _shares(first_seed, domains) + _epochs(first_seed, domains) + _throughput(runs)


def _shares(runs: Sequence[RunRecord], domains: Sequence[str]) -> list[str]:
    """Asked and realized share of every run, averaged over the run so far."""
    parts: list[str] = []
    for index, run in enumerate(runs):
        pairs = {
            label: [run.final("train", f"{key}/{n}") or 0.0 for n in domains]
            for label, key in (("asked", "data/asked"), ("realized", "data/share"))
        }
        if any(any(v) for v in pairs.values()):
            title = f"{run.variant}, seed {run.seed}" if len(runs) > 1 else ""
            chart = charts.bars(domains, pairs, name=f"share{index}", y_label="share of what was drawn")
            parts.append(figure_html(chart, title))
    return ["<h2>Asked and realized share</h2>", *parts] if parts else []


def _epochs(runs: Sequence[RunRecord], domains: Sequence[str]) -> list[str]:
    values = {r.variant: [r.final("train", f"data/epochs/{n}") or 0.0 for n in domains] for r in runs}
    if not any(any(v) for v in values.values()):
        return []
    caps = {k: float(v) for k, v in runs[0].provenance.get("max_epochs", {}).items() if v is not None}
    note = "Passes over the training part of each domain." + (" Lines: the limit set by max_epochs." if caps else "")
    return [
        "<h2>Epochs</h2>",
        figure_html(charts.bars(domains, values, name="epochs", y_label="epochs", caps=caps), note),
    ]


def _throughput(runs: Sequence[RunRecord]) -> list[str]:
    curves = [curve(r, "timing", "tokens_per_second", r.name, i) for i, r in enumerate(runs)]
    curves = [c for c in curves if c.x]
    if not curves:
        return []
    chart = charts.lines(curves, name="throughput", x_label="step", y_label="tokens per second", y_from_zero=True)
    return ["<h2>Throughput</h2>", figure_html(chart, "The first interval includes compilation.")]


def _origin(runs: Sequence[RunRecord]) -> list[str]:
    """Command, versions, configuration: what is needed to do it again."""
    provenance = runs[-1].provenance
    parts = ["<h2>How this was made</h2>"]
    if provenance.get("command"):
        parts.append(f"<pre>{escape(str(provenance['command']))}</pre>")
    versions = provenance.get("versions", {})
    if versions:
        text = ", ".join(f"{k} {v}" for k, v in versions.items())
        parts.append(f"<p>Versions: {escape(text)}.</p>")
    facts = {
        k: provenance[k]
        for k in ("devices", "commit", "config_hash", "tokenizer_hash", "data_hash")
        if provenance.get(k)
    }
    if facts:
        rows = "".join(f"<tr><td>{escape(k)}</td><td>{escape(_plain(v))}</td></tr>" for k, v in facts.items())
        parts.append(f'<div class="scroll"><table>{rows}</table></div>')
    for run in runs[:1] if len(runs) == 1 else runs:
        if run.config:
            import yaml

            text = yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True, width=100)
            parts.append(
                f"<details{' open' if len(runs) == 1 else ''}><summary>Configuration of {escape(run.name)}</summary>"
                f"<pre>{escape(text)}</pre></details>"
            )
    return parts


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
