"""The commands `quickstart` and `compare`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxmix.cli.arguments import Arguments
from jaxmix.cli.finetune import compare_finetune
from jaxmix.cli.output import say, say_json, say_table
from jaxmix.cli.session import command_of, continued_by, notes_of
from jaxmix.report import load_run
from jaxmix.report.paired import domain_tables, paired_sentences, paired_table
from jaxmix.report.tables import comparison_table
from jaxmix.workflows.compare.run import load_comparison, run_comparison
from jaxmix.workflows.finetune.compare import is_finetune_comparison
from jaxmix.workflows.quickstart.run import DEFAULT_OUT, discovered_arm, propose_mixture, quickstart_members


def quickstart(arguments: Arguments) -> int:
    """Prepares, finds a mixture by proxies and a law, trains eight runs and one on discovered domains; prints all."""
    out = arguments.out or DEFAULT_OUT
    overrides = list(arguments.overrides)
    if arguments.steps is not None:
        overrides.append(("train.steps", str(arguments.steps)))
    runs = quickstart_members(overrides, out=out, seeds=arguments.seeds)
    if arguments.dry_run:
        return _dry_run_comparison(arguments, runs, out, "the bundled texts")
    note = notes_of(arguments)
    with continued_by(command_of(arguments)):
        cost = propose_mixture(runs[0].config, overrides, out=out, command=command_of(arguments), say=note)
    runs = quickstart_members(overrides, out=out, seeds=arguments.seeds)
    outcome = _run_comparison(arguments, runs, out)
    discovered: list[str] = []
    with continued_by(command_of(arguments)):
        if not arguments.given_only:
            discovered = discovered_arm(runs, overrides, out=out, command=command_of(arguments), say=note)
    if arguments.json:
        say_json({**outcome.summary, "notes": [cost, *discovered]})
        return 0

    table = comparison_table([load_run(Path(str(m.config.out))) for m in runs])
    say()
    say_table(table.columns, table.rows, title="Validation loss (nats per token), realized share, epochs; seed means")
    say()
    for sentence in (*outcome.sentences, cost, *discovered):
        say(sentence)
    say(f"\nPage: {outcome.report}")
    return 0


def compare(arguments: Arguments) -> int:
    """Trains every variant with every seed and prints the differences over paired seeds."""
    if is_finetune_comparison(arguments.config):
        return compare_finetune(arguments)
    runs = load_comparison(arguments.config, arguments.overrides, out=arguments.out, seeds=arguments.seeds)
    out = str(Path(runs[0].config.out or "").parent)
    if arguments.dry_run:
        return _dry_run_comparison(arguments, runs, out, "the sources")
    outcome = _run_comparison(arguments, runs, out)
    if arguments.json:
        say_json(outcome.summary)
        return 0

    records = [load_run(Path(str(m.config.out))) for m in runs]
    table, (losses, differences) = paired_table(records), domain_tables(records)
    say()
    say_table(table.columns, table.rows, title="Means over seeds; loss in nats per token, seconds with evaluations")
    say()
    say_table(losses.columns, losses.rows, title=f"{records[0].judged_by.capitalize()} loss (perplexity)")
    if len(differences.columns) > 1:
        say()
        say_table(differences.columns, differences.rows, title=f"Difference to {losses.columns[1]}")
    say()
    for sentence in (*paired_sentences(records), *outcome.sentences):
        say(sentence)
    say(f"\nPage: {outcome.report}")
    return 0


def _run_comparison(arguments: Arguments, runs: Sequence[Any], out: str) -> Any:
    """Trains what is not finished of a comparison."""
    note = notes_of(arguments)
    steps, tokens = _length(runs[0])
    note(f"{len(runs)} runs of {steps} steps, each trained on {tokens:,} tokens, into {out}")
    with continued_by(command_of(arguments)):
        return run_comparison(runs, out=out, command=command_of(arguments), say=note)


def _length(member: Any) -> tuple[int, int]:
    """Steps and tokens of one run of a comparison."""
    config = member.config
    return config.train.steps, config.train.steps * config.data.batch_size * config.data.seq_len


def _dry_run_comparison(arguments: Arguments, runs: Sequence[Any], out: str, what: str) -> int:
    folders = [m.config.out for m in runs]
    steps, tokens = _length(runs[0])
    if arguments.json:
        say_json({"out": out, "runs": folders, "steps": steps, "tokens": tokens})
    else:
        prepared = runs[0].config.data.prepared
        say(f"Would prepare {what} into {prepared} and train {len(folders)} runs of {steps} steps:")
        for folder in folders:
            say(f"  {folder}")
        say("Nothing was written.")
    return 0
