"""Contrastive losses of an image–text batch (SigLIP, CLIP), computed without a whole matrix of logits.

Letters: b pairs of the whole batch, m images and n texts of one tile of logits, d width of the common space.

    l_ij = t ⟨u_i, v_j⟩ + β

A tile is computed, used and forgotten; the backward pass computes it again. On a mesh every device keeps its images
and the texts travel around a ring, so that no device holds more than the logits of its images and one device's texts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from jaxmix.core.errors import ConfigError, nearest
from jaxmix.core.sharding import batch_spec, shard_map, sum_over
from jaxmix.core.types import Array, Float
from jaxmix.models.precision import wide_dtype

_ROW_AXES = ("data", "fsdp")


def sigmoid_loss(
    image: Float[Array, "b d"],
    text: Float[Array, "b d"],
    temperature: Float[Array, ""] | float,
    bias: Float[Array, ""] | float,
    *,
    block: int | None = None,
) -> Float[Array, ""]:
    """SigLIP's loss, mean over the rows of the sum over all pairs of a row.

        (1/b) Σ_i Σ_j softplus(z_ij l_ij),   z_ij = −1 if i = j else 1

    Symbols: u image, v text, t temperature, β bias, b rows.

    Args:
        image: embeddings of length 1; row i belongs to row i of `text`.
        text: the same.
        temperature: the factor of the cosines itself, > 0 (not its logarithm).
        bias: added to every logit.
        block: images whose logits exist at a time; None: all. Less memory (block · b floats), the same value up to
            rounding, and one more product in the backward pass.

    Returns:
        The loss, nats; float32 (float64 if the embeddings are).

    Raises:
        ConfigError: the shapes differ, or block < 1.

    >>> rows = jnp.eye(4)
    >>> print(f"{sigmoid_loss(rows, rows, 10.0, -5.0):.4f}")
    0.0269

    References:
        Zhai et al., "Sigmoid Loss for Language Image Pre-Training", arXiv 2303.15343, equation 1.
    """
    _check(image, text, block)
    return _sigmoid_total(image, text, temperature, bias, block=block, is_own=True) / image.shape[0]


def softmax_loss(
    image: Float[Array, "b d"],
    text: Float[Array, "b d"],
    temperature: Float[Array, ""] | float,
    bias: Float[Array, ""] | float = 0.0,
    *,
    block: int | None = None,
) -> Float[Array, ""]:
    """CLIP's loss: cross-entropy of finding the text of an image, and the image of a text, half each.

        (1/b) Σ_i [ −l_ii + ½ log Σ_j exp l_ij + ½ log Σ_j exp l_ji ]

    Arguments, result and errors as in `sigmoid_loss`. A bias would cancel: it is accepted so that both losses are
    called alike, and not used.

    References:
        Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", arXiv 2103.00020,
        figure 3.
    """
    del bias
    _check(image, text, block)
    rows, columns = _normalizers(image, text, temperature, block=block)
    return (_softmax_total(image, text, temperature, rows) + 0.5 * jnp.sum(columns)) / image.shape[0]


def sharded_loss(mesh: Mesh, *, loss: str = "sigmoid", block: int | None = None) -> Callable[..., Any]:
    """The loss of a batch whose rows lie over the axes `data` and `fsdp` of a mesh.

    Each of the P devices computes its b/P images against its own texts; then the texts go to the next device, P − 1
    times. For the softmax the sums over images travel with the texts they belong to. Per device the largest tile is
    [b/P, b/P] floats (or [block, b/P]), what is sent b/P · d floats a step, and the backward pass keeps the texts of
    all steps: b · d floats. The same value and gradient as on one device, up to rounding.

    Args:
        mesh: as from `jaxmix.core.sharding.build_mesh`.
        loss: "sigmoid" or "softmax".
        block: as in `sigmoid_loss`, images per tile on a device.

    Returns:
        `(image, text, temperature, bias) -> scalar`, replicated. Jit-able, differentiable; b must be a multiple of
        data × fsdp.

    Raises:
        ConfigError: unknown loss; from the function, as in `sigmoid_loss`, or rows that do not divide over the devices.

    >>> from jaxmix.core.sharding import build_mesh
    >>> rows = jnp.eye(8)
    >>> loss = sharded_loss(build_mesh(devices=jax.devices()[:1]))
    >>> print(f"{loss(rows, rows, 10.0, -5.0):.4f}")
    0.0537
    """
    totals = {"sigmoid": _ring_sigmoid, "softmax": _ring_softmax}
    if loss not in totals:
        raise ConfigError(f"unknown loss {loss!r}", where="loss", fix=nearest(loss, totals))
    devices = math.prod(mesh.shape[axis] for axis in _ROW_AXES)

    def local(image: Array, text: Array, temperature: Array, bias: Array) -> Array:
        total = totals[loss](image, text, temperature, bias, devices=devices, block=block)
        return sum_over(total, _ROW_AXES) / (devices * image.shape[0])

    mapped = shard_map(
        local,
        mesh,
        in_specs=(batch_spec(), batch_spec(), PartitionSpec(), PartitionSpec()),
        out_specs=PartitionSpec(),
    )

    def apply(
        image: Float[Array, "b d"],
        text: Float[Array, "b d"],
        temperature: Float[Array, ""] | float,
        bias: Float[Array, ""] | float = 0.0,
    ) -> Float[Array, ""]:
        _check(image, text, block)
        if image.shape[0] % devices:
            raise ConfigError(
                f"{image.shape[0]} pairs cannot be divided over {devices} devices (data x fsdp)",
                where="batch_size",
                fix=f"Use a multiple of {devices}.",
            )
        wide = wide_dtype(image.dtype)
        return mapped(image, text, jnp.asarray(temperature, wide), jnp.asarray(bias, wide))

    return apply


def _ring_sigmoid(
    image: Array, text: Array, temperature: Array, bias: Array, *, devices: int, block: int | None
) -> Array:
    own = _sigmoid_total(image, text, temperature, bias, block=block, is_own=True)
    tile = jax.checkpoint(lambda *a: _sigmoid_total(*a, block=block, is_own=False))

    def hop(text: Array, _: None) -> tuple[Array, Array]:
        text = _pass_on(text, devices)
        return text, tile(image, text, temperature, bias)

    _, others = jax.lax.scan(hop, text, None, length=devices - 1)
    return own + jnp.sum(others)


def _ring_softmax(
    image: Array, text: Array, temperature: Array, bias: Array, *, devices: int, block: int | None
) -> Array:
    del bias
    own_rows, columns = _normalizers(image, text, temperature, block=block)
    tile = jax.checkpoint(lambda *a: _normalizers(*a, block=block))

    def hop(carry: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], Array]:
        text, columns = (_pass_on(x, devices) for x in carry)
        rows, more = tile(image, text, temperature)
        return (text, jnp.logaddexp(columns, more)), rows

    (_, columns), rows = jax.lax.scan(hop, (text, columns), None, length=devices - 1)
    rows = jax.nn.logsumexp(jnp.concatenate([own_rows[None], rows]), axis=0)
    # The columns end one device short of home, which a sum over all devices does not mind.
    return _softmax_total(image, text, temperature, rows) + 0.5 * jnp.sum(columns)


def _pass_on(x: Array, devices: int) -> Array:
    return jax.lax.ppermute(x, _ROW_AXES, [(i, (i + 1) % devices) for i in range(devices)])


def _sigmoid_total(image: Array, text: Array, temperature: Any, bias: Any, *, block: int | None, is_own: bool) -> Array:
    """Σ over all pairs of the tile; `is_own`: image i belongs to text i, otherwise no two belong together."""

    def total(image: Array, first: Array) -> Array:
        logits = _logits(image, text, temperature, bias)
        if is_own:
            index = jnp.arange(text.shape[0], dtype=jnp.int32)
            is_pair = (first + jnp.arange(image.shape[0], dtype=jnp.int32))[:, None] == index[None, :]
            logits = jnp.where(is_pair, -logits, logits)
        return jnp.sum(jax.nn.softplus(logits))

    return jnp.sum(_by_blocks(total, image, block))


def _normalizers(image: Array, text: Array, temperature: Any, *, block: int | None) -> tuple[Array, Array]:
    """(log Σ_j exp l_ij for the images i, log Σ_i exp l_ij for the texts j) of one tile."""

    def sums(image: Array, first: Array) -> tuple[Array, Array]:
        del first
        logits = _logits(image, text, temperature, 0.0)
        return jax.nn.logsumexp(logits, axis=1), jax.nn.logsumexp(logits, axis=0)[None]

    rows, columns = _by_blocks(sums, image, block)
    return rows, jax.nn.logsumexp(columns, axis=0)


def _softmax_total(image: Array, text: Array, temperature: Any, rows: Array) -> Array:
    """Σ_i (½ log Σ_j exp l_ij − l_ii): all but the texts' half."""
    wide = wide_dtype(image.dtype)
    cosine = jnp.sum(image.astype(wide) * text.astype(wide), axis=1)
    return jnp.sum(0.5 * rows - jnp.asarray(temperature, wide) * cosine)


def _logits(image: Array, text: Array, temperature: Any, bias: Any) -> Array:
    """Float32 products also where the default is less (TF32, bfloat16 passes): t multiplies their error."""
    wide = wide_dtype(image.dtype)
    cosine = jnp.einsum("md,nd->mn", image, text, preferred_element_type=wide, precision=jax.lax.Precision.HIGHEST)
    return jnp.asarray(temperature, wide) * cosine + jnp.asarray(bias, wide)


def _by_blocks(function: Callable[[Array, Array], Any], image: Array, block: int | None) -> Any:
    """`function(images of a block, index of its first)` for every block, results joined along the first axis.

    Scalars count as [1]. A last block may be shorter. The backward pass computes each block again.
    """

    def call(image: Array, first: Array) -> Any:
        return jax.tree.map(jnp.atleast_1d, function(image, first))

    rows = image.shape[0]
    if block is None or block >= rows:
        return call(image, jnp.int32(0))
    one_block = jax.checkpoint(call)
    whole = rows // block * block
    starts = jnp.arange(0, whole, block, dtype=jnp.int32)
    parts = jax.lax.map(lambda x: one_block(*x), (image[:whole].reshape(-1, block, image.shape[1]), starts))
    parts = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), parts)
    if whole == rows:
        return parts
    rest = one_block(image[whole:], jnp.int32(whole))
    return jax.tree.map(lambda x, y: jnp.concatenate([x, y]), parts, rest)


def _check(image: Array, text: Array, block: int | None) -> None:
    if image.ndim != 2 or image.shape != text.shape or image.shape[0] < 1:
        raise ConfigError(
            f"images and texts must be embeddings [b, d] of one and the same shape, b ≥ 1, got {list(image.shape)} and "
            f"{list(text.shape)}",
            where="image, text",
        )
    if block is not None and block < 1:
        raise ConfigError(f"block must be at least 1, got {block}", where="block", fix="None computes all at once.")
