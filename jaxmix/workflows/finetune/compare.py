"""`jaxmix compare` for fine-tuning: several curricula from one start, with paired seeds."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxmix.core.errors import ConfigError
from jaxmix.workflows.compare.run import CompareConfig
from jaxmix.workflows.compare.variant import check_folder_name
from jaxmix.workflows.config.sections import read_config_file
from jaxmix.workflows.config.strict import Origin, apply_overrides, build, to_plain
from jaxmix.workflows.finetune.config import FinetuneConfig, finetune_hash, finetune_of, is_finetune, with_settings
from jaxmix.workflows.finetune.run import check_finetune_continuation, run_finetune
from jaxmix.workflows.provenance import is_finished, write_json

if TYPE_CHECKING:
    from jaxmix.train.rl.step import PolicyPrograms


@dataclasses.dataclass(frozen=True)
class FinetuneMember:
    """One run of a comparison.

    Attributes:
        variant: what it varies.
        seed: of arms, prompts and rollouts; the supervised start is the same for all, unless a variant changes it.
        order: place of the variant in tables.
        config: the whole configuration, with its own run folder.
    """

    variant: str
    seed: int
    order: int
    config: FinetuneConfig


def is_finetune_comparison(path: str) -> bool:
    """Whether the file compares fine-tuning runs: its base has tasks."""
    mapping = read_config_file(path)
    return isinstance(mapping, Mapping) and is_finetune(mapping.get("base"))


def load_finetune_comparison(
    path: str, overrides: Sequence[tuple[str, str]] = (), *, out: str | None = None, seeds: int | None = None
) -> list[FinetuneMember]:
    """The runs of the comparison in a file, seed by seed, so that a stopped one has whole seeds.

    Args:
        path: YAML file in the form of `CompareConfig`, its base as for `jaxmix finetune`.
        overrides: dotted names of the base and YAML values, for all runs.
        out: folder; runs/<name of the file> if None.
        seeds: so many, counted up from the file's first; None: those of the file.

    Raises:
        ConfigError: file, dotted path, value and what to do.
    """
    compare: CompareConfig = build(CompareConfig, read_config_file(path), origin=Origin(path))
    if seeds is not None and seeds < 1:
        raise ConfigError(f"--seeds must be at least 1, got {seeds}", where="command line")
    if not compare.variants:
        raise ConfigError("variants is empty", where=f"{path}, variants", fix="Name at least one variant.")
    for name in compare.variants:
        check_folder_name(name, "a variant", where=f"{path}, variants")
    chosen = compare.seeds if seeds is None else tuple(range(compare.seeds[0], compare.seeds[0] + seeds))
    if not chosen or len(set(chosen)) < len(chosen):
        raise ConfigError(f"seeds must be different numbers, at least one, got {list(chosen)}", where=f"{path}, seeds")
    folder, found = out or f"runs/{Path(path).stem}", []
    for seed in chosen:
        for order, (variant, changes) in enumerate(compare.variants.items()):
            plain = apply_overrides({**compare.base, **changes}, overrides)
            plain["train"] = {**(plain.get("train") or {}), "seed": seed}
            try:
                config = finetune_of(plain, file=path, out=f"{folder}/{variant}-seed{seed}")
            except ConfigError as error:
                place = f"variant {variant}" if error.where is None else f"{error.where}, variant {variant}"
                raise ConfigError(error.what, where=place, fix=error.fix) from None
            found.append(FinetuneMember(variant, seed, order, config))
    _check_same_measure(found, path)
    return found


def _check_same_measure(runs: Sequence[FinetuneMember], file: str) -> None:
    """All variants must be measured on the same held-out prompts."""

    def measured(member: FinetuneMember) -> dict[str, Any]:
        tasks = to_plain(member.config)["tasks"]
        return {k: v for k, v in tasks.items() if k not in ("kept_per_arm", "per_arm")}

    for member in runs[1:]:
        if measured(member) != measured(runs[0]):
            raise ConfigError(
                f"variant {member.variant!r} has other tasks than {runs[0].variant!r}",
                where=f"{file}, variants.{member.variant}",
                fix="The runs of a comparison share their tasks: set them in base.",
            )


def run_finetune_comparison(
    runs: Sequence[FinetuneMember], *, command: str, say: Callable[[str], None] = lambda line: None
) -> tuple[Path, dict[str, Any]]:
    """Fine-tunes all runs that are not finished and writes the page of all, and summary.json.

    Runs share the supervised start where they have the same, and compiled functions where only the bandit or the seed
    differs. Every run is checked against its folder before the first one begins.

    Returns:
        The page, and the summary.
    """
    from jaxmix.report import describe_result, load_run, write_report
    from jaxmix.report.pages.finetune import finetune_comparison_table
    from jaxmix.report.pages.finetune_metrics import area, final_accuracy

    folder = Path(runs[0].config.out or "").parent
    waiting = [
        m
        for m in runs
        if not is_finished(Path(m.config.out or ""), finetune_hash(with_settings(m.config)), result="curriculum.yaml")
    ]
    for member in waiting:
        check_finetune_continuation(with_settings(member.config), Path(member.config.out or ""))
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
    plain = to_plain(with_settings(config))
    train = {k: v for k, v in plain["train"].items() if k != "seed"}
    return json.dumps([plain["model"], train, plain["tasks"]["name"]], sort_keys=True)


def _start_key(config: FinetuneConfig) -> str:
    """Names the supervised start: all that it depends on."""
    plain = to_plain(config)
    tasks = {k: v for k, v in plain["tasks"].items() if k not in ("kept_per_arm", "evaluation")}
    return hashlib.sha256(json.dumps([tasks, plain["model"], plain["start"]], sort_keys=True).encode()).hexdigest()[:12]
