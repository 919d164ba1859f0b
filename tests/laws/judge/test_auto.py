"""`auto`: the choice among laws, from out-of-fold errors alone."""

import functools

import jax
import numpy as np
import pytest

from jaxmix.core.errors import ConfigError
from jaxmix.laws import AUTO_CANDIDATES, RunTable, cross_validate, fit, make, parse, propose, registry, regressor

KEY = jax.random.key(0)
QUICK = {"num_starts": 4, "restarts": 0, "max_steps": 60}
NAMES = ["a", "b", "c"]


def mixtures(runs, seed=0):
    return np.random.default_rng(seed).dirichlet(np.ones(3), runs)


def planted(kind, runs=30, noise=0.001, seed=0):
    h = mixtures(runs, seed)
    if kind == "loglinear":
        slopes = np.array([[-1.5, 0.3, 0.1], [0.2, -1.0, 0.4], [0.3, 0.2, -2.0]])
        losses = np.array([1.0, 2.0, 1.5]) + 0.8 * np.exp(h @ slopes.T)
    else:
        losses = 1.5 + 1 / (0.3 + h @ np.array([[2.0, 0.3, 0.1], [0.2, 1.5, 0.4], [0.1, 0.2, 3.0]]).T) ** 0.4
    losses = losses * np.exp(noise * np.random.default_rng(seed + 1).normal(size=losses.shape))
    return RunTable(h, losses, np.ones(runs), np.ones(runs), NAMES, NAMES)


@functools.cache
def small():
    return make("auto", candidates=("loglinear", "transfer", "hierarchical:competition=False", "linear"), folds=4)


@pytest.mark.parametrize("kind", ["loglinear", "transfer"])
def test_the_planted_law_is_found_or_beaten(kind):
    table = planted(kind)
    found = fit(small(), table, key=KEY, **QUICK)
    ranking = found.selection.diagnoses
    assert found.selection.name == next(iter(ranking))
    assert found.law.name == parse(found.selection.name)[0]
    errors = [d.mre for d in ranking.values()]
    assert errors == sorted(errors)
    assert errors[0] <= ranking[kind].mre
    fresh = planted(kind, noise=0.0, seed=5)
    error = np.abs(found.predict(fresh.weights, 1, 1) / fresh.losses - 1).mean()
    assert error < 0.0015
    assert np.abs(table.losses.mean(axis=0) / fresh.losses - 1).mean() > 10 * error


def test_the_choice_is_the_diagnosis_of_each_law_and_the_fit_that_of_the_chosen():
    table = planted("transfer")
    found = fit(small(), table, key=KEY, **QUICK)
    label = "hierarchical:competition=False"
    alone = cross_validate(make("hierarchical", competition=False), table, key=KEY, folds=4)
    np.testing.assert_allclose(found.selection.diagnoses[label].mre, alone.mre, rtol=1e-12)
    np.testing.assert_array_equal(found.selection.diagnoses[label].fold, alone.fold)
    name, options = parse(found.selection.name)
    whole = fit(make(name, **options), table, key=KEY, **QUICK)
    asked = mixtures(9, 7)
    np.testing.assert_allclose(found.predict(asked, 1, 1), whole.predict(asked, 1, 1), rtol=1e-12)
    assert found.num_params == whole.num_params
    assert found.selection.diagnoses[found.selection.name].at_bounds == whole.at_bounds


def test_runs_of_weight_zero_have_no_say():
    """Nothing but the table: runs left out may hold anything."""
    table = planted("transfer", runs=40)
    counted = np.arange(40) < 30
    results = []
    for level in (1.0, 30.0):
        losses = np.where(counted[:, None], table.losses, level)
        other = RunTable(table.weights, losses, table.model_size, table.tokens, NAMES, NAMES)
        results.append(fit(small(), other, key=KEY, row_weights=counted.astype(float), **QUICK))
    first, second = results
    assert first.selection.name == second.selection.name
    for name, found in first.selection.diagnoses.items():
        assert found.mre == second.selection.diagnoses[name].mre
        assert len(found.fold) == 30
    asked = mixtures(9, 7)
    np.testing.assert_array_equal(first.predict(asked, 1, 1), second.predict(asked, 1, 1))


def test_no_fold_sees_its_mixtures():
    """Candidates are fitted to tables without the rows they are judged on, whatever the rows' seeds."""
    h = np.repeat(mixtures(6), 2, axis=0)
    losses = 2.0 + h
    table = RunTable(h, losses, np.ones(12), np.ones(12), NAMES, NAMES, seed=np.arange(12))
    seen = []

    def regress(part):
        seen.append({tuple(row) for row in part.weights})
        return lambda weights, model_size, tokens: np.full((len(weights), 3), 2.3), 1

    found = fit(make("auto", candidates={"spy": regressor("spy", regress)}, folds=3), table, key=KEY)
    fold = found.selection.diagnoses["spy"].fold
    for number, known in enumerate(seen[:3]):
        assert known == {tuple(row) for row in h[fold != number]}
    assert len(seen[3]) == 6


def test_candidates_that_could_only_reproduce_the_table_are_left_out():
    """Additive has 21 numbers for 3 metrics of 3 domains; 8 runs leave 6 x 3 cells to a fold of 5; a ridge excuses."""
    law = make("auto", candidates=("additive", "additive:ridge=0", "linear", "hierarchical"))
    found = fit(law, planted("transfer", runs=8), key=KEY, **QUICK)
    assert set(found.selection.left_out) == {"additive:ridge=0"}
    assert "21 parameters without a prior" in found.selection.left_out["additive:ridge=0"]
    assert set(found.selection.diagnoses) == {"additive", "linear", "hierarchical"}
    text = str(found.selection)
    assert text.splitlines()[0].startswith(f"* {found.selection.name}")
    assert "left out: 21 parameters" in text


def test_laws_that_do_not_suit_the_table_are_left_out_with_the_reason():
    table = planted("transfer")
    other = RunTable(table.weights, table.losses, table.model_size, table.tokens, NAMES, ["x", "y", "z"])
    found = fit(make("auto", candidates=("capacity", "linear"), folds=3), other, key=KEY, **QUICK)
    assert found.selection.name == "linear"
    assert "validates no domain" in found.selection.left_out["capacity"]
    with pytest.raises(ConfigError, match="no candidate suits this table"):
        fit(make("auto", candidates=("capacity",)), other, key=KEY)


def test_proposals_follow_the_chosen_law():
    found = fit(make("auto", candidates=("hierarchical:competition=False",), folds=3), planted("transfer"), key=KEY)
    proposal = propose(found, model_size=1, tokens=1)
    grid = found.predict(mixtures(4000, 3), 1, 1).mean(axis=1)
    assert proposal.objective <= grid.min() + 1e-6


def test_candidates_are_checked():
    for text in AUTO_CANDIDATES:
        name, options = parse(text)
        assert name in registry
        make(name, **options)
    for bad, match in (
        (("capasity",), "unknown law 'capasity'"),
        (("capacity:ofset=none",), "no argument 'ofset'"),
        (("auto",), "chooses among laws itself"),
        (("linear", "linear"), "two laws"),
        ((), "no candidates"),
    ):
        with pytest.raises(ConfigError, match=match):
            make("auto", candidates=bad)
    with pytest.raises(ConfigError, match="folds must be a whole number ≥ 2"):
        make("auto", folds=1)
