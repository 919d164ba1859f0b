"""Eight devices in any layout compute the loss and gradients of one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerance import float32_tolerance

from jaxmix.core.sharding import batch_sharding, build_mesh, named_shardings, use_mesh
from jaxmix.models import TransformerConfig, fit_partition, transformer

VARIANTS = {
    "plain": {},
    "grouped, scanned, chunked": {"num_kv_heads": 2, "scan_layers": True, "loss_chunk": 8, "activation": "swiglu"},
    "dot product, remat": {"attention": "dot_product", "remat": "block", "tie_embeddings": False},
    "nothing divides": {"num_heads": 3, "head_dim": 10, "mlp_width": 37, "vocab_size": 31},
}


@pytest.mark.parametrize(
    ("variant", "data", "fsdp", "tensor"),
    [
        pytest.param("plain", 8, 1, 1, marks=pytest.mark.slow),
        ("plain", 2, 2, 2),
        ("grouped, scanned, chunked", 1, 4, 2),
        pytest.param("grouped, scanned, chunked", 1, 2, 4, marks=pytest.mark.slow),
        ("dot product, remat", 2, 2, 2),
        pytest.param("nothing divides", 1, 2, 4, marks=pytest.mark.slow),
    ],
)
def test_eight_devices_equal_one(variant, data, fsdp, tensor):
    settings = {"num_layers": 2, "width": 32, "num_heads": 4, "vocab_size": 32, "attention_block": 8}
    model = transformer(TransformerConfig(**{**settings, **VARIANTS[variant]}))
    params = model.init(jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (8, 21), 0, 31)
    batch = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:].at[3, 4:].set(-1)}

    def objective(params, batch):
        loss = model.apply(params, batch)
        return jnp.mean(loss), loss

    function = jax.value_and_grad(objective, has_aux=True)
    (_, expected), expected_gradient = jax.jit(function)(params, batch)

    mesh = build_mesh(data=data, fsdp=fsdp, tensor=tensor)
    shardings = named_shardings(mesh, fit_partition(model.partition, params, mesh.shape))
    with use_mesh(mesh):
        placed = jax.device_put(params, shardings)
        (_, loss), gradient = jax.jit(function)(placed, jax.device_put(batch, batch_sharding(mesh)))
    if variant == "plain" and fsdp > 1:
        table = placed["table"]
        assert table.addressable_shards[0].data.size == table.size // (fsdp * tensor)
    np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=1e-5)
    # A gradient sums over all tokens of what comes back through the width, the heads, the MLP and the words.
    terms = tokens.size + 32 + 32 + 4 * 32 + 32

    def assert_close(one, other):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=float32_tolerance(other, terms))

    jax.tree.map(assert_close, gradient, expected_gradient)


def test_parameters_can_be_made_in_place():
    """`init` under `out_shardings` gives the same values without any device holding all of them."""
    model = transformer(TransformerConfig(num_layers=2, width=32, num_heads=4, vocab_size=32))
    mesh = build_mesh(data=1, fsdp=4, tensor=2)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    shardings = named_shardings(mesh, fit_partition(model.partition, shapes, mesh.shape))
    made = jax.jit(model.init, out_shardings=shardings)(jax.random.key(0))
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7),
        made,
        model.init(jax.random.key(0)),
    )
    assert made["block_00"]["attention"]["input"].addressable_shards[0].data.shape == (8, 2, 3, 8)
