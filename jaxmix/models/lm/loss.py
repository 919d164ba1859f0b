"""Loss per token from hidden states, without all logits of a large vocabulary in memory at once."""

from __future__ import annotations

import functools
from typing import Any

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

    Numerics: products accumulate in float32 and everything after them is float32 (float64 if the input is). With
    16-bit inputs the gradient with respect to the logits is rounded to their type before the two products that it
    goes into, and the readout's gradient is added up over the chunks in float32.
    """
    length = hidden.shape[1]
    if hidden.dtype != wide_dtype(hidden.dtype):
        return _rounded_losses(hidden, readout, targets, chunk if 0 < chunk < length else length)
    if not 0 < chunk < length:
        return _losses(hidden, readout, targets)

    @jax.checkpoint
    def piece(part: tuple[Array, Array]) -> tuple[Array, Array]:
        return _losses(part[0], readout, part[1])

    return _by_chunks(piece, (hidden, targets), chunk)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _rounded_losses(hidden: Array, readout: Array, targets: Array, chunk: int) -> tuple[Array, Array]:
    """`token_losses` of 16-bit inputs with a backward pass of its own.

    Left to itself, the logits' float32 gradient makes both backward products float32, at half the rate of bfloat16 on
    a GPU or less, and softmax's two reductions are done over again although the forward pass has their result.
    """
    return _by_chunks(lambda part: _losses(part[0], readout, part[1]), (hidden, targets), chunk)


def _rounded_losses_forward(hidden: Array, readout: Array, targets: Array, chunk: int) -> tuple[Any, Any]:
    loss, log_normalizer = _rounded_losses(hidden, readout, targets, chunk)
    return (loss, log_normalizer), (hidden, readout, targets, log_normalizer)


def _rounded_losses_backward(chunk: int, kept: Any, gradients: tuple[Array, Array]) -> tuple[Array, Array, None]:
    hidden, readout, targets, log_normalizer = kept

    def add(total: Array, part: Any) -> tuple[Array, Array]:
        hidden, targets, log_normalizer, of_loss, of_normalizer = part
        chances = jnp.exp(_logits(hidden, readout) - log_normalizer[:, :, None])
        gradient = chances * (of_loss + of_normalizer)[:, :, None]
        gradient = gradient - jnp.where(_is_target(readout, targets), of_loss[:, :, None], 0.0)
        gradient = jnp.where(targets[:, :, None] >= 0, gradient, 0.0).astype(hidden.dtype)
        of_readout = jnp.einsum("btv,btd->vd", gradient, hidden, preferred_element_type=total.dtype)
        return total + of_readout, jnp.einsum("btv,vd->btd", gradient, readout)

    parts, rest = _cut((hidden, targets, log_normalizer, *gradients), chunk)
    total, pieces = jax.lax.scan(add, jnp.zeros(readout.shape, wide_dtype(readout.dtype)), parts)
    of_hidden = _join(pieces)
    if rest is not None:
        total, last = add(total, rest)
        of_hidden = jnp.concatenate([of_hidden, last], axis=1)
    return of_hidden, total.astype(readout.dtype), None


_rounded_losses.defvjp(_rounded_losses_forward, _rounded_losses_backward)


def _losses(hidden: Array, readout: Array, targets: Array) -> tuple[Array, Array]:
    logits = _logits(hidden, readout)
    log_normalizer = jax.nn.logsumexp(logits, axis=-1)
    at_target = jnp.sum(jnp.where(_is_target(readout, targets), logits, 0.0), axis=-1)
    has_loss = targets >= 0
    return jnp.where(has_loss, log_normalizer - at_target, 0.0), jnp.where(has_loss, log_normalizer, 0.0)


def _logits(hidden: Array, readout: Array) -> Array:
    return jnp.einsum("btd,vd->btv", hidden, readout, preferred_element_type=wide_dtype(hidden.dtype))


def _is_target(readout: Array, targets: Array) -> Array:
    """bool[b, t, v]. A comparison and not a gather: its gradient is elementwise too, a gather's would be a scatter."""
    return jnp.arange(readout.shape[0], dtype=targets.dtype)[None, None, :] == targets[:, :, None]


def _by_chunks(piece: Any, arrays: tuple[Array, ...], chunk: int) -> tuple[Array, Array]:
    """`piece` of the chunks of positions, one after the other, put together again."""
    parts, rest = _cut(arrays, chunk)
    results = [_join(result) for result in jax.lax.map(piece, parts)]
    if rest is not None:
        results = [jnp.concatenate(pair, axis=1) for pair in zip(results, piece(rest), strict=True)]
    return results[0], results[1]


def _cut(arrays: tuple[Array, ...], chunk: int) -> tuple[tuple[Array, ...], tuple[Array, ...] | None]:
    """[b, t, …] → chunks [n, b, chunk, …], and what is left of the positions, or None."""
    length = arrays[0].shape[1]
    whole = length // chunk * chunk
    split = lambda x: jnp.swapaxes(x[:, :whole].reshape(x.shape[0], -1, chunk, *x.shape[2:]), 0, 1)
    return tuple(map(split, arrays)), None if whole == length else tuple(x[:, whole:] for x in arrays)


def _join(x: Array) -> Array:
    """[n, b, chunk, …] → [b, n · chunk, …]"""
    x = jnp.swapaxes(x, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])
