"""Configuration files: read, checked, and given their default folders."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxmix.core.errors import ConfigError
from jaxmix.core.settings import escape_path, expand_path
from jaxmix.models.lm.config import TransformerConfig
from jaxmix.workflows.config.build import Origin, read
from jaxmix.workflows.config.mixture import insert_mixture, refuse_mixture
from jaxmix.workflows.config.resolve import check_run, resolve_model
from jaxmix.workflows.config.sections import RunConfig
from jaxmix.workflows.config.yaml import apply_overrides, describe, parse_yaml, read_yaml


def read_config_file(path: str) -> Any:
    """The parsed YAML of a configuration file."""
    value = read_yaml(path, "configuration file")
    refuse_mixture(value, path)
    return value


def read_config_mapping(path: str) -> Mapping[Any, Any]:
    """A configuration file as a mapping; an empty file is an empty one. Raises `ConfigError` for anything else."""
    mapping = read_config_file(path)
    if mapping is not None and not isinstance(mapping, Mapping):
        raise ConfigError(f"the configuration must be a mapping: it is {describe(mapping)}", where=path)
    return mapping or {}


def load_config(path: str, overrides: Sequence[tuple[str, str]] = ()) -> RunConfig:
    """Loads and checks a configuration file; touches no other file than those it is made of, and no device.

    Args:
        path: YAML file.
        overrides: dotted names and YAML values from the command line, later ones win.

    Raises:
        ConfigError: file, dotted path, value and what to do.
    """
    return from_mapping(read_config_mapping(path), overrides, file=path)


def from_mapping(
    mapping: Mapping[Any, Any], overrides: Sequence[tuple[str, str]] = (), *, file: str = "configuration"
) -> RunConfig:
    """As `load_config`, from a mapping. `file` is named in errors, and its stem names the default folders.

    `sources` may be the folder of a discovery, and `mixture` a mixture file: what they say stands in the configuration.
    """
    origin = Origin(file, frozenset(name for name, _ in overrides))
    plain = apply_overrides(mapping, overrides)
    if isinstance(plain.get("sources"), str) and plain["sources"] != "bundled":
        plain["sources"] = _discovered(plain["sources"], origin("sources"))
    insert_mixture(plain, origin)
    if plain.get("selection") == {"method": None}:  # as version 0.2 wrote a run without a selection
        del plain["selection"]
    config = read(RunConfig, plain, origin=origin)
    check_run(config, origin)
    stem = Path(file).stem
    data = dataclasses.replace(config.data, prepared=config.data.prepared or f"prepared/{stem}")
    return dataclasses.replace(config, out=config.out or f"runs/{stem}", data=data)


def model_of_run(run_dir: str | Path, *, vocab_size: int | None = None) -> TransformerConfig:
    """The model that a run folder's configuration describes, for a tokenizer of this vocabulary."""
    config = load_config(str(Path(run_dir) / "config.yaml"))
    return resolve_model(config.model, config.data, vocab_size=vocab_size)


def _discovered(folder: str, where: str) -> Any:
    """The domains that `jaxmix discover` has left in `folder`, as a section `sources`: paths there begin at it."""
    path = Path(expand_path(folder, where)) / "sources.yaml"
    try:
        found = parse_yaml(path.read_text(encoding="utf-8"), where=str(path))["sources"]
        return {name: {"path": escape_path(str(path.parent / source["path"]))} for name, source in found.items()}
    except (OSError, UnicodeDecodeError, AttributeError, KeyError, TypeError):
        raise ConfigError(
            f"sources cannot be {folder!r}: there is no finished discovery with a sources.yaml",
            where=where,
            fix="Write `bundled`, a mapping from domain name to source, or the folder of `jaxmix discover`.",
        ) from None
