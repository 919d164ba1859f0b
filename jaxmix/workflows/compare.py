"""Several variants of one configuration, each with several seeds, at equal tokens: one folder, one page."""

# ruff: noqa: RUF009 (`setting` returns dataclasses.field, which the rule allows)
from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxmix.core.errors import ConfigError
from jaxmix.workflows.config import RunConfig, config_hash, from_mapping
from jaxmix.workflows.data import prepare_and_open
from jaxmix.workflows.provenance import write_json
from jaxmix.workflows.strict import Origin, apply_overrides, build, setting
from jaxmix.workflows.train import TrainOutcome, resolved, run_train

__all__ = ["CompareConfig", "ComparisonOutcome", "Member", "members", "run_comparison"]


@dataclasses.dataclass(frozen=True)
class CompareConfig:
    """A comparison as a file: a base configuration, what each variant changes, and the seeds."""

    base: dict[str, Any] = setting(help="Set base: a configuration as for `jaxmix train`.")
    variants: dict[str, dict[str, Any]] = setting(help="Set variants: a name and the sections it changes.")
    seeds: tuple[int, ...] = setting((0,), help="each variant is trained once per seed")


@dataclasses.dataclass(frozen=True)
class Member:
    """One run of a comparison.

    Attributes:
        variant: what it varies.
        seed: of parameters, data order and mixer.
        order: place of the variant in tables.
        config: the whole configuration, with its own run folder.
    """

    variant: str
    seed: int
    order: int
    config: RunConfig


@dataclasses.dataclass(frozen=True)
class ComparisonOutcome:
    """What a comparison left: its folder, its page, the verdict in sentences, and a summary for machines."""

    out: Path
    report: Path
    sentences: list[str]
    summary: dict[str, Any]


def members(
    mapping: Mapping[str, Any],
    overrides: Sequence[tuple[str, str]],
    *,
    file: str,
    out: str,
    seeds: int | None = None,
) -> list[Member]:
    """The runs of a comparison, seed by seed, so that a stopped one has whole seeds.

    Args:
        mapping: parsed file in the form of `CompareConfig`.
        overrides: dotted overrides of the base, from the command line.
        file: named in errors.
        out: folder of the comparison.
        seeds: take only so many of the seeds, or further ones counted up.

    Raises:
        ConfigError: any of the configurations is wrong.
    """
    compare = build(CompareConfig, mapping, origin=Origin(file))
    if seeds is not None and seeds < 1:
        raise ConfigError(f"--seeds must be at least 1, got {seeds}", where="command line")
    chosen = compare.seeds if seeds is None else tuple(range(compare.seeds[0], compare.seeds[0] + seeds))
    result = []
    for seed in chosen:
        for order, (variant, changes) in enumerate(compare.variants.items()):
            plain = apply_overrides({**compare.base, **changes}, overrides)
            plain["out"] = f"{out}/{variant}-seed{seed}"
            plain["train"] = {**(plain.get("train") or {}), "seed": seed}
            plain["data"] = {"prepared": f"{out}/prepared", **(plain.get("data") or {})}
            result.append(Member(variant, seed, order, from_mapping(plain, file=file)))
    return result


def run_comparison(
    runs: Sequence[Member], *, out: str, command: str, say: Callable[[str], None] = lambda line: None
) -> ComparisonOutcome:
    """Trains all runs that are not finished yet and writes the page of all.

    The runs share the prepared data, and the compiled functions where the shapes allow.

    Args:
        runs: from `members`.
        out: the comparison's folder.
        command: what was typed.
        say: receives one line per stage.
    """
    from jaxmix.report import describe_result, load_run, write_report
    from jaxmix.report.tables import mean_loss

    folder = Path(out)
    data = prepare_and_open(runs[0].config)
    last: TrainOutcome | None = None
    for number, member in enumerate(runs, start=1):
        label = f"{member.variant} seed {member.seed} ({number}/{len(runs)})"
        if _is_finished(member.config):
            say(f"{label}: already finished")
            continue
        last = run_train(
            member.config,
            command=command,
            data=data,
            programs=last.programs if last is not None else None,
            label=label,
            extra={"variant": member.variant, "order": member.order},
            has_page=False,
        )
    records = [load_run(Path(member.config.out or "")) for member in runs]
    sentences = describe_result(records)
    report = write_report(folder)
    summary = {
        "out": out,
        "report": str(report),
        "verdict": sentences,
        "runs": [
            {
                "variant": record.variant,
                "seed": record.seed,
                "tokens": record.tokens,
                "mean_validation_loss": mean_loss(record),
                "validation_loss": record.final_losses(),
                "weights": record.average_weights(),
            }
            for record in records
        ],
    }
    write_json(folder / "summary.json", summary)
    return ComparisonOutcome(folder, report, sentences, summary)


def _is_finished(config: RunConfig) -> bool:
    """The run folder holds a finished run of exactly this configuration: its result is written last."""
    assert config.out is not None
    folder = Path(config.out)
    try:
        provenance = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return False
    is_same = provenance.get("config_hash") == config_hash(resolved(config))
    return is_same and "finished" in provenance and (folder / "mixture.yaml").is_file()
