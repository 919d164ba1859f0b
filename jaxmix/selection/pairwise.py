"""Reductions over the pairs of a candidate with the members of a chunk, from embeddings, without keeping any pair.

Tiles are [k, c]: members of the chunk in front, candidates behind. Every reduction then runs along the first axis,
which vectorizes over candidates.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxmix.core.types import Array, Bool, Float
from jaxmix.selection.base import compute_dtype

_GROUP = 16
"""Factors multiplied before one logarithm; each is at most 2, so that up to 127 would fit float32."""


def _precision(x: Array) -> jax.lax.Precision:
    # A matrix unit would round float32 to TF32 or bfloat16. Pass bfloat16 embeddings for its speed.
    return jax.lax.Precision.HIGHEST if x.dtype.itemsize >= 4 else jax.lax.Precision.DEFAULT


def pair_products(chunk: Float[Array, "k d"], rows: Float[Array, "c d"]) -> Float[Array, "k c"]:
    """`⟨chunk_k, row_i⟩`, accumulated in float32 at least."""
    return jnp.einsum("kd,cd->kc", chunk, rows, precision=_precision(rows), preferred_element_type=compute_dtype(rows))


def diagonal(
    image: Float[Array, "c d"], text: Float[Array, "c d"], temperature: Float[Array, ""] | float
) -> Float[Array, " c"]:
    """`t ⟨image_i, text_i⟩`."""
    dtype = compute_dtype(image)
    return jnp.sum(temperature * image.astype(dtype) * text.astype(dtype), axis=1)


def logits(
    chunk: Float[Array, "k d"],
    rows: Float[Array, "c d"],
    temperature: Float[Array, ""] | float,
    bias: Float[Array, " k"],
    hidden: Bool[Array, "k c"] | None = None,
) -> Float[Array, "k c"]:
    """`t ⟨chunk_k, row_i⟩ + bias_k`; −inf for the pairs that are hidden. A bias of −inf leaves out a member."""
    found = temperature * pair_products(chunk, rows) + bias[:, None]
    return found if hidden is None else jnp.where(hidden, -jnp.inf, found)


def softplus_sum(x: Float[Array, "k c"]) -> Float[Array, " c"]:
    r"""`Σ_k log(1 + e^{x_k})` with one logarithm for 16 members.

        Σ_k log(1 + e^{x_k}) = Σ_k max(x_k, 0) + log Π_k (1 + e_k),      e_k = e^{−|x_k|} in (0, 1]

    The product is carried as q = Π(1 + e_k) − 1 through `q ← q + e_k (1 + q)`, in which nothing cancels.
    """
    members = x.shape[0]
    group = next(size for size in range(min(_GROUP, members), 0, -1) if members % size == 0)
    width = members // group
    linear = product = jnp.zeros((width, x.shape[1]), x.dtype)
    for part in (x[g * width : (g + 1) * width] for g in range(group)):
        product = product + jnp.exp(-jnp.abs(part)) * (1.0 + product)
        linear = linear + jnp.maximum(part, 0.0)
    return jnp.sum(linear + jnp.log1p(product), axis=0)


def logsumexp(x: Float[Array, "k c"]) -> Float[Array, " c"]:
    """`log Σ_k e^{x_k}`, −inf where all are −inf."""
    top = jnp.max(x, axis=0)
    top = jnp.where(jnp.isfinite(top), top, 0.0)
    return top + jnp.log(jnp.sum(jnp.exp(x - top[None, :]), axis=0))
