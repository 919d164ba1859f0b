"""Blocks of a transformer as attributes of its module: one by one, or stacked and run as a compiled loop."""

from __future__ import annotations

from typing import Any

import jax
from flax import nnx

from jaxmix.core.types import Array
from jaxmix.models.config import TransformerConfig
from jaxmix.models.partition import constrain_rows

__all__ = ["add_blocks", "parameters", "run_blocks"]

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
    definition = _definition(block, config)

    def run(x: Array, block_parameters: Any) -> tuple[Array, None]:
        return constrain_rows(nnx.merge(definition, block_parameters)(x, *context)), None

    if config.remat != "none":
        # In a scan XLA cannot merge the second computation with the first; unrolled it could and must not.
        run = jax.checkpoint(run, prevent_cse=not config.is_scanned, policy=_REMAT_POLICIES[config.remat])
    if config.is_scanned:
        return jax.lax.scan(run, x, parameters(module.blocks))[0]
    for i in range(config.num_layers):
        x, _ = run(x, parameters(getattr(module, _name(i))))
    return x


def _definition(block: type, config: TransformerConfig) -> Any:
    return nnx.graphdef(nnx.eval_shape(lambda: block(config, nnx.Rngs(0))))


def _name(index: int) -> str:
    return f"block_{index:02d}"
