"""The file of a swarm: one base configuration, model sizes and budgets, a design of mixtures, seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from jaxmix.core.errors import ConfigError
from jaxmix.core.settings import check_value, setting
from jaxmix.data.files import check_folder_name
from jaxmix.laws.design import dirichlet_designs, sobol_designs
from jaxmix.workflows.compare.variant import check_same, check_seeds, naming, run_of
from jaxmix.workflows.config.build import Origin, arguments, read
from jaxmix.workflows.config.load import read_config_mapping
from jaxmix.workflows.config.sections import RunConfig
from jaxmix.workflows.config.yaml import apply_overrides


@dataclasses.dataclass(frozen=True)
class DesignConfig:
    """Which mixtures are trained on. Further keys are the arguments of the method, see `jaxmix.laws.design`."""

    runs: int = setting(help="Set design.runs: how many mixtures to draw.", at_least=1, at_most=100_000)
    method: Literal["dirichlet", "sobol"] = setting("dirichlet", help="around the prior, or evenly over the simplex")
    seed: int = setting(0, help="of the draw")
    include: tuple[Literal["prior", "uniform"], ...] = setting((), help="mixtures to add to the drawn ones")
    options: dict[str, Any] = setting(factory=dict, rest=True, help="arguments of the method")

    def checked(self, origin: Origin, path: str) -> DesignConfig:
        """The section, its further keys checked against the method's signature."""
        method = dirichlet_designs if self.method == "dirichlet" else sobol_designs
        return dataclasses.replace(self, options=arguments(method, self.options, origin=origin, path=path, skip=3))


@dataclasses.dataclass(frozen=True)
class LimitsConfig:
    """How much of the machine a swarm takes. Changes no result."""

    chunk: int | None = setting(None, at_least=1, help="proxies trained at once; empty: as many as memory holds")
    memory: float | None = setting(None, above=0, help="gigabytes per device; empty: 70 % of a GPU, half of a CPU's")
    table: float = setting(1.0, at_least=0, help="gigabytes of tokens kept on every device; beyond it they are sent")


@dataclasses.dataclass(frozen=True)
class SwarmConfig:
    """The whole file."""

    base: dict[str, Any] = setting(help="Set base: a configuration as for `jaxmix train`; its mixture is the prior.")
    design: DesignConfig = setting(help="Set design: how many mixtures, and how they are drawn.")
    sizes: dict[str, dict[str, Any]] = setting(
        factory=lambda: {"proxy": {}}, help="a name, the sections of base it changes, and `runs`: its first mixtures"
    )
    seeds: tuple[int, ...] = setting((0,), help="every mixture is trained once per seed")
    swarm: LimitsConfig = setting(factory=LimitsConfig)


@dataclasses.dataclass(frozen=True)
class Size:
    """One model size and budget of a swarm.

    Attributes:
        name: also of its folder.
        config: of every run, but for mixture and seed.
        runs: how many of the mixtures are trained, None for all.
    """

    name: str
    config: RunConfig
    runs: int | None


@dataclasses.dataclass(frozen=True)
class Swarm:
    """A checked swarm.

    Attributes:
        out: its folder.
        design, limits, seeds: as in the file.
        sizes: in the order of the file.
    """

    out: str
    design: DesignConfig
    limits: LimitsConfig
    seeds: tuple[int, ...]
    sizes: tuple[Size, ...]


_OWN = ("design", "swarm", "seeds", "sizes")


def load_swarm(path: str, overrides: Sequence[tuple[str, str]] = (), *, out: str | None = None) -> Swarm:
    """Loads and checks a swarm's file; touches no other file and no device.

    Args:
        path: YAML file in the form of `SwarmConfig`.
        overrides: dotted names of the file's own sections, or of the base's (`train.steps`), and YAML values.
        out: folder; runs/<name of the file> if None.

    Raises:
        ConfigError: file, dotted path, value and what to do.
    """
    return swarm_of(read_config_mapping(path), overrides, file=path, out=out or f"runs/{Path(path).stem}")


def swarm_of(mapping: Mapping[Any, Any], overrides: Sequence[tuple[str, str]] = (), *, file: str, out: str) -> Swarm:
    """As `load_swarm`, from a mapping. `file` is named in errors."""
    own = [(name, text) for name, text in overrides if name.split(".")[0] in _OWN]
    of_base = [pair for pair in overrides if pair not in own]
    origin = Origin(file, frozenset(name for name, _ in own))
    config = read(SwarmConfig, apply_overrides(mapping, own), origin=origin)
    if not config.sizes:
        raise ConfigError("sizes is empty", where=origin("sizes"), fix="Name at least one, or leave sizes out.")
    check_seeds(config.seeds, origin("seeds"))
    sizes = tuple(_size(name, changes, config, of_base, file, out) for name, changes in config.sizes.items())
    check_same([(size.name, _domains_of(size.config)) for size in sizes], "size", file=file, fix="Set it in base.")
    return Swarm(out, config.design, config.swarm, config.seeds, sizes)


def _size(
    name: str,
    changes: Mapping[str, Any],
    config: SwarmConfig,
    overrides: Sequence[tuple[str, str]],
    file: str,
    out: str,
) -> Size:
    where = f"{file}, sizes.{name}"
    check_folder_name(name, "a size", where=where)
    changes = dict(changes)
    runs = changes.pop("runs", None)
    check_value("runs", runs, int | None, {"at_least": 1}, where)
    plain = apply_overrides({**config.base, **changes}, overrides)
    with naming(f"sizes.{name}"):
        run = run_of(plain, name, out=out, file=file)
    _check_run(run, where)
    return Size(name, run, runs)


def _check_run(run: RunConfig, where: str) -> None:
    if run.mixer.name != "static" or run.mixer.wrap or run.mixer.options:
        raise ConfigError(
            f"a proxy's mixture is fixed: it cannot have the mixer {run.mixer.name!r} or wrappers",
            where=where,
            fix="Leave mixer out.",
        )
    if run.selection is not None:
        raise ConfigError(
            "a swarm trains on all that its mixtures draw: it cannot have a selection",
            where=f"{where}, selection",
            fix="Leave selection out.",
        )
    if run.data.test_rows:
        raise ConfigError("a swarm has no test rows", where=f"{where}, data.test_rows", fix="Use validation_rows.")


def _domains_of(config: RunConfig) -> dict[str, Any]:
    """What all sizes share: one table has one list of domains, and held-out losses of the same text."""
    keys = ("prepared", "tokenizer", "unit", "validation_fraction")
    data = {f"data.{key}": getattr(config.data, key) for key in keys}
    return {**data, "sources or another prior": (config.sources, config.mixture)}
