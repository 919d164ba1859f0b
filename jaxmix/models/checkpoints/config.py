"""`config.json` of a published architecture as a `TransformerConfig`, and the way back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxmix.core.errors import ConfigError
from jaxmix.models.checkpoints.families import FAMILIES, Family
from jaxmix.models.lm.config import TransformerConfig
from jaxmix.models.lm.presets import replace_settings

RUN_SETTINGS = (
    "z_loss",
    "seq_len",
    "compute_dtype",
    "attention",
    "attention_block",
    "remat",
    "scan_layers",
    "loss_chunk",
)
"""Settings that no checkpoint fixes: they change how a model is computed or trained, not what it is."""


def family_of(plain: Mapping[str, Any], where: str) -> Family:
    """The architecture that `config.json` names.

    Raises:
        ConfigError: one that is not supported.
    """
    kind = str(plain.get("model_type"))
    if kind not in FAMILIES:
        raise ConfigError(
            f"a model of type {kind!r} cannot be loaded",
            where=where,
            fix=f"Known: {', '.join(FAMILIES)}. Any other model can be wrapped as a `jaxmix.models.Model`.",
        )
    return FAMILIES[kind]


def read_config(plain: Mapping[str, Any], where: str, **settings: Any) -> TransformerConfig:
    """The settings of a model.

    Args:
        plain: content of `config.json`.
        where: its path, for errors.
        settings: those of `RUN_SETTINGS`, in place of the defaults.

    Raises:
        ConfigError: an architecture or a value that is not supported, or a key that is missing.
    """
    family = family_of(plain, where)
    fields: dict[str, Any] = dict(family.fixed)
    for field, key in family.keys.items():
        value = plain.get(key.name, key.default)
        if value is ...:
            raise ConfigError(f"there is no {key.name!r}", where=where)
        if key.values is not None:
            if value not in key.values:
                raise ConfigError(
                    f"{key.name} {value!r} is not supported",
                    where=where,
                    fix=f"Known: {', '.join(map(str, key.values))}.",
                )
            value = key.values[value]
        fields[field] = value
    for name, only in family.constants.items():
        if plain.get(name, only) != only:
            raise ConfigError(f"{name} {plain[name]!r} is not supported", where=where, fix=f"Known: {only!r}.")
    for field in settings:
        if field not in RUN_SETTINGS:
            raise ConfigError(
                f"{field} is part of the checkpoint and cannot be set",
                where=f"model.{field}",
                fix=f"Beside a checkpoint: {', '.join(RUN_SETTINGS)}.",
            )
    return replace_settings(TransformerConfig(**fields, **family.more(plain)), settings)


def write_config(config: TransformerConfig, kind: str | None = None) -> tuple[str, dict[str, Any]]:
    """The `config.json` of a model.

    Args:
        config: its settings.
        kind: `model_type` of the architecture; None: the first one that has these settings.

    Returns:
        (model_type, content).

    Raises:
        ConfigError: no architecture, or not the one asked for, has these settings; the error says which ones differ.
    """
    if kind is None:
        kind = next((name for name in FAMILIES if not _differences(config, name)), "llama")
    if differing := _differences(config, kind):
        raise ConfigError(
            f"no published architecture has these settings: {'; '.join(differing)}",
            where="model",
            fix=f"A {FAMILIES[kind].architecture} is what comes nearest to them in form.",
        )
    return kind, _described(config, kind)


def _described(config: TransformerConfig, kind: str) -> dict[str, Any]:
    family, settings = FAMILIES[kind], _architecture(config)
    plain: dict[str, Any] = {"model_type": kind, "architectures": [family.architecture], **family.constants}
    for field, key in family.keys.items():
        value = settings[field]
        meanings = {value: value} if key.values is None else key.values
        names = [name for name, meaning in meanings.items() if meaning == value]
        if not names:
            raise ConfigError(f"{field} is {value!r}, {kind} has {' or '.join(dict.fromkeys(meanings.values()))}")
        plain[key.name] = names[0]
    plain |= family.describe(config)
    if "max_positions" not in family.keys:
        plain["max_position_embeddings"] = config.seq_len
    return plain


def _differences(config: TransformerConfig, kind: str) -> list[str]:
    """The settings that a model of this type would have otherwise."""
    try:
        found = _architecture(read_config(_described(config, kind), "model"))
    except ConfigError as error:
        return [str(error)]
    wanted = _architecture(config)
    return [f"{name} is {wanted[name]!r}, {kind} has {found[name]!r}" for name in wanted if wanted[name] != found[name]]


def _architecture(config: TransformerConfig) -> dict[str, Any]:
    """Settings that make a model what it is, defaults worked out."""
    names = [field.name for field in dataclasses.fields(config) if field.name not in RUN_SETTINGS]
    resolved = {
        "num_heads": config.query_heads,
        "num_kv_heads": config.key_heads,
        "head_dim": config.size_of_head,
        "mlp_width": config.hidden_units,
    }
    return {name: getattr(config, name) for name in names} | resolved
