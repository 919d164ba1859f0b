"""`jaxmix report RUN`."""

from __future__ import annotations

from pathlib import Path

from jaxmix.cli.arguments import Arguments
from jaxmix.cli.output import answer, show
from jaxmix.report import describe_result, find_runs, load_run, write_report
from jaxmix.report.pages.swarm import describe_swarm, is_swarm, read_swarm


def report(arguments: Arguments) -> int:
    """Writes the page of a run folder, of a folder of them, or of a swarm."""
    folder = Path(arguments.run)
    runs = [] if is_swarm(folder) else find_runs(folder)
    target = Path(arguments.out) if arguments.out else folder / "report.html"
    if arguments.dry_run:
        what = f"{len(runs)} run{'s' if len(runs) != 1 else ''}" if runs else "the swarm"
        show(f"Would write {target} from {what}. Nothing was written.")
        return 0
    write_report(folder, out=target)
    sentences = describe_result([load_run(path) for path in runs]) if runs else describe_swarm(read_swarm(folder))
    value = {"report": str(target), "runs": [str(path) for path in runs], "verdict": sentences}
    return answer(arguments, value, *sentences, f"\nPage: {target}")
