"""`jaxmix finetune CONFIG`."""

from __future__ import annotations

from jaxmix.cli.arguments import Arguments
from jaxmix.cli.output import process_index, say, say_json, say_table
from jaxmix.cli.session import command_of, continued_by, join_processes, notes_of
from jaxmix.report import describe_result, load_run
from jaxmix.report.pages.finetune import finetune_table
from jaxmix.workflows.finetune.compare import load_finetune_comparison, run_finetune_comparison
from jaxmix.workflows.finetune.config import FinetuneConfig
from jaxmix.workflows.finetune.load import load_finetune
from jaxmix.workflows.finetune.plan import finetune_plan_lines, finetune_plan_rows, make_finetune_plan
from jaxmix.workflows.finetune.run import run_finetune


def finetune(arguments: Arguments) -> int:
    """Says what the run will take, fine-tunes, and prints the table of arms."""
    config = load_finetune(arguments.config, arguments.overrides, out=arguments.out)
    if arguments.dry_run:
        _say_plan(config, arguments.json)
        if not arguments.json:
            say(f"\nWould write to {config.out}. Nothing was written.")
        return 0
    join_processes(arguments)
    if not arguments.json:
        _say_plan(config, as_json=False)
        say()

    command = command_of(arguments)
    with continued_by(command):
        outcome = run_finetune(config, command=command, say=notes_of(arguments))
    if process_index():
        return 0
    if arguments.json:
        say_json(outcome.as_json())
        return 0

    run = load_run(outcome.run_dir)
    table = finetune_table(run)
    say()
    say_table(table.columns, table.rows)
    say()
    say(" ".join(describe_result([run])))
    say(f"\nPage: {outcome.report}")
    return 0


def compare_finetune(arguments: Arguments) -> int:
    """`jaxmix compare` of fine-tuning runs."""
    runs = load_finetune_comparison(arguments.config, arguments.overrides, out=arguments.out, seeds=arguments.seeds)
    folders = [str(member.config.out) for member in runs]
    if arguments.dry_run:
        if arguments.json:
            say_json({"runs": folders, "steps": runs[0].config.train.steps})
            return 0
        _say_plan(runs[0].config, as_json=False)
        say(f"\nThis for each of {len(runs)} runs; supervised starts are shared:")
        for folder in folders:
            say(f"  {folder}")
        say("Nothing was written.")
        return 0
    command = command_of(arguments)
    with continued_by(command):
        page, summary = run_finetune_comparison(runs, command=command, say=notes_of(arguments))
    if arguments.json:
        say_json(summary)
        return 0
    columns = tuple(summary["variants"][0])
    say()
    say_table(columns, [tuple(row.values()) for row in summary["variants"]], title="Means over seeds")
    say()
    for sentence in summary["verdict"]:
        say(sentence)
    say(f"\nPage: {page}")
    return 0


def _say_plan(config: object, as_json: bool) -> None:
    assert isinstance(config, FinetuneConfig)
    plan = make_finetune_plan(config)
    if as_json:
        say_json(plan.as_json())
        return
    columns, rows = finetune_plan_rows(plan)
    say_table(columns, rows)
    say()
    for line in finetune_plan_lines(plan):
        say(line)
