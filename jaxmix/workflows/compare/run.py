"""Several variants of one configuration, each with several seeds, at equal tokens: one folder, one page."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxmix.core.errors import ConfigError
from jaxmix.report import describe_result, load_run, write_report
from jaxmix.report.summary import summarize
from jaxmix.train.lm.programs import Programs
from jaxmix.workflows.compare.variant import Member, read_members, run_of
from jaxmix.workflows.config.build import to_plain
from jaxmix.workflows.config.load import read_config_file
from jaxmix.workflows.config.resolve import resolve_run
from jaxmix.workflows.config.sections import RunConfig, config_hash
from jaxmix.workflows.provenance import is_finished, write_json
from jaxmix.workflows.train.data import prepare_and_open
from jaxmix.workflows.train.run import check_continuation, run_train


@dataclasses.dataclass(frozen=True)
class ComparisonOutcome:
    """What a comparison left: its folder, its page, the verdict in sentences, and a summary for machines."""

    out: Path
    report: Path
    sentences: list[str]
    summary: dict[str, Any]


def members(
    mapping: Any, overrides: Sequence[tuple[str, str]], *, file: str, out: str, seeds: int | None = None
) -> list[Member[RunConfig]]:
    """The runs of a comparison, see `read_members`; `out` is its folder."""
    load = functools.partial(run_of, out=out, file=file)
    runs = read_members(mapping, overrides, file=file, seeds=seeds, load=load)
    _check_same_rows(runs, file)
    return runs


def load_comparison(
    path: str, overrides: Sequence[tuple[str, str]] = (), *, out: str | None = None, seeds: int | None = None
) -> list[Member[RunConfig]]:
    """The runs of the comparison in a file, see `read_members`; `out` is runs/<name of the file> if None."""
    return members(read_config_file(path), overrides, file=path, out=out or f"runs/{Path(path).stem}", seeds=seeds)


_FREE = ("max_epochs", "on_exhaust", "control_rows")
"""Settings of data that variants may differ in: how often rows may come, and what a mixer's own evaluations cost."""


def _check_same_rows(runs: Sequence[Member[RunConfig]], file: str) -> None:
    """All variants must draw from the same rows in the same order, or the pairing of seeds means nothing."""

    def rows(member: Member[RunConfig]) -> dict[str, Any]:
        plain = to_plain(member.config)
        sources = plain["sources"]
        if isinstance(sources, Mapping):
            sources = {name: {k: v for k, v in s.items() if k not in _FREE} for name, s in sources.items()}
        data = {f"data.{k}": v for k, v in plain["data"].items() if k not in _FREE}
        return {"sources": sources, **data}

    first = rows(runs[0])
    for member in runs[1:]:
        for key, value in rows(member).items():
            if value != first[key]:
                shown = "" if key == "sources" else f": {value!r}, and {first[key]!r}"
                raise ConfigError(
                    f"variant {member.variant!r} has other {key} than {runs[0].variant!r}{shown}",
                    where=f"{file}, variants.{member.variant}",
                    fix="The runs of a comparison share their rows: set it in base.",
                )


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
    folder = Path(out)
    waiting = [
        m for m in runs if not is_finished(Path(m.config.out or ""), config_hash(m.config), result="mixture.yaml")
    ]
    for member in waiting:
        check_continuation(member.config, Path(member.config.out or ""))
    data = prepare_and_open(runs[0].config)
    for member in waiting:
        resolve_run(member.config, data.known, is_drawing=True)  # some errors only the sizes of the sources show
    compiled: dict[str, Programs] = {}
    for number, member in enumerate(runs, start=1):
        label = f"{member.variant} seed {member.seed} ({number}/{len(runs)})"
        if member not in waiting:
            say(f"{label}: already finished")
            continue
        key = _program_key(member.config)
        outcome = run_train(
            member.config,
            command=command,
            data=data,
            programs=compiled.get(key),
            label=label,
            extra={"variant": member.variant, "order": member.order},
            has_page=False,
        )
        compiled[key] = outcome.programs
    records = [load_run(Path(member.config.out or "")) for member in runs]
    sentences = describe_result(records)
    report = write_report(folder)
    summary = summarize(records, out=out, report=report, verdict=sentences)
    write_json(folder / "summary.json", summary)
    return ComparisonOutcome(folder, report, sentences, summary)


def _program_key(config: RunConfig) -> str:
    """Runs of equal key share compiled functions: the model, the optimizer and the mesh, but neither mixer nor seed."""
    plain = to_plain(config)
    train = {k: v for k, v in plain["train"].items() if k != "seed"}
    return json.dumps([plain["model"], train, plain["data"]["seq_len"]], sort_keys=True)
