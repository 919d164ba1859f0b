"""Configuration files of fine-tuning runs: read, checked, and given their default folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxmix.workflows.config.build import Origin, read
from jaxmix.workflows.config.load import read_config_mapping
from jaxmix.workflows.config.yaml import apply_overrides
from jaxmix.workflows.finetune.config import FinetuneConfig
from jaxmix.workflows.finetune.resolve import check_finetune


def load_finetune(path: str, overrides: Sequence[tuple[str, str]] = (), *, out: str | None = None) -> FinetuneConfig:
    """Loads and checks a configuration file; touches no device, and no other file but those that `tasks` names.

    Args:
        path: YAML file in the form of `FinetuneConfig`.
        overrides: dotted names and YAML values from the command line, later ones win.
        out: the run folder, before `out` in the file.

    Raises:
        ConfigError: file, dotted path, value and what to do.
    """
    return finetune_of(read_config_mapping(path), overrides, file=path, out=out)


def finetune_of(
    mapping: Mapping[Any, Any],
    overrides: Sequence[tuple[str, str]] = (),
    *,
    file: str = "configuration",
    out: str | None = None,
) -> FinetuneConfig:
    """As `load_finetune`, from a mapping. `file` is named in errors, and its stem names the default folder."""
    origin = Origin(file, frozenset(name for name, _ in overrides))
    config = read(FinetuneConfig, apply_overrides(mapping, overrides), origin=origin)
    check_finetune(config, origin)
    chosen = out or config.out or f"runs/{Path(file).stem}"
    return dataclasses.replace(config, out=chosen)
