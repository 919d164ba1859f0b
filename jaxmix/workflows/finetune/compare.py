"""`jaxmix compare` for fine-tuning: several curricula from one start, with paired seeds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxmix.report import describe_result, write_report
from jaxmix.report.pages.finetune import finetune_comparison_table
from jaxmix.report.pages.finetune_metrics import area, final_accuracy
from jaxmix.workflows.compare.variant import (
    ComparisonOutcome,
    Member,
    check_same,
    read_members,
    train_members,
    unfinished,
)
from jaxmix.workflows.config.build import to_plain
from jaxmix.workflows.config.load import read_config_file
from jaxmix.workflows.finetune.config import FinetuneConfig
from jaxmix.workflows.finetune.load import finetune_of
from jaxmix.workflows.finetune.run import FinetuneOutcome, check_finetune_continuation, run_finetune, start_settings
from jaxmix.workflows.provenance import write_json


def is_finetune_comparison(path: str) -> bool:
    """Whether the file compares fine-tuning runs: its base has tasks, and no sources."""
    mapping = read_config_file(path)
    base = mapping.get("base") if isinstance(mapping, Mapping) else None
    return isinstance(base, Mapping) and "tasks" in base


def load_finetune_comparison(
    path: str, overrides: Sequence[tuple[str, str]] = (), *, out: str | None = None, seeds: int | None = None
) -> list[Member[FinetuneConfig]]:
    """The runs of the comparison in a file, see `read_members`; `out` is runs/<name of the file> if None.

    The supervised start is the same for all, unless a variant changes it: `seed` is of arms, prompts and rollouts.
    """
    folder = out or f"runs/{Path(path).stem}"
    load = lambda plain, name: finetune_of(plain, file=path, out=f"{folder}/{name}")
    runs = read_members(read_config_file(path), overrides, file=path, seeds=seeds, load=load)
    fix = "The runs of a comparison share their tasks: set them in base."
    check_same([(m.variant, _tasks_of(m.config)) for m in runs], "variant", file=path, fix=fix)
    return runs


def _tasks_of(config: FinetuneConfig) -> dict[str, Any]:
    """What decides the held-out prompts of a run."""
    tasks = to_plain(config)["tasks"]
    return {"tasks": {k: v for k, v in tasks.items() if k not in ("kept_per_arm", "per_arm")}}


def run_finetune_comparison(
    runs: Sequence[Member[FinetuneConfig]], *, command: str, say: Callable[[str], None] = lambda line: None
) -> ComparisonOutcome:
    """Fine-tunes all runs that are not finished and writes the page of all, and summary.json.

    Runs share the supervised start where they have the same, and compiled functions where only the bandit or the seed
    differs. Every run is checked against its folder before the first one begins.
    """
    folder = runs[0].folder.parent

    def train(config: FinetuneConfig, **options: Any) -> FinetuneOutcome:
        start_dir = folder / "starts" / _start_key(config)
        return run_finetune(config, command=command, start_dir=start_dir, say=say, **options)

    waiting = unfinished(runs, result="curriculum.yaml", check=check_finetune_continuation)
    records = train_members(runs, waiting, train, say=say)
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
    return ComparisonOutcome(page, summary)


def _start_key(config: FinetuneConfig) -> str:
    """A hash of everything that the supervised start depends on."""
    settings = list(start_settings(to_plain(config)).values())
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
