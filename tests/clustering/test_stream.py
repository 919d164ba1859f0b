"""A fit of blocks: that of the rows in memory, and after a kill exactly that of an undisturbed run."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmix.clustering import fit, fit_stream, gem, spherical_kmeans
from jaxmix.clustering.checkpoint import StreamCheckpoint
from jaxmix.core.errors import ConfigError, RunError
from jaxmix.simulate.clusters import planted_mixture

N, D, K = 603, 16, 5
KEY = jax.random.key(0)
CLUSTERER = gem(K, balance=100.0)
OPTIONS = {"key": KEY, "init": "random", "max_iters": 3, "tol": 0.0}


@functools.cache
def rows():
    x = planted_mixture(0, N, K, D, concentrations=(30, 60), exponent=1.0).x.astype(np.float32)
    weight = np.random.default_rng(1).integers(0, 4, N).astype(np.float32)
    return x, weight


def blocks(size=201, x=None):
    x, weight = rows()[0] if x is None else x, rows()[1]
    return lambda: ((x[i : i + size], weight[i : i + size]) for i in range(0, len(x), size))


class Killed(Exception):
    pass


@functools.cache
def undisturbed():
    return fit_stream(CLUSTERER, blocks(), **OPTIONS)


def assert_same(a, b):
    np.testing.assert_array_equal(a.objective, b.objective)
    jax.tree.map(np.testing.assert_array_equal, a.state, b.state)
    jax.tree.map(np.testing.assert_array_equal, a.info, b.info)
    assert (a.converged, a.iterations) == (b.converged, b.iterations)


def test_a_stream_is_the_fit_of_its_rows():
    x, weight = rows()
    in_memory = fit(CLUSTERER, x, sample_weight=weight, **OPTIONS)
    np.testing.assert_allclose(undisturbed().objective, in_memory.objective, rtol=2e-6)
    np.testing.assert_allclose(undisturbed().objective[-1], in_memory.objective[-1], rtol=1e-6)
    np.testing.assert_allclose(undisturbed().state.biases, in_memory.state.biases, atol=0.02)
    assert undisturbed().info.strength_summed == in_memory.info.strength_summed


@pytest.mark.slow
@pytest.mark.parametrize("strength", [0.0, 10.0, 1000.0])
def test_a_stream_is_the_fit_of_its_rows_in_float64(strength):
    x, weight = (array.astype(np.float64) for array in rows())
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    given = lambda: ((x[i : i + 201], weight[i : i + 201]) for i in range(0, N, 201))
    with jax.enable_x64(True):
        options = {"key": KEY, "max_iters": 25, "tol": 0.0}
        in_memory = fit(gem(K, balance=strength), x, sample_weight=weight, **options)
        streamed = fit_stream(gem(K, balance=strength), given, **options)
    # At rest, rounding decides how many more iterations the two take: one looks at labels, the other does not.
    common = min(streamed.iterations, in_memory.iterations)
    np.testing.assert_allclose(streamed.objective[:common], in_memory.objective[:common], rtol=1e-6)
    np.testing.assert_allclose(streamed.objective[-1], in_memory.objective[-1], rtol=1e-6)


@pytest.mark.slow
def test_the_cut_into_blocks_does_not_matter():
    found = fit_stream(CLUSTERER, blocks(603), **OPTIONS)
    np.testing.assert_allclose(found.objective, undisturbed().objective, rtol=2e-6)


@pytest.mark.slow
def test_half_precision_blocks_without_weights():
    x = rows()[0].astype(np.float16)
    found = fit_stream(spherical_kmeans(K), lambda: iter([x[:201], x[201:402], x[402:]]), key=KEY, max_iters=20)
    assert found.converged
    whole = fit(spherical_kmeans(K), rows()[0], key=KEY, max_iters=20)
    np.testing.assert_allclose(found.objective.max(), whole.objective.max(), rtol=1e-4)


def test_a_kill_at_any_save_changes_nothing(tmp_path, monkeypatch):
    write, count = StreamCheckpoint.write, [0]

    def counting(self, tree):
        write(self, tree)
        count[0] += 1

    def killing(self, tree):
        write(self, tree)
        if count[0] == 0:
            raise Killed
        count[0] -= 1

    options = {**OPTIONS, "checkpoint_every": 2}
    monkeypatch.setattr(StreamCheckpoint, "write", counting)
    assert_same(fit_stream(CLUSTERER, blocks(), checkpoint=tmp_path / "whole", **options), undisturbed())
    saves = count[0]
    assert saves > 5
    # In a row: every process gets as far as the next save, and the last one to the end.
    monkeypatch.setattr(StreamCheckpoint, "write", killing)
    folder = tmp_path / "killed"
    for _ in range(saves):
        count[0] = 0
        with pytest.raises(Killed):
            fit_stream(CLUSTERER, blocks(), checkpoint=folder, **options)
    monkeypatch.setattr(StreamCheckpoint, "write", write)
    assert_same(fit_stream(CLUSTERER, blocks(), checkpoint=folder, **options), undisturbed())
    assert sorted(path.name for path in folder.iterdir()) == ["progress.npz", "survey.npz"]


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    fit_stream(CLUSTERER, blocks(), checkpoint=tmp_path, **OPTIONS)
    with pytest.raises(ConfigError, match="other settings"):
        fit_stream(gem(K, balance=99.0), blocks(), checkpoint=tmp_path, **OPTIONS)
    (tmp_path / "survey.npz").write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(RunError, match="cannot be read"):
        fit_stream(CLUSTERER, blocks(), checkpoint=tmp_path, **OPTIONS)


def test_blocks_that_change_are_noticed():
    once = blocks()()
    with pytest.raises(ConfigError, match="saw 0 rows"):
        fit_stream(CLUSTERER, lambda: once, **OPTIONS)


def test_what_cannot_be_streamed_is_named():
    with pytest.raises(ConfigError, match="mirror"):
        fit_stream(gem(K, e_step="mirror"), blocks(), key=KEY)
    with pytest.raises(ConfigError, match="fewer"):
        fit_stream(CLUSTERER, lambda: iter([]), key=KEY)
    with pytest.raises(ConfigError, match="length 1"):
        fit_stream(CLUSTERER, blocks(x=2 * rows()[0]), key=KEY)
    with pytest.raises(ConfigError, match="checkpoint_every"):
        fit_stream(CLUSTERER, blocks(), key=KEY, checkpoint_every=0)


def test_the_device_holds_a_block_and_not_the_rows():
    from jaxmix.clustering.stream import _build_sums

    x, weight = rows()
    compute = _build_sums(False, True, None)
    state = CLUSTERER.init(x[:K], 10.0)
    compiled = compute.lower(state, jnp.asarray(x[:201]), jnp.asarray(weight[:201])).compile()
    assert compiled.memory_analysis().argument_size_in_bytes < x[:201].nbytes + weight[:201].nbytes + 2000
