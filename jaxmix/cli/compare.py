"""The commands `quickstart` and `compare`."""

from __future__ import annotations

from collections.abc import Sequence

from jaxmix.cli.arguments import Arguments
from jaxmix.cli.finetune import compare_finetune
from jaxmix.cli.output import answer, table
from jaxmix.cli.session import continuable, notes_of
from jaxmix.report import load_run
from jaxmix.report.paired import domain_tables, paired_sentences, paired_table
from jaxmix.report.tables import comparison_table
from jaxmix.workflows.compare.run import load_comparison, run_comparison
from jaxmix.workflows.compare.variant import ComparisonOutcome, Member
from jaxmix.workflows.config.sections import RunConfig
from jaxmix.workflows.finetune.compare import is_finetune_comparison
from jaxmix.workflows.quickstart.gem import discovered_arm
from jaxmix.workflows.quickstart.run import DEFAULT_OUT, propose_mixture, quickstart_members


def quickstart(arguments: Arguments) -> int:
    """Prepares, finds a mixture by proxies and a law, trains eight runs and one on discovered domains; prints all."""
    out, overrides, say = arguments.out or DEFAULT_OUT, list(arguments.overrides), notes_of(arguments)
    if arguments.steps is not None:
        overrides.append(("train.steps", str(arguments.steps)))
    runs = quickstart_members(overrides, out=out, seeds=arguments.seeds)
    if arguments.dry_run:
        return _answer_dry(arguments, runs, out, "the bundled texts")
    with continuable(arguments):
        cost = propose_mixture(runs[0].config, overrides, out=out, command=arguments.command, say=say)
    runs = quickstart_members(overrides, out=out, seeds=arguments.seeds)
    outcome = _run_comparison(arguments, runs, out)
    notes = [cost]
    with continuable(arguments):
        if not arguments.given_only:
            notes += discovered_arm(runs, overrides, out=out, command=arguments.command, say=say)
    return answer(
        arguments,
        {**outcome.summary, "notes": notes},
        "",
        table(
            comparison_table([load_run(m.folder) for m in runs]),
            title="Validation loss (nats per token), realized share, epochs; seed means",
        ),
        "",
        *outcome.summary["verdict"],
        *notes,
        f"\nPage: {outcome.report}",
    )


def compare(arguments: Arguments) -> int:
    """Trains every variant with every seed and prints the differences over paired seeds."""
    if is_finetune_comparison(arguments.config):
        return compare_finetune(arguments)
    runs = load_comparison(arguments.config, arguments.overrides, out=arguments.out, seeds=arguments.seeds)
    out = str(runs[0].folder.parent)
    if arguments.dry_run:
        return _answer_dry(arguments, runs, out, "the sources")
    outcome = _run_comparison(arguments, runs, out)
    records = [load_run(m.folder) for m in runs]
    losses, differences = domain_tables(records)
    has_differences = len(differences.columns) > 1
    return answer(
        arguments,
        outcome.summary,
        "",
        table(paired_table(records), title="Means over seeds; loss in nats per token, seconds with evaluations"),
        "",
        table(losses, title=f"{records[0].judged_by.capitalize()} loss (perplexity)"),
        *(["", table(differences, title=f"Difference to {losses.columns[1]}")] if has_differences else []),
        "",
        *paired_sentences(records),
        *outcome.summary["verdict"],
        f"\nPage: {outcome.report}",
    )


def _run_comparison(arguments: Arguments, runs: Sequence[Member[RunConfig]], out: str) -> ComparisonOutcome:
    """Trains what is not finished of a comparison."""
    say, (steps, tokens) = notes_of(arguments), _length(runs[0].config)
    say(f"{len(runs)} runs of {steps} steps, each trained on {tokens:,} tokens, into {out}")
    with continuable(arguments):
        return run_comparison(runs, out=out, command=arguments.command, say=say)


def _length(config: RunConfig) -> tuple[int, int]:
    """Steps and tokens of one run of a comparison."""
    return config.train.steps, config.train.steps * config.data.batch_size * config.data.seq_len


def _answer_dry(arguments: Arguments, runs: Sequence[Member[RunConfig]], out: str, what: str) -> int:
    folders, prepared = [m.config.out for m in runs], runs[0].config.data.prepared
    steps, tokens = _length(runs[0].config)
    return answer(
        arguments,
        {"out": out, "runs": folders, "steps": steps, "tokens": tokens},
        f"Would prepare {what} into {prepared} and train {len(folders)} runs of {steps} steps:",
        *(f"  {folder}" for folder in folders),
        "Nothing was written.",
    )
