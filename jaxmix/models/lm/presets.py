"""Transformer sizes by name.

The number in a name counts all parameters, embedding included, at the preset's vocabulary: 256 bytes up to
`lm-20m`, 32,768 from `lm-60m` on. The small ones are made of what is fast on a CPU (ReLU², few heads of 64); the
large ones use SwiGLU, and the largest grouped-query attention with heads of 128, which suit matrix units.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from jaxmix.core.errors import ConfigError, nearest
from jaxmix.models.lm.config import TransformerConfig

T = TypeVar("T", bound=Any)

_LARGE: dict[str, Any] = {"vocab_size": 32_768, "activation": "swiglu", "seq_len": 1024}

PRESETS: dict[str, TransformerConfig] = {
    "lm-300k": TransformerConfig(num_layers=2, width=128, mlp_width=256),
    "lm-1m": TransformerConfig(num_layers=5, width=128),
    "lm-3m": TransformerConfig(num_layers=4, width=256),
    "lm-10m": TransformerConfig(num_layers=6, width=384),
    "lm-20m": TransformerConfig(num_layers=6, width=512, seq_len=512),
    "lm-60m": TransformerConfig(num_layers=8, width=640, **_LARGE),
    "lm-125m": TransformerConfig(num_layers=14, width=768, **_LARGE),
    "lm-350m": TransformerConfig(num_layers=24, width=1024, head_dim=128, mlp_width=2816, **_LARGE),
    "lm-1b": TransformerConfig(num_layers=20, width=2048, head_dim=128, num_kv_heads=8, mlp_width=5632, **_LARGE),
}


def preset(name: str, **overrides: Any) -> TransformerConfig:
    """Returns the settings called `name`, with single settings replaced.

    Settings left at None keep following the others: `preset("lm-1m", width=256)` has four heads of 64 and 1,024
    hidden units.

    Args:
        name: a key of `PRESETS`.
        **overrides: fields of `TransformerConfig`.

    Raises:
        ConfigError: no such preset or field, or the settings do not fit each other.

    >>> preset("lm-1m", seq_len=128).num_layers
    5
    """
    if name not in PRESETS:
        raise ConfigError(f"unknown model preset {name!r}", where="model.preset", fix=nearest(name, PRESETS))
    return replace_settings(PRESETS[name], overrides)


def replace_settings(config: T, fields: Mapping[str, Any], prefix: str = "") -> T:
    """A dataclass of settings with fields replaced; an unknown one raises `ConfigError`, named with its `prefix`."""
    known = {field.name for field in dataclasses.fields(config)}
    for field in fields:
        if field not in known:
            raise ConfigError(
                f"unknown model setting {prefix + field!r}", where=f"model.{prefix}{field}", fix=nearest(field, known)
            )
    return dataclasses.replace(config, **fields)
