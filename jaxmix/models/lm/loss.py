"""Loss per token from hidden states, without ever holding the logits of a large vocabulary at once."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxmix.core.types import Array, Float, TokenIds
from jaxmix.models.precision import wide_dtype


def token_losses(
    hidden: Float[Array, "b t d"], readout: Float[Array, "v d"], targets: TokenIds, *, chunk: int = 0
) -> tuple[Float[Array, "b t"], Float[Array, "b t"]]:
    """Cross-entropy of every token and the log of the softmax's denominator.

        loss = log Σ_v exp(z_v) − z_target,   z = readout · hidden

    Args:
        hidden: final hidden states in the compute dtype.
        readout: the embedding table or the output matrix, one row per word, in the compute dtype.
        targets: next tokens; negative means "no loss here".
        chunk: positions whose logits exist at a time; 0: all. The backward pass computes each chunk's logits again.

    Returns:
        (loss, log_normalizer), nats; both 0 where the target is negative.

    Numerics: products accumulate in float32 and everything after them is float32 (float64 if the input is).
    """
    length = hidden.shape[1]
    if not 0 < chunk < length:
        return _losses(hidden, readout, targets)

    @jax.checkpoint
    def piece(part: tuple[Array, Array]) -> tuple[Array, Array]:
        return _losses(part[0], readout, part[1])

    whole = length // chunk * chunk
    parts = (_split(hidden[:, :whole], chunk), _split(targets[:, :whole], chunk))
    results = [_join(result) for result in jax.lax.map(piece, parts)]
    if whole < length:
        rest = piece((hidden[:, whole:], targets[:, whole:]))
        results = [jnp.concatenate(pair, axis=1) for pair in zip(results, rest, strict=True)]
    return results[0], results[1]


def _losses(hidden: Array, readout: Array, targets: Array) -> tuple[Array, Array]:
    wide = wide_dtype(hidden.dtype)
    logits = jnp.einsum("btd,vd->btv", hidden, readout, preferred_element_type=wide)
    log_normalizer = jax.nn.logsumexp(logits, axis=-1)
    # A comparison instead of a gather: its gradient is elementwise too, where a gather's would be a scatter.
    is_target = jnp.arange(readout.shape[0], dtype=targets.dtype)[None, None, :] == targets[:, :, None]
    at_target = jnp.sum(jnp.where(is_target, logits, 0.0), axis=-1)
    has_loss = targets >= 0
    return jnp.where(has_loss, log_normalizer - at_target, 0.0), jnp.where(has_loss, log_normalizer, 0.0)


def _split(x: Array, chunk: int) -> Array:
    """[b, n · chunk, …] → [n, b, chunk, …]"""
    return jnp.swapaxes(x.reshape(x.shape[0], -1, chunk, *x.shape[2:]), 0, 1)


def _join(x: Array) -> Array:
    """[n, b, chunk] → [b, n · chunk]"""
    return jnp.swapaxes(x, 0, 1).reshape(x.shape[1], -1)
