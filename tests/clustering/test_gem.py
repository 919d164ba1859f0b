"""GEM's two steps against NumPy, and its fits: ascent, balance, weights, dead clusters, the mirror E-step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from clustering import oracle

from jaxmix.clustering import (
    GemState,
    adjusted_rand_index,
    assign,
    cluster_sizes,
    fit,
    gem,
    kmeans,
    size_entropy,
    spherical_kmeans,
    vmf_mixture,
)
from jaxmix.clustering.em.block_sums import is_near
from jaxmix.clustering.em.iteration import WeightedRows, Workspace, build_iteration, em_config
from jaxmix.clustering.fit import penalty_of
from jaxmix.core.errors import ConfigError
from jaxmix.simulate.clusters import planted_mixture

N, D, K = 603, 16, 5
KEY = jax.random.key(0)
STRENGTHS = (0, 1, 10, 100, 1000, 5000)


@functools.cache
def planted(rows=N, d=D, k=K, low=30.0, high=60.0, exponent=1.0, seed=0):
    return planted_mixture(seed, rows, k, d, concentrations=(low, high), exponent=exponent)


START = np.asarray(planted().state.mean_directions, np.float32)
SHUFFLED = np.asarray(planted().x[:K], np.float32)
"""Rows as a start: nothing to compile for it, and far from the optimum."""


def one_step(clusterer, state, x, w, *, table=None):
    """One iteration in the precision of the weights."""
    n, k = len(x), clusterer.num_clusters
    penalty, _ = penalty_of(clusterer, n, w.dtype)
    config = em_config(clusterer)
    table = jnp.zeros((n, k), w.dtype) if table is None else table
    workspace = Workspace(None if config.e_step == "none" else table, jnp.zeros((k, k)), jnp.bool_(True))
    return build_iteration(config, None)(WeightedRows(x, w, jnp.sum(w)), state, penalty, workspace)


def mass_of(done):
    return np.asarray(done.e_step.sums.mass / done.e_step.sums.weight)


def small_problem():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(7, 4))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    mu = rng.normal(size=(3, 4))
    mu /= np.linalg.norm(mu, axis=1, keepdims=True)
    return x, rng.uniform(0.5, 2.0, 7), mu, np.array([3.0, 8.0, 5.0])


@pytest.mark.parametrize("strength", [0.5, 50.0, np.inf])
def test_the_e_step_finds_what_a_generic_optimizer_finds(strength):
    x, w, mu, kappa = small_problem()
    target = np.array([0.5, 0.3, 0.2])
    value, gamma = oracle.best_posterior(oracle.logits(mu, kappa, x), w, strength, target)
    with jax.enable_x64(True):
        clusterer = gem(3, balance=strength, target=tuple(10 * target))
        state = GemState(jnp.asarray(mu), jnp.asarray(kappa), jnp.zeros(3))
        done = one_step(clusterer, state, jnp.asarray(x), jnp.asarray(w))
        posterior = np.exp(assign(clusterer, done.e_step.state, jnp.asarray(x)).log_posterior)
        mass, biases, gap = mass_of(done), np.asarray(done.e_step.state.biases), float(done.e_step.gap)
        found = float(done.e_step.objective)
    assert found >= value - 1e-9
    np.testing.assert_allclose(found, value, rtol=0, atol=1e-6 if np.isinf(strength) else 1e-9)
    np.testing.assert_allclose(posterior, gamma, atol=2e-4)
    assert 0 <= gap <= (1e-6 if np.isinf(strength) else 1e-10)
    if np.isinf(strength):
        np.testing.assert_allclose(mass, target, atol=1e-7)
    else:
        np.testing.assert_allclose(biases, -strength * (mass - target), atol=1e-4)


@pytest.mark.parametrize("bits", [32, 64])
def test_the_e_step_finds_its_way_from_far_away(bits):
    """Farther than a posterior can be carried: it is made anew on the way."""
    x, w, mu, kappa = small_problem()
    target, far = np.array([0.5, 0.3, 0.2]), 100.0 if bits == 32 else 1000.0
    value, _ = oracle.best_posterior(oracle.logits(mu, kappa, x), w, 50.0, target)
    with jax.enable_x64(bits == 64):
        clusterer = gem(3, balance=50.0, target=tuple(10 * target))
        state = GemState(*(jnp.asarray(a, f"float{bits}") for a in (mu, kappa, [far, 0.0, -far])))
        done = one_step(clusterer, state, jnp.asarray(x, f"float{bits}"), jnp.asarray(w, f"float{bits}"))
        assert not is_near(state.biases - done.e_step.state.biases)
        # F is counted from D where the search began, 300 and 20,000 here.
        np.testing.assert_allclose(done.e_step.objective, value, atol=1e-4 if bits == 32 else 1e-10)
        assert 0 <= float(done.e_step.gap) <= (1e-6 if bits == 32 else 1e-10)
        posterior = np.exp(assign(clusterer, done.e_step.state, jnp.asarray(x, f"float{bits}")).log_posterior)
        np.testing.assert_allclose(mass_of(done), w @ posterior / w.sum(), atol=1e-5 if bits == 32 else 1e-12)


def test_an_iteration_is_the_oracles_e_step_and_m_step():
    x, w, mu, kappa = small_problem()
    target, strength = np.full(3, 1 / 3), 5.0
    with jax.enable_x64(True):
        clusterer = gem(3, balance=strength)
        state = GemState(jnp.asarray(mu), jnp.asarray(kappa), jnp.zeros(3))
        done = one_step(clusterer, state, jnp.asarray(x), jnp.asarray(w))
        gamma = np.exp(np.asarray(assign(clusterer, done.e_step.state, jnp.asarray(x)).log_posterior))
        new_mu, new_kappa, mass = oracle.m_step(gamma, x, w, 1e5)
        np.testing.assert_allclose(done.state.mean_directions, new_mu, atol=1e-12)
        np.testing.assert_allclose(done.state.concentrations, new_kappa, rtol=1e-9)
        np.testing.assert_allclose(mass_of(done), mass, atol=1e-12)
        # F from sums alone, (15) and (22), against F written out.
        direct = oracle.objective(oracle.logits(new_mu, new_kappa, x), gamma, w, strength, target)
        np.testing.assert_allclose(done.objective, direct, rtol=1e-11)


@pytest.mark.parametrize("make", [vmf_mixture, spherical_kmeans, kmeans])
def test_the_baselines_maximize_what_they_say(make):
    x, w, mu, kappa = small_problem()
    share = w / w.sum()
    with jax.enable_x64(True):
        clusterer = make(3)
        state = GemState(jnp.asarray(mu), jnp.asarray(kappa), jnp.log(3 * jnp.array([0.2, 0.5, 0.3])))
        if make is not vmf_mixture:
            state = clusterer.init(mu, 5.0)
        done = one_step(clusterer, state, jnp.asarray(x), jnp.asarray(w))
        new, labels = done.state, np.argmax(x @ mu.T, axis=1)
        objective = float(done.objective)
        new_labels = np.asarray(assign(clusterer, new, jnp.asarray(x)).labels)
        new_mu, new_kappa, new_biases = (np.asarray(leaf) for leaf in (*jax.tree.leaves(new),))
    if make is vmf_mixture:
        table = oracle.logits(mu, kappa, x) + np.log([0.2, 0.5, 0.3])[None, :]
        gamma = np.exp(table - np.logaddexp.reduce(table, axis=1, keepdims=True))
        means, kappas, mass = oracle.m_step(gamma, x, w, 1e5)
        np.testing.assert_allclose(new_mu, means, atol=1e-12)
        np.testing.assert_allclose(new_kappa, kappas, rtol=1e-9)
        np.testing.assert_allclose(new_biases, np.log(3 * mass), atol=1e-12)
        after = oracle.logits(means, kappas, x) + np.log(mass)[None, :]
        expected = share @ (np.sum(gamma * after, axis=1) - np.sum(gamma * np.log(gamma), axis=1))
    else:
        sums = np.array([(share[labels == k, None] * x[labels == k]).sum(0) for k in range(3)])
        assert set(labels) == {0, 1, 2}
        np.testing.assert_allclose(new_mu, sums / np.linalg.norm(sums, axis=1, keepdims=True), atol=1e-12)
        mass = np.array([share[labels == k].sum() for k in range(3)])
        centers = sums / mass[:, None]
        if make is kmeans:
            expected = -share @ np.sum((x - centers[labels]) ** 2, axis=1)
            squares = np.sum((x[:, None] - centers[None]) ** 2, axis=2)
            np.testing.assert_array_equal(new_labels, np.argmin(squares, axis=1))
        else:
            expected = np.linalg.norm(sums, axis=1).sum()
            np.testing.assert_array_equal(new_labels, np.argmax(x @ new_mu.T, axis=1))
    np.testing.assert_allclose(objective, expected, rtol=1e-11)


@pytest.mark.parametrize("bits", [32, pytest.param(64, marks=pytest.mark.slow)])
def test_f_does_not_fall(bits):
    with jax.enable_x64(bits == 64):
        x = jnp.asarray(planted().x, jnp.float64 if bits == 64 else jnp.float32)
        for strength in STRENGTHS:
            result = fit(gem(K, balance=strength), x, key=KEY, init=SHUFFLED, max_iters=25, tol=0.0)
            assert not result.info.reseeded.any()
            rises = np.diff(result.objective) / np.abs(result.objective[1:])
            assert rises.min() >= (-1e-9 if bits == 64 else -1e-5), strength
            assert result.info.gap.max() <= (1e-10 if bits == 64 else 1e-6)
            if strength:
                assert result.info.evaluations.max() < 30


@pytest.mark.slow
@pytest.mark.parametrize("bits", [32, 64])
def test_f_does_not_fall_over_a_hundred_iterations(bits):
    rows = planted(10_000, 128, 12, 120.0, 200.0, 1.2).x
    with jax.enable_x64(bits == 64):
        x = jnp.asarray(rows, jnp.float64 if bits == 64 else jnp.float32)
        for strength in STRENGTHS:
            result = fit(gem(12, balance=strength), x, key=KEY, init="kmeans++", tol=0.0)
            rises = np.diff(result.objective) / np.abs(result.objective[1:])
            rises = rises[result.info.reseeded[:-1] == 0]
            assert rises.min() >= (-1e-9 if bits == 64 else -1e-5), strength
            assert result.info.gap.max() <= (1e-10 if bits == 64 else 1e-5)


@pytest.mark.slow
def test_an_imbalanced_mixture_is_recovered_at_low_balance():
    found = planted(10_000, 128, 12, 120.0, 200.0, 1.2)
    x, clusterer = jnp.asarray(found.x, jnp.float32), gem(12, balance=1.0)
    labels = assign(clusterer, fit(clusterer, x, key=KEY).state, x).labels
    assert adjusted_rand_index(labels, found.classes) >= 0.99


@pytest.mark.slow
def test_5000_balances_at_the_papers_concentrations():
    found = planted_mixture(0, 12_000, 24, 768, concentrations=(700, 1100), exponent=0.8, cone=0.75)
    x, clusterer = jnp.asarray(found.x, jnp.float32), gem(24)
    sizes = cluster_sizes(assign(clusterer, fit(clusterer, x, key=KEY, max_iters=50).state, x).labels, 24)
    assert size_entropy(sizes) >= 0.985
    assert sizes.max() <= 0.07


@pytest.mark.slow
def test_balanced_overlapping_clusters_are_recovered_better_than_by_spherical_kmeans():
    gains = []
    for seed in range(3):
        found = planted(6000, 64, 24, 25.0, 37.0, 0.0, seed)
        x = jnp.asarray(found.x, jnp.float32)
        ari = []
        for clusterer in (gem(24, balance=100.0), spherical_kmeans(24)):
            result = fit(clusterer, x, key=jax.random.key(seed), init="kmeans++")
            ari.append(adjusted_rand_index(assign(clusterer, result.state, x).labels, found.classes))
        gains.append(ari[0] - ari[1])
    assert np.mean(gains) >= 0.03


def test_balance_moves_masses_to_the_target():
    x, target = jnp.asarray(planted().x, jnp.float32), np.array([0.3, 0.3, 0.2, 0.1, 0.1])
    free, tight = (
        fit(gem(K, balance=b, target=tuple(target)), x, key=KEY, init=START, max_iters=15) for b in (0.0, 5000.0)
    )
    masses = [np.exp(np.asarray(assign(gem(K), r.state, x).log_posterior)).mean(0) for r in (free, tight)]
    assert np.abs(masses[1] - target).max() < 5e-3 < 0.02 < np.abs(masses[0] - target).max()
    assert float(np.abs(free.state.biases).max()) == 0
    assert float(tight.info.largest_bias[-1]) > 1


def test_the_summed_penalty_is_the_other_one_divided_by_the_rows():
    x = jnp.asarray(planted().x, jnp.float32)
    summed = fit(gem(K, balance=60.0 * N, penalty="summed"), x, key=KEY, init=START, max_iters=5)
    other = fit(gem(K, balance=60.0), x, key=KEY, init=START, max_iters=5)
    np.testing.assert_allclose(summed.objective, other.objective, rtol=1e-6)
    assert summed.info.strength_per_sample == pytest.approx(60.0)
    assert other.info.strength_summed == pytest.approx(60.0 * N)


def test_a_weight_of_three_is_a_row_that_occurs_thrice():
    x = jnp.asarray(planted().x, jnp.float32)
    clusterer, start = gem(K, balance=50.0), x[:K]
    weight = np.where(np.arange(N) < N // 3, 3.0, 0.0)
    weighted = fit(clusterer, x, key=KEY, sample_weight=weight, init=start, max_iters=5)
    thrice = fit(clusterer, jnp.concatenate([x[: N // 3]] * 3), key=KEY, init=start, max_iters=5)
    np.testing.assert_allclose(weighted.objective, thrice.objective, rtol=2e-6)
    np.testing.assert_allclose(weighted.state.concentrations, thrice.state.concentrations, rtol=1e-3)


def test_a_dead_cluster_gets_a_new_start():
    x = jnp.asarray(planted().x, jnp.float32)
    means = np.asarray(planted().state.mean_directions, np.float32)
    means[4] = -means[:4].sum(0) / np.linalg.norm(means[:4].sum(0))
    result = fit(spherical_kmeans(K), x, key=KEY, init=means, max_iters=15)
    sizes = cluster_sizes(assign(spherical_kmeans(K), result.state, x).labels, K)
    assert sizes.min() > 0.02 or not result.info.reseeded.any()
    assert result.info.reseeded.sum() >= 1
    assert result.objective.max() > 1.0001 * result.objective[0]


def test_duplicates_meet_the_limit_of_the_concentration():
    rows = np.array(planted().x, np.float32)
    rows[:150] = rows[0]
    result = fit(gem(K, balance=1.0), jnp.asarray(rows), key=KEY, init=START, max_iters=6)
    assert np.isfinite(result.objective).all()
    assert float(np.max(result.state.concentrations)) <= 1e5


@pytest.mark.slow
def test_mirror_steps_are_those_of_the_oracle():
    x, w, mu, kappa = small_problem()
    table, strength, target = oracle.logits(mu, kappa, x), 8.0, np.full(3, 1 / 3)
    start = np.exp(table - np.logaddexp.reduce(table, axis=1, keepdims=True))
    # One step is the closed form (8).
    power = (table - strength * (w / w.sum() @ start - target)[None, :] + strength / 2 * np.log(start)) / (
        1 + strength / 2
    )
    closed = np.exp(power) / np.exp(power).sum(1, keepdims=True)
    np.testing.assert_allclose(oracle.mirror(table, start, w, strength, target, 1), closed, atol=1e-13)
    gamma = oracle.mirror(table, start, w, strength, target, 5)
    with jax.enable_x64(True):
        state = GemState(jnp.asarray(mu), jnp.asarray(kappa), jnp.zeros(3))
        clusterer = gem(3, balance=strength, e_step="mirror")
        done = one_step(clusterer, state, jnp.asarray(x), jnp.asarray(w), table=jnp.log(start))
        np.testing.assert_allclose(np.exp(done.e_step.workspace.table), gamma, atol=1e-13)
        direct = oracle.objective(table, gamma, w, strength, target)
        np.testing.assert_allclose(done.e_step.objective, direct, rtol=1e-12)


@pytest.mark.slow
def test_mirror_fits_rise_more_slowly():
    x = jnp.asarray(planted().x, jnp.float32)
    slow = fit(gem(K, balance=1000.0, e_step="mirror"), x, key=KEY, init=START, max_iters=8, tol=0.0)
    fast = fit(gem(K, balance=1000.0), x, key=KEY, init=START, max_iters=8, tol=0.0)
    assert (np.diff(slow.objective) >= -1e-5 * np.abs(slow.objective[1:])).all()
    assert slow.objective[-1] < fast.objective[-1]
    assert np.isnan(slow.info.gap).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_clusters": 0}, "num_clusters"),
        ({"balance": -1.0}, "balance"),
        ({"balance": float("nan")}, "balance"),
        ({"target": (0.5, 0.5)}, "target"),
        ({"target": (0.5, 0.5, 0.0, 0.0, 0.0)}, "target"),
        ({"penalty": "summd"}, "summed"),
        ({"e_step": "newton"}, "e_step"),
        ({"e_step": "mirror", "balance": float("inf")}, "mirror"),
        ({"max_concentration": 0.0}, "max_concentration"),
    ],
)
def test_arguments_out_of_range_are_named(arguments, message):
    with pytest.raises(ConfigError, match=message):
        gem(**{"num_clusters": K, **arguments})
