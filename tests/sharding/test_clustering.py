"""Clusters of rows that lie on several devices: the same fit, and no table that leaves its device."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmix.clustering import assign, fit, fit_stream, gem, spherical_kmeans
from jaxmix.clustering.em.iteration import WeightedRows, Workspace, build_iteration, em_config
from jaxmix.clustering.fit import penalty_of
from jaxmix.clustering.placement import place_rows
from jaxmix.core.sharding import batch_sharding, build_mesh, replicated
from jaxmix.simulate.clusters import planted_mixture

N, D, K = 603, 16, 5  # does not divide over the devices
KEY = jax.random.key(0)
BALANCED = gem(K, balance=100.0)


def mesh_of(devices):
    return build_mesh(data=devices // 2 or 1, fsdp=2 if devices > 1 else 1, devices=jax.devices()[:devices])


@functools.cache
def rows():
    x = planted_mixture(0, N, K, D, concentrations=(30, 60), exponent=1.0).x.astype(np.float32)
    return x, np.random.default_rng(1).integers(0, 4, N).astype(np.float32)


@functools.cache
def on_one_device(clusterer):
    x, weight = rows()
    return fit(clusterer, x, key=KEY, sample_weight=weight, init=x[:K], max_iters=6, tol=0.0)


def assert_same_objective(found, expected):
    """On the way F is as exact as the E-step, whose gap is 1e-6; where a fit ends an error there hardly shows."""
    np.testing.assert_allclose(found.objective, expected.objective, rtol=2e-6)
    np.testing.assert_allclose(found.objective[-1], expected.objective[-1], rtol=1e-6)


@pytest.mark.parametrize(
    ("devices", "clusterer"),
    [
        (8, BALANCED),
        pytest.param(2, BALANCED, marks=pytest.mark.slow),
        pytest.param(4, BALANCED, marks=pytest.mark.slow),
        pytest.param(8, spherical_kmeans(K), marks=pytest.mark.slow),
    ],
)
def test_the_same_fit_on_any_number_of_devices(devices, clusterer):
    x, weight = rows()
    mesh = mesh_of(devices)
    found = fit(clusterer, x, key=KEY, sample_weight=weight, init=x[:K], max_iters=6, tol=0.0, mesh=mesh)
    expected = on_one_device(clusterer)
    assert_same_objective(found, expected)
    np.testing.assert_allclose(found.state.mean_directions, expected.state.mean_directions, atol=1e-3)
    for leaf in jax.tree.leaves(found.state):
        assert leaf.sharding.is_fully_replicated


@pytest.mark.slow
def test_the_mirror_step_on_several_devices():
    """In float64: far from balance F is a difference of large numbers."""
    x, weight = rows()
    with jax.enable_x64(True):
        x = x.astype(np.float64)
        options = {"key": KEY, "sample_weight": weight, "init": x[:K], "max_iters": 6, "tol": 0.0}
        found, expected = (
            fit(gem(K, balance=100.0, e_step="mirror"), x, mesh=mesh, **options) for mesh in (mesh_of(8), None)
        )
    np.testing.assert_allclose(found.objective, expected.objective, rtol=1e-9)


def test_rows_stay_where_they_are():
    mesh, (x, weight) = mesh_of(8), rows()
    placed = place_rows("fit", x, weight, K, mesh)
    assert placed.x.shape[0] == 608
    penalty, _ = penalty_of(BALANCED, N, jnp.float32)
    table = jax.device_put(jnp.zeros((608, K)), batch_sharding(mesh))
    whole = BALANCED.init(x[:K], 10.0), jnp.zeros((K, K)), jnp.bool_(True), penalty, jnp.float32(weight.sum())
    state, factor, wants_gram, penalty, total = jax.device_put(whole, replicated(mesh))
    given = WeightedRows(placed.x, placed.weight, total), state, penalty, Workspace(table, factor, wants_gram)
    program = build_iteration(em_config(BALANCED), mesh).lower(*given).compile()
    text = program.as_text()
    assert "all-reduce" in text
    assert not [word for word in ("all-gather", "all-to-all", "collective-permute") if word in text]
    done = program(*given)
    assert done.e_step.workspace.table.sharding.is_equivalent_to(batch_sharding(mesh), 2)


def test_labels_of_rows_on_several_devices():
    mesh, (x, _) = mesh_of(8), rows()
    state = on_one_device(BALANCED).state
    split = jax.device_put(jnp.asarray(x[:600]), batch_sharding(mesh))
    out = assign(BALANCED, jax.device_put(state, replicated(mesh)), split)
    np.testing.assert_array_equal(out.labels, assign(BALANCED, state, jnp.asarray(x[:600])).labels)
    assert out.labels.sharding.is_equivalent_to(batch_sharding(mesh), 1)
    assert out.log_posterior.sharding.is_equivalent_to(batch_sharding(mesh), 2)


@pytest.mark.slow
def test_a_stream_over_several_devices():
    x, weight = rows()
    blocks = lambda: ((x[i : i + 201], weight[i : i + 201]) for i in range(0, N, 201))
    found = fit_stream(BALANCED, blocks, key=KEY, init=x[:K], max_iters=6, tol=0.0, mesh=mesh_of(8))
    assert_same_objective(found, on_one_device(BALANCED))
