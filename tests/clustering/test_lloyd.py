"""k-means on rows of any length: empty clusters, blocks, rows of weight 0, copies."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxmix.clustering import fit_kmeans
from jaxmix.clustering.em import block_sums
from jaxmix.clustering.lloyd import lloyd

N, K = 240, 8
KEY = jax.random.key(0)


def rows():
    rng = np.random.default_rng(0)
    return jnp.asarray(4 * rng.normal(size=(K, 5))[rng.integers(0, K, N)] + rng.normal(size=(N, 5)), jnp.float32)


def test_an_empty_cluster_restarts_at_the_farthest_row():
    x = jnp.asarray([[0.0], [0.1], [5.0], [8.0]])
    far = lloyd(x, jnp.ones(4), jnp.asarray([[0.0], [100.0], [100.0]]), 3)
    np.testing.assert_allclose(np.sort(far.centroids.ravel()), [0.05, 5.0, 8.0], rtol=1e-6)


def test_blocks_of_rows_do_not_matter(monkeypatch):
    x, weight = rows(), jnp.asarray(np.arange(N) % 3 > 0, jnp.float32)
    whole = lloyd(x, weight, x[:K], 2)
    monkeypatch.setitem(block_sums._TILE, "cpu", 200)  # the least block, 64 rows, which does not divide 240
    blocks = lloyd(x, weight, x[:K], 2)
    np.testing.assert_array_equal(whole.labels, blocks.labels)
    np.testing.assert_allclose(whole.centroids, blocks.centroids, atol=1e-5)
    np.testing.assert_allclose(whole.inertia, blocks.inertia, rtol=1e-5)


def test_rows_of_weight_0_have_labels_and_no_influence():
    x = rows()
    weight = jnp.ones(N).at[200:].set(0)
    moved = x.at[200:].multiply(100.0)
    found, other = (fit_kmeans(KEY, given, K, sample_weight=weight, restarts=2) for given in (x, moved))
    np.testing.assert_array_equal(found.centroids, other.centroids)
    np.testing.assert_array_equal(found.inertia, other.inertia)
    squares = ((np.asarray(x)[:, None] - np.asarray(found.centroids)[None]) ** 2).sum(-1)
    np.testing.assert_array_equal(found.labels, squares.argmin(1))


def test_seeds_are_rows_that_differ():
    x = jnp.asarray(np.repeat(3 * np.eye(6, 8), [100, 1, 1, 1, 1, 1], axis=0), jnp.float32)
    found = fit_kmeans(KEY, x, 6, num_iters=1, restarts=1)
    assert float(found.inertia) == 0
    assert len(set(found.labels.tolist())) == 6
