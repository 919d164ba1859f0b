"""Equal shares of a batch at several patch sizes, in the order of the batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerance import float32_tolerance

from jaxmix.core.errors import ConfigError
from jaxmix.models import embed_mixed, mean_flops_per_image, tower_preset, two_towers

ROWS = 12


def labeled(params, images, *, patch_size):
    """Tells of every image who it is and at which patch size it was seen."""
    return jnp.stack([images[:, 0, 0, 0], jnp.full(len(images), params * patch_size)], axis=1)


def images(rows=ROWS):
    return jnp.arange(rows, dtype=jnp.float32)[:, None, None, None] * jnp.ones((1, 4, 4, 3))


@pytest.mark.parametrize("patch_sizes", [(2, 4), (2, 2, 2, 4), (4,), (1, 4, 2)])
def test_every_group_has_its_shares_and_rows_keep_their_place(patch_sizes):
    for key in (None, jax.random.key(0), jax.random.key(1)):
        result = np.asarray(embed_mixed(labeled, 1.0, images(), patch_sizes=patch_sizes, key=key))
        np.testing.assert_array_equal(result[:, 0], np.arange(ROWS))
        groups = result[:, 1].reshape(-1, len(patch_sizes))
        np.testing.assert_array_equal(np.sort(groups, axis=1), np.sort(patch_sizes)[None].repeat(len(groups), 0))
        if key is None:
            np.testing.assert_array_equal(groups, np.array(patch_sizes)[None].repeat(len(groups), 0))


def test_each_row_of_a_group_is_coarse_equally_often():
    keys = jax.random.split(jax.random.key(3), 200)
    run = jax.vmap(lambda key: embed_mixed(labeled, 1.0, images(), patch_sizes=(2, 4), key=key)[:, 1])
    share = np.mean(np.asarray(run(keys)) == 4, axis=0)
    np.testing.assert_allclose(share, 0.5, atol=0.15)  # four standard deviations of 200 coins
    assert len(np.unique(np.asarray(run(keys)), axis=0)) > 50  # 2⁶ patterns: groups are drawn one by one


def drawn_params(towers):
    """By NumPy: compiling the towers' own `init` would take most of the test's time."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(towers.init, jax.random.key(0))
    return jax.tree.map(lambda leaf: jnp.asarray(0.2 * rng.normal(size=leaf.shape), leaf.dtype), shapes)


def test_mixture_of_the_tower_is_the_towers_own_rows_and_gradients_flow():
    towers = two_towers(tower_preset("towers-tiny", image={"num_layers": 1, "width": 16}))
    params = drawn_params(towers)["image"]
    batch = jnp.asarray(np.random.default_rng(1).integers(0, 256, (4, 16, 16, 3), np.uint8))

    @jax.jit
    def everything(params):
        def embed(params, images, *, patch_size):
            return towers.embed_image({"image": params}, images, patch_size=patch_size)

        mixed, pull = jax.vjp(lambda p: embed_mixed(embed, p, batch, patch_sizes=(4, 8)), params)
        return mixed, embed(params, batch, patch_size=4), embed(params, batch, patch_size=8), pull(jnp.ones_like(mixed))

    mixed, fine, coarse, (slopes,) = everything(params)
    rounding = float32_tolerance(1.0, 8 * 8 * 3 + 4 * 16 + 16)  # a patch, a layer's width and tokens
    np.testing.assert_allclose(mixed[0::2], fine[0::2], rtol=0, atol=rounding)
    np.testing.assert_allclose(mixed[1::2], coarse[1::2], rtol=0, atol=rounding)
    assert float(jnp.max(jnp.abs(slopes["patch"]))) > 0


def test_mean_operations_weigh_the_shares():
    flops = two_towers(tower_preset("towers-tiny")).flops_per_image
    assert mean_flops_per_image(flops, (4, 4, 4, 8)) == pytest.approx(0.75 * flops(4) + 0.25 * flops(8))


def test_rows_that_do_not_divide_are_refused():
    with pytest.raises(ConfigError, match=r"12 images cannot be divided.*\[1, 2, 4, 4, 4\]"):
        embed_mixed(labeled, 1.0, images(), patch_sizes=(1, 2, 4, 4, 4))
    with pytest.raises(ConfigError, match="cannot be divided"):
        embed_mixed(labeled, 1.0, images(), patch_sizes=())
