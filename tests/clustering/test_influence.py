import jax
import jax.numpy as jnp
import numpy as np
import pytest
from clustering import oracle

from jaxmix.clustering import GemState, geometric_influence, influence
from jaxmix.core.errors import ConfigError
from jaxmix.simulate.clusters import planted_mixture

N, D, K = 90, 8, 3


@pytest.fixture(scope="module")
def planted():
    found = planted_mixture(0, N, K, D, concentrations=(10, 30))
    labels = found.classes.copy()
    labels[:4] = -1
    return found.x.astype(np.float32), labels, found.state


@pytest.mark.parametrize("form", ["literal", "standardized"])
@pytest.mark.parametrize("tiles", [(1024, 2048), (16, 8)])
def test_influence_is_the_oracles(planted, form, tiles, monkeypatch):
    x, labels, state = planted
    monkeypatch.setattr(influence, "_TILE_ROWS", tiles[0])
    monkeypatch.setattr(influence, "_TILE_COLUMNS", tiles[1])
    narrow = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), state)
    found = geometric_influence(narrow, x, labels, form=form, density_weight=0.7, neighbors=5)
    expected = oracle.influence(*jax.tree.leaves(state), x.astype(np.float64), labels, 0.7, 5, form)
    np.testing.assert_allclose(found, expected, atol=2e-3)
    assert found.dtype == jnp.float32


def test_small_clusters(planted):
    x, _, state = planted
    labels = np.full(N, -1)
    labels[[0, 1, 2]], labels[3] = 0, 1
    narrow = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), state)
    for form in ("literal", "standardized"):
        found = np.asarray(geometric_influence(narrow, x, labels, form=form))
        assert np.isfinite(found[:4]).all()
        assert (found[4:] == -np.inf).all()
    assert found[3] == 0  # alone in its cluster: nothing to stand out from
    density = influence.local_density(x, labels, neighbors=8)
    pairs = x[:3].astype(np.float64) @ x[:3].T
    np.testing.assert_allclose(density[:3], (pairs.sum(1) - 1) / 2, atol=1e-5)
    assert density[3] == 1


def test_large_clusters_look_at_a_part(planted, monkeypatch):
    x, _, _ = planted
    monkeypatch.setattr(influence, "MOST_NEIGHBORS_FROM", 50)
    monkeypatch.setattr(influence, "SUBSET", 30)
    density = influence.local_density(x, np.zeros(N, np.int32), neighbors=4)
    pool = np.linspace(0, N - 1, 30).astype(int)
    cosine = x.astype(np.float64) @ x[pool].T
    cosine[pool, np.arange(30)] = -np.inf
    np.testing.assert_allclose(density, np.sort(cosine, axis=1)[:, -4:].mean(1), atol=1e-5)


def test_without_density_the_literal_form_is_centrality_at_high_concentration():
    found = planted_mixture(0, 200, 2, 96, concentrations=(900, 900))
    state = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), found.state)
    x = jnp.asarray(found.x, jnp.float32)
    score = np.asarray(geometric_influence(state, x, found.classes))
    own = np.sum(found.x * found.state.mean_directions[found.classes], axis=1)
    rows = np.flatnonzero(found.classes == 0)
    assert np.corrcoef(np.argsort(np.argsort(score[rows])), np.argsort(np.argsort(own[rows])))[0, 1] > 0.999


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"form": "standardise"}, "standardized"),
        ({"density_weight": -1.0}, "density_weight"),
        ({"neighbors": 0}, "neighbors"),
        ({"labels": np.zeros(3, np.int32)}, "labels"),
        ({"labels": np.full(N, K)}, "labels"),
    ],
)
def test_arguments_out_of_range_are_named(planted, arguments, message):
    x, labels, state = planted
    given = {"labels": labels, **arguments}
    with pytest.raises(ConfigError, match=message):
        geometric_influence(state, x, **given)


def test_a_state_of_another_width_is_refused(planted):
    x, labels, _ = planted
    with pytest.raises(ConfigError, match=r"\[n, 4\]"):
        geometric_influence(GemState(jnp.eye(4), jnp.ones(4), jnp.zeros(4)), x, labels)


def test_the_old_spelling_still_works_and_warns(planted):
    x, labels, state = planted
    state = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), state)
    expected = geometric_influence(state, x, labels, form="standardized", neighbors=5)
    with pytest.warns(DeprecationWarning, match="neighbors"):
        found = geometric_influence(state, x, labels, form="standardized", neighbours=5)
    np.testing.assert_array_equal(found, expected)
    with pytest.warns(DeprecationWarning, match="standardized"):
        found = geometric_influence(state, x, labels, form="standardised", neighbors=5)
    np.testing.assert_array_equal(found, expected)
