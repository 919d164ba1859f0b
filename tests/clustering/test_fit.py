"""Fits in memory: starts, restarts, formats of rows, what is refused; and assignment."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmix.clustering import (
    Assignment,
    GemState,
    adjusted_rand_index,
    assign,
    fit,
    gem,
    spherical_kmeans,
    vmf_mixture,
)
from jaxmix.clustering.em import block_sums
from jaxmix.core.errors import ConfigError
from jaxmix.simulate.clusters import planted_mixture

N, D, K = 603, 16, 5
KEY = jax.random.key(0)


@functools.cache
def planted():
    return planted_mixture(0, N, K, D, concentrations=(30, 60), exponent=1.0)


START = np.asarray(planted().state.mean_directions, np.float32)


def rows(dtype=jnp.float32):
    return jnp.asarray(planted().x, dtype)


def ari(clusterer, result):
    return adjusted_rand_index(assign(clusterer, result.state, rows()).labels, planted().classes)


def test_every_start_and_the_same_key_the_same_result():
    clusterer = gem(K, balance=1.0)
    for init in ("overseed", "random", START):
        first, second = (fit(clusterer, rows(), key=KEY, init=init, max_iters=20) for _ in range(2))
        np.testing.assert_array_equal(first.objective, second.objective)
        jax.tree.map(np.testing.assert_array_equal, first.state, second.state)
        assert first.iterations == len(first.objective) == len(first.info.gap)
        if not isinstance(init, str) or init == "overseed":
            assert ari(clusterer, first) > 0.95
            assert first.converged


def test_restarts_keep_the_best():
    result = fit(gem(K, balance=1.0), rows(), key=KEY, init="random", restarts=3, max_iters=20)
    assert result.info.restart_objectives.shape == (3,)
    assert result.objective.max() == result.info.restart_objectives.max()
    assert result.info.restart == int(np.argmax(result.info.restart_objectives))
    assert len(set(result.info.restart_objectives)) > 1


def test_numpy_and_half_precision_rows():
    clusterer = spherical_kmeans(K)
    full = fit(clusterer, np.asarray(rows()), key=KEY, init=START, max_iters=20)
    half = fit(clusterer, np.asarray(rows()).astype(np.float16), key=KEY, init=START, max_iters=20)
    np.testing.assert_allclose(half.objective[-1], full.objective[-1], rtol=2e-3)
    assert half.state.mean_directions.dtype == jnp.float32
    labels = assign(clusterer, full.state, rows(jnp.float16)).labels
    assert np.mean(labels == assign(clusterer, full.state, rows()).labels) > 0.99


@pytest.mark.slow
def test_float32_labels_are_those_of_float64():
    with jax.enable_x64(True):
        exact = fit(gem(K, balance=100.0), rows(jnp.float64), key=KEY, init=START, max_iters=20)
        labels = np.asarray(assign(gem(K), exact.state, rows(jnp.float64)).labels)
    narrow = fit(gem(K, balance=100.0), rows(), key=KEY, init=START, max_iters=20)
    assert np.mean(labels == np.asarray(assign(gem(K), narrow.state, rows()).labels)) >= 0.999
    np.testing.assert_allclose(narrow.objective.max(), exact.objective.max(), rtol=1e-5)


def test_the_biases_belong_to_the_model():
    clusterer = gem(K, balance=5000.0)
    state = fit(clusterer, rows(), key=KEY, max_iters=20).state
    without = GemState(state.mean_directions, state.concentrations, jnp.zeros(K))
    assert np.mean(assign(clusterer, state, rows()).labels != assign(clusterer, without, rows()).labels) > 0.02


@pytest.mark.parametrize("tile", [200, 20_000])
def test_blocks_change_nothing(tile, monkeypatch):
    state = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), planted().state)
    table = np.asarray(planted().state.concentrations)[None, :] * (planted().x @ planted().state.mean_directions.T)
    table = table + np.asarray(block_sums.linear_rule(state)[1])[None, :]
    log_posterior = table - np.logaddexp.reduce(table, axis=1, keepdims=True)
    monkeypatch.setitem(block_sums._TILE, "cpu", tile)
    # A tile of 200 gives the least block, 64 rows, which does not divide 603.
    assert block_sums.block_rows(N, D) == (64 if tile == 200 else N)
    found = Assignment(
        *jax.jit(block_sums.label_pass, static_argnames="with_posterior")(state, rows(), with_posterior=True)
    )
    np.testing.assert_array_equal(found.labels, np.argmax(table, axis=1))
    np.testing.assert_allclose(found.log_posterior, log_posterior, atol=1e-4)
    weight = jnp.asarray(np.random.default_rng(0).uniform(0, 2, N), jnp.float32).at[5].set(0)
    sums = jax.jit(block_sums.fused_pass, static_argnames="gram")(state, rows(), weight, gram=True)
    gamma, w = np.exp(log_posterior), np.asarray(weight, np.float64)
    assert float(sums.count) == N - 1
    np.testing.assert_allclose(sums.weight, w.sum(), rtol=1e-6)
    np.testing.assert_allclose(sums.value, w @ np.logaddexp.reduce(table, axis=1), rtol=1e-5)
    np.testing.assert_allclose(sums.mass, w @ gamma, rtol=1e-5)
    np.testing.assert_allclose(sums.resultant, (gamma * w[:, None]).T @ planted().x, atol=1e-3)
    np.testing.assert_allclose(sums.gram, (gamma * w[:, None]).T @ gamma, rtol=1e-3, atol=1e-3)


NEAR = jnp.array([0.5, -1.0, 2.0, 0.0, -1.5])
FAR = jnp.array([0.0, 100.0, -150.0, 20.0, 0.0])


def test_the_passes_of_the_dual_are_the_fused_pass_at_other_biases():
    state = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), planted().state)
    weight = jnp.asarray(np.random.default_rng(0).uniform(0, 2, N), jnp.float32)
    value, _, table = block_sums.posterior_pass(state, rows(), weight, jnp.zeros((N, K)))
    anchor = jnp.zeros(K)
    for shift in (NEAR, FAR, FAR + NEAR):
        moved = GemState(state.mean_directions, state.concentrations, state.biases + shift)
        expected = block_sums.fused_pass(moved, rows(), weight, gram=True)
        if block_sums.is_near(shift - anchor):
            change, mass = block_sums.dual_pass(table, weight, shift - anchor)
        else:
            change, mass, table = block_sums.posterior_pass(state, rows(), weight, table, (anchor, shift))
            anchor = shift
        value_there = value + change
        value = value_there if anchor is shift else value
        np.testing.assert_allclose(value_there, expected.value, rtol=2e-6)
        np.testing.assert_allclose(mass, expected.mass, rtol=1e-4, atol=1e-4)
        gram = block_sums.gram_pass(table, weight, shift - anchor)
        np.testing.assert_allclose(gram, expected.gram, rtol=1e-4, atol=1e-3)
        mass, resultant = block_sums.moment_pass(table, rows(), weight, shift - anchor)
        np.testing.assert_allclose(mass, expected.mass, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(resultant, expected.resultant, rtol=1e-4, atol=1e-3)
    assert anchor is FAR


def test_a_posterior_carried_to_the_farthest_near_biases():
    """Entries far under the smallest float32 number are cut off, which must not show."""
    logits = np.array([[0.0, -30.0, -59.0, -80.0, -120.0], [-59.0, 0.0, -1.0, -90.0, -2.0]])
    shift = np.array([-20.0, 0.0, 39.0, 30.0, 39.0])
    assert block_sums.is_near(jnp.asarray(shift, jnp.float32))
    assert not block_sums.is_near(jnp.asarray(1.1 * shift, jnp.float32))
    posterior = jnp.asarray(np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)), jnp.float32)
    value, mass = block_sums.dual_pass(posterior, jnp.ones(2), jnp.asarray(shift, jnp.float32))
    gram = block_sums.gram_pass(posterior, jnp.ones(2), jnp.asarray(shift, jnp.float32))
    moved = np.logaddexp.reduce(logits + shift, axis=1)
    gamma = np.exp(logits + shift - moved[:, None])
    np.testing.assert_allclose(value, np.sum(moved - np.logaddexp.reduce(logits, axis=1)), rtol=1e-6)
    np.testing.assert_allclose(mass, gamma.sum(0), rtol=1e-5, atol=1e-11)
    np.testing.assert_allclose(gram, gamma.T @ gamma, rtol=1e-5, atol=1e-11)


def test_assign_without_the_posterior():
    clusterer = spherical_kmeans(K)
    state = clusterer.init(np.asarray(planted().state.mean_directions, np.float32), 10.0)
    both, labels = assign(clusterer, state, rows()), assign(clusterer, state, rows(), with_posterior=False)
    np.testing.assert_array_equal(both.labels, labels.labels)
    assert labels.log_posterior is None
    np.testing.assert_array_equal(both.labels, np.argmax(planted().x @ planted().state.mean_directions.T, axis=1))


BAD = {
    "length": ({"x": 2 * np.eye(8, 4, dtype=np.float32)}, "length 1"),
    "zero row": ({"x": np.zeros((8, 4), np.float32)}, "length 1"),
    "nan": ({"x": np.full((8, 4), np.nan, np.float32)}, "length 1"),
    "whole numbers": ({"x": np.eye(8, dtype=np.int32)}, "floats"),
    "vector": ({"x": np.ones(4, np.float32)}, "shape"),
    "few": ({"x": np.eye(2, dtype=np.float32)}, "fewer"),
    "weights": ({"sample_weight": np.ones(3)}, "weights"),
    "negative weight": ({"sample_weight": -np.ones(8)}, "weights"),
    "no weight": ({"sample_weight": np.zeros(8)}, "weights"),
    "start": ({"init": "kmean++"}, "kmeans"),
    "directions": ({"init": np.eye(3, dtype=np.float32)}, "directions"),
    "directions' width": ({"init": np.eye(5, dtype=np.float32)}, "width"),
    "directions' length": ({"init": 2 * np.eye(5, 8, dtype=np.float32)}, "length"),
    "iterations": ({"max_iters": 0}, "max_iters"),
    "tolerance": ({"tol": -1.0}, "tol"),
    "restarts": ({"restarts": 0}, "restarts"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_fitted_is_named(case):
    changed, message = BAD[case]
    arguments = {"x": np.eye(8, dtype=np.float32), "key": KEY, **changed}
    with pytest.raises(ConfigError, match=message):
        fit(vmf_mixture(K), arguments.pop("x"), **arguments)


def test_rows_of_another_width_are_refused():
    state = vmf_mixture(K).init(np.eye(K, D, dtype=np.float32), 10.0)
    with pytest.raises(ConfigError, match=r"\[n, 16\]"):
        assign(vmf_mixture(K), state, jnp.ones((3, 4)))
