"""`jaxmix report RUN`."""

from __future__ import annotations

from pathlib import Path

from jaxmix.cli.arguments import Arguments
from jaxmix.cli.output import answer, show
from jaxmix.report import describe_result, find_runs, load_run, write_report


def report(arguments: Arguments) -> int:
    """Writes the page of a run folder, or of a folder of them."""
    folder = Path(arguments.run)
    runs = find_runs(folder)
    target = Path(arguments.out) if arguments.out else folder / "report.html"
    if arguments.dry_run:
        show(f"Would write {target} from {len(runs)} run{'s' if len(runs) != 1 else ''}. Nothing was written.")
        return 0
    write_report(folder, out=target)
    sentences = describe_result([load_run(path) for path in runs])
    value = {"report": str(target), "runs": [str(path) for path in runs], "verdict": sentences}
    return answer(arguments, value, *sentences, f"\nPage: {target}")
