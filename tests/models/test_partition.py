"""Specifications match the parameters, and axes that do not divide are dropped."""

import jax
from jax.sharding import PartitionSpec as P

from jaxmix.models import TransformerConfig, fit_partition, transformer


def shapes_of(model):
    return jax.eval_shape(model.init, jax.random.key(0))


def test_every_parameter_has_a_specification_of_its_rank():
    for scan_layers in (False, True):
        model = transformer(TransformerConfig(num_layers=2, width=64, tie_embeddings=False, scan_layers=scan_layers))
        ranks = jax.tree.map(lambda leaf, spec: len(spec) == leaf.ndim, shapes_of(model), model.partition)
        assert all(jax.tree.leaves(ranks))
        block = model.partition["blocks" if scan_layers else "block_00"]
        lead = (None,) if scan_layers else ()
        assert block["attention"]["output"] == P(*lead, "tensor", None, "fsdp")
        assert block["feed_forward"]["norm"]["scale"] == P(*lead, None)


def test_axes_that_do_not_divide_are_dropped():
    model = transformer(TransformerConfig(num_layers=1, width=64, num_heads=4, num_kv_heads=2, vocab_size=257))
    fitted = fit_partition(model.partition, shapes_of(model), {"data": 1, "fsdp": 8, "tensor": 4})
    assert fitted["table"] == P(None, "fsdp")
    assert fitted["block_00"]["attention"]["input"] == P("fsdp", None, None, None)
    assert fitted["block_00"]["attention"]["output"] == P("tensor", None, "fsdp")
    assert fit_partition(None, shapes_of(model), {"data": 8}) is None
