"""Reduction: features, clusters and farthest-first against NumPy in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmix.core.errors import ConfigError
from jaxmix.curricula import difficulty_from_attempts, reduce
from jaxmix.curricula.reduction import farthest_first, first_of_each

N, TOPICS, WIDTH, CLUSTERS = 240, 4, 24, 8
KEY = jax.random.key(0)


@functools.cache
def pool():
    """Topics as directions with noise, difficulty independent of them, and its texts: the last 20 are copies."""
    rng = np.random.default_rng(0)
    topic = rng.integers(0, TOPICS, N)
    x = np.eye(TOPICS, WIDTH)[topic] + 0.1 * rng.normal(size=(N, WIDTH))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    x[-20:] = x[:20]
    topic[-20:] = topic[:20]
    delta = rng.random(N)
    texts = [f"Question {i}" for i in range(N - 20)] + [f" question  {i}" for i in range(20)]
    return x.astype(np.float32), delta.astype(np.float32), topic, texts


@functools.cache
def reduced(weight=1.0, key=0):
    x, delta, _, texts = pool()
    return reduce(
        x,
        delta,
        num_clusters=CLUSTERS,
        per_cluster=6,
        key=jax.random.key(key),
        num_components=5,
        difficulty_weight=weight,
        texts=texts,
    )


def features(weight):
    x, delta, _, _ = pool()
    x, delta = x.astype(np.float64), delta.astype(np.float64)
    own = slice(0, N - 20)
    centered = x - x[own].mean(0)
    z = centered @ np.linalg.svd(centered[own], full_matrices=False)[2][:5].T
    z /= np.sqrt((z[own] ** 2).sum(1).mean())
    return np.concatenate([z, weight * ((delta - delta[own].mean()) / delta[own].std())[:, None]], axis=1)


def distances(f):
    return ((f[:, None] - f[None]) ** 2).sum(-1)


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_features(weight):
    # Principal directions have no sign: compare what the clustering sees.
    np.testing.assert_allclose(distances(np.asarray(reduced(weight).features)), distances(features(weight)), atol=2e-4)


def test_k_means_has_settled_and_is_good():
    found, own = reduced(), slice(0, N - 20)
    f, centroids = np.asarray(found.features, np.float64), np.asarray(found.centroids, np.float64)
    squares = ((f[:, None] - centroids[None]) ** 2).sum(-1)
    np.testing.assert_array_equal(found.labels, squares.argmin(1))
    for k in range(CLUSTERS):
        np.testing.assert_allclose(centroids[k], f[own][np.asarray(found.labels)[own] == k].mean(0), atol=1e-5)
    np.testing.assert_allclose(found.inertia, squares[own].min(1).sum(), rtol=1e-5)
    assert float(found.inertia) <= 1.05 * min(plain_k_means(f[own], seed) for seed in range(8))


def plain_k_means(f, seed):
    rng = np.random.default_rng(seed)
    c = f[rng.choice(len(f), CLUSTERS, replace=False)]
    for _ in range(40):
        labels = ((f[:, None] - c[None]) ** 2).sum(-1).argmin(1)
        c = np.stack([f[labels == k].mean(0) if (labels == k).any() else c[k] for k in range(CLUSTERS)])
    return ((f[:, None] - c[None]) ** 2).sum(-1).min(1).sum()


def test_clusters_are_numbered_from_easy_to_hard():
    found, (_, delta, _, _) = reduced(), pool()
    own = np.asarray(found.labels)[: N - 20]
    means = [delta[: N - 20][own == k].mean() for k in range(CLUSTERS)]
    assert means == sorted(means)


def plain_farthest_first(f, labels, centroids, counts, size):
    kept = np.full((len(centroids), size), -1)
    for k, centroid in enumerate(centroids):
        rows = np.flatnonzero((labels == k) & counts)
        if not len(rows):
            continue
        chosen = [rows[((f[rows] - centroid) ** 2).sum(1).argmin()]]
        while len(chosen) < size:
            gap = np.min([((f[rows] - f[c]) ** 2).sum(1) for c in chosen], axis=0)
            if gap.max() <= 1e-9:
                break
            chosen.append(rows[gap.argmax()])
        kept[k, : len(chosen)] = chosen
    return kept


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_farthest_first(weight):
    found = reduced(weight)
    f, centroids = np.asarray(found.features, np.float64), np.asarray(found.centroids, np.float64)
    expected = plain_farthest_first(f, np.asarray(found.labels), centroids, np.arange(N) < N - 20, 6)
    np.testing.assert_array_equal(found.kept, expected)
    np.testing.assert_array_equal(found.valid, expected >= 0)


def test_farthest_first_leaves_out_copies_pads_and_breaks_ties_low():
    f = jnp.asarray([[0.0], [1.0], [1.0], [-1.0], [0.0], [9.0]])
    labels = jnp.asarray([0, 0, 0, 0, 0, 1], jnp.int32)
    centroids = jnp.asarray([[0.0], [9.0], [50.0]])
    kept = farthest_first(f, labels, centroids, jnp.ones(6, bool), 4)
    assert kept.tolist() == [[0, 1, 3, -1], [5, -1, -1, -1], [-1, -1, -1, -1]]


def test_copies_are_labeled_and_not_kept():
    found = reduced()
    kept = np.asarray(found.kept)[np.asarray(found.valid)]
    assert len(set(kept.tolist())) == len(kept)
    assert kept.max() < N - 20
    assert np.asarray(found.labels).min() >= 0


def test_the_weight_trades_topic_for_difficulty():
    _, delta, topic, _ = pool()
    explained, purity = [], []
    for weight in (0.0, 1.0):
        labels = np.asarray(reduced(weight).labels)
        within = sum(((delta[labels == k] - delta[labels == k].mean()) ** 2).sum() for k in range(CLUSTERS))
        explained.append(1 - within / ((delta - delta.mean()) ** 2).sum())
        purity.append(sum(np.bincount(topic[labels == k]).max() for k in range(CLUSTERS)) / N)
    assert explained[0] < 0.15
    assert explained[1] > 0.5
    assert purity[0] > 0.98


def test_the_same_key_gives_the_same_choice():
    x, delta, _, texts = pool()
    again = reduce(x, delta, num_clusters=CLUSTERS, per_cluster=6, key=jax.random.key(0), num_components=5, texts=texts)
    for a, b in zip(reduced(), again, strict=True):
        np.testing.assert_array_equal(a, b)


def test_constant_difficulty_and_constant_embeddings_are_no_variance():
    found = reduce(
        np.ones((6, 3)), np.repeat([0.2, 0.9], 3), num_clusters=2, per_cluster=2, key=KEY, restarts=1, num_iters=4
    )
    assert np.isfinite(found.features).all()
    assert found.labels.tolist() == [0, 0, 0, 1, 1, 1]
    flat = reduce(np.eye(6), np.ones(6), num_clusters=2, per_cluster=2, key=KEY, restarts=1, num_iters=4)
    assert np.isfinite(flat.features).all()
    assert (np.asarray(flat.features)[:, -1] == 0).all()


def test_difficulty_from_attempts():
    np.testing.assert_allclose(difficulty_from_attempts([0, 3, 8], 8), [0.9, 0.6, 0.1], rtol=1e-6)
    np.testing.assert_allclose(difficulty_from_attempts([1, 1], [1, 4]), [1 / 3, 2 / 3], rtol=1e-6)
    with pytest.raises(ConfigError, match="9 successes in 8 attempts"):
        difficulty_from_attempts([0, 9], 8)


def test_first_of_each():
    assert first_of_each(["a b", "A  B\n", "b", "ａ b"]).tolist() == [0, 0, 2, 0]  # noqa: RUF001


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"difficulty": np.zeros(4)}, "do not fit"),
        ({"embeddings": np.array([[0.0, np.nan]] * 5)}, "row 0 of embeddings is not finite"),
        ({"num_clusters": 6}, "6 clusters of 5 different prompts"),
        ({"texts": ["a", "a", "A", "b", "c"], "num_clusters": 4}, "4 clusters of 3 different prompts"),
        ({"texts": ["a"]}, "1 texts for 5 prompts"),
        ({"num_components": 3}, "3 principal coordinates of 5 prompts of width 2"),
        ({"per_cluster": 0}, "per_cluster must be a whole number ≥ 1"),
        ({"difficulty_weight": -1.0}, "difficulty_weight must be finite and at least 0"),
    ],
)
def test_errors(changes, message):
    arguments = {"embeddings": np.zeros((5, 2)), "difficulty": np.zeros(5), "num_clusters": 2, "key": KEY}
    with pytest.raises(ConfigError, match=message):
        reduce(**(arguments | changes))
