"""Transformer blocks as attributes of a module: one by one, or stacked and run as a compiled loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from jaxmix.core.types import Array
from jaxmix.models.lm.config import TransformerConfig
from jaxmix.models.partition import constrain_rows

_REMAT_POLICIES = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "block": jax.checkpoint_policies.nothing_saveable,
}


def parameters(module: nnx.Module) -> Any:
    """The module's parameters as a nested dictionary of arrays."""
    return nnx.to_pure_dict(nnx.state(module, nnx.Param))


def add_blocks(module: Any, block: type, config: TransformerConfig, key: Array) -> None:
    """Gives `module` the attributes `block_00`, `block_01`, …, or the one `blocks` if `config.is_scanned`.

    Args:
        module: a module under construction.
        block: class of a block, made by `block(config, rngs)`.
        config: the settings.
        key: typed PRNG key. Block i's parameters are the same whether blocks are stacked or not.
    """
    keys = jax.random.split(key, config.num_layers)
    if config.is_scanned:
        stacked = jax.vmap(lambda k: parameters(block(config, nnx.Rngs(params=k))))(keys)
        module.blocks = nnx.merge(_definition(block, config), stacked)
        return
    for i in range(config.num_layers):
        setattr(module, _name(i), block(config, nnx.Rngs(params=keys[i])))


def run_blocks(module: Any, block: type, config: TransformerConfig, x: Array, *context: Any) -> Array:
    """Runs the blocks that `add_blocks` made: each is called as `block(x, *context)` and returns the next x [b, t, d].

    What the backward pass computes again is `config.remat`.
    """
    return _run(module, block, config, x, None, lambda made, x, layer: (made(x, *context), None))[0]


def map_blocks(
    module: Any, block: type, config: TransformerConfig, x: Array, layers: Any, *context: Any
) -> tuple[Array, Any]:
    """Runs blocks that read something of their own and return something beside the next x.

    Args:
        module: with the blocks that `add_blocks` made.
        block: class with the same parameters, called as `block(x, layer, *context) -> (x, output)`.
        config: the settings.
        x: [b, t, d].
        layers: what each block reads, in the form of the outputs; None: nothing.

    Returns:
        The last x, and the outputs: stacked along a leading axis if `config.is_scanned`, else a tuple.
    """
    return _run(module, block, config, x, layers, lambda made, x, layer: made(x, layer, *context))


def _run(
    module: Any, block: type, config: TransformerConfig, x: Array, layers: Any, call: Callable[..., tuple[Array, Any]]
) -> tuple[Array, Any]:
    definition = _definition(block, config)

    def run(x: Array, of_layer: tuple[Any, Any]) -> tuple[Array, Any]:
        block_parameters, layer = of_layer
        x, output = call(nnx.merge(definition, block_parameters), x, layer)
        return constrain_rows(x), output

    if config.remat != "none":
        # In a scan XLA cannot merge the second computation with the first; unrolled it could and must not.
        run = jax.checkpoint(run, prevent_cse=not config.is_scanned, policy=_REMAT_POLICIES[config.remat])
    if config.is_scanned:
        return jax.lax.scan(run, x, (parameters(module.blocks), layers))
    outputs = []
    for i in range(config.num_layers):
        x, output = run(x, (parameters(getattr(module, _name(i))), None if layers is None else layers[i]))
        outputs.append(output)
    return x, tuple(outputs)


def _definition(block: type, config: TransformerConfig) -> Any:
    return nnx.graphdef(nnx.eval_shape(lambda: block(config, nnx.Rngs(0))))


def _name(index: int) -> str:
    return f"block_{index:02d}"
