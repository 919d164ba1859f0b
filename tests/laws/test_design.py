import jax
import numpy as np
import pytest
import scipy.stats.qmc

from jaxmix.core.errors import ConfigError
from jaxmix.laws.base import Shape
from jaxmix.laws.design import (
    d_optimal,
    dirichlet_designs,
    distinct,
    law_features,
    sample_mixtures,
    sobol_designs,
)
from jaxmix.laws.fit import LawFit, regressor
from jaxmix.laws.forms.capacity_law import capacity

KEY = jax.random.key(0)
RECORDED = [
    [0.702858786004102, 0.012755434883002958, 0.28438577911289513],
    [0.23299745694361873, 0.41642652905637856, 0.3505760140000027],
    [0.08441663347625411, 0.26819925516486476, 0.6473841113588811],
    [0.4183704778340803, 0.46118985780305755, 0.12043966436286213],
]


def test_sobol_mixtures_fill_every_stratum_once():
    """Broken back into the points of the cube: a digital shift leaves one of 64 points in each 64th."""
    weights = sobol_designs(KEY, 6, 64)
    left = 1 - np.cumsum(weights, axis=1) + weights
    points = 1 - (1 - weights / left)[:, :5] ** np.arange(5, 0, -1)
    for column in points.T:
        assert sorted((column * 64).astype(int)) == list(range(64))


def test_recorded_sobol_designs_stay_the_same():
    """As drawn by the package's own generator, which SciPy's replaced."""
    found = sobol_designs(KEY, 3, 4)
    np.testing.assert_allclose(found, RECORDED, rtol=1e-14)


def test_sobol_mixtures_are_uniform_on_the_simplex_and_more_even_than_random_ones():
    m, runs = 4, 1024
    weights = sobol_designs(KEY, m, runs)
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-12)
    assert (weights >= 0).all()
    # Every weight of a uniform mixture follows Beta(1, m − 1): the farthest the distribution functions lie apart.
    grid = np.linspace(0, 1, 200)
    exact = 1 - (1 - grid) ** (m - 1)
    far = lambda w: np.mean([np.abs((w[:, [j]] <= grid).mean(axis=0) - exact).max() for j in range(m)])
    random = sample_mixtures(KEY, np.ones(m), runs, concentration=(m, m))
    assert far(weights) < 0.01
    assert far(random) > 2 * far(weights)


def test_sobol_mixtures_keep_floors_and_caps():
    weights = sobol_designs(KEY, 5, 40, min_weights=0.05, max_weights=[0.3, 0.6, 0.6, 0.6, 0.6])
    assert weights.shape == (40, 5)
    assert (weights >= 0.05).all()
    assert weights[:, 0].max() <= 0.3
    with pytest.raises(ConfigError, match="keep the caps"):
        sobol_designs(KEY, 5, 40, max_weights=0.2)
    with pytest.raises(ConfigError, match="add up to less than 1"):
        sobol_designs(KEY, 5, 40, min_weights=0.2)
    with pytest.raises(ConfigError, match="from 2 to"):
        sobol_designs(KEY, scipy.stats.qmc.Sobol.MAXDIM + 2, 40)


PRIOR = np.array([0.5, 0.3, 0.15, 0.05, 0.0])


def test_dirichlet_designs_follow_regmix():
    weights = dirichlet_designs(KEY, PRIOR, 300, min_weight=0.01, max_weights=np.minimum(15 * PRIOR, 0.97))
    assert weights.shape == (300, 5)
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-12)
    assert (weights[:, 4] == 0).all()
    assert ((weights == 0) | (weights >= 0.01)).all()
    assert np.abs(weights[:, None] - weights[None]).sum(axis=2)[np.triu_indices(300, 1)].min() >= 1e-3
    # Concentrations from sparse to close to the flattened prior: weights of 0 occur, and full mixtures do.
    drawn = (weights[:, :4] > 0).sum(axis=1)
    assert set(drawn) == {2, 3, 4} or set(drawn) == {1, 2, 3, 4}
    same = dirichlet_designs(KEY, PRIOR, 300, min_weight=0.01, max_weights=np.minimum(15 * PRIOR, 0.97))
    np.testing.assert_array_equal(weights, same)
    assert not np.array_equal(weights, dirichlet_designs(jax.random.key(1), PRIOR, 300, min_weight=0.01))


def test_impossible_designs_are_refused():
    with pytest.raises(ConfigError, match="0 of 8 mixtures keep the caps"):
        dirichlet_designs(KEY, PRIOR, 8, max_weights=0.1)
    with pytest.raises(ConfigError, match="min_weight must be in"):
        dirichlet_designs(KEY, PRIOR, 8, min_weight=0.5)
    with pytest.raises(ConfigError, match="range of finite numbers"):
        dirichlet_designs(KEY, PRIOR, 8, concentration=(5.0, 0.1))


def test_sampled_mixtures_have_the_moments_of_dirichlet():
    alpha = 3.0 * PRIOR[:4] / PRIOR[:4].sum()
    weights = sample_mixtures(KEY, PRIOR[:4], 200_000, concentration=(3.0, 3.0))
    mean = alpha / 3.0
    np.testing.assert_allclose(weights.mean(axis=0), mean, atol=3e-3)
    np.testing.assert_allclose(weights.var(axis=0), mean * (1 - mean) / 4.0, rtol=0.02)
    tiny = sample_mixtures(KEY, np.ones(4), 1000, concentration=(1e-3, 1e-3))
    assert np.isfinite(tiny).all()
    assert (tiny.max(axis=1) > 0.999).mean() > 0.95


def test_near_duplicates_are_rejected_in_order():
    rows = np.array([[0.5, 0.5], [0.5001, 0.4999], [0.6, 0.4], [0.5, 0.5]])
    np.testing.assert_array_equal(distinct(rows, min_distance=1e-3), rows[[0, 2]])


def greedy_oracle(rows, count, start):
    chosen, information = [], start
    for _ in range(count):
        values = [
            -np.inf if c in chosen else np.linalg.slogdet(information + rows[c].T @ rows[c])[1]
            for c in range(len(rows))
        ]
        chosen.append(int(np.argmax(values)))
        information = information + rows[chosen[-1]].T @ rows[chosen[-1]]
    return chosen


@pytest.mark.parametrize("shape", [(30, 4), (30, 3, 4)])
def test_d_optimal_choice_against_a_slow_greedy_search(shape):
    rng = np.random.default_rng(0)
    features = rng.normal(size=shape)
    rows = features.reshape(30, -1, 4)
    existing = rng.normal(size=(5, *shape[1:]))
    ridge = 1e-6 * (rows**2).sum(axis=(1, 2)).mean() * np.eye(4)
    known = existing.reshape(-1, 4)
    found = d_optimal(np.zeros((30, 2)), 8, features=features, existing=existing)
    assert found.tolist() == greedy_oracle(rows, 8, ridge + known.T @ known)
    assert d_optimal(np.zeros((30, 2)), 8, features=features).tolist() == greedy_oracle(rows, 8, ridge)


def test_the_next_runs_of_a_quadratic_go_where_the_others_are_not():
    corner = np.array([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]])
    inside = sample_mixtures(KEY, np.ones(3), 50, concentration=(30, 30))
    chosen = d_optimal(np.concatenate([inside, corner]), 6)
    assert set(chosen) == set(range(50, 56))
    assert d_optimal(corner, 1, existing=corner[:5]).tolist() == [5]


def test_what_a_run_tells_of_a_law_is_its_jacobian():
    rng = np.random.default_rng(0)
    law = capacity(competition=False)
    params = {
        "irreducible": np.array([1.0, 0.5]),
        "noise_scale": np.array([0.3, 0.6]),
        "noise_exponent": np.array([0.4, 0.2]),
        "offset": np.array([0.05]),
    }
    fit = LawFit(params, 0.0, 7, True, law, Shape(2, (0, 1)), np.zeros(1))
    mixtures = rng.dirichlet(np.ones(2), 3)
    found = law_features(fit, mixtures, model_size=1.0, tokens=1.0)
    assert found.shape == (3, 2, 7)
    columns = []
    for name, value in params.items():
        for i in range(value.size):
            losses = []
            for sign in (1, -1):
                moved = {k: v.copy() for k, v in params.items()}
                moved[name][i] *= np.exp(sign * 1e-5)
                losses.append(
                    np.log(LawFit(moved, 0.0, 7, True, law, fit.shape, np.zeros(1)).predict(mixtures, 1.0, 1.0))
                )
            columns.append((losses[0] - losses[1]) / 2e-5)
    np.testing.assert_allclose(found, np.stack(columns, axis=2), atol=1e-8)
    trees = LawFit(
        {}, 0.0, 1, True, regressor("trees", lambda table: (lambda *_: np.zeros(1), 1)), fit.shape, np.zeros(1)
    )
    with pytest.raises(ConfigError, match="no parameters"):
        law_features(trees, mixtures, model_size=1, tokens=1)
