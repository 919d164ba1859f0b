"""`jaxmix quickstart`: three mixtures on the bundled texts, compared at equal tokens over two seeds."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files

from jaxmix.workflows.compare import Member, members
from jaxmix.workflows.strict import parse_yaml

__all__ = ["DEFAULT_OUT", "quickstart_members"]

DEFAULT_OUT = "runs/quickstart"


def quickstart_members(
    overrides: Sequence[tuple[str, str]] = (), *, out: str = DEFAULT_OUT, seeds: int | None = None
) -> list[Member]:
    """The runs of the quickstart, from the file that the package carries.

    Args:
        overrides: dotted overrides of its base configuration.
        out: folder to write to.
        seeds: number of seeds instead of the file's.
    """
    name = "quickstart.yaml"
    text = files("jaxmix.workflows").joinpath(name).read_text(encoding="utf-8")
    return members(parse_yaml(text, where=name), overrides, file=name, out=out, seeds=seeds)
