"""Sizes by name, and operations against what XLA counts and what the specification's arithmetic says."""

import jax
import jax.numpy as jnp
import pytest

from jaxmix.core.errors import ConfigError
from jaxmix.models import TOWER_PRESETS, tower_preset, two_towers
from jaxmix.models.towers.accounting import count_tower_params, flops_per_image, flops_per_text


@pytest.mark.parametrize("name", TOWER_PRESETS)
def test_a_preset_has_the_parameters_it_is_counted_to_have(name):
    towers = two_towers(TOWER_PRESETS[name])
    shapes = jax.eval_shape(towers.init, jax.random.key(0))
    assert towers.num_params == count_tower_params(towers.config) == sum(x.size for x in jax.tree.leaves(shapes))
    image = towers.config.image
    for patch_size in (image.patch_size, 2 * image.patch_size):
        shape = jax.ShapeDtypeStruct((2, image.image_size, image.image_size, 3), jnp.uint8)
        result = jax.eval_shape(lambda p, x, s=patch_size: towers.embed_image(p, x, patch_size=s), shapes, shape)
        assert result.shape == (2, towers.config.embedding_dim)
    least, most = {"towers-tiny": (2e5, 3e5), "towers-small": (6e5, 9e5), "towers-base-16": (1.9e8, 2.2e8)}[name]
    assert least < towers.num_params < most


def test_base_has_the_cost_that_the_published_savings_come_from():
    """24.5 G multiply-adds a pair with 16 text tokens; patch 32 costs 0.287 of patch 16, half and half 0.644."""
    config = tower_preset("towers-base-16", image={"pool": "mean"}, text={"pool": "mean"})
    fine, coarse = (flops_per_image(config, size) + flops_per_text(config, 16) for size in (16, 32))
    assert fine / 2 == pytest.approx(24.5e9, rel=0.01)
    assert coarse / fine == pytest.approx(0.287, abs=0.005)
    assert (1 + coarse / fine) / 2 == pytest.approx(0.644, abs=0.003)
    long = flops_per_text(config, 64)
    images = [flops_per_image(config, size) for size in (16, 32)]
    assert (images[1] + long) / (images[0] + long) == pytest.approx(0.391, abs=0.01)


@pytest.mark.parametrize("pool", ["mean", "attention"])
def test_operations_are_what_xla_counts(pool):
    """XLA counts norms, softmax and activations too: a little more than the formula, never less."""
    config = tower_preset(
        "towers-small", image={"pool": pool, "num_layers": 1}, text={"pool": pool, "num_layers": 1, "length": 64}
    )
    towers = two_towers(config)
    params = jax.eval_shape(towers.init, jax.random.key(0))
    rows = 64  # the kernel's resize, once per batch, is small beside them

    def counted(function, shape, dtype):
        compiled = jax.jit(function).lower(params, jax.ShapeDtypeStruct(shape, dtype)).compile()
        return compiled.cost_analysis()["flops"] / rows

    size = {"mean": 4, "attention": 8}[pool]
    embed = lambda p, x: towers.embed_image(p, x, patch_size=size)
    assert 1.0 < counted(embed, (rows, 32, 32, 3), jnp.uint8) / towers.flops_per_image(size) < 1.25
    assert 1.0 < counted(towers.embed_text, (rows, 64), jnp.int32) / towers.flops_per_text < 1.25


def test_overrides_replace_single_settings():
    config = tower_preset("towers-tiny", image={"width": 96}, text={"length": 9}, loss="softmax")
    assert (config.image.width, config.image.num_layers, config.text.length, config.loss) == (96, 2, 9, "softmax")


def test_unknown_names_list_the_nearest():
    with pytest.raises(ConfigError, match=r"unknown model preset 'towers-tny'.*Did you mean 'towers-tiny'"):
        tower_preset("towers-tny")
    with pytest.raises(
        ConfigError, match=r"unknown model setting 'image.widht' \(model.image.widht\).*Did you mean 'width'"
    ):
        tower_preset("towers-tiny", image={"widht": 3})
    with pytest.raises(ConfigError, match=r"unknown model setting 'los'.*Did you mean 'loss'"):
        tower_preset("towers-tiny", los="softmax")
