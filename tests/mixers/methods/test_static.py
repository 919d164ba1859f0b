"""Weights that stay."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerance import WEIGHTS

from jaxmix.core.errors import ConfigError
from jaxmix.mixers import Feedback, static, stratified

KEY = jax.random.key(0)


def test_given_weights_win_over_the_prior():
    mixer = static([0.2, 0.8, 0.0])
    state = mixer.init(KEY, 3, jnp.full(3, 1 / 3))
    after, info = mixer.update(KEY, state, Feedback(loss_sum=jnp.ones(3)))
    np.testing.assert_allclose(mixer.weights(after), [0.2, 0.8, 0.0], rtol=0, atol=WEIGHTS)
    np.testing.assert_array_equal(info.score, 0)


def test_errors():
    with pytest.raises(ConfigError, match="2 weights for 3 domains"):
        static([0.2, 0.8]).init(KEY, 3)
    with pytest.raises(ConfigError, match=r"add to 4 \(static\(weights\)\)"):
        static([1.0, 3.0])
    with pytest.raises(ConfigError, match="at least one domain, got 0"):
        static().init(KEY, 0)
    with pytest.raises(ConfigError, match=r"above 0, got 0.0 \(static\(temperature\)\)"):
        static(temperature=0.0)


@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0, 1 / 0.7, 1 / 0.3, 100.0])
def test_temperature_is_an_exponent(temperature):
    shares = np.array([0.9, 0.07, 0.02999, 0.00001, 0.0])
    expected = np.where(shares > 0, shares ** (1 / temperature), 0.0)
    expected /= expected.sum()
    for mixer, prior in (
        (static(temperature=temperature), shares),
        (static(shares.tolist(), temperature=temperature), None),
    ):
        state = mixer.init(KEY, 5, None if prior is None else jnp.asarray(prior, jnp.float32))
        np.testing.assert_allclose(mixer.weights(state), expected, atol=1e-6)


@pytest.mark.parametrize(("temperature", "expected"), [(1e-6, [1.0, 0.0, 0.0]), (1e9, [0.5, 0.5, 0.0])])
def test_extreme_temperatures(temperature, expected):
    mixer = static(temperature=temperature)
    np.testing.assert_allclose(mixer.weights(mixer.init(KEY, 3, jnp.asarray([0.6, 0.4, 0.0]))), expected, atol=1e-6)


def test_stratified_is_uniform_over_what_may_be_drawn():
    mixer = stratified()
    np.testing.assert_allclose(mixer.weights(mixer.init(KEY, 4)), 0.25, rtol=0, atol=WEIGHTS)
    state = mixer.init(KEY, 4, jnp.asarray([0.9, 0.09, 0.01, 0.0]))
    after, info = mixer.update(KEY, state, Feedback())
    np.testing.assert_allclose(mixer.weights(after), [1 / 3, 1 / 3, 1 / 3, 0.0], rtol=1e-6)
    np.testing.assert_array_equal(info.score, 0)
