"""k-means on rows of any length, as one program: Lloyd's iterations from k-means++ seeds."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmix.clustering.em.block_sums import LinearRule, linear_labels, linear_pass
from jaxmix.clustering.seeding import kmeans_plus_plus
from jaxmix.core.types import Array, Float, Int, PRNGKeyArray


class KMeansFit(NamedTuple):
    """Result of `fit_kmeans`.

    Attributes:
        labels: nearest centroid of every row; of equals the first.
        centroids: means of the rows of each cluster.
        inertia: `Σ_i w_i |x_i − c_{labels_i}|²`.
    """

    labels: Int[Array, " n"]
    centroids: Float[Array, "k d"]
    inertia: Float[Array, ""]


@functools.partial(jax.jit, static_argnames=("num_clusters", "num_iters", "restarts"))
def fit_kmeans(
    key: PRNGKeyArray,
    x: Float[Array, "n d"],
    num_clusters: int,
    *,
    sample_weight: Float[Array, " n"] | None = None,
    num_iters: int = 50,
    restarts: int = 4,
) -> KMeansFit:
    """k-means in a fixed number of iterations, the best of several starts by inertia.

    For rows of length 1 in a store, over a mesh or until convergence see `fit` with `kmeans`.

    Args:
        key: typed key.
        x: finite rows.
        num_clusters: k ≥ 1.
        sample_weight: ≥ 0, not all 0; rows of weight 0 get a label and nothing else. `None` for ones.
        num_iters: Lloyd's iterations of each start.
        restarts: fits, each from its own k-means++ seeds; one after another, to save memory.

    Numerics: the precision of `x`, with products at highest precision; no table of n × k.

    Example:
        >>> found = fit_kmeans(jax.random.key(0), jnp.array([[0.0], [1.0], [9.0]]), 2)
        >>> sorted(found.centroids.ravel().tolist()), float(found.inertia)
        ([0.5, 9.0], 0.5)
    """
    weight = jnp.ones(x.shape[:1], x.dtype) if sample_weight is None else sample_weight
    start = lambda key: kmeans_plus_plus(key, x, weight, num_clusters, squared_distance)
    fits = jax.lax.map(lambda key: lloyd(x, weight, start(key), num_iters), jax.random.split(key, restarts))
    best = jnp.argmin(fits.inertia)
    return jax.tree.map(lambda leaf: leaf[best], fits)


def lloyd(
    x: Float[Array, "n d"], sample_weight: Float[Array, " n"], centroids: Float[Array, "k d"], num_iters: int
) -> KMeansFit:
    """`num_iters` iterations from the given centroids, then a last assignment.

    A centroid without rows moves to the row farthest from its own centroid; the second such one to the second farthest.
    """
    num_far = min(*centroids.shape[:1], *x.shape[:1])

    def assign(centroids: Array) -> tuple[Array, Array]:
        labels, _ = linear_labels(nearest_rule(centroids), x)
        # The difference itself, which is exactly 0 for a row that is its centroid.
        return labels, jnp.sum((x - centroids[labels]) ** 2, axis=1)

    def step(_: Any, centroids: Array) -> Array:
        sums = linear_pass(nearest_rule(centroids), x, sample_weight, hard=True)
        is_empty = sums.mass == 0
        means = sums.resultant / jnp.where(is_empty, 1, sums.mass)[:, None]

        def restart() -> Array:
            _, distance = assign(centroids)
            far = jax.lax.top_k(jnp.where(sample_weight > 0, distance, -1), num_far)[1]
            rank = jnp.clip(jnp.cumsum(is_empty) - 1, 0, num_far - 1)
            return jnp.where(is_empty[:, None], x[far[rank]], means)

        return jax.lax.cond(jnp.any(is_empty), restart, lambda: means)

    centroids = jax.lax.fori_loop(0, num_iters, step, centroids)
    labels, distance = assign(centroids)
    return KMeansFit(labels, centroids, jnp.sum(sample_weight * distance))


def nearest_rule(centroids: Float[Array, "k d"]) -> LinearRule:
    """The nearest centroid has the largest `x·c − |c|²/2`."""
    return LinearRule(centroids, -0.5 * jnp.sum(centroids**2, axis=1))


def squared_distance(x: Float[Array, "n d"], seeds: Float[Array, "s d"]) -> Float[Array, " n"]:
    """Squared distance of every row to the nearest seed."""
    from_seed = lambda seed: jnp.sum((x - seed[None, :]) ** 2, axis=1)
    return jnp.min(jax.lax.map(from_seed, seeds), axis=0)
