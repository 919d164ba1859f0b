"""The closed-form laws against normal equations and against leaving mixtures out one by one."""

import numpy as np
import pytest
from law_forms import CONSTANT, VARYING, fitted, mixtures, predicted, scales

from jaxmix.core.errors import ConfigError
from jaxmix.laws import RunTable
from jaxmix.laws.forms.linear import RIDGES, linear, mean, quadratic


def table(shape=CONSTANT, count=40, seed=0, noise=0.05):
    rng = np.random.default_rng(seed)
    h = mixtures(count, 3, seed)
    size, tokens = scales(count, shape)
    losses = 3.0 + h @ rng.normal(size=(3, 2)) - 0.1 * np.log(size)[:, None] - 0.2 * np.log(tokens)[:, None]
    losses += noise * rng.normal(size=losses.shape)
    return RunTable(h, losses, size, tokens, ["a", "b", "c"], ["a", "x"])


def test_mean_leaves_out_what_was_not_measured():
    t = table()
    losses = t.losses.copy()
    losses[::3, 0] = np.nan
    t = RunTable(t.weights, losses, t.model_size, t.tokens, t.domain_names, t.metric_names)
    found = fitted(mean(), t)
    predicted = found.predict(t.weights[:2], 1.0, 1.0)
    np.testing.assert_allclose(predicted, np.broadcast_to(np.nanmean(losses, axis=0), (2, 2)))
    assert found.num_params == 2


@pytest.mark.parametrize(("shape", "per_metric"), [(CONSTANT, 3), (VARYING, 5)])
def test_least_squares(shape, per_metric):
    t = table(shape)
    found = fitted(linear(0), t)
    columns = [t.weights]
    if shape.tokens_vary:
        columns += [np.log(t.model_size)[:, None], np.log(t.tokens)[:, None]]
    x = np.concatenate(columns, axis=1)
    wanted = x @ np.linalg.lstsq(x, t.losses, rcond=None)[0]
    np.testing.assert_allclose(predicted(found, t), wanted, rtol=1e-9)
    assert found.num_params == 2 * per_metric


def test_ridge_solves_the_normal_equations():
    t = table()
    found = predicted(fitted(linear(0.3), t), t)
    x, y = t.weights - t.weights.mean(axis=0), t.losses - t.losses.mean(axis=0)
    penalty = 0.3 * np.sum(x**2) / 3
    wanted = t.losses.mean(axis=0) + x @ np.linalg.solve(x.T @ x + penalty * np.eye(3), x.T @ y)
    np.testing.assert_allclose(found, wanted, rtol=1e-9)


@pytest.mark.parametrize("has_repeats", [False, True])
def test_leave_one_out_is_what_it_says(has_repeats):
    t = table(noise=0.3)
    if has_repeats:
        t = t.take(np.concatenate([np.arange(40), np.arange(0, 40, 4)]))
    errors = np.zeros((len(RIDGES), 2))
    for i, ridge in enumerate(RIDGES):
        # The penalty of the whole table, in the unit of the table without a mixture.
        whole = ridge * np.sum((t.weights - t.weights.mean(axis=0)) ** 2)
        for g in np.unique(t.mixture):
            rest, left = t.take(t.mixture != g), t.take(t.mixture == g)
            x = rest.weights - t.weights.mean(axis=0)
            design = np.concatenate([np.ones((len(x), 1)), x], axis=1)
            penalty = np.diag([0.0, *[whole / 3] * 3])
            found = np.linalg.solve(design.T @ design + penalty, design.T @ rest.losses)
            z = np.concatenate([np.ones((len(left), 1)), left.weights - t.weights.mean(axis=0)], axis=1)
            errors[i] += np.sum((left.losses - z @ found) ** 2, axis=0)
    chosen = np.asarray(RIDGES)[errors.argmin(axis=0)]
    wanted = np.stack([predicted(fitted(linear(r), t), t)[:, i] for i, r in enumerate(chosen)], axis=1)
    found = predicted(fitted(linear(), t), t)
    np.testing.assert_allclose(found, wanted, rtol=1e-9)


def test_quadratic_fits_a_quadratic():
    t = table(VARYING, count=80)
    z = np.concatenate([t.weights, np.log(t.model_size)[:, None], np.log(t.tokens)[:, None]], axis=1)
    curved = np.einsum("ra,rb,ab->r", z, z, np.random.default_rng(1).normal(size=(5, 5)) * 0.1)[:, None] + 9.0
    t = RunTable(t.weights, curved, t.model_size, t.tokens, t.domain_names, ["x"])
    found = fitted(quadratic(0), t.take(np.arange(60)))
    np.testing.assert_allclose(predicted(found, t), curved, rtol=1e-8)
    assert found.num_params == 15
    products = np.stack([z[:, a] * z[:, b] for a in range(5) for b in range(a, 5)], axis=1)
    assert np.linalg.matrix_rank(np.concatenate([np.ones((80, 1)), z, products], axis=1)) == found.num_params
    assert fitted(quadratic(0), table(CONSTANT)).num_params == 2 * 6


def test_metrics_measured_in_different_runs():
    t = table()
    losses = t.losses.copy()
    losses[:10, 0] = np.nan
    holes = RunTable(t.weights, losses, t.model_size, t.tokens, t.domain_names, t.metric_names)
    found = predicted(fitted(linear(), holes), t)
    whole = predicted(fitted(linear(), t), t)
    part = predicted(fitted(linear(), t.take(np.arange(10, 40))), t)
    np.testing.assert_allclose(found[:, 0], part[:, 0], rtol=1e-9)
    np.testing.assert_allclose(found[:, 1], whole[:, 1], rtol=1e-9)


@pytest.mark.parametrize("law", [linear, quadratic])
def test_errors(law):
    for bad in ("loo", -1.0, float("nan")):
        with pytest.raises(ConfigError, match="ridge"):
            law(bad)
