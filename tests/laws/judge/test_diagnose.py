"""Diagnosis against obvious oracles, and laws whose errors are known in advance."""

import jax
import numpy as np
import pytest
import scipy.stats

from jaxmix.core.errors import ConfigError
from jaxmix.laws.base import RunTable
from jaxmix.laws.fit import fit, regressor
from jaxmix.laws.judge.diagnose import cross_validate, extrapolation, select, split_mixtures
from jaxmix.laws.judge.metrics import (
    mean_absolute_error,
    mean_relative_error,
    optimism,
    own_weights,
    regret,
    spearman,
)

KEY = jax.random.key(0)


def world(runs=40, seed=0, noise=0.0, scales=((1.0, 1.0),), repeats=1):
    """A table whose losses are linear in the mixture, with zero weights, and runs of equal mixtures."""
    rng = np.random.default_rng(seed)
    base = rng.dirichlet(np.full(3, 0.7), runs)
    base[::5, 0] = 0
    base /= base.sum(axis=1, keepdims=True)
    weights = np.tile(base, (repeats * len(scales), 1))
    size, tokens = (np.repeat([s[i] for s in scales], repeats * runs) for i in (0, 1))
    slopes = np.array([[1.0, 3.0, 3.5], [3.0, 1.5, 2.0]])
    losses = (weights @ slopes.T + 0.5 / size[:, None]) * np.exp(noise * rng.normal(size=(len(weights), 2)))
    return RunTable(weights, losses, size, tokens, ["a", "b", "c"], ["a", "b"], seed=np.arange(len(weights)))


def least_squares(columns=None, size=True):
    """A regressor that is exact on `world`: linear in the mixture and 1/size."""

    def regress(table):
        features = lambda w, n: np.concatenate([w[:, columns or [0, 1, 2]], 1 / n[:, None]], axis=1)
        x = features(table.weights, table.model_size)
        solution = np.linalg.lstsq(x, table.losses, rcond=None)[0]
        predict = lambda w, n, d: features(w, np.broadcast_to(n, len(w))) @ solution
        return predict, solution.size

    return regressor("least_squares" if columns is None else "partial", regress)


def memory():
    """Knows every mixture it has seen, by heart, and nothing else: exact by row, useless by mixture."""

    def regress(table):
        known = {row.tobytes(): loss for row, loss in zip(table.weights.round(9), table.losses, strict=True)}
        guess = np.full(table.losses.shape[1], 100.0)
        predict = lambda w, n, d: np.stack([known.get(row.tobytes(), guess) for row in w.round(9)])
        return predict, 1

    return regressor("memory", regress)


def test_an_exact_law_has_no_error_and_the_mean_stands_beside():
    table = world()
    found = cross_validate(least_squares(), table, key=KEY)
    assert found.mre < 1e-12
    assert found.mae < 1e-12
    np.testing.assert_allclose(found.spearman, 1)
    assert found.spearman_mean == pytest.approx(1)
    assert found.regret == 0
    assert abs(found.optimism) < 1e-12
    assert found.num_params == 8
    by_mean = np.empty(table.losses.shape)
    for f in range(5):
        by_mean[found.fold == f] = table.losses[found.fold != f].mean(axis=0)
    assert found.mean_mre == pytest.approx(np.abs(by_mean / table.losses - 1).mean(), rel=1e-12)
    own = table.weights[:, [0, 1]] > 0
    assert found.mean_mre_positive == pytest.approx(np.abs(by_mean / table.losses - 1)[own].mean(), rel=1e-12)
    assert 0 < own.mean() < 1


def test_runs_of_one_mixture_are_never_split():
    table = world(runs=13, repeats=3, scales=((1.0, 1.0), (2.0, 1.0)))
    fold = split_mixtures(table, KEY, folds=5)
    for mixture in np.unique(table.mixture):
        assert len(set(fold[table.mixture == mixture])) == 1
    counts = np.bincount([fold[table.mixture == i][0] for i in np.unique(table.mixture)])
    assert counts.max() - counts.min() <= 1
    assert cross_validate(memory(), table, key=KEY).mre > 10
    # By row, memory would look perfect.
    seen = fit(memory(), table.take(np.arange(len(table)) >= 13), key=KEY)
    np.testing.assert_array_equal(seen.predict(table.weights[:13], 1, 1), table.losses[-13:])


def test_more_folds_than_mixtures_leaves_one_out():
    fold = split_mixtures(world(runs=4), KEY, folds=10)
    assert sorted(fold) == [0, 1, 2, 3]
    with pytest.raises(ConfigError, match="one mixture"):
        split_mixtures(world(runs=1, repeats=3), KEY, folds=5)
    with pytest.raises(ConfigError, match="folds must be a whole number ≥ 2"):
        split_mixtures(world(), KEY, folds=1)


def test_ranks_are_judged_within_a_scale():
    """A law that only knows the model size ranks runs of different sizes well, and mixtures not at all."""

    def regress(table):
        mean = {n: table.losses[table.model_size == n].mean(axis=0) for n in np.unique(table.model_size)}
        return lambda w, n, d: np.stack([mean[x] for x in np.broadcast_to(n, len(w))]), 2

    table = world(scales=((0.1, 1.0), (10.0, 1.0)))
    found = cross_validate(regressor("size", regress), table, key=KEY)
    assert spearman(table.losses.mean(axis=1), found.predicted.mean(axis=1)) > 0.6
    assert abs(found.spearman_mean) < 0.3 or np.isnan(found.spearman_mean)


def test_cells_that_were_not_measured_count_nowhere():
    table = world()
    losses = table.losses.copy()
    losses[3, 1] = np.nan

    def regress(table):
        return lambda w, n, d: np.full((len(w), 2), 2.0), 0

    holes = RunTable(table.weights, losses, table.model_size, table.tokens, table.domain_names, table.metric_names)
    found = cross_validate(regressor("two", regress), holes, key=KEY)
    assert found.mre == pytest.approx(np.nanmean(np.abs(2 / losses - 1)), rel=1e-12)
    assert found.mae == pytest.approx(np.nanmean(np.abs(2 - losses)), rel=1e-12)


def test_the_law_of_the_lowest_out_of_fold_error_is_chosen():
    table = world(noise=0.01)
    laws = {"exact": least_squares(), "partial": least_squares([0, 1]), "memory": memory()}
    found = select(laws, table, key=KEY)
    assert found.name == "exact"
    assert list(found.diagnoses) == ["exact", "partial", "memory"]
    same = {name: d.fold.tolist() for name, d in found.diagnoses.items()}
    assert same["exact"] == same["partial"] == same["memory"]

    def impossible(table):
        raise ConfigError("it wants more domains", where="here")

    found = select([memory(), regressor("broken", impossible)], table, key=KEY)
    assert found.name == "memory"
    assert "wants more domains" in found.left_out["broken"]
    with pytest.raises(ConfigError, match="no law could be judged"):
        select([regressor("broken", impossible)], table, key=KEY)


def test_one_standard_error_prefers_the_smaller_of_two_equals():
    """On noise alone a law with more parameters is no better than the mean; the smaller is taken when asked."""
    rng = np.random.default_rng(1)
    weights = rng.dirichlet(np.ones(3), 30)
    losses = 2 * np.exp(0.05 * rng.normal(size=(30, 2)))
    ones = np.ones(30)
    table = RunTable(weights, losses, ones, ones, ["a", "b", "c"], ["a", "b"])
    large, small = least_squares(), least_squares([0])
    small = small._replace(name="small")
    found = select([large, small], table, key=KEY, one_standard_error=True)
    assert found.name == "small"
    truth = select([large, small], world(noise=0.001), key=KEY, one_standard_error=True)
    assert truth.name == "least_squares"


def test_measures_against_oracles():
    rng = np.random.default_rng(0)
    losses, guess = rng.uniform(1, 3, (6, 2)), rng.uniform(1, 3, (6, 2))
    losses[1, 0] = np.nan
    mask = rng.random((6, 2)) > 0.5
    cells = [(i, j) for i in range(6) for j in range(2) if (i, j) != (1, 0)]
    wanted = np.mean([abs(guess[c] / losses[c] - 1) for c in cells if mask[c]])
    assert mean_relative_error(losses, guess, mask) == pytest.approx(wanted, rel=1e-14)
    assert mean_absolute_error(losses, guess) == pytest.approx(np.mean([abs(guess[c] - losses[c]) for c in cells]))
    a, b = rng.integers(0, 5, 30).astype(float), rng.integers(0, 5, 30).astype(float)
    assert spearman(a, b) == pytest.approx(scipy.stats.spearmanr(a, b).statistic, rel=1e-12)
    assert np.isnan(spearman(a[:2], b[:2]))
    assert np.isnan(spearman(a, np.ones(30)))
    observed, predicted = np.array([2.0, 3.0, 1.0, 4.0]), np.array([1.0, 5.0, 2.0, 3.0])
    assert regret(observed, predicted) == 1.0
    assert optimism(observed, predicted) == 0.5
    assert optimism(observed, predicted, share=0.5) == pytest.approx((0.5 - 1.0) / 2)


def test_own_weights_are_those_of_the_domain_that_a_metric_validates():
    table = RunTable(np.array([[0.2, 0.8]]), np.ones((1, 3)), np.ones(1), np.ones(1), ["a", "b"], ["b", "x", "a"])
    np.testing.assert_array_equal(own_weights(table), [[0.8, np.nan, 0.2]])


def test_extrapolation_is_flagged():
    weights = np.array([[0.5, 0.5, 0], [0.6, 0.4, 0], [0.4, 0.6, 0], [0.55, 0.45, 0]])
    size, tokens = np.array([1.0, 2.0, 4.0, 4.0]), np.full(4, 10.0)
    table = RunTable(weights, np.ones((4, 1)), size, tokens, ["a", "b", "c"], ["a"])
    inside = extrapolation(table, [0.52, 0.48, 0.0], model_size=2.0, tokens=10.0)
    assert not inside.is_far[0]
    assert inside.distance[0] == pytest.approx(0.02)
    assert (inside.size_factor, inside.tokens_factor) == (1.0, 1.0)
    assert inside.unseen.tolist() == []
    outside = extrapolation(table, [[0.9, 0.1, 0.0], [0.5, 0.4, 0.1]], model_size=40.0, tokens=1.0)
    assert outside.is_far.all()
    assert outside.distance.tolist() == pytest.approx([0.3, 0.1])
    assert (outside.size_factor, outside.tokens_factor) == (10.0, 10.0)
    assert outside.unseen.tolist() == [2]
    projection = weights[:, :2] @ np.linalg.inv(weights[:, :2].T @ weights[:, :2]) @ weights[:, :2].T
    own = extrapolation(table, weights, model_size=2.0, tokens=10.0)
    np.testing.assert_allclose(own.leverage, np.diag(projection), rtol=1e-10)


def test_a_law_with_parameters_is_judged_and_its_bounds_named():
    from jaxmix.laws.forms.capacity_law import capacity

    rng = np.random.default_rng(0)
    weights = rng.dirichlet(np.ones(2), 24)
    ones = np.ones(24)
    losses = 1.5 + 0.4 * (weights + 0.05) ** -0.4
    table = RunTable(weights, losses, ones, ones, ["a", "b"], ["a", "b"])
    found = cross_validate(capacity(competition=False), table, key=KEY, folds=3, num_starts=8)
    assert found.mre < 1e-4
    assert found.num_params == 7
    assert found.fold_mre.shape == (3,)
    assert found.mean_mre > 0.02
