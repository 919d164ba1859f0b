"""A floor, a temperature and a pull toward a prior, against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize
from tolerance import WEIGHTS

from jaxmix.core.errors import ConfigError
from jaxmix.mixers import Feedback, floor, kl_to_prior, static, temperature
from jaxmix.mixers.wrappers.bounds import geometric_mean

KEY = jax.random.key(0)


def first_weights(mixer, num_domains, prior=None):
    return np.asarray(mixer.weights(mixer.init(KEY, num_domains, prior)))


class TestFloor:
    def test_lifts_and_keeps_ratios(self):
        got = first_weights(floor(static([0.6, 0.3, 0.1, 0.0]), 0.15), 4)
        np.testing.assert_allclose(got, [0.7 * 2 / 3, 0.7 / 3, 0.15, 0.15], atol=1e-6)

    def test_leaves_alone_what_keeps_it(self):
        np.testing.assert_allclose(first_weights(floor(static([0.6, 0.4]), 0.1), 2), [0.6, 0.4], rtol=0, atol=WEIGHTS)

    def test_one_over_m_is_uniform(self):
        np.testing.assert_allclose(first_weights(floor(static([0.9, 0.1, 0.0]), 1 / 3), 3), 1 / 3, atol=1e-6)

    def test_errors(self):
        with pytest.raises(ConfigError, match=r"0.3 for each of 4 domains.*at most 0.25"):
            floor(static(), 0.3).init(KEY, 4)
        with pytest.raises(ConfigError, match=r"at least 0 and at most 1, got -0\.1"):
            floor(static(), -0.1)


class TestTemperature:
    @pytest.mark.parametrize("value", [0.2, 0.9, 1.0, 3.0, 100.0])
    def test_equals_the_power(self, value):
        q = np.array([0.55, 0.3, 0.1, 0.05, 0.0])
        expected = np.where(q > 0, q, 1.0) ** (1 / value) * (q > 0)
        expected /= expected.sum()
        got = first_weights(temperature(static(q.tolist()), value), 5)
        np.testing.assert_allclose(got, expected, atol=1e-6)
        assert got[-1] == 0

    def test_equals_the_power_in_float64(self):
        with jax.enable_x64(True):
            q = np.random.default_rng(0).dirichlet(np.ones(6))
            got = first_weights(temperature(static(), 2.5), 6, jnp.asarray(q))
            np.testing.assert_allclose(got, q**0.4 / (q**0.4).sum(), rtol=1e-12)

    def test_extremes_stay_finite(self):
        q = [0.5, 0.3, 0.2, 0.0]
        np.testing.assert_array_equal(first_weights(temperature(static(q), 1e-30), 4), [1, 0, 0, 0])
        np.testing.assert_allclose(
            first_weights(temperature(static(q), 1e30), 4), [1 / 3, 1 / 3, 1 / 3, 0], rtol=0, atol=WEIGHTS
        )

    @pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf])
    def test_errors(self, value):
        with pytest.raises(ConfigError, match=r"above 0, got .*temperature\(value\)"):
            temperature(static(), value)


class TestKlToPrior:
    @pytest.mark.parametrize("strength", [0.1, 1.0, 5.0])
    def test_minimizes_the_two_divergences(self, strength):
        rng = np.random.default_rng(2)
        q, prior = rng.dirichlet(np.ones(4)), rng.dirichlet(np.ones(4))

        def objective(logits):
            p = np.exp(logits - logits.max())
            p /= p.sum()
            return np.sum(p * np.log(p / q)) + strength * np.sum(p * np.log(p / prior))

        found = minimize(objective, np.zeros(4), method="BFGS", options={"gtol": 1e-9}).x
        expected = np.exp(found - found.max()) / np.exp(found - found.max()).sum()
        got = first_weights(kl_to_prior(static(q.tolist()), strength, prior.tolist()), 4)
        np.testing.assert_allclose(got, expected, atol=1e-5)

    def test_ends(self):
        q = [0.7, 0.2, 0.1]
        prior = jnp.asarray([0.1, 0.1, 0.8])
        np.testing.assert_allclose(first_weights(kl_to_prior(static(q), 0.0), 3, prior), q, rtol=0, atol=WEIGHTS)
        np.testing.assert_allclose(first_weights(kl_to_prior(static(q), 1e7), 3, prior), prior, atol=1e-5)

    def test_zeros(self):
        w = lambda *values: jnp.asarray(values, jnp.float32)
        np.testing.assert_allclose(geometric_mean(w(0.5, 0.5, 0), w(0.5, 0, 0.5), 0.1), [1, 0, 0], rtol=0, atol=WEIGHTS)
        np.testing.assert_array_equal(geometric_mean(w(1, 0), w(0, 1), 0.1), [0, 1])

    def test_errors(self):
        with pytest.raises(ConfigError, match=r"at least 0, got -1\.0"):
            kl_to_prior(static(), -1.0)
        with pytest.raises(ConfigError, match="2 weights for 3 domains"):
            kl_to_prior(static(), 1.0, [0.5, 0.5]).init(KEY, 3)


@pytest.mark.parametrize(
    "wrap", [lambda m: floor(m, 0.2), lambda m: temperature(m, 3.0), lambda m: kl_to_prior(m, 1.0)]
)
def test_bounds_hold_for_the_recommended_mixture_too(wrap):
    plain, q = static(), jnp.asarray([0.85, 0.1, 0.05])
    wrapped = wrap(plain._replace(final=lambda state: q))
    state, _ = wrapped.update(KEY, wrapped.init(KEY, 3), Feedback())
    alone = wrap(static(q.tolist()))
    # `alone` starts from uniform as its prior, as `wrapped` does.
    np.testing.assert_allclose(wrapped.final(state), alone.weights(alone.init(KEY, 3)), atol=1e-6)
    np.testing.assert_allclose(wrapped.weights(state), 1 / 3, atol=1e-6)
