"""The formula for operations per token against what XLA counts in the compiled program."""

import jax
import jax.numpy as jnp
import pytest

from jaxmix.models import TransformerConfig, transformer


@pytest.mark.parametrize(
    "settings",
    [{}, {"activation": "swiglu", "num_kv_heads": 1}, {"width": 64, "seq_len": 512, "vocab_size": 2048}],
    ids=str,
)
def test_flops_are_what_xla_counts(settings):
    """XLA counts norms, softmax and the diagonal blocks' upper halves too: between 1 and 1.25 times the formula."""
    config = TransformerConfig(
        **{"num_layers": 2, "width": 128, "num_heads": 2, "seq_len": 256, "attention_block": 16, **settings}
    )
    model = transformer(config)
    tokens = jax.ShapeDtypeStruct((2, config.seq_len), jnp.int32)

    def objective(params, batch):
        return jnp.sum(model.apply(params, batch))

    params = jax.eval_shape(model.init, jax.random.key(0))
    compiled = jax.jit(jax.grad(objective)).lower(params, {"tokens": tokens, "targets": tokens}).compile()
    ratio = compiled.cost_analysis()["flops"] / (2 * config.seq_len) / model.flops_per_token
    assert 1.0 < ratio < 1.25
