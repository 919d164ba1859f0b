"""`jaxmix finetune CONFIG`, and `jaxmix compare` of fine-tuning runs."""

from __future__ import annotations

from typing import Any

from jaxmix.cli.arguments import Arguments
from jaxmix.cli.output import answer, show, table
from jaxmix.cli.session import continuable, join_processes, notes_of
from jaxmix.cli.train import answer_run
from jaxmix.report.pages.finetune import finetune_table
from jaxmix.workflows.finetune.compare import load_finetune_comparison, run_finetune_comparison
from jaxmix.workflows.finetune.config import FinetuneConfig
from jaxmix.workflows.finetune.load import load_finetune
from jaxmix.workflows.finetune.plan import finetune_plan_lines, finetune_plan_rows, make_finetune_plan
from jaxmix.workflows.finetune.run import run_finetune


def finetune(arguments: Arguments) -> int:
    """Prints the plan of a run, fine-tunes, and prints the table of arms."""
    config = load_finetune(arguments.config, arguments.overrides, out=arguments.out)
    if arguments.dry_run:
        return answer(arguments, *_plan(config), f"\nWould write to {config.out}. Nothing was written.")
    join_processes(arguments)
    if not arguments.json:
        show(*_plan(config)[1:], "")
    with continuable(arguments):
        outcome = run_finetune(config, command=arguments.command, say=notes_of(arguments))
    return answer_run(arguments, outcome, finetune_table)


def compare_finetune(arguments: Arguments) -> int:
    """`jaxmix compare` of fine-tuning runs."""
    runs = load_finetune_comparison(arguments.config, arguments.overrides, out=arguments.out, seeds=arguments.seeds)
    if arguments.dry_run:
        folders = [str(member.config.out) for member in runs]
        return answer(
            arguments,
            {"runs": folders, "steps": runs[0].config.train.steps},
            *_plan(runs[0].config)[1:],
            f"\nThis for each of {len(runs)} runs; supervised starts are shared:",
            *(f"  {folder}" for folder in folders),
            "Nothing was written.",
        )
    with continuable(arguments):
        outcome = run_finetune_comparison(runs, command=arguments.command, say=notes_of(arguments))
    summary, variants = outcome.summary, outcome.summary["variants"]
    means = table((tuple(variants[0]), [tuple(row.values()) for row in variants]), title="Means over seeds")
    return answer(arguments, summary, "", means, "", *summary["verdict"], f"\nPage: {outcome.report}")


def _plan(config: FinetuneConfig) -> list[Any]:
    """The plan, for `answer`."""
    plan = make_finetune_plan(config)
    return [plan.as_json(), table(finetune_plan_rows(plan)), "", *finetune_plan_lines(plan)]
