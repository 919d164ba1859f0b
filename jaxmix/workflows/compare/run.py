"""Several variants of one configuration, each with several seeds, at equal tokens: one folder, one page."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxmix.report import describe_result, write_report
from jaxmix.report.summary import summarize
from jaxmix.workflows.compare.variant import (
    ComparisonOutcome,
    Member,
    check_same,
    read_members,
    run_of,
    train_members,
    unfinished,
)
from jaxmix.workflows.config.build import to_plain
from jaxmix.workflows.config.load import read_config_file
from jaxmix.workflows.config.mixture import MIXTURE_FILE
from jaxmix.workflows.config.resolve import resolve_run
from jaxmix.workflows.config.sections import RunConfig
from jaxmix.workflows.provenance import write_json
from jaxmix.workflows.train.data import prepare_and_open
from jaxmix.workflows.train.run import check_continuation, run_train


def members(
    mapping: Any, overrides: Sequence[tuple[str, str]], *, file: str, out: str, seeds: int | None = None
) -> list[Member[RunConfig]]:
    """The runs of a comparison, see `read_members`; `out` is its folder."""
    load = functools.partial(run_of, out=out, file=file)
    runs = read_members(mapping, overrides, file=file, seeds=seeds, load=load)
    fix = "The runs of a comparison share their rows: set it in base."
    check_same([(m.variant, _rows_of(m.config)) for m in runs], "variant", file=file, fix=fix)
    return runs


def load_comparison(
    path: str, overrides: Sequence[tuple[str, str]] = (), *, out: str | None = None, seeds: int | None = None
) -> list[Member[RunConfig]]:
    """The runs of the comparison in a file, see `read_members`; `out` is runs/<name of the file> if None."""
    return members(read_config_file(path), overrides, file=path, out=out or f"runs/{Path(path).stem}", seeds=seeds)


_FREE = ("max_epochs", "on_exhaust", "control_rows")
"""Settings of data that variants may differ in: how often rows may come, and what a mixer's own evaluations cost."""


def _rows_of(config: RunConfig) -> dict[str, Any]:
    """The settings that decide the rows of a run and their order: only runs that share them can be paired by seed."""
    plain = to_plain(config)
    sources = plain["sources"]
    if isinstance(sources, Mapping):
        sources = {name: {k: v for k, v in s.items() if k not in _FREE} for name, s in sources.items()}
    return {"sources": sources, **{f"data.{k}": v for k, v in plain["data"].items() if k not in _FREE}}


def run_comparison(
    runs: Sequence[Member[RunConfig]], *, out: str, command: str, say: Callable[[str], None] = lambda line: None
) -> ComparisonOutcome:
    """Trains all runs that are not finished yet and writes the page of all.

    The runs share the prepared data, and the compiled functions where model and optimizer are the same. Every run is
    checked against its folder and the data before the first one trains.

    Args:
        runs: from `members`.
        out: the comparison's folder.
        command: what was typed.
        say: receives one line per stage.
    """
    waiting = unfinished(runs, result=MIXTURE_FILE, check=check_continuation)
    data = prepare_and_open(runs[0].config)
    for member in waiting:
        resolve_run(member.config, data.known, is_drawing=True)  # some errors only the sizes of the sources show
    records = train_members(runs, waiting, functools.partial(run_train, command=command, data=data), say=say)
    report = write_report(Path(out))
    summary = summarize(records, out=out, report=report, verdict=describe_result(records))
    write_json(Path(out) / "summary.json", summary)
    return ComparisonOutcome(report, summary)
