"""Models as the train loop sees them: bundles of functions and values, no classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxmix.core.types import Array


class Decoding(NamedTuple):
    """Several continuations of each prompt, token by token; the prompt is computed once for all of them.

    Prompts are padded on the left; `valid` bool[b, p] says which of their slots are tokens. Of n continuations the
    next token stands at position p, whatever the padding. A cache is a tree of arrays, its form the model's business.

    Attributes:
        prefill: `(params, prompts i32[b, p], valid, num_continuations, length) -> (logits f32[b, v], cache)`: what
            follows the prompt, and a cache with room for `length` tokens of n continuations (both static).
        extend: `(params, tokens i32[b, n], index i32[], cache) -> (logits f32[b, n, v], cache)`: appends the token at
            place `index` of each continuation and returns what follows it.
        score: `(params, prompts i32[b, p], valid, continuations i32[b, n, t], counted bool[b, n, t], temperature=1.0)
            -> f32[b, n, t]`: the log-probability of every token at a static temperature, 0 where not counted. May be
            differentiated.
    """

    prefill: Callable[..., tuple[Any, Any]]
    extend: Callable[..., tuple[Any, Any]]
    score: Callable[..., Any]


class Model(NamedTuple):
    """A model as a bundle of pure functions and what can be said about it without running it.

    Attributes:
        init: `key -> params`, a nested dictionary of float32 arrays. Pure; jit it with `out_shardings` to create a
            model that no single device could hold.
        apply: `(params, batch) -> loss`, f32[b, t]: nats per token, 0 where `batch["targets"] < 0`; or
            `(loss, regularizer)`, both f32[b, t], the regularizer being added for the gradient only. Pure; may be
            jitted, differentiated and vmapped over stacked params.
        partition: tree of `PartitionSpec` like the params, over the mesh axes "fsdp" and "tensor"; None means that
            every device holds all parameters.
        num_params: number of parameters, embedding included.
        flops_per_token: floating-point operations of one token's forward and backward pass.
        config: the settings the model was made from.
        readout: `(params) -> tree` of the last layer's parameters alone, and
        apply_readout: `(readout, params, batch) -> loss`, as `apply` with these in the place of the last layer's:
            what gradients with respect to the last layer are taken of. `None` for models without such a layer.
        decoding: for rollouts; `None` for models that are not made for them.
    """

    init: Callable[[Any], Any]
    apply: Callable[[Any, Any], Any]
    partition: Any
    num_params: int
    flops_per_token: float
    config: Any
    readout: Callable[[Any], Any] | None = None
    apply_readout: Callable[[Any, Any, Any], Any] | None = None
    decoding: Decoding | None = None


def token_loss(result: Any) -> tuple[Array, Array | None]:
    """What `Model.apply` returned, as (loss, regularizer), both f32[b, t]; None where there is no regularizer."""
    loss, regularizer = result if isinstance(result, tuple) else (result, None)
    return loss.astype(jnp.float32), None if regularizer is None else regularizer.astype(jnp.float32)
