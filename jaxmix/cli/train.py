"""The commands `prepare`, `train` and `plan`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxmix.cli.arguments import Arguments, path_text
from jaxmix.cli.output import answer, process_index, table
from jaxmix.cli.session import continuable, join_processes
from jaxmix.data.prepared.store import DAMAGED
from jaxmix.report import RunRecord, describe_result, load_run
from jaxmix.report.tables import Table, run_table
from jaxmix.workflows.config.load import load_config
from jaxmix.workflows.config.sections import RunConfig, folder_of
from jaxmix.workflows.train.data import describe_preparation, preparation_table, prepare_sources, verify_preparation
from jaxmix.workflows.train.plan import make_plan, plan_lines, plan_rows
from jaxmix.workflows.train.run import check_continuation, run_train


def prepare(arguments: Arguments) -> int:
    """Tokenizes the sources of a configuration."""
    config = load_config(arguments.config, arguments.overrides)
    if arguments.verify:
        found = verify_preparation(config)
        lines = [
            f"{name}: {'; '.join(about['damage']) or 'OK'} ({about['files']} files, {about['bytes']:,} bytes)"
            for name, about in found["sources"].items()
        ]
        is_damaged = any(about["damage"] for about in found["sources"].values())
        answer(arguments, found, *lines, *([DAMAGED] if is_damaged else []))
        return int(is_damaged)
    if arguments.dry_run:
        planned = describe_preparation(config)
        return answer(
            arguments,
            planned,
            f"Would read {len(planned['sources'])} sources and write to {planned['prepared']}:",
            *(f"  {name}: {about}" for name, about in planned["sources"].items()),
            "Nothing was written.",
        )
    with continuable(arguments):
        summary = prepare_sources(config)
    notes = ["Already prepared: nothing to do."] if summary["was_ready"] else []
    prepared = f"\nPrepared: {config.data.prepared}"
    return answer(arguments, summary, table(preparation_table(summary)), *notes, prepared)


def train(arguments: Arguments) -> int:
    """Trains one run and prints its table."""
    # The option `--out` is one of the overrides.
    out = [] if arguments.out is None else [("out", path_text(arguments.out))]
    config = load_config(arguments.config, [*arguments.overrides, *out])
    if arguments.dry_run:
        check_continuation(folder_of(config))
        return answer(arguments, *_plan(config), f"\nWould write to {config.out}. Nothing was written.")
    join_processes(arguments)
    with continuable(arguments):
        outcome = run_train(config, command=arguments.command)
    return answer_run(arguments, outcome, run_table)


def answer_run(arguments: Arguments, outcome: Any, show_run: Callable[[RunRecord], Table]) -> int:
    """Prints the table of a finished run, the verdict and the page; on process 0 alone."""
    if process_index():
        return 0
    run = load_run(outcome.run_dir)
    verdict, page = " ".join(describe_result([run])), f"\nPage: {outcome.report}"
    return answer(arguments, outcome.as_json(), "", table(show_run(run)), "", verdict, page)


def plan(arguments: Arguments) -> int:
    """Prints the plan of a configuration."""
    return answer(arguments, *_plan(load_config(arguments.config, arguments.overrides)))


def _plan(config: RunConfig) -> list[Any]:
    """The plan, for `answer`."""
    plan = make_plan(config)
    return [plan.as_json(), table(plan_rows(plan)), "", *plan_lines(plan)]
