"""The configuration file of the quickstart, part of the package."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from jaxmix.workflows.config.yaml import parse_yaml

FILE = "quickstart.yaml"


def read_quickstart() -> dict[str, Any]:
    """The file as a mapping: `law`, `gem`, and the sections of a comparison."""
    text = files("jaxmix.workflows.quickstart").joinpath(FILE).read_text(encoding="utf-8")
    return dict(parse_yaml(text, where=FILE))
