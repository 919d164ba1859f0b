import jax
import jax.numpy as jnp
import numpy as np
import pytest
from clustering import oracle

from jaxmix.clustering.seeding import RowSampler, kmeans_plus_plus, merge_clusters, seed_directions
from jaxmix.simulate.clusters import planted_mixture, sample_vmf, zipf_sizes

KEY = jax.random.key(0)


def sampled(sizes, weights, wanted):
    """Numbers of the rows that stay, with the rows read in blocks of the given sizes."""
    sampler, held, start = RowSampler(KEY, wanted), np.zeros(0, int), 0
    for size in sizes:
        new, old = sampler.choose(weights[start : start + size])
        held = np.concatenate([held[old], start + new])
        start += size
    return held


def test_the_sample_does_not_depend_on_blocks():
    weights = np.where(np.arange(500) % 7 == 0, 0.0, 1.0)
    whole = sampled([500], weights, 40)
    np.testing.assert_array_equal(sampled([10, 100, 1, 389], weights, 40), whole)
    assert len(set(whole)) == 40
    assert (weights[whole] > 0).all()
    assert list(whole) == sorted(whole)
    np.testing.assert_array_equal(sampled([250, 250], weights, 1000), np.flatnonzero(weights))


def test_the_sample_is_uniform():
    counts = np.zeros(20)
    for seed in range(400):
        counts[RowSampler(jax.random.key(seed), 5).choose(np.ones(20))[0]] += 1
    assert np.abs(counts / 400 - 0.25).max() < 0.09


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_merging_is_greedy(seed):
    found = planted_mixture(seed, 300, 12, 8, concentrations=(5, 40), exponent=1.0)
    mass = np.bincount(found.classes, minlength=12) / 300
    resultant = np.stack([found.x[found.classes == k].sum(0) for k in range(12)]) / 300
    expected = oracle.greedy_merging(mass, resultant, 4, 1e5)
    with jax.enable_x64(True):
        merged = np.asarray(merge_clusters(jnp.asarray(mass), jnp.asarray(resultant), 4, 1e5))
    order = lambda rows: rows[np.lexsort(rows.T)]
    np.testing.assert_allclose(order(merged), order(expected), atol=1e-9)


def test_seeds_are_rows_that_differ():
    x = jnp.asarray(np.repeat(np.eye(6, 8), [100, 1, 1, 1, 1, 1], axis=0), jnp.float32)
    seeds = kmeans_plus_plus(KEY, x, jnp.ones(105), 6)
    assert sorted(np.argmax(seeds, axis=1)) == list(range(6))
    # More seeds than different rows, and rows without weight.
    weight = jnp.ones(105).at[100:].set(0)
    np.testing.assert_array_equal(np.argmax(kmeans_plus_plus(KEY, x, weight, 6), axis=1), np.zeros(6))


def test_a_cluster_of_no_row_still_has_a_direction():
    mass = np.zeros(12)
    mass[:2] = 0.6, 0.4
    with jax.enable_x64(True):
        merged = merge_clusters(jnp.asarray(mass), jnp.asarray(mass[:, None] * np.eye(12, 8)), 4, 1e5)
        np.testing.assert_allclose(jnp.linalg.norm(merged, axis=1), 1, atol=1e-6)


def test_a_random_start_takes_rows():
    x = jnp.asarray(planted_mixture(0, 50, 3, 8, concentrations=(5, 40)).x, jnp.float32)
    found = seed_directions(KEY, x, jnp.ones(50), 4, start="random", max_concentration=1e5)
    assert all((np.asarray(x) == row).all(1).any() for row in np.asarray(found))


def test_planted_rows_have_the_density_asked_for():
    rng = np.random.default_rng(0)
    mean = np.eye(6)[2]
    x = sample_vmf(rng, mean, 9.0, 20_000)
    np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1, atol=1e-12)
    np.testing.assert_allclose(x.mean(0), oracle.ratio(9.0, 6) * mean, atol=0.01)
    found = planted_mixture(1, 4000, 4, 10, concentrations=(5, 6), exponent=1.0, cone=0.6)
    np.testing.assert_allclose(np.bincount(found.classes) / 4000, zipf_sizes(4, 1.0), atol=0.03)
    directions = found.state.mean_directions
    np.testing.assert_allclose(np.linalg.norm(directions, axis=1), 1, atol=1e-12)
    assert (directions @ directions.T).min() > 0.6**2 - (1 - 0.6**2)
