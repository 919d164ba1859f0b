"""Presets have the size their name says and reject what they do not know."""

import re

import jax
import pytest

from jaxmix.core.errors import ConfigError
from jaxmix.models import PRESETS, preset, transformer

UNITS = {"k": 1e3, "m": 1e6, "b": 1e9}


@pytest.mark.parametrize("name", PRESETS)
def test_size_is_within_15_percent_of_the_name_and_counted_exactly(name):
    number, unit = re.fullmatch(r"lm-(\d+)([kmb])", name).groups()
    config = preset(name)
    assert config.vocab_size == (256 if int(number) * UNITS[unit] < 50e6 else 32_768)
    model = transformer(config)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    assert model.num_params == sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert abs(model.num_params / (int(number) * UNITS[unit]) - 1) < 0.15


def test_overrides_replace_single_settings():
    config = preset("lm-1m", width=256, z_loss=1e-4)
    assert (config.num_layers, config.query_heads, config.hidden_units, config.z_loss) == (5, 4, 1024, 1e-4)


def test_unknown_names_list_the_nearest():
    with pytest.raises(ConfigError, match=r"unknown model preset 'lm-10b'.*Did you mean 'lm-1[0b]"):
        preset("lm-10b")
    with pytest.raises(ConfigError, match=r"unknown model setting 'num_layer'.*Did you mean 'num_layers'"):
        preset("lm-1m", num_layer=3)
    with pytest.raises(ConfigError, match="do not divide"):
        preset("lm-1m", num_heads=3)
