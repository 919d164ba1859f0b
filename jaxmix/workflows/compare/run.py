"""Several variants of one configuration, each with several seeds, at equal tokens: one folder, one page."""

# ruff: noqa: RUF009 (`setting` returns dataclasses.field, which the rule allows)
from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxmix.core.errors import ConfigError
from jaxmix.workflows.compare.variant import check_folder_name, member_config
from jaxmix.workflows.config.resolve import prior_weights
from jaxmix.workflows.config.sections import RunConfig, config_hash, read_config_file
from jaxmix.workflows.config.strict import Origin, build, setting, to_plain
from jaxmix.workflows.provenance import is_finished, write_json
from jaxmix.workflows.train.data import RunData, prepare_and_open
from jaxmix.workflows.train.inactive import resolve_drawing_mixer
from jaxmix.workflows.train.run import check_continuation, resolved, run_train

if TYPE_CHECKING:
    from jaxmix.train.lm.programs import Programs


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
    _check_names(compare, file)
    chosen = compare.seeds if seeds is None else tuple(range(compare.seeds[0], compare.seeds[0] + seeds))
    result = []
    for seed in chosen:
        for order, (variant, changes) in enumerate(compare.variants.items()):
            config = member_config(
                compare.base,
                changes,
                overrides,
                out=out,
                folder=f"{variant}-seed{seed}",
                file=file,
                member=f"variant {variant}",
                seed=seed,
            )
            result.append(Member(variant, seed, order, config))
    _check_same_rows(result, file)
    return result


def load_comparison(
    path: str, overrides: Sequence[tuple[str, str]] = (), *, out: str | None = None, seeds: int | None = None
) -> list[Member]:
    """The runs of the comparison in a file, see `members`; `out` is runs/<name of the file> if None."""
    mapping = read_config_file(path)
    if not isinstance(mapping, Mapping):
        raise ConfigError("a comparison must be a mapping with base and variants", where=path)
    return members(mapping, overrides, file=path, out=out or f"runs/{Path(path).stem}", seeds=seeds)


def _check_names(compare: CompareConfig, file: str) -> None:
    """Variants name folders, and a seed that is there twice would be one run."""
    if not compare.variants:
        raise ConfigError("variants is empty", where=f"{file}, variants", fix="Name at least one variant.")
    for name in compare.variants:
        check_folder_name(name, "a variant", where=f"{file}, variants")
    if not compare.seeds or len(set(compare.seeds)) < len(compare.seeds):
        raise ConfigError(
            f"seeds must be different numbers, at least one, got {list(compare.seeds)}", where=f"{file}, seeds"
        )


_FREE = ("max_epochs", "on_exhaust", "control_rows")
"""Settings of data that variants may differ in: how often rows may come, and what a mixer's own evaluations cost."""


def _check_same_rows(runs: Sequence[Member], file: str) -> None:
    """All variants must draw from the same rows in the same order, or the pairing of seeds means nothing."""

    def rows(member: Member) -> dict[str, Any]:
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
    runs: Sequence[Member], *, out: str, command: str, say: Callable[[str], None] = lambda line: None
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
    from jaxmix.report import describe_result, load_run, write_report
    from jaxmix.report.summary import summarize

    folder = Path(out)
    waiting = [
        m
        for m in runs
        if not is_finished(Path(m.config.out or ""), config_hash(resolved(m.config)), result="mixture.yaml")
    ]
    for member in waiting:
        check_continuation(resolved(member.config), Path(member.config.out or ""))
    data = prepare_and_open(runs[0].config)
    for member in waiting:
        _check_mixer(member, data)
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


def _check_mixer(member: Member, data: RunData) -> None:
    """What only the sizes of the sources tell: budgets, natural weights."""
    config = member.config
    prior = prior_weights(config, data.sizes if config.data.unit == "tokens" else data.counts)
    assert prior is not None
    resolve_drawing_mixer(config, prior, data.sizes)


def _program_key(config: RunConfig) -> str:
    """Runs of equal key share compiled functions: the model, the optimizer and the mesh, but neither mixer nor seed."""
    plain = to_plain(resolved(config))
    train = {k: v for k, v in plain["train"].items() if k != "seed"}
    return json.dumps([plain["model"], train, plain["data"]["seq_len"]], sort_keys=True)
