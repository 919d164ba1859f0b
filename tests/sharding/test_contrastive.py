"""Losses of a batch on 1, 2, 4 and 8 devices: value and gradients of one, and nobody holds the matrix of all logits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerance import float32_tolerance

from jaxmix.core.errors import ConfigError
from jaxmix.core.sharding import batch_sharding, build_mesh, named_shardings, replicated, use_mesh
from jaxmix.models import fit_partition, sharded_loss, sigmoid_loss, softmax_loss, tower_preset, two_towers

LOSSES = {"sigmoid": sigmoid_loss, "softmax": softmax_loss}
ROWS, DIM = 48, 10


def embeddings():
    image, text = (jax.random.normal(jax.random.key(seed), (ROWS, DIM)) for seed in (0, 1))
    text = text + image
    return tuple(x / jnp.linalg.norm(x, axis=1, keepdims=True) for x in (image, text))


@functools.cache
def expected(loss):
    return jax.value_and_grad(LOSSES[loss], argnums=(0, 1, 2, 3))(*embeddings(), jnp.float32(9), jnp.float32(-4))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    ("layout", "block"),
    [((1, 1, 1), None), ((2, 1, 1), None), ((2, 2, 1), None), ((8, 1, 1), None), ((2, 2, 2), 5)],
    ids=str,
)
def test_every_mesh_gives_the_loss_and_gradients_of_one_device(loss, layout, block):
    data, fsdp, tensor = layout
    mesh = build_mesh(data=data, fsdp=fsdp, tensor=tensor, devices=jax.devices()[: data * fsdp * tensor])
    scalars = jax.device_put((jnp.float32(9), jnp.float32(-4)), replicated(mesh))
    rows = jax.device_put(embeddings(), batch_sharding(mesh))
    function = jax.jit(jax.value_and_grad(sharded_loss(mesh, loss=loss, block=block), argnums=(0, 1, 2, 3)))
    compiled = function.lower(*rows, *scalars).compile()
    value, slopes = compiled(*rows, *scalars)
    terms = 2 * ROWS + DIM  # a line of logits and the lines, each logit an inner product
    np.testing.assert_allclose(value, expected(loss)[0], rtol=float32_tolerance(1.0, terms))
    for slope, reference in zip(slopes, expected(loss)[1], strict=True):
        # Probabilities of a line add to 1, of either sign: what is summed is of that size.
        np.testing.assert_allclose(slope, reference, rtol=1e-4, atol=float32_tolerance(1.0, terms))
    assert slopes[0].sharding.is_equivalent_to(rows[0].sharding, 2)
    text, local = compiled.as_text(), ROWS // (data * fsdp)
    if data * fsdp > 1:
        assert f"[{block or local},{local}]" in text
        for tile in (f"[{ROWS},{ROWS}]", f"[{local},{ROWS}]", f"[{ROWS},{local}]", f"{local},{local},{data * fsdp}]"):
            assert tile not in text
        assert "all-gather" not in text


def test_rows_must_divide_over_the_devices():
    image, text = embeddings()
    with pytest.raises(ConfigError, match="47 pairs cannot be divided over 8 devices"):
        sharded_loss(build_mesh())(image[:47], text[:47], 1.0, 0.0)


def drawn_params(towers):
    """By NumPy: compiling the towers' own `init` would take most of the test's time."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(towers.init, jax.random.key(0))
    return jax.tree.map(lambda leaf: jnp.asarray(0.2 * rng.normal(size=leaf.shape), leaf.dtype), shapes)


def test_towers_and_loss_on_a_mesh_equal_one_device():
    """The whole step: parameters split over fsdp and tensor, rows over data and fsdp."""
    towers = two_towers(
        tower_preset("towers-tiny", image={"pool": "attention", "num_layers": 1}, text={"num_layers": 1})
    )
    params = drawn_params(towers)
    images = jax.random.randint(jax.random.key(1), (8, 16, 16, 3), 0, 256).astype(jnp.uint8)
    tokens = jax.random.randint(jax.random.key(2), (8, 12), 0, 200)

    def objective(loss, params, images, tokens):
        image, text = towers.embed_image(params, images), towers.embed_text(params, tokens)
        return loss(image, text, *towers.scale(params))

    one, slopes = jax.jit(jax.value_and_grad(functools.partial(objective, towers.loss)))(params, images, tokens)
    mesh = build_mesh(data=2, fsdp=2, tensor=2)
    with use_mesh(mesh):
        placed = jax.device_put(params, named_shardings(mesh, fit_partition(towers.partition, params, mesh.shape)))
        batch = jax.device_put((images, tokens), batch_sharding(mesh))
        function = jax.jit(jax.value_and_grad(functools.partial(objective, sharded_loss(mesh))))
        eight, sharded_slopes = function(placed, *batch)
    kernel = placed["image"]["projection"]
    assert kernel.addressable_shards[0].data.size == kernel.size // 4
    np.testing.assert_allclose(eight, one, rtol=1e-5)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5), sharded_slopes, slopes)
