"""One self-contained HTML page for a run or a folder of runs: works offline, without scripts, and on paper."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jaxmix.core.errors import ConfigError
from jaxmix.report import charts, html
from jaxmix.report.diagnosis import is_near_one_hot, warnings
from jaxmix.report.html import Html
from jaxmix.report.numbers import DEFINITIONS, FEW_TOKENS, percent, standard_error
from jaxmix.report.pages.finetune import describe_finetune, finetune_sections
from jaxmix.report.pages.finetune_metrics import arms_of, is_finetune
from jaxmix.report.pages.sections import mixer_section, paired_section
from jaxmix.report.pages.selection import axes_section, selection_section
from jaxmix.report.pages.swarm import is_swarm, read_swarm, swarm_page
from jaxmix.report.run_folder import RunRecord, find_runs, load_run
from jaxmix.report.tables import (
    by_variant,
    comparison,
    comparison_table,
    mean_over_domains,
    natural_shares,
    run_table,
    shared_domains,
    unfinished,
)
from jaxmix.report.widgets import curve, domain_values, domains_shown, note_shown, origin, seed_curves, trained


def write_report(folder: str | Path, *, out: str | Path | None = None) -> Path:
    """Reads the swarm in `folder`, or the runs at or below it, and writes their page.

    Args:
        folder: a run folder, a folder of run folders, or that of a swarm.
        out: file to write; `report.html` in `folder` if None.

    Returns:
        The file written, replaced as a whole.
    """
    folder = Path(folder)
    if is_swarm(folder):
        page = swarm_page(read_swarm(folder))
    else:
        page = build_page([load_run(path) for path in find_runs(folder)], title=folder.resolve().name)
    target = folder / "report.html" if out is None else Path(out)
    return html.write_page(target, page)


def describe_result(runs: Sequence[RunRecord]) -> list[str]:
    """The result in sentences, the most important first."""
    if _all_finetune(runs):
        return describe_finetune(runs)
    if len(runs) == 1:
        return _single_verdict(runs[0])
    left_out = unfinished(runs)
    finished = [run for run in runs if run not in left_out]
    result = comparison(runs)
    if result is None:
        return ["The runs have no domain in common." if finished else "No run has finished yet."]
    sentences = [result.sentence(f"mean {_judged_by(runs)} loss over domains")]
    if left_out:
        names = ", ".join(r.name + (f" ({r.ended_early})" if r.ended_early else "") for r in left_out)
        sentences.append(f"Not finished, and left out: {names}.")
    among = shared_domains(finished)
    if others := [name for name in dict.fromkeys(n for run in finished for n in run.domains) if name not in among]:
        sentences.append(f"Means are over the {len(among)} domains that all runs have, without {', '.join(others)}.")
    sentences += [f"{run.name}: {text}" for run in finished for text in _what_happened(run)]
    sentences += _few_held_out(finished[0])
    # The padded last row of a source holds fewer tokens, so that equal rows are not always equal tokens.
    if max(r.tokens for r in finished) > 1.001 * min(r.tokens for r in finished):
        sizes = ", ".join(f"{r.name} {r.tokens:,}" for r in finished)
        sentences.append(f"The runs saw different numbers of tokens, so they are not compared at equal cost: {sizes}.")
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
    sentences = [f"Step {run.steps}{planned}, {run.tokens:,} tokens.", *_what_happened(run)]
    if losses:
        steps, values = run.series("eval", "eval/loss/uniform")
        fall = f", from {values[0]:.4f} at step {steps[0]}" if len(values) > 1 and not run.changes else ""
        mean = mean_over_domains(losses)
        sentences.append(f"Mean validation loss over {len(losses)} domains: {mean:.4f} nats per token{fall}.")
        lowest, highest = min(losses, key=losses.__getitem__), max(losses, key=losses.__getitem__)
        if lowest != highest:
            sentences.append(f"Lowest: {lowest} ({losses[lowest]:.4f}); highest: {highest} ({losses[highest]:.4f}).")
    tested = run.final_losses("test")
    if tested:
        step = run.test[-1]["step"]  # a run that goes on is tested again at its end
        when = f" at step {step}" if step != run.steps else ""
        sentences.append(f"Mean test loss{when}: {mean_over_domains(tested):.4f}.")
    sentences += _few_held_out(run)
    prior = {} if run.changes else run.provenance.get("prior", {})  # that of the latest session
    series = {name: run.series("train", f"mix/weight/{name}")[1] for name in run.domains}
    moves = {name: (prior.get(name, values[0]), values[-1]) for name, values in series.items() if values}
    if moves:
        name, (start, end) = max(moves.items(), key=lambda move: abs(move[1][1] - move[1][0]))
        moved = f"{name} moved most, from {start:.3f} to {end:.3f}" if abs(end - start) > 1e-6 else "unchanged"
        sentences.append(f"Mixture weights: {moved}.")
    sentences += warnings(run)
    skipped = run.final("train", "train/skipped")
    if skipped:
        sentences.append(f"{skipped:.0f} updates were skipped because loss or gradient was not finite.")
    return sentences


def _what_happened(run: RunRecord) -> list[str]:
    """Sentences about sources that came, left or ran out, and a run that ended before its last step."""
    sentences = []
    for step, came, left in run.changes:
        moves = [f"{', '.join(names)} {verb}" for names, verb in ((came, "came"), (left, "left")) if names]
        sentences.append(f"After step {step} {' and '.join(moves)}.")
    shares = run.token_shares()
    for name, step in run.ran_out.items():
        realized = f": {percent(shares[name])} of all tokens are of it" if name in shares else ""
        sentences.append(f"{name} ran out at step {step}, and the others took its share{realized}.")
    return sentences + ([f"It ended early: {run.ended_early}."] if run.ended_early else [])


def _few_held_out(run: RunRecord) -> list[str]:
    few = {name: count for name, count in run.held_out_tokens().items() if count < FEW_TOKENS and name in run.domains}
    if not few:
        return []
    listed = ", ".join(f"{name} {count:,}" for name, count in few.items())
    return [
        f"Fewer than {FEW_TOKENS:,} tokens of some domains are evaluated ({listed}): their losses have a "
        f"standard error of up to about {standard_error(min(few.values())):.2g} nats. Raise data.validation_rows, or "
        "hold out more."
    ]


def build_page(runs: Sequence[RunRecord], *, title: str) -> str:
    """The page's HTML.

    Args:
        runs: one run, or several to compare.
        title: heading of the page.
    """
    is_single = len(runs) == 1
    sentences = [" ".join(describe_result(runs))] if is_single else describe_result(runs)
    body = finetune_sections(runs) if _all_finetune(runs) else _single(runs[0]) if is_single else _several(runs)
    provenance = runs[-1].provenance
    facts = {
        key: value
        for key in ("devices", "commit", "config_hash", "tokenizer_hash", "data_hash")
        if (value := provenance.get(key))
    }
    configs = {f"Configuration of {run.name}": run.config for run in runs if run.config}
    return html.page(title, _subtitle(runs), sentences, body + origin(provenance, facts, configs))


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


def _single(run: RunRecord) -> list[Html]:
    domains = domains_shown(run)
    drawn = [*domains, *run.left]
    weights = [curve(run, "train", f"mix/weight/{n}", n, i) for i, n in enumerate(drawn)]
    parts = [
        html.table(run_table(run), "Domains"),
        html.note(f"{DEFINITIONS} Weights and shares: {_SHARES}"),
        html.heading("Mixture weights"),
        *note_shown(run),
    ]
    if any(line.x for line in weights):
        chart = charts.lines(weights, name="weights", y_label="weight", y_from_zero=True)
        parts.append(html.figure(chart))
        if len(domains) == len(run.domains):
            bands = charts.stacked(weights, name="stacked", y_label="share of the mixture")
            parts.append(html.figure(bands, "The same weights, stacked: they add up to 1."))
    parts += mixer_section(run) + selection_section(run)
    for kind, title in (("eval", "Validation loss by domain"), ("train", "Training loss by domain")):
        curves = [trained(curve(run, kind, f"{kind}/loss/{n}", n, i)) for i, n in enumerate(drawn)]
        curves = [c for c in curves if c.x]
        if curves:
            chart = charts.lines(curves, name=kind, y_label="nats per token")
            parts += [html.heading(title), html.figure(chart)]
    return parts + _shares([run], drawn) + _epochs([run], drawn) + _throughput([run])


def _several(runs: Sequence[RunRecord]) -> list[Html]:
    groups = by_variant(runs)
    domains = domains_shown(*runs)
    mean = seed_curves(groups, "eval", "eval/loss/uniform")
    by_domain = {name: seed_curves(groups, "eval", f"eval/loss/{name}") for name in domains}
    parts = [
        html.table(
            comparison_table(runs), f"{_judged_by(runs).capitalize()} loss, realized share, epochs (means over seeds)"
        ),
        html.note("Bold: the lowest loss of a row. Losses are in nats per token."),
        *paired_section(runs),
        *axes_section(runs),
        html.heading("Validation loss"),
        html.figure(
            charts.lines(mean, name="mean", y_label="nats per token"),
            "Mean over domains; one curve per seed, without the untrained model at step 0.",
        ),
        *note_shown(*runs),
        html.figure(
            charts.panels(by_domain, name="domains", y_label="nats per token"),
            "By domain, each panel with its own scale; one curve per seed.",
        ),
    ]
    moving = [run for run in runs if run.has_moving_weights]
    logged = [w for run in moving for n in (*domains, *run.left) for w in run.series("train", f"mix/weight/{n}")[1]]
    top = 1.05 * max(logged, default=1.0)  # one scale for all variants
    for style, (variant, group) in enumerate(groups.items()):
        if group[0] in moving:
            parts += _variant_weights(variant, group, domains, style, top)
        parts += selection_section(group[0], prefix=f"selection{style}", level=3)
    training = charts.lines(seed_curves(groups, "train", "train/loss"), name="training", y_label="nats per token")
    parts += [
        html.heading("Training loss"),
        html.figure(training, "On each run's own mixture: not comparable between mixtures."),
    ]
    first_seed = [group[0] for group in groups.values()]
    return parts + _shares(first_seed, domains) + _epochs(first_seed, domains) + _throughput(runs)


def _variant_weights(
    variant: str, group: Sequence[RunRecord], domains: Sequence[str], style: int, top: float
) -> list[Html]:
    names = list(dict.fromkeys([*domains, *(name for run in group for name in run.left)]))
    first, *others = (
        [curve(run, "train", f"mix/weight/{n}", n, i, thin=len(group) > 1) for i, n in enumerate(names)]
        for run in group
    )
    weights = sum(others, first)
    bands = charts.stacked(first, name=f"stacked{style}", y_label="share of the mixture")
    return [
        html.heading(f"Mixture weights: {variant}"),
        html.figure(
            charts.lines(weights, name=f"weights{style}", y_label="weight", y_from_zero=True, y_top=top),
            "One curve per domain and seed; the variants have one scale.",
        ),
        html.figure(bands, f"The weights of {group[0].name}, stacked."),
        *mixer_section(group[0], prefix=f"mixer{style}", level=3),
    ]


_SHARES = (
    "the average weight is over all steps. Asked share: of the rows, by the weights of sources that had not run out. "
    "Share of tokens: of those really drawn."
)


def _shares(runs: Sequence[RunRecord], domains: Sequence[str]) -> list[Html]:
    """Asked and realized share of every run, averaged over the run so far; all charts have one scale."""
    parts: list[Html] = []
    found = [[domain_values(run, domains, prefix) for prefix in ("data/asked", "data/share")] for run in runs]
    top = 1.05 * max((value for pair in found for values in pair for value in values), default=0.0)
    for index, (run, (asked, realized)) in enumerate(zip(runs, found, strict=True)):
        if any(asked) or any(realized):
            shares = {"asked": asked, "realized": realized}
            chart = charts.bars(domains, shares, name=f"share{index}", y_label="share of the rows drawn", y_top=top)
            parts.append(html.figure(chart, f"{run.variant}, seed {run.seed}" if len(runs) > 1 else ""))
    return [html.heading("Asked and realized share"), *parts] if parts else []


def _epochs(runs: Sequence[RunRecord], domains: Sequence[str]) -> list[Html]:
    values = {run.variant: domain_values(run, domains, "data/epochs") for run in runs}
    if not any(any(v) for v in values.values()):
        return []
    caps = {k: float(v) for k, v in runs[0].provenance.get("max_epochs", {}).items() if v is not None}
    chart = charts.bars(domains, values, name="epochs", y_label="epochs", caps=caps)
    note = "Passes over the training part of each domain." + (" Lines: the limit set by max_epochs." if caps else "")
    return [html.heading("Epochs"), html.figure(chart, note)]


def _throughput(runs: Sequence[RunRecord]) -> list[Html]:
    curves = [curve(r, "timing", "tokens_per_second", r.name, i) for i, r in enumerate(runs)]
    curves = [c for c in curves if c.x]
    if not curves:
        return []
    chart = charts.lines(curves, name="throughput", y_label="tokens per second", y_from_zero=True)
    return [html.heading("Throughput"), html.figure(chart, "The first interval includes compilation.")]
