"""The commands `prepare`, `train` and `plan`."""

from __future__ import annotations

from typing import Any

from jaxmix.cli.arguments import Arguments
from jaxmix.cli.output import process_index, say, say_json, say_table
from jaxmix.cli.session import command_of, continued_by, join_processes
from jaxmix.report import describe_result, load_run
from jaxmix.report.tables import run_table
from jaxmix.workflows.config.load import load_config
from jaxmix.workflows.train.data import describe_preparation, preparation_table, prepare_sources
from jaxmix.workflows.train.plan import make_plan, plan_lines, plan_rows
from jaxmix.workflows.train.run import run_train


def _load(arguments: Arguments, *, out: str | None = None) -> Any:
    """The configuration named on the command line with its overrides; the option `--out` is one of them."""
    overrides = list(arguments.overrides)
    if out is not None:
        overrides.append(("out", f'"{out}"'))
    return load_config(arguments.config, overrides)


def prepare(arguments: Arguments) -> int:
    """Tokenizes the sources of a configuration."""
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

    with continued_by(command_of(arguments)):
        outcome = run_train(config, command=command_of(arguments))
    if process_index():
        return 0
    if arguments.json:
        say_json(outcome.as_json())
        return 0

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
    plan = make_plan(config)
    if as_json:
        say_json(plan.as_json())
        return
    columns, rows = plan_rows(plan)
    say_table(columns, rows)
    say()
    for line in plan_lines(plan):
        say(line)
