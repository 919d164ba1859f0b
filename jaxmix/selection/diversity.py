"""Joint selection for losses that do not interact: good examples that are not all the same.

A criterion `F(A) = Σ_i a_i + Σ_{i<j} w_ij` runs through the loop of JEST unchanged. The redundancy kernels here have
updates that cost less than a tile of pairs, or one tile at most.

Wang, Wu, Song, Mittal, Jia: "GREATS: Online selection of high-quality data for LLM training in every iteration",
NeurIPS 2024.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxmix.core.errors import ConfigError
from jaxmix.core.types import Array, Bool, PRNGKeyArray
from jaxmix.core.validate import check_choice, check_number
from jaxmix.selection import pairwise
from jaxmix.selection.base import Selection, Selector, check_chunks, check_sizes, compute_dtype
from jaxmix.selection.candidates import Candidates, by_row_blocks
from jaxmix.selection.gibbs import GibbsConfig, Interaction, build_select
from jaxmix.selection.jest import FIRST_CHUNKS
from jaxmix.selection.sampling import top_rows

KERNELS = ("linear", "squared", "near_duplicate")


def diverse(
    num_select: int,
    *,
    num_chunks: int = 16,
    strength: float = 1.0,
    kernel: str = "squared",
    width: float = 0.1,
    standardize: bool = True,
    normalize: bool = True,
    gain: float = 1.0,
    greedy: bool = False,
    first_chunk: str = "self",
    sweeps: int = 0,
    num_domains: int | None = None,
    row_block: int | None = None,
    mesh: Mesh | None = None,
) -> Selector:
    r"""Picks examples of high score that are unlike each other.

        F(A) = Σ_{i in A} a_i − λ Σ_{i<j in A} k(z_i, z_j)

    drawn by the loop of `jest`, with the kernels

        linear           k = ⟨z_i, z_j⟩               m ← m + Σ_{k in X} z_k;  penalty z_i · m      O(c d) a chunk
        squared          k = ⟨z_i, z_j⟩²              M ← M + Z_X^T Z_X;       penalty z_i^T M z_i  O(c d²)
        near_duplicate   k = exp((⟨z_i, z_j⟩ − 1)/τ)  a tile of pairs                               O(c d b/N)

    With `standardize`, a is centered and scaled to a standard deviation of 1 over the valid rows, and λ is `strength`
    over the standard deviation of the penalty that b/2 random rows put on the others: at strength 1 both terms weigh
    the same half way through. Otherwise a and λ = strength are taken as they are. τ = width, N = num_chunks,
    X the chunk drawn, c candidates.

    Args:
        num_select: b ≥ 1, a multiple of `num_chunks`.
        num_chunks: N.
        strength: ≥ 0; 0 is `top_learnability`.
        kernel: one of the three. In "linear" the sign matters: opposite vectors attract.
        width: τ > 0, of "near_duplicate".
        standardize: see above.
        normalize: divide the rows of the features by their norm; rows of zeros stay.
        gain: inverse temperature of the draw, ≥ 0.
        greedy: the best instead of a draw.
        first_chunk: see `jest`.
        sweeps: see `jest`.
        num_domains: see `jest`.
        row_block: see `jest`; of "near_duplicate".
        mesh: see `jest`.

    Returns:
        A `Selector` called as `selector(key, scores f[c], features f[c, d], valid=None, *, domain=None, quota=None,
        gain=None)`. The scores may be a learnability, say of `sequence_loss`; the features the reference's mean hidden
        state. `info.positive` is the mean of (standardized) a, `info.negative` that of the penalties.

    Raises:
        ConfigError: an argument is out of range or unknown; when traced, c < b or arrays disagree in shape.

    Numerics: float32 (float64 for float64 features). A penalty that does not differ between rows counts as none.

    Differs from the paper: JEST has no such criterion; UDS and DATAMASK are other selectors by quality and diversity.

    Example:
        >>> z = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
        >>> selector = diverse(2, num_chunks=2, kernel="linear", strength=5.0, standardize=False, greedy=True)
        >>> selector(jax.random.key(0), jnp.array([1.0, 0.9, 0.1, 0.2]), z).indices.tolist()
        [0, 2]

    References:
        arXiv 2406.17711 for the loop.
    """
    return _selector(
        "diverse",
        GibbsConfig(num_select, num_chunks, sweeps, greedy, first_chunk, num_domains),
        strength=strength,
        kernel=kernel,
        width=width,
        standardize=standardize,
        normalize=normalize,
        gain=gain,
        row_block=row_block,
        mesh=mesh,
    )


def greats(
    num_select: int,
    *,
    num_chunks: int = 16,
    step_size: float = 1.0,
    gain: float = 1.0,
    greedy: bool = True,
    mesh: Mesh | None = None,
) -> Selector:
    r"""Picks the examples whose joint gradient step lowers the validation loss most, to second order.

        F(A) = η Σ_i ⟨g_val, g_i⟩ − η² Σ_{i<j} ⟨g_i, g_j⟩

    which is GREATS with the identity in the place of the Hessian, and `diverse` with the linear kernel on gradients.
    η = step_size, g_i the gradient of example i, or a sketch of it that keeps inner products on average.

    Args:
        num_select: b ≥ 1, a multiple of `num_chunks`.
        num_chunks: N; b is GREATS itself, one example after the other.
        step_size: η > 0, of the optimizer step times the number of examples it is a mean of.
        gain: inverse temperature of the draw, ≥ 0.
        greedy: the best instead of a draw.
        mesh: see `jest`.

    Returns:
        A `Selector` called as `selector(key, gradients f[c, r], validation_gradient f[r], valid=None, …)`.

    Raises:
        ConfigError: as `diverse`.

    Differs from the paper: chunks; no ghost inner products, the gradients are an argument.

    Example:
        >>> gradients = jnp.array([[1.0, 0.0], [0.9, 0.0], [0.0, 0.5]])
        >>> selector = greats(2, num_chunks=2)
        >>> selector(jax.random.key(0), gradients, jnp.array([1.0, 1.0])).indices.tolist()
        [0, 2]

    References:
        GREATS, NeurIPS 2024, section 4.
    """
    check_number("greats", "step_size", step_size, above=0)
    inner = _selector(
        "greats",
        GibbsConfig(num_select, num_chunks, greedy=greedy),
        strength=step_size**2,
        kernel="linear",
        width=1.0,
        standardize=False,
        normalize=False,
        gain=gain,
        row_block=None,
        mesh=mesh,
    )

    def select(
        key: PRNGKeyArray,
        gradients: Array,
        validation_gradient: Array,
        valid: Bool[Array, " c"] | None = None,
        **options: Any,
    ) -> Selection:
        if gradients.ndim != 2 or validation_gradient.shape != gradients.shape[1:]:
            raise ConfigError(
                f"gradients of shape {gradients.shape} and a validation gradient of shape {validation_gradient.shape}",
                where="greats: gradients",
                fix="Pass f[c, r] and f[r].",
            )
        scores = jnp.einsum("cr,r->c", gradients, validation_gradient, precision=jax.lax.Precision.HIGHEST)
        return inner(key, step_size * scores, gradients, valid, **options)

    return dataclasses.replace(inner, select=jax.jit(select))


def _selector(
    name: str,
    config: GibbsConfig,
    *,
    strength: float,
    kernel: str,
    width: float,
    standardize: bool,
    normalize: bool,
    gain: float,
    row_block: int | None,
    mesh: Mesh | None,
) -> Selector:
    check_chunks(name, config.num_select, config.num_chunks)
    check_sizes(name, least=0, sweeps=config.sweeps)
    check_sizes(name, num_domains=config.num_domains, row_block=row_block)
    check_number(name, "strength", strength, 0)
    check_number(name, "width", width, above=0)
    check_number(name, "gain", gain, 0)
    check_choice(name, "kernel", kernel, KERNELS)
    check_choice(name, "first_chunk", config.first_chunk, FIRST_CHUNKS)

    def criterion(candidates: Candidates, key: PRNGKeyArray, data: Any, valid: Array) -> Interaction:
        scores, features = data
        if normalize:
            features = _unit(features)
        plain = _redundancy(features, candidates, kernel, width, row_block)._replace(own=scores)
        factor = jnp.asarray(strength, scores.dtype)
        if standardize:
            plain = plain._replace(own=_standardized(scores, valid, candidates))
            factor = factor * _balance(key, plain, valid, candidates, config)
        return plain._replace(shared=lambda total, chunks: -factor * plain.shared(total, chunks))

    def prepare(scores: Array, features: Array) -> tuple[int, tuple[Array, Array]]:
        if features.ndim != 2 or scores.shape != features.shape[:1]:
            raise ConfigError(
                f"scores of shape {scores.shape} and features of shape {features.shape}",
                where=f"{name}: features",
                fix="Pass f[c] and f[c, d].",
            )
        dtype = compute_dtype(features)
        return len(scores), (scores.astype(dtype), features.astype(dtype))

    select = build_select(name, config, prepare, criterion, gain=gain, mesh=mesh)
    return Selector(select, name, config.num_select, config.num_chunks, frozenset({"learner"}))


def _redundancy(
    features: Array, candidates: Candidates, kernel: str, width: float, row_block: int | None
) -> Interaction:
    """The interaction whose shared part is `Σ_{k chosen} k(z_i, z_k)`; its own part is 0."""
    none = jnp.zeros_like(features[:, 0])
    depth, highest = features.shape[1], jax.lax.Precision.HIGHEST

    def tile(indices: Array) -> Array:
        members = candidates.fetch(features, indices)

        def block(part: Array) -> Array:
            near = jnp.exp((pairwise.pair_products(members, part) - 1.0) / width)
            return jnp.sum(jnp.where(indices[:, None] >= 0, near, 0.0), axis=0)

        return by_row_blocks(block, features, indices.shape[0], row_block)

    def second_moment(indices: Array) -> Array:
        members = candidates.fetch(features, indices)
        return jnp.einsum("kd,ke->de", members, members, precision=highest)

    nothing, contribute, shared = {
        "linear": (
            jnp.zeros((depth,), features.dtype),
            lambda indices: jnp.sum(candidates.fetch(features, indices), axis=0),
            lambda total: jnp.einsum("cd,d->c", features, total, precision=highest),
        ),
        "squared": (
            jnp.zeros((depth, depth), features.dtype),
            second_moment,
            lambda total: jnp.sum(jnp.einsum("cd,de->ce", features, total, precision=highest) * features, axis=1),
        ),
        "near_duplicate": (none, tile, lambda total: total),
    }[kernel]
    return Interaction(
        own=none,
        nothing=nothing,
        contribute=contribute,
        join=lambda stack: jnp.sum(stack, axis=0),
        shared=lambda total, chunks: shared(total),
    )


def _unit(features: Array) -> Array:
    norm = jnp.sqrt(jnp.sum(jnp.square(features), axis=1, keepdims=True))
    return features / jnp.where(norm > 0, norm, 1.0)


def _moments(values: Array, counted: Array, candidates: Candidates) -> tuple[Array, Array]:
    """Mean and standard deviation over the rows that count and are finite."""
    everything, counts = candidates.gather(values), candidates.gather(counted)
    counts = counts & jnp.isfinite(everything)
    everything, number = jnp.where(counts, everything, 0.0), jnp.maximum(jnp.sum(counts.astype(values.dtype)), 1.0)
    mean = jnp.sum(everything) / number
    return mean, jnp.sqrt(jnp.sum(jnp.where(counts, jnp.square(everything - mean), 0.0)) / number)


def _standardized(scores: Array, valid: Array, candidates: Candidates) -> Array:
    mean, spread = _moments(scores, valid, candidates)
    return (scores - mean) / jnp.where(spread > 0, spread, 1.0)


def _balance(key: PRNGKeyArray, plain: Interaction, valid: Array, candidates: Candidates, config: GibbsConfig) -> Array:
    """One over the standard deviation of what half a selection of random rows puts on the others; 0 if that is 0."""
    half = max(1, config.num_select // 2)
    lot = jax.random.uniform(key, (candidates.total,), plain.own.dtype)
    chosen = top_rows(jnp.where(candidates.gather(valid), lot, -jnp.inf), half)
    size = max(1, config.num_select // config.num_chunks)
    padded = jnp.pad(chosen, (0, -half % size), constant_values=-1).reshape(-1, size)
    total, _ = jax.lax.scan(
        lambda sums, part: (jax.tree.map(jnp.add, sums, plain.contribute(part)), None), plain.nothing, padded
    )
    penalty = plain.shared(total, padded)
    mean, spread = _moments(penalty, candidates.mark(valid, chosen, False), candidates)
    # Rounding alone makes equal penalties differ by a few parts in 10⁷.
    is_flat = spread <= 1e-5 * jnp.abs(mean)
    return jnp.where(is_flat, 0.0, 1.0 / jnp.where(is_flat, 1.0, spread))
