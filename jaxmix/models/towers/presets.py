"""Image–text models by name.

The small ones are made of what is fast on a CPU (ReLU², few heads of 32 or 64, mean pooling) and take icons of
32 x 32 pixels at the patch sizes 4 and 8. `towers-base-16` is a ViT-B/16 at 256 pixels beside a text tower of the same
size, at the patch sizes 16 and 32, as in SigLIP and Flexi-JEST.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxmix.core.errors import ConfigError, nearest
from jaxmix.models.lm.presets import replace_settings
from jaxmix.models.towers.config import ImageTowerConfig, TextTowerConfig, TwoTowersConfig

_ICONS: dict[str, Any] = {"image_size": 32, "patch_size": 4, "base_patch_size": 8, "base_grid": 8}
_LARGE: dict[str, Any] = {"activation": "gelu", "pool": "attention"}

TOWER_PRESETS: dict[str, TwoTowersConfig] = {
    "towers-tiny": TwoTowersConfig(
        image=ImageTowerConfig(num_layers=2, width=64, num_heads=2, **_ICONS),
        text=TextTowerConfig(num_layers=2, width=64, num_heads=2),
        embedding_dim=64,
    ),
    "towers-small": TwoTowersConfig(
        image=ImageTowerConfig(num_layers=3, width=128, num_heads=2, mlp_width=256, **_ICONS),
        text=TextTowerConfig(num_layers=2, width=128, num_heads=2, mlp_width=256),
        embedding_dim=128,
    ),
    "towers-base-16": TwoTowersConfig(
        image=ImageTowerConfig(
            num_layers=12, width=768, image_size=256, patch_size=16, base_patch_size=32, base_grid=16, **_LARGE
        ),
        text=TextTowerConfig(num_layers=12, width=768, vocab_size=32_768, length=64, **_LARGE),
        embedding_dim=768,
    ),
}


def tower_preset(
    name: str, *, image: Mapping[str, Any] | None = None, text: Mapping[str, Any] | None = None, **overrides: Any
) -> TwoTowersConfig:
    """Returns the `TwoTowersConfig` called `name`, with single settings replaced.

    Args:
        name: a key of `TOWER_PRESETS`.
        image: fields of `ImageTowerConfig` to replace.
        text: fields of `TextTowerConfig` to replace.
        **overrides: other fields of `TwoTowersConfig`.

    Raises:
        ConfigError: no such preset or field, or the settings do not fit each other.

    >>> config = tower_preset("towers-tiny", text={"length": 16}, loss="softmax")
    >>> config.text.length, config.image.width, config.initial_temperature
    (16, 64, 14.285714285714285)
    """
    if name not in TOWER_PRESETS:
        raise ConfigError(f"unknown model preset {name!r}", where="model.preset", fix=nearest(name, TOWER_PRESETS))
    preset = TOWER_PRESETS[name]
    towers = {
        "image": replace_settings(preset.image, image or {}, "image."),
        "text": replace_settings(preset.text, text or {}, "text."),
    }
    return replace_settings(preset, {**towers, **overrides})
