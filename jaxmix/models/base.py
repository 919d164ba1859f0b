"""What the train loop knows of a model: five values, no classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxmix.core.types import Array

__all__ = ["Model", "token_loss"]


class Model(NamedTuple):
    """A model as a bundle of pure functions and what can be said about it without running it.

    Attributes:
        init: `key -> params`, a nested dictionary of float32 arrays. Pure; jit it with `out_shardings` to create a
            model that no single device could hold.
        apply: `(params, batch) -> loss`, f32[b, t]: nats per token, 0 where `batch["targets"] < 0`; or
            `(loss, regulariser)`, both f32[b, t], the regulariser being added for the gradient only. Pure; may be
            jitted, differentiated and vmapped over stacked params.
        partition: tree of `PartitionSpec` like the params, over the mesh axes "fsdp" and "tensor"; None means that
            every device holds all parameters.
        num_params: number of parameters, embedding included.
        flops_per_token: floating-point operations of one token's forward and backward pass.
        config: the settings the model was made from.
        readout: `(params) -> tree` of the last layer's parameters alone, and
        apply_readout: `(readout, params, batch) -> loss`, as `apply` with these in the place of the last layer's:
            what gradients with respect to the last layer are taken of. `None` for models without such a layer.
    """

    init: Callable[[Any], Any]
    apply: Callable[[Any, Any], Any]
    partition: Any
    num_params: int
    flops_per_token: float
    config: Any
    readout: Callable[[Any], Any] | None = None
    apply_readout: Callable[[Any, Any, Any], Any] | None = None


def token_loss(result: Any) -> tuple[Array, Array | None]:
    """What `Model.apply` returned, as (loss, regulariser), both f32[b, t]; None where there is no regulariser."""
    loss, regulariser = result if isinstance(result, tuple) else (result, None)
    return loss.astype(jnp.float32), None if regulariser is None else regulariser.astype(jnp.float32)
