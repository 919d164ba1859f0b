"""Resampled fits against fits of tables written out, and the coverage of their intervals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmix.core.errors import ConfigError
from jaxmix.laws import Form, Law, Parameter, RunTable, bootstrap, fit, least_squares, regressor

KEY = jax.random.key(0)


def build(shape):
    """E_i + A_i (1 − h_i)²: smooth, with one optimum."""
    e = shape.num_metrics
    parameters = {
        "irreducible": Parameter((e,), 1e-3, 10.0, (0.5, 2.0)),
        "scale": Parameter((e,), 1e-3, 10.0, (0.5, 2.0)),
    }
    return Form(parameters, lambda p, h, n, d: p["irreducible"][None] + p["scale"][None] * (1.0 - h[:, :e]) ** 2)


LAW = Law("parabola", least_squares, build)


def table(seed, mixtures=25, noise=0.02):
    """Two runs of each mixture, of two seeds."""
    rng = np.random.default_rng(seed)
    weights = np.repeat(rng.dirichlet(np.ones(2), mixtures), 2, axis=0)
    losses = (1.5 + (1 - weights) ** 2) * (1 + noise * rng.standard_normal(weights.shape))
    ones = np.ones(len(weights))
    return RunTable(weights, losses, ones, ones, ["a", "b"], ["a", "b"], seed=np.tile([0, 1], mixtures))


def test_a_resample_is_the_fit_of_its_table():
    """The law is linear in its parameters: weighted least squares says what each resample must find."""
    data = table(0)
    found = fit(LAW, data, key=KEY, num_starts=4)
    resampled = bootstrap(found, data, key=jax.random.key(3), num_resamples=20)
    assert resampled.params["scale"].shape == (20, 2)
    with jax.enable_x64(True):
        drawn = np.asarray(jax.random.randint(jax.random.key(3), (20, 25), 0, 25))
    for s in (0, 7, 19):
        rows = np.concatenate([np.flatnonzero(data.mixture == m) for m in drawn[s]])
        for i in range(2):
            design = (
                np.stack([np.ones(len(rows)), (1 - data.weights[rows, i]) ** 2], axis=1) / data.losses[rows, i, None]
            )
            expected = np.linalg.lstsq(design, np.ones(len(rows)), rcond=None)[0]
            got = [resampled.params[name][s, i] for name in ("irreducible", "scale")]
            np.testing.assert_allclose(got, expected, rtol=1e-5)
    assert resampled.converged.all()


@pytest.mark.slow
def test_intervals_cover_the_truth():
    """Of 40 tables, the 80 % interval of the expected loss covers the truth in about 32."""
    covered = []
    for seed in range(40):
        data = table(seed)
        found = fit(LAW, data, key=KEY, num_starts=4, restarts=0)
        low, high = bootstrap(found, data, key=KEY, num_resamples=64).predicted_interval(
            [0.3, 0.7], 1.0, 1.0, level=0.8
        )
        truth = 1.5 + (1 - np.array([0.3, 0.7])) ** 2
        covered.append((low[0] <= truth) & (truth <= high[0]))
    # Binomial with 80 trials that come in pairs: three deviations around 0.8, less what 25 mixtures lose.
    assert 0.6 <= np.mean(covered) <= 0.95


def test_interval_of_the_parameters():
    data = table(0)
    resampled = bootstrap(fit(LAW, data, key=KEY, num_starts=4), data, key=KEY, num_resamples=50)
    low, high = resampled.interval(0.9)["scale"]
    assert low.shape == (2,)
    assert ((resampled.params["scale"] >= low[None]).mean(axis=0) >= 0.9).all()
    assert (low < high).all()


def test_what_it_refuses():
    data = table(0)
    found = fit(LAW, data, key=KEY, num_starts=4)
    with pytest.raises(ConfigError, match="num_resamples"):
        bootstrap(found, data, key=KEY, num_resamples=1)
    other = RunTable(data.weights, data.losses, 2 * np.ones(50), np.ones(50), ["a", "b"], ["a", "b"])
    with pytest.raises(ConfigError, match="outline differs"):
        bootstrap(found, other, key=KEY)
    with pytest.raises(ConfigError, match="level"):
        bootstrap(found, data, key=KEY, num_resamples=2).interval(1.0)
    mean = regressor("mean", lambda table: (lambda h, n, d: jnp.ones((len(h), 2)), 2))
    with pytest.raises(ConfigError, match="has no parameters"):
        bootstrap(fit(mean, data, key=KEY), data, key=KEY)
