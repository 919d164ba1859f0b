"""The commands: each calls its workflow and prints the result. Workflows are imported when a command runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxmix.cli.arguments import Arguments
from jaxmix.cli.output import process_index, say, say_json, say_table
from jaxmix.cli.session import command_of, continued_by, join_processes, notes_of
from jaxmix.core.errors import EnvironmentProblem


def _load(arguments: Arguments, *, out: str | None = None) -> Any:
    """The configuration named on the command line with its overrides; the option `--out` is one of them."""
    from jaxmix.workflows.config.sections import load_config

    overrides = list(arguments.overrides)
    if out is not None:
        overrides.append(("out", f'"{out}"'))
    return load_config(arguments.config, overrides)


def quickstart(arguments: Arguments) -> int:
    """Prepares, finds a mixture by proxies and a law, trains eight runs and one on discovered domains; prints all."""
    from jaxmix.workflows.quickstart.run import DEFAULT_OUT, discovered_arm, propose_mixture, quickstart_members

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
    from jaxmix.report import load_run
    from jaxmix.report.tables import comparison_table

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
    from jaxmix.workflows.compare.run import load_comparison
    from jaxmix.workflows.finetune.compare import is_finetune_comparison

    if is_finetune_comparison(arguments.config):
        from jaxmix.cli.finetune import compare_finetune

        return compare_finetune(arguments)
    runs = load_comparison(arguments.config, arguments.overrides, out=arguments.out, seeds=arguments.seeds)
    out = str(Path(runs[0].config.out or "").parent)
    if arguments.dry_run:
        return _dry_run_comparison(arguments, runs, out, "the sources")
    outcome = _run_comparison(arguments, runs, out)
    if arguments.json:
        say_json(outcome.summary)
        return 0
    from jaxmix.report import load_run
    from jaxmix.report.paired import domain_tables, paired_sentences, paired_table

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
    from jaxmix.workflows.compare.run import run_comparison

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


def prepare(arguments: Arguments) -> int:
    """Tokenizes the sources of a configuration."""
    from jaxmix.workflows.train.data import describe_preparation, preparation_table, prepare_sources

    config = _load(arguments)
    if arguments.dry_run:
        planned = describe_preparation(config)
        if arguments.json:
            say_json(planned)
        else:
            say(f"Would read {len(planned['sources'])} sources and write to {planned['prepared']}:")
            for name, about in planned["sources"].items():
                say(f"  {name}: {about}")
            say("Nothing was written.")
        return 0
    with continued_by(command_of(arguments)):
        summary = prepare_sources(config)
    if arguments.json:
        say_json(summary)
        return 0
    columns, rows, notes = preparation_table(summary)
    say_table(columns, rows)
    for line in notes:
        say(line)
    say(f"\nPrepared: {config.data.prepared}")
    return 0


def train(arguments: Arguments) -> int:
    """Trains one run and prints its table."""
    config = _load(arguments, out=arguments.out)
    if arguments.dry_run:
        _print_plan(config, arguments.json)
        if not arguments.json:
            say(f"\nWould write to {config.out}. Nothing was written.")
        return 0
    join_processes(arguments)
    from jaxmix.workflows.train.run import run_train

    with continued_by(command_of(arguments)):
        outcome = run_train(config, command=command_of(arguments))
    if process_index():
        return 0
    if arguments.json:
        say_json(outcome.as_json())
        return 0
    from jaxmix.report import describe_result, load_run
    from jaxmix.report.tables import run_table

    run = load_run(outcome.run_dir)
    table = run_table(run)
    say()
    say_table(table.columns, table.rows)
    say()
    say(" ".join(describe_result([run])))
    if outcome.result.ended_early:
        say(f"Ended early: {outcome.result.ended_early}.")
    say(f"\nPage: {outcome.report}")
    return 0


def plan(arguments: Arguments) -> int:
    """Prints what a configuration would do."""
    _print_plan(_load(arguments), arguments.json)
    return 0


def _print_plan(config: Any, as_json: bool) -> None:
    from jaxmix.workflows.train.plan import make_plan, plan_lines, plan_rows

    plan = make_plan(config)
    if as_json:
        say_json(plan.as_json())
        return
    columns, rows = plan_rows(plan)
    say_table(columns, rows)
    say()
    for line in plan_lines(plan):
        say(line)


def doctor(arguments: Arguments) -> int:
    """Prints all findings; 3 when something is broken."""
    from jaxmix.workflows.doctor import Check, diagnose, ping, ping_this_machine

    timeout = 60 if arguments.timeout is None else arguments.timeout
    checks: list[Check] = []
    given = (arguments.coordinator, arguments.processes, arguments.process)
    if arguments.multihost or any(value is not None for value in given):
        try:
            # Joining comes first: it is refused once a device has been touched.
            if any(value is not None for value in given):
                checks.append(ping(*given, timeout_s=timeout))
            else:
                checks.append(ping_this_machine(timeout_s=timeout))
        except EnvironmentProblem as error:
            checks.append(Check("processes", "broken", str(error)))
    checks = [*diagnose(), *checks]
    broken = [c for c in checks if c.status == "broken"]
    if arguments.json:
        say_json({"ok": not broken, "checks": [vars(c) for c in checks]})
    else:
        say_table(("check", "", "found"), [(c.name, c.status, c.detail) for c in checks], left=3)
        for check in broken:
            say(f"\n{check.name}: {check.detail}." + (f" {check.fix}" if check.fix else ""))
        say("\nEverything works." if not broken else f"\n{len(broken)} of {len(checks)} checks failed.")
    return EnvironmentProblem.exit_code if broken else 0


def report(arguments: Arguments) -> int:
    """Writes the page of a run folder, or of a folder of them."""
    from jaxmix.report import describe_result, find_runs, load_run, write_report

    folder = Path(arguments.run)
    runs = find_runs(folder)
    target = Path(arguments.out) if arguments.out else folder / "report.html"
    if arguments.dry_run:
        say(f"Would write {target} from {len(runs)} run{'s' if len(runs) != 1 else ''}. Nothing was written.")
        return 0
    write_report(folder, out=target)
    sentences = describe_result([load_run(path) for path in runs])
    if arguments.json:
        say_json({"report": str(target), "runs": [str(path) for path in runs], "verdict": sentences})
        return 0
    for sentence in sentences:
        say(sentence)
    say(f"\nPage: {target}")
    return 0
