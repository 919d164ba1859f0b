"""Several runs that share a file's base and a folder: variants of a configuration, each with several seeds."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

from jaxmix.core.errors import ConfigError
from jaxmix.core.settings import check_value, setting
from jaxmix.workflows.config.build import Origin, read
from jaxmix.workflows.config.load import from_mapping
from jaxmix.workflows.config.resolve import check_folder_name
from jaxmix.workflows.config.sections import RunConfig
from jaxmix.workflows.config.yaml import apply_overrides

C = TypeVar("C")


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


def read_members(
    mapping: Any,
    overrides: Sequence[tuple[str, str]],
    *,
    file: str,
    seeds: int | None,
    load: Callable[[Mapping[str, Any], str], C],
) -> list[Member[C]]:
    """The runs of a comparison, seed by seed, so that a stopped one has whole seeds.

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
    for seed in chosen:
        for order, (variant, changes) in enumerate(compare.variants.items()):
            plain = apply_overrides({**compare.base, **changes}, overrides)
            plain["train"] = {**(plain.get("train") or {}), "seed": seed}
            with naming(f"variant {variant}"):
                found.append(Member(variant, seed, order, load(plain, f"{variant}-seed{seed}")))
    return found


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
    data = {"prepared": f"{out}/prepared", **(plain.get("data") or {})}
    return from_mapping({**plain, "out": f"{out}/{folder}", "data": data}, file=file)
