"""k-means with k-means++ seeds and restarts, in a fixed number of iterations."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmix.core.types import Array, Bool, Float, Int, PRNGKeyArray

_LARGEST_BLOCK = 5 * 10**7  # entries of a distance matrix that is written down at once


class KMeansResult(NamedTuple):
    """Attributes:
    labels: i32[n], nearest centroid of every row.
    centroids: f32[k, d].
    inertia: f32[], `Σ_i |f_i − c_{a(i)}|²` over the rows that count.
    """

    labels: Int[Array, " n"]
    centroids: Float[Array, "k d"]
    inertia: Float[Array, ""]


class _Assignment(NamedTuple):
    labels: Any
    distance: Any  # f[n], squared, to the nearest centroid
    sums: Any  # f[k, d], over the rows that count
    counts: Any  # f[k]


def assign(x: Float[Array, "n d"], counts: Bool[Array, " n"], centroids: Float[Array, "k d"]) -> _Assignment:
    """Nearest centroids by `|x|² − 2 x·c + |c|²`, in blocks of rows where n k is large. Ties go to the lower label."""
    n, k = x.shape[0], centroids.shape[0]
    rows = max(1, min(n, _LARGEST_BLOCK // k))
    if rows >= n:
        return _assign_block(x, counts, centroids)
    blocks = -(-n // rows)
    pad = blocks * rows - n
    padded = jnp.pad(x, ((0, pad), (0, 0))).reshape(blocks, rows, -1)
    flags = jnp.pad(counts, (0, pad)).reshape(blocks, rows)
    found = jax.lax.map(lambda block: _assign_block(block[0], block[1], centroids), (padded, flags))
    return _Assignment(
        labels=found.labels.ravel()[:n],
        distance=found.distance.ravel()[:n],
        sums=jnp.sum(found.sums, axis=0),
        counts=jnp.sum(found.counts, axis=0),
    )


def lloyd(
    x: Float[Array, "n d"], counts: Bool[Array, " n"], centroids: Float[Array, "k d"], num_iters: int
) -> KMeansResult:
    """`num_iters` Lloyd steps from the given centroids, then a last assignment.

    A centroid without rows moves to the row farthest from its own centroid; the second such one to the second farthest.
    """
    k = centroids.shape[0]
    far = min(k, x.shape[0])

    def step(_: Any, centroids: Array) -> Array:
        found = assign(x, counts, centroids)
        means = found.sums / jnp.maximum(found.counts, 1.0)[:, None]
        is_empty = found.counts == 0
        rows = jax.lax.top_k(jnp.where(counts, found.distance, -1.0), far)[1]
        rank = jnp.clip(jnp.cumsum(is_empty) - 1, 0, far - 1)
        return jnp.where(is_empty[:, None], x[rows[rank]], means)

    centroids = jax.lax.fori_loop(0, num_iters, step, centroids)
    found = assign(x, counts, centroids)
    return KMeansResult(found.labels, centroids, jnp.sum(jnp.where(counts, found.distance, 0.0)))


def fit_kmeans(
    key: PRNGKeyArray,
    x: Float[Array, "n d"],
    *,
    num_clusters: int,
    num_iters: int = 50,
    restarts: int = 4,
    counts: Bool[Array, " n"] | None = None,
) -> KMeansResult:
    """The best of several k-means fits by inertia.

    Args:
        key: typed key.
        x: f32[n, d], finite.
        num_clusters: k.
        num_iters: Lloyd steps of each fit.
        restarts: fits, each from its own k-means++ seeds; one after another, to save memory.
        counts: bool[n], False for rows that get a label and have no say.
    """
    flags = jnp.ones(x.shape[:1], jnp.bool_) if counts is None else counts
    run = lambda seed: lloyd(x, flags, _seeds(seed, x, flags, num_clusters), num_iters)
    fits = jax.lax.map(run, jax.random.split(key, restarts))
    best = jnp.argmin(fits.inertia)
    return jax.tree.map(lambda leaf: leaf[best], fits)


def _assign_block(x: Array, counts: Array, centroids: Array) -> _Assignment:
    precise = jax.lax.Precision.HIGHEST
    product = jnp.matmul(x, centroids.T, precision=precise)
    squares = jnp.sum(centroids**2, axis=1)[None, :] - 2.0 * product
    labels = jnp.argmin(squares, axis=1).astype(jnp.int32)
    # The difference itself, which is exactly 0 for a row that is its centroid.
    distance = jnp.sum((x - centroids[labels]) ** 2, axis=1)
    # A product with one-hot rows and not a scatter-add, whose order of additions is not fixed on GPUs.
    member = jax.nn.one_hot(labels, centroids.shape[0], dtype=x.dtype) * counts.astype(x.dtype)[:, None]
    return _Assignment(labels, distance, jnp.matmul(member.T, x, precision=precise), jnp.sum(member, axis=0))


def _seeds(key: PRNGKeyArray, x: Array, counts: Array, num_clusters: int) -> Float[Array, "k d"]:
    """k-means++: every further seed is a row drawn in proportion to its squared distance from those before."""
    first_key, *keys = jax.random.split(key, num_clusters)
    first = jax.random.categorical(first_key, jnp.where(counts, 0.0, -jnp.inf))
    centroids = jnp.zeros((num_clusters, x.shape[1]), x.dtype).at[0].set(x[first])
    if num_clusters == 1:
        return centroids
    nearest = jnp.sum((x - x[first][None, :]) ** 2, axis=1)

    def step(carry: tuple[Array, Array], given: tuple[Array, Array]) -> tuple[tuple[Array, Array], None]:
        centroids, nearest = carry
        i, key = given
        # Fewer different rows than clusters: any row that counts.
        is_left = jnp.any(counts & (nearest > 0))
        log = jnp.where(is_left, jnp.log(nearest), 0.0)
        row = jax.random.categorical(key, jnp.where(counts, log, -jnp.inf))
        nearest = jnp.minimum(nearest, jnp.sum((x - x[row][None, :]) ** 2, axis=1))
        return (centroids.at[i].set(x[row]), nearest), None

    order = jnp.arange(1, num_clusters)
    return jax.lax.scan(step, (centroids, nearest), (order, jnp.stack(keys)))[0][0]
