"""jaxmix: decides what a model is trained on.

Sub-packages are imported when they are first used, so that `import jaxmix` stays fast and needs no accelerator.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_SUBPACKAGES = (
    "cli",
    "clustering",
    "core",
    "curricula",
    "data",
    "integrations",
    "laws",
    "mixers",
    "models",
    "report",
    "selection",
    "simulate",
    "train",
    "workflows",
)

__all__ = ["__version__", *_SUBPACKAGES]


def __getattr__(name: str) -> Any:
    if name in _SUBPACKAGES:
        return importlib.import_module(f"jaxmix.{name}")
    raise AttributeError(f"module 'jaxmix' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
