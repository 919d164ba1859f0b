"""`jaxmix compare` for fine-tuning: several curricula from one start, with paired seeds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxmix.core.errors import ConfigError
from jaxmix.report import describe_result, load_run, write_report
from jaxmix.report.pages.finetune import finetune_comparison_table
from jaxmix.report.pages.finetune_metrics import area, final_accuracy
from jaxmix.train.rl.step import PolicyPrograms
from jaxmix.workflows.compare.variant import Member, read_members
from jaxmix.workflows.config.build import to_plain
from jaxmix.workflows.config.load import read_config_file
from jaxmix.workflows.config.sections import config_hash
from jaxmix.workflows.finetune.config import FinetuneConfig, is_finetune
from jaxmix.workflows.finetune.load import finetune_of
from jaxmix.workflows.finetune.run import check_finetune_continuation, run_finetune
from jaxmix.workflows.provenance import is_finished, write_json


def is_finetune_comparison(path: str) -> bool:
    """Whether the file compares fine-tuning runs: its base has tasks."""
    mapping = read_config_file(path)
    return isinstance(mapping, Mapping) and is_finetune(mapping.get("base"))


def load_finetune_comparison(
    path: str, overrides: Sequence[tuple[str, str]] = (), *, out: str | None = None, seeds: int | None = None
) -> list[Member[FinetuneConfig]]:
    """The runs of the comparison in a file, see `read_members`; `out` is runs/<name of the file> if None.

    The supervised start is the same for all, unless a variant changes it: `seed` is of arms, prompts and rollouts.
    """
    folder = out or f"runs/{Path(path).stem}"
    load = lambda plain, name: finetune_of(plain, file=path, out=f"{folder}/{name}")
    runs = read_members(read_config_file(path), overrides, file=path, seeds=seeds, load=load)
    _check_same_tasks(runs, path)
    return runs


def _check_same_tasks(runs: Sequence[Member[FinetuneConfig]], file: str) -> None:
    """All variants must be measured on the same held-out prompts."""

    def tasks(member: Member[FinetuneConfig]) -> dict[str, Any]:
        plain = to_plain(member.config)["tasks"]
        return {k: v for k, v in plain.items() if k not in ("kept_per_arm", "per_arm")}

    for member in runs[1:]:
        if tasks(member) != tasks(runs[0]):
            raise ConfigError(
                f"variant {member.variant!r} has other tasks than {runs[0].variant!r}",
                where=f"{file}, variants.{member.variant}",
                fix="The runs of a comparison share their tasks: set them in base.",
            )


def run_finetune_comparison(
    runs: Sequence[Member[FinetuneConfig]], *, command: str, say: Callable[[str], None] = lambda line: None
) -> tuple[Path, dict[str, Any]]:
    """Fine-tunes all runs that are not finished and writes the page of all, and summary.json.

    Runs share the supervised start where they have the same, and compiled functions where only the bandit or the seed
    differs. Every run is checked against its folder before the first one begins.

    Returns:
        The page, and the summary.
    """
    folder = Path(runs[0].config.out or "").parent
    waiting = [
        m for m in runs if not is_finished(Path(m.config.out or ""), config_hash(m.config), result="curriculum.yaml")
    ]
    for member in waiting:
        check_finetune_continuation(member.config, Path(member.config.out or ""))
    compiled: dict[str, PolicyPrograms] = {}
    for number, member in enumerate(runs, start=1):
        label = f"{member.variant} seed {member.seed} ({number}/{len(runs)})"
        if member not in waiting:
            say(f"{label}: already finished")
            continue
        key = _program_key(member.config)
        outcome = run_finetune(
            member.config,
            command=command,
            programs=compiled.get(key),
            start_dir=folder / "starts" / _start_key(member.config),
            label=label,
            extra={"variant": member.variant, "order": member.order},
            has_page=False,
            say=say,
        )
        compiled[key] = outcome.programs
    records = [load_run(Path(member.config.out or "")) for member in runs]
    page = write_report(folder)
    table = finetune_comparison_table(records)
    summary = {
        "out": str(folder),
        "report": str(page),
        "verdict": describe_result(records),
        "runs": {
            record.name: {
                "variant": record.variant,
                "seed": record.seed,
                "solved": final_accuracy(record),
                "mean_over_prompts": area(record),
            }
            for record in records
        },
        "variants": [dict(zip(table.columns, row, strict=True)) for row in table.rows],
    }
    write_json(folder / "summary.json", summary)
    return page, summary


def _program_key(config: FinetuneConfig) -> str:
    """Runs of equal key share compiled functions: those of the policy know neither bandit nor seed."""
    plain = to_plain(config)
    train = {k: v for k, v in plain["train"].items() if k != "seed"}
    return json.dumps([plain["model"], train, plain["tasks"]["name"]], sort_keys=True)


def _start_key(config: FinetuneConfig) -> str:
    """Names the supervised start: all that it depends on."""
    plain = to_plain(config)
    tasks = {k: v for k, v in plain["tasks"].items() if k not in ("kept_per_arm", "evaluation")}
    return hashlib.sha256(json.dumps([tasks, plain["model"], plain["start"]], sort_keys=True).encode()).hexdigest()[:12]
