"""RegMix's trees: settings that suit the table, and a clear word where the package is missing."""

import sys

import numpy as np
import pytest
from law_forms import CONSTANT, VARYING, fitted, mixtures, predicted, scales

from jaxmix.core.errors import ConfigError, EnvironmentProblem
from jaxmix.laws import RunTable
from jaxmix.laws.forms.trees import lightgbm


def table(shape=CONSTANT, count=80):
    h = mixtures(count, 3)
    size, tokens = scales(count, shape)
    losses = 2.0 + np.exp(-3.0 * h[:, :2]) + tokens[:, None] ** -0.3
    return RunTable(h, losses, size, tokens, ["a", "b", "c"], ["a", "x"])


def test_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    with pytest.raises(EnvironmentProblem, match="trees"):
        fitted(lightgbm(), table())


@pytest.mark.parametrize("name", ["rounds", "learning_rate", "leaves", "min_per_leaf"])
def test_errors(name):
    with pytest.raises(ConfigError, match=name):
        lightgbm(**{name: 0})


@pytest.mark.parametrize("count", [16, 80])
def test_splits_small_tables(count):
    pytest.importorskip("lightgbm", reason="the extra `trees` is not installed")
    t = table(count=count)
    found = fitted(lightgbm(rounds=40, learning_rate=0.1), t)
    assert np.mean((predicted(found, t) - t.losses) ** 2) < 0.2 * np.var(t.losses, axis=0).mean()
    assert found.num_params > 2 * 40


def test_sees_tokens():
    pytest.importorskip("lightgbm", reason="the extra `trees` is not installed")
    t = table(VARYING)
    found = fitted(lightgbm(rounds=40, learning_rate=0.1), t)
    one = np.full((2, 3), 1 / 3)
    few, many = found.predict(one, np.full(2, 50.0), np.array([0.6, 15.0]))
    assert (few > many + 0.2).all()


def test_ignores_what_was_not_measured():
    pytest.importorskip("lightgbm", reason="the extra `trees` is not installed")
    t = table()
    losses = t.losses.copy()
    losses[:20, 0] = np.nan
    holes = RunTable(t.weights, losses, t.model_size, t.tokens, t.domain_names, t.metric_names)
    law = lightgbm(rounds=50, min_per_leaf=2)
    found = predicted(fitted(law, holes), t)
    part = predicted(fitted(law, t.take(np.arange(20, 80))), t)
    np.testing.assert_array_equal(found[:, 0], part[:, 0])
