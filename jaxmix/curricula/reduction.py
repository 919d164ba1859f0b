"""Reduces a pool of prompts to a few, spread over topics and difficulties: phase 1 of SPaCe, see `docs/space.md`."""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmix.clustering import KMeansFit, fit_kmeans
from jaxmix.core.errors import ConfigError
from jaxmix.core.types import Array, Bool, Float, Int, PRNGKeyArray
from jaxmix.core.validate import Count, NonNegative, check_count, checked

_SAME = 1e-9  # squared distance below which two rows are copies; features have mean squares near 1


class Reduction(NamedTuple):
    """Result of `reduce`.

    Attributes:
        labels: the cluster of every prompt of the pool, copies included.
        kept: numbers of the prompts that stay, in the order they were picked, padded with −1.
        valid: where `kept` has a prompt.
        features: what was clustered.
        centroids:
        inertia: sum of squared distances of the different prompts from their centroids.
    """

    labels: Int[Array, " n"]
    kept: Int[Array, "k l"]
    valid: Bool[Array, "k l"]
    features: Float[Array, "n f"]
    centroids: Float[Array, "k f"]
    inertia: Float[Array, ""]


@checked
def reduce(
    embeddings: Any,
    difficulty: Any,
    *,
    num_clusters: Count = 10,
    per_cluster: Count = 10,
    key: PRNGKeyArray,
    num_components: int | None = None,
    difficulty_weight: NonNegative = 1.0,
    num_iters: Count = 50,
    restarts: Count = 4,
    texts: Sequence[str] | None = None,
) -> Reduction:
    r"""Clusters prompts by topic and difficulty and keeps in each cluster the ones farthest from one another.

        Z = principal coordinates of (e − mean e),   Z' = Z / sqrt(mean_i |z_i|²)
        D' = (δ − mean δ) / std δ,   F = [Z', w D'],   k-means on F
        kept: the row nearest to the centroid, then again and again the one farthest from those kept

    e = `embeddings`, δ = `difficulty`, w = `difficulty_weight`. With w = 1 topic and difficulty carry the same
    variance; unscaled, a single number beside a long embedding disappears.

    Args:
        embeddings: f[n, d], NumPy or JAX, finite, one row per prompt, unit norm by custom.
        difficulty: f[n], finite, larger is harder, in any unit. `difficulty_from_attempts` makes it from rollouts.
        num_clusters: k, at most the number of different prompts.
        per_cluster: l, prompts kept per cluster at most.
        key: of the k-means seeds.
        num_components: principal coordinates, at most min(n, d); `None`: 16, or fewer where there are fewer.
        difficulty_weight: w ≥ 0.
        num_iters: Lloyd steps.
        restarts: k-means fits, of which the best stays.
        texts: the prompts. Those equal to an earlier one but for case, white space and Unicode form have no influence
            and are not kept. Without it, only rows with equal features count as copies.

    Returns:
        See `Reduction`. Clusters are in order of mean difficulty, easiest first, so that arms have readable numbers.
        A cluster of fewer than l different prompts is padded.

    Raises:
        ConfigError: shapes that do not fit, numbers that are not finite, sizes out of range.

    Numerics: float32; the same key gives the same result on the same backend.

    Differs from the paper: scaling, weight and the starting row are not published; farthest-first over-represents
    outliers, and therefore mislabeled and unsolvable prompts, which the bandit has to survive.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> topics = np.repeat(np.eye(2, 8), 20, axis=0) + 0.05 * rng.normal(size=(40, 8))
        >>> found = reduce(topics, rng.random(40), num_clusters=2, per_cluster=3, key=jax.random.key(0),
        ...                difficulty_weight=0.0)
        >>> found.kept.shape, len(set(found.labels[:20].tolist()))
        ((2, 3), 1)

    References:
        arXiv 2508.05015, section on data reduction, as quoted by its reviews.
    """
    x, delta = np.asarray(embeddings, np.float32), np.asarray(difficulty, np.float32)
    if x.ndim != 2 or delta.shape != x.shape[:1] or not len(x):
        raise ConfigError(
            f"embeddings of shape {x.shape} and difficulty of shape {delta.shape} do not fit",
            where="reduce(embeddings, difficulty)",
            fix="Give [n, d] and [n], n ≥ 1.",
        )
    for argument, values in (("embeddings", x), ("difficulty", delta)):
        bad = np.flatnonzero(~np.isfinite(values.reshape(len(x), -1)).all(axis=1))
        if len(bad):
            raise ConfigError(f"row {bad[0]} of {argument} is not finite", where=f"reduce({argument})")
    components = min(16, *x.shape) if num_components is None else num_components
    check_count("reduce", "num_components", components)
    if components > min(x.shape):
        raise ConfigError(
            f"{components} principal coordinates of {x.shape[0]} prompts of width {x.shape[1]}",
            where="reduce(num_components)",
            fix=f"At most {min(x.shape)}.",
        )
    if texts is not None and len(texts) != len(x):
        raise ConfigError(f"{len(texts)} texts for {len(x)} prompts", where="reduce(texts)")
    counts = np.ones(len(x), bool) if texts is None else first_of_each(texts) == np.arange(len(x))
    if num_clusters > counts.sum():
        raise ConfigError(
            f"{num_clusters} clusters of {counts.sum()} different prompts",
            where="reduce(num_clusters)",
            fix="Take fewer clusters or a larger pool.",
        )
    own, hardness = jnp.asarray(counts), jnp.asarray(delta)
    features = prompt_features(jnp.asarray(x), hardness, own, jnp.float32(difficulty_weight), components)
    weight = own.astype(features.dtype)
    found = fit_kmeans(key, features, num_clusters, sample_weight=weight, num_iters=num_iters, restarts=restarts)
    labels, centroids = _easiest_first(found, hardness, weight)
    kept = farthest_first(features, labels, centroids, own, per_cluster)
    return Reduction(labels, kept, kept >= 0, features, centroids, found.inertia)


def difficulty_from_attempts(successes: Any, attempts: Any) -> np.ndarray:
    """`δ = 1 − (s + 1) / (R + 2)`: how hard prompts are for a reference policy, strictly between 0 and 1.

    Args:
        successes: s, whole numbers in [0, R], of any shape: how many attempts at a prompt its verifier accepted.
        attempts: R ≥ 1, one number or one per prompt; from about 8, and 64 for ±0.05. The policy that is going to be
            trained is the best reference: "hard" then means hard for it.

    Returns:
        float32 of the shape of `successes`, 0 easy to 1 hard.

    Example:
        >>> difficulty_from_attempts([0, 4, 8], 8).round(2).tolist()
        [0.8999999761581421, 0.5, 0.10000000149011612]
    """
    s, total = np.broadcast_arrays(np.asarray(successes, np.float64), np.asarray(attempts, np.float64))
    is_bad = ~((s >= 0) & (s <= total) & (total >= 1) & np.isfinite(total))
    if is_bad.any():
        raise ConfigError(
            f"{s[is_bad].flat[0]:g} successes in {total[is_bad].flat[0]:g} attempts",
            where="difficulty_from_attempts(successes)",
            fix="Give 0 ≤ successes ≤ attempts and at least one attempt.",
        )
    return (1.0 - (s + 1.0) / (total + 2.0)).astype(np.float32)


def first_of_each(texts: Sequence[str]) -> np.ndarray:
    """i64[n], the number of the first text equal to each but for case, white space and Unicode form (NFKC).

    Example:
        >>> first_of_each(["What is 1+1?", "2+2", " what  is 1+1?"]).tolist()
        [0, 1, 0]
    """
    seen: dict[str, int] = {}
    normal = (" ".join(unicodedata.normalize("NFKC", text).casefold().split()) for text in texts)
    return np.fromiter((seen.setdefault(text, i) for i, text in enumerate(normal)), np.int64, len(texts))


def principal_coordinates(x: Float[Array, "n d"], counts: Bool[Array, " n"], components: int) -> Float[Array, "n p"]:
    """Coordinates of `x − mean x` along the `components` directions of most variance, most first.

    Rows that do not count have coordinates but no influence.
    """
    weight = counts.astype(x.dtype)[:, None]
    centered = x - jnp.sum(weight * x, axis=0, keepdims=True) / jnp.sum(weight)
    _, _, rows = jnp.linalg.svd(_covariance_root(centered * weight), full_matrices=False)
    return jnp.matmul(centered, rows[:components].T, precision=jax.lax.Precision.HIGHEST)


@functools.partial(jax.jit, static_argnames="components")
def prompt_features(
    x: Float[Array, "n d"],
    difficulty: Float[Array, " n"],
    counts: Bool[Array, " n"],
    difficulty_weight: Float[Array, ""],
    components: int,
) -> Float[Array, "n f"]:
    """`[Z', w D']` of `reduce`: both parts have variance 1 (times w²) over the rows that count, or 0 if constant."""
    weight = counts.astype(x.dtype)
    total = jnp.sum(weight)
    z = principal_coordinates(x, counts, components)
    scale = jnp.sqrt(jnp.sum(weight * jnp.sum(z**2, axis=1)) / total)
    centered = difficulty - jnp.sum(weight * difficulty) / total
    deviation = jnp.sqrt(jnp.sum(weight * centered**2) / total)
    divide = lambda values, size: jnp.where(size > 1e-6, values / jnp.where(size > 1e-6, size, 1.0), 0.0)
    return jnp.concatenate([divide(z, scale), difficulty_weight * divide(centered, deviation)[:, None]], axis=1)


@functools.partial(jax.jit, static_argnames="per_cluster")
def farthest_first(
    features: Float[Array, "n f"],
    labels: Int[Array, " n"],
    centroids: Float[Array, "k f"],
    counts: Bool[Array, " n"],
    per_cluster: int,
) -> Int[Array, "k l"]:
    """Greedy max-min choice in all clusters at once; ties go to the lowest row, copies of kept rows stay out.

    One step adds one row per cluster and looks at each row once: O(l n (f + k)).
    """
    n, k = features.shape[0], centroids.shape[0]
    is_member = (labels[None, :] == jnp.arange(k, dtype=labels.dtype)[:, None]) & counts[None, :]
    pick = lambda value: jnp.argmax(jnp.where(is_member, value[None, :], -jnp.inf), axis=1).astype(jnp.int32)
    apart = lambda rows: jnp.sum((features - rows[labels]) ** 2, axis=1)
    start = pick(-apart(centroids))
    first = jnp.where(jnp.any(is_member, axis=1), start, -1)

    def step(carry: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], Array]:
        distance, newest = carry
        distance = jnp.minimum(distance, apart(features[jnp.maximum(newest, 0)]))
        row = pick(distance)
        is_new = (newest >= 0) & (distance[row] > _SAME) & is_member[jnp.arange(k), row]
        chosen = jnp.where(is_new, row, -1)
        return (distance, chosen), chosen

    unlimited = jnp.full((n,), jnp.inf, features.dtype)
    _, rest = jax.lax.scan(step, (unlimited, first), length=per_cluster - 1)
    return jnp.concatenate([first[:, None], rest.T], axis=1)


def _covariance_root(x: Array) -> Array:
    """A matrix with the same right singular vectors as `x` and at most d rows."""
    return jnp.linalg.qr(x, mode="r") if x.shape[0] > x.shape[1] else x


@jax.jit
def _easiest_first(found: KMeansFit, difficulty: Array, weight: Array) -> tuple[Array, Array]:
    """Labels and centroids in order of mean difficulty. The last feature would do, but not at difficulty weight 0."""
    member = jax.nn.one_hot(found.labels, found.centroids.shape[0], dtype=weight.dtype) * weight[:, None]
    mean = jnp.sum(member * difficulty[:, None], axis=0) / jnp.maximum(jnp.sum(member, axis=0), 1.0)
    order = jnp.argsort(mean, stable=True)
    return jnp.argsort(order).astype(jnp.int32)[found.labels], found.centroids[order]
