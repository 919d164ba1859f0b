"""The gradient of a contrastive loss over a whole batch, computed micro-batch by micro-batch.

Summing the losses of micro-batches is not the loss of the batch: the negatives of an example would come
from its own micro-batch only. Exact is the chain rule, cut at the embeddings.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxmix.core.errors import ConfigError
from jaxmix.core.types import Array
from jaxmix.train.run.micro_batches import rejoin, split_rows


def build_contrastive_gradient(
    embed: Callable[[Any, Array, Array], tuple[Array, Array]],
    scale: Callable[[Any], tuple[Array, Array]],
    loss: Callable[..., Array],
    *,
    accumulate: int = 1,
) -> Callable[..., tuple[Array, Any]]:
    r"""Builds `gradient(params, images, tokens, first=None) -> (loss, grads)` of one loss over all b rows.

    With u, v the embeddings of all rows, cut into micro-batches m, and L the loss,

        dL/dθ = Σ_m ( ∂L/∂u_m · ∂u_m/∂θ + ∂L/∂v_m · ∂v_m/∂θ ) + ∂L/∂(t, β) · ∂(t, β)/∂θ

    First all embeddings without keeping activations, then ∂L/∂u and ∂L/∂v from them (b × d numbers), then for each
    micro-batch the forward pass again and its pull-back. The same gradient as with one batch, up to the rounding of
    another order of sums; the memory of one micro-batch's activations; one forward pass more. `embed` must be
    deterministic.

    Args:
        embed: `(params, images [r, …], tokens [r, t]) -> (image, text)`, each [r, d].
        scale: `params -> (temperature, bias)`.
        loss: `(image, text, temperature, bias) -> f32[]`.
        accumulate: micro-batches; must divide b. With 1 this is plain differentiation.

    Returns:
        The function. Its `first`, (image, text) of all rows computed with the same parameters and pixels elsewhere,
        saves the first pass.

    References:
        Gao, Zhang, Han, Callan: "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup",
        arXiv 2101.06983.
    """
    if accumulate < 1:
        raise ConfigError(f"accumulate must be at least 1, got {accumulate}", where="train.accumulate")

    def whole(params: Any, images: Array, tokens: Array, first: Any = None) -> tuple[Array, Any]:
        del first
        return jax.value_and_grad(lambda params: loss(*embed(params, images, tokens), *scale(params)))(params)

    def accumulated(params: Any, images: Array, tokens: Array, first: Any = None) -> tuple[Array, Any]:
        micros = (split_rows(images, accumulate), split_rows(tokens, accumulate))
        if first is None:
            first = jax.tree.map(rejoin, jax.lax.map(lambda micro: embed(params, *micro), micros))

        def of_embeddings(embedded: Any, params: Any) -> Array:
            return loss(*embedded, *scale(params))

        value, (wanted, grads) = jax.value_and_grad(of_embeddings, argnums=(0, 1))(first, params)

        def add(grads: Any, part: Any) -> tuple[Any, None]:
            micro, cotangent = part
            pull_back = jax.vjp(lambda params: embed(params, *micro), params)[1]
            return jax.tree.map(jnp.add, grads, pull_back(cotangent)[0]), None

        cotangents = jax.tree.map(lambda x: split_rows(x, accumulate), tuple(wanted))
        return value, jax.lax.scan(add, grads, (micros, cotangents))[0]

    return whole if accumulate == 1 else accumulated
