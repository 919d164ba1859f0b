"""The configuration file of the quickstart, part of the package."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Any

from jaxmix.core.settings import setting
from jaxmix.laws.proposals.propose import propose
from jaxmix.workflows.compare.variant import CompareConfig
from jaxmix.workflows.config.build import Origin, arguments, read
from jaxmix.workflows.config.sections import ModelConfig
from jaxmix.workflows.config.yaml import parse_yaml
from jaxmix.workflows.law import LawSettings
from jaxmix.workflows.swarm.config import DesignConfig

FILE = "quickstart.yaml"


@dataclass(frozen=True)
class LawArm:
    """How the law's mixture is found: a swarm of proxies, a fit, and a proposal."""

    model: ModelConfig = setting(help="of the proxies")
    design: DesignConfig = setting(help="their mixtures")
    length: float = setting(above=0, at_most=1, help="of a proxy's run, as a share of a run of the comparison")
    fit: LawSettings = setting(factory=LawSettings)
    propose: dict[str, Any] = setting(factory=dict, help="arguments of `jaxmix.laws.propose`")

    def checked(self, origin: Origin, path: str) -> LawArm:
        """The section, the arguments of the proposal checked against its signature."""
        taken = ("model_size", "tokens", "key")
        place = f"{path}.propose"
        return replace(self, propose=arguments(propose, self.propose, origin=origin, path=place, skip=1, taken=taken))


@dataclass(frozen=True)
class DiscoveredArm:
    """One variant again, on domains that are discovered in its training texts."""

    variant: str = setting(help="whose mixer and settings it takes")
    seeds: tuple[int, ...] = setting(help="of that variant")
    validation_fraction: float = setting(above=0, at_most=0.5, help="share of the documents held out")
    discover: dict[str, Any] = setting(help="a configuration as for `jaxmix discover`, without sources")


@dataclass(frozen=True, kw_only=True)
class Quickstart(CompareConfig):
    """The file: a comparison, and how the mixtures of two of its arms are found."""

    law: LawArm
    gem: DiscoveredArm


def read_quickstart() -> Quickstart:
    """The checked file."""
    text = files("jaxmix.workflows.quickstart").joinpath(FILE).read_text(encoding="utf-8")
    return read(Quickstart, parse_yaml(text, where=FILE), origin=Origin(FILE))
