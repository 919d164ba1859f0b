"""The Gaussian process against its formulas in NumPy and against SciPy's search for hyperparameters."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from law_forms import CONSTANT, VARYING, fitted, mixtures, predicted, scales

from jaxmix.core.errors import ConfigError
from jaxmix.laws import RunTable
from jaxmix.laws.fit import on_host
from jaxmix.laws.forms.gaussian_process import gaussian_process, negative_log_likelihood

module = importlib.import_module("jaxmix.laws.forms.gaussian_process")
"""The name in the package is the law's."""


def table(shape=CONSTANT, count=40, seed=0, noise=0.01):
    rng = np.random.default_rng(seed)
    h = mixtures(count, 3, seed)
    size, tokens = scales(count, shape)
    losses = 2.0 + np.exp(-2.0 * h[:, :2]) + 0.3 * tokens[:, None] ** -0.3
    losses *= np.exp(noise * rng.normal(size=losses.shape))
    return RunTable(h, losses, size, tokens, ["a", "b", "c"], ["a", "x"])


def likelihood(hyper, x, y):
    """At the best variance, in closed form."""
    n = len(x)
    k = np.exp(-0.5 * np.sum((x[:, None] - x[None, :]) ** 2 / np.exp(2 * hyper[:-1]), axis=-1))
    k += (np.exp(hyper[-1]) + 1e-9) * np.eye(n)
    variance = y @ np.linalg.solve(k, y) / n
    return 0.5 * n * np.log(variance) + 0.5 * np.linalg.slogdet(k)[1]


def test_likelihood():
    t = table()
    x, y = np.sqrt(t.weights), np.log(t.losses[:, 0]) - np.log(t.losses[:, 0]).mean()
    hyper = np.log([0.7, 0.7, 0.7, 1e-2])
    with on_host():
        arguments = (x, y, np.arange(3), np.ones(len(x)))
        found = jax.jit(negative_log_likelihood)(jnp.asarray(hyper), *map(jnp.asarray, arguments))
        padded = (np.pad(x, ((0, 5), (0, 0))), np.pad(y, (0, 5)), np.arange(3), np.pad(np.ones(len(x)), (0, 5)))
        filled = jax.jit(negative_log_likelihood)(jnp.asarray(hyper), *map(jnp.asarray, padded))
    np.testing.assert_allclose(found, likelihood(hyper, x, y), rtol=1e-9)
    np.testing.assert_allclose(filled, found, rtol=1e-12)


def test_search_is_as_good_as_scipys():
    t = table()
    x, y = np.sqrt(t.weights), np.log(t.losses[:, 0]) - np.log(t.losses[:, 0]).mean()
    groups = np.zeros(3, np.int64)
    found = module._search(x, y, groups, 50)
    cost = lambda hyper: likelihood(np.array([hyper[0]] * 3 + [hyper[1]]), x, y)
    starts = [np.log([length, noise]) for length in (0.3, 1.0, 3.0) for noise in (1e-4, 1e-2)]
    wanted = min(scipy.optimize.minimize(cost, s, method="Nelder-Mead").fun for s in starts)
    assert cost(found) < wanted + 1e-3


@pytest.mark.parametrize(("shape", "per_metric"), [(CONSTANT, 4), (VARYING, 6)])
def test_prediction(shape, per_metric):
    t = table(shape, count=80)
    left = t.take(np.arange(60, 80))
    found = fitted(gaussian_process(), t.take(np.arange(60)))
    losses = predicted(found, left)
    assert found.num_params == 2 * per_metric
    assert losses.shape == (20, 2)
    assert np.abs(losses / left.losses - 1).mean() < 0.02 < 0.5 * np.std(np.log(left.losses), axis=0).min()


def test_prediction_is_the_posterior_mean():
    t = table()
    x, y = np.sqrt(t.weights), np.log(t.losses[:, 0])
    hyper = module._search(x, y - y.mean(), np.zeros(3, np.int64), 50)
    k = lambda a, b: np.exp(-0.5 * ((a[:, None] - b[None]) ** 2).sum(-1) / np.exp(2 * hyper[0]))
    z = mixtures(9, 3, seed=9)
    covariance = k(x, x) + (np.exp(hyper[1]) + 1e-9) * np.eye(40)
    wanted = np.exp(y.mean() + k(np.sqrt(z), x) @ np.linalg.solve(covariance, y - y.mean()))
    found = fitted(gaussian_process(), t).predict(z, 1.0, 1.0)[:, 0]
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_errors():
    with pytest.raises(ConfigError, match="max_steps"):
        gaussian_process(0)
