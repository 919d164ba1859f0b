"""Several runs that share a file's base and a folder: variants of a configuration, each with several seeds.

Training and fine-tuning runs are compared in the same way; what differs between them is passed in.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

from jaxmix.core.errors import ConfigError
from jaxmix.core.settings import check_value, setting
from jaxmix.data.files import check_folder_name
from jaxmix.report import RunRecord, load_run
from jaxmix.workflows.config.build import Origin, read, to_plain
from jaxmix.workflows.config.load import from_mapping
from jaxmix.workflows.config.sections import RunConfig, RunFolder, folder_of, folder_path
from jaxmix.workflows.config.yaml import apply_overrides
from jaxmix.workflows.provenance import is_finished


@runtime_checkable
class AnyConfig(Protocol):
    """The configuration of a run of any kind; `out` is its folder."""

    @property
    def out(self) -> str | None: ...


C = TypeVar("C", bound=AnyConfig)


@dataclasses.dataclass(frozen=True)
class CompareConfig:
    """A comparison as a file: a base configuration, what each variant changes, and the seeds."""

    base: dict[str, Any] = setting(help="Set base: a configuration as for `jaxmix train` or `jaxmix finetune`.")
    variants: dict[str, dict[str, Any]] = setting(help="Set variants: a name and the sections it changes.")
    seeds: tuple[int, ...] = setting((0,), help="each variant is trained once per seed")


@dataclasses.dataclass(frozen=True)
class Member(Generic[C]):
    """One run of a comparison.

    Attributes:
        variant: what it varies.
        seed: `train.seed` of the run.
        order: place of the variant in tables.
        config: the whole configuration, with its own run folder.
    """

    variant: str
    seed: int
    order: int
    config: C

    @property
    def folder(self) -> Path:
        """Of the run."""
        return folder_path(self.config)


@dataclasses.dataclass(frozen=True)
class ComparisonOutcome:
    """The results of a comparison: its page, and a summary for machines, which is also summary.json."""

    report: Path
    summary: dict[str, Any]


def read_members(
    mapping: Any,
    overrides: Sequence[tuple[str, str]],
    *,
    file: str,
    seeds: int | None,
    load: Callable[[Mapping[str, Any], str], C],
) -> list[Member[C]]:
    """The runs of a comparison, seed by seed, so that an interrupted one has complete seeds.

    Args:
        mapping: parsed file in the form of `CompareConfig`.
        overrides: dotted overrides of the base, from the command line.
        file: named in errors.
        seeds: so many, counted up from the file's first; None: those of the file.
        load: the configuration of one run, from its sections and the name of its folder.

    Raises:
        ConfigError: any of the configurations is wrong.
    """
    if not isinstance(mapping, Mapping):
        raise ConfigError("a comparison must be a mapping with base and variants", where=file)
    compare = read(CompareConfig, mapping, origin=Origin(file))
    check_value("--seeds", seeds, int | None, {"at_least": 1}, "command line")
    if not compare.variants:
        raise ConfigError("variants is empty", where=f"{file}, variants", fix="Name at least one variant.")
    for name in compare.variants:
        check_folder_name(name, "a variant", where=f"{file}, variants")
    check_seeds(compare.seeds, f"{file}, seeds")
    chosen = compare.seeds if seeds is None else tuple(range(compare.seeds[0], compare.seeds[0] + seeds))
    found = []
    mixture = next((name for name, _ in overrides if name.split(".")[0] == "mixture"), None)
    own = [variant for variant, changes in compare.variants.items() if "mixture" in changes]
    if mixture and own:
        raise ConfigError(
            f"--{mixture} would replace the mixture of its own that variant {own[0]!r} has",
            where="command line",
            fix=f"Name the mixture in the file: in base, or in a variant as `mixture: FILE` ({file}).",
        )
    for seed in chosen:
        for order, (variant, changes) in enumerate(compare.variants.items()):
            plain = apply_overrides({**compare.base, **changes}, overrides)
            with naming(f"variant {variant}"):
                found.append(
                    Member(
                        variant, seed, order, load(with_value(plain, "train", "seed", seed), f"{variant}-seed{seed}")
                    )
                )
    return found


def unfinished(runs: Sequence[Member[C]], *, result: str, check: Callable[[RunFolder], None]) -> list[Member[C]]:
    """The runs that are still to be trained, each checked against what its folder holds.

    Args:
        runs: of a comparison.
        result: the file that a run writes last.
        check: raises `ConfigError` for a folder that its configuration cannot continue.
    """
    waiting = [m for m in runs if not is_finished(folder_of(m.config), result=result)]
    for member in waiting:
        check(folder_of(member.config))
    return waiting


def train_members(
    runs: Sequence[Member[C]],
    waiting: Sequence[Member[C]],
    train: Callable[..., Any],
    *,
    say: Callable[[str], None],
) -> list[RunRecord]:
    """Trains the runs that are waiting and returns the records of all, in order.

    Args:
        runs: of a comparison.
        waiting: those that are not finished.
        train: takes a configuration and `programs`, `label`, `extra` and `has_page` of a run; its result has
            `programs`, which runs of equal `program_key` share.
        say: receives a line for every run that is finished already.
    """
    compiled: dict[str, Any] = {}
    for number, member in enumerate(runs, start=1):
        label = f"{member.variant} seed {member.seed} ({number}/{len(runs)})"
        if member not in waiting:
            say(f"{label}: already finished")
            continue
        key, extra = program_key(member.config), {"variant": member.variant, "order": member.order}
        outcome = train(member.config, programs=compiled.get(key), label=label, extra=extra, has_page=False)
        compiled[key] = outcome.programs
    return [load_run(member.folder) for member in runs]


def program_key(config: AnyConfig) -> str:
    """Runs of equal key share compiled functions, which depend on the model, the optimizer and the mesh.

    They do not depend on the mixer or bandit, nor on the seed.
    """
    plain = to_plain(config)
    train = {k: v for k, v in plain["train"].items() if k != "seed"}
    shape = plain["data"]["seq_len"] if "data" in plain else plain["tasks"]["name"]
    return json.dumps([plain["model"], train, shape], sort_keys=True)


def check_same(runs: Sequence[tuple[str, Mapping[str, Any]]], kind: str, *, file: str, fix: str) -> None:
    """Raises `ConfigError` for a run that differs from the first in what all must share.

    Args:
        runs: name of a run, and its values by name; those of dotted names are shown.
        kind: of run, "variant" or "size".
        file: named in errors; its section `kind`s names the runs.
        fix: what to do.
    """
    (first, shared), *others = runs
    for name, values in others:
        for key, value in values.items():
            if value != shared[key]:
                shown = f": {value!r}, and {shared[key]!r}" if "." in key else ""
                what = f"{kind} {name!r} has other {key} than {first!r}{shown}"
                raise ConfigError(what, where=f"{file}, {kind}s.{name}", fix=fix)


def check_seeds(seeds: Sequence[int], where: str) -> None:
    """Raises `ConfigError` for no seed, or one that is given twice: two runs of one seed would be one run."""
    if not seeds or len(set(seeds)) < len(seeds):
        raise ConfigError(f"seeds must be different numbers, at least one, got {list(seeds)}", where=where)


@contextlib.contextmanager
def naming(member: str) -> Iterator[None]:
    """Adds the name of a run, such as "variant odm", to the place of an error."""
    try:
        yield
    except ConfigError as error:
        place = member if error.where is None else f"{error.where}, {member}"
        raise ConfigError(error.what, where=place, fix=error.fix) from None


def run_of(plain: Mapping[str, Any], folder: str, *, out: str, file: str) -> RunConfig:
    """One of several training runs: its folder is below `out`, which also receives the prepared data of all."""
    if not isinstance(plain.get("data"), Mapping) or "prepared" not in plain["data"]:
        plain = with_value(plain, "data", "prepared", f"{out}/prepared")
    return from_mapping({**plain, "out": f"{out}/{folder}"}, file=file)


def with_value(plain: Mapping[str, Any], section: str, key: str, value: Any) -> Mapping[str, Any]:
    """A configuration with one more value; as it is where its section is not a mapping, which reading it will say."""
    old = plain.get(section)
    return {**plain, section: {**(old or {}), key: value}} if old is None or isinstance(old, Mapping) else plain
