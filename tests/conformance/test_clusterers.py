"""What every clusterer must do, one table for all. A clusterer is tested by being registered."""

from __future__ import annotations

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from strict_types import assert_fields_hold

import jaxmix.clustering as clustering
from jaxmix.core.errors import ConfigError
from jaxmix.core.pytree import from_nested, state_versions, to_nested
from jaxmix.simulate.clusters import planted_mixture

N, D, K = 603, 16, 5
KEY = jax.random.key(0)
VARIANTS = {
    "gem_infinite": ("gem", {"balance": float("inf")}),
    "gem_free": ("gem", {"balance": 0.0}),
    "gem_mirror": ("gem", {"balance": 10.0, "e_step": "mirror"}),
    "gem_summed": ("gem", {"penalty": "summed"}),
}
CASES = {**{name: (name, {}) for name in clustering.registry}, **VARIANTS}
SLOW = {"gem_free", "gem_infinite", "gem_mirror", "gem_summed"}


@functools.cache
def planted():
    return planted_mixture(0, N, K, D, concentrations=(30, 60), exponent=1.0)


@functools.cache
def fitted(case):
    made = make(case)
    return clustering.fit(made, ROWS, key=KEY, init=START, max_iters=6, tol=0.0)


def make(case):
    name, arguments = CASES[case]
    return clustering.make(name, K, **arguments)


ROWS = jnp.asarray(planted().x, jnp.float32)
START = np.asarray(planted().state.mean_directions, np.float32)


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in sorted(CASES)])
def case(request):
    return request.param


def test_equal_settings_are_the_same_object(case):
    made = make(case)
    assert made is make(case)
    assert hash(made) == hash(make(case))
    assert made.num_clusters == K
    assert made.name == CASES[case][0]


def test_the_fit_rises_and_keeps_the_states_form(case):
    result = fitted(case)
    start = make(case).init(START, 10.0)
    chex.assert_trees_all_equal_shapes_and_dtypes(result.state, start)
    chex.assert_tree_all_finite(result.state)
    assert_fields_hold(result.state)
    np.testing.assert_allclose(jnp.linalg.norm(result.state.mean_directions, axis=1), 1, atol=1e-5)
    assert (np.diff(result.objective) >= -1e-5 * np.abs(result.objective[1:])).all()
    assert result.iterations == len(result.objective) <= 6


def test_sums_add_up_over_blocks(case):
    made, state = make(case), fitted(case).state
    weight = jnp.asarray(np.random.default_rng(0).integers(0, 3, N), jnp.float32)
    whole = made.accumulate(state, ROWS, weight)
    parts = [made.accumulate(state, ROWS[i : i + 201], weight[i : i + 201]) for i in range(0, N, 201)]
    added = jax.tree.map(lambda *leaves: sum(leaves), *parts)
    chex.assert_trees_all_close(added, whole, rtol=1e-4, atol=2e-2)
    assert float(whole.count) == float((weight > 0).sum())
    again = made.maximize(state, added)
    chex.assert_trees_all_equal_shapes_and_dtypes(again, state)


def test_labels_are_those_of_the_linear_rule(case):
    made, state = make(case), fitted(case).state
    out = clustering.assign(made, state, ROWS)
    assert out.labels.dtype == jnp.int32
    assert out.labels.shape == (N,)
    np.testing.assert_array_equal(out.labels, np.argmax(out.log_posterior, axis=1))
    np.testing.assert_allclose(np.exp(np.asarray(out.log_posterior, np.float64)).sum(1), 1, atol=1e-4)
    jitted = jax.jit(functools.partial(clustering.assign, made))(state, ROWS)
    np.testing.assert_array_equal(jitted.labels, out.labels)


def test_no_second_compilation(case):
    fitted(case)
    names = []
    jax.monitoring.register_event_duration_secs_listener(lambda name, *_, **__: names.append(name))
    try:
        result = clustering.fit(make(case), ROWS, key=jax.random.key(5), init=START.copy(), max_iters=6, tol=0.0)
    finally:
        jax.monitoring.clear_event_listeners()
    np.testing.assert_array_equal(result.objective, fitted(case).objective)
    assert not [name for name in names if "backend_compile" in name]


def test_the_state_survives_storage(case):
    state = fitted(case).state
    stored = jax.tree.map(np.asarray, to_nested(state))
    back = from_nested(make(case).init(START, 10.0), stored, state_versions(state))
    chex.assert_trees_all_equal(back, state)


def test_no_cluster_is_refused(case):
    name, arguments = CASES[case]
    with pytest.raises(ConfigError, match="num_clusters"):
        clustering.make(name, 0, **arguments)


@pytest.mark.slow
def test_one_cluster_holds_everything():
    made = clustering.make("vmf_mixture", 1)
    result = clustering.fit(made, ROWS, key=KEY, init=START[:1], max_iters=2)
    assert not np.any(clustering.assign(made, result.state, ROWS).labels)
