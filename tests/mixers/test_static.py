"""Weights that stay."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmix.core.errors import ConfigError
from jaxmix.mixers import Feedback, static

KEY = jax.random.key(0)


def test_given_weights_win_over_the_prior():
    mixer = static([0.2, 0.8, 0.0])
    state = mixer.init(KEY, 3, jnp.full(3, 1 / 3))
    after, info = mixer.update(KEY, state, Feedback(loss_sum=jnp.ones(3)))
    np.testing.assert_allclose(mixer.weights(after), [0.2, 0.8, 0.0], rtol=1e-7)
    np.testing.assert_array_equal(info.score, 0)


def test_errors():
    with pytest.raises(ConfigError, match="2 weights for 3 domains"):
        static([0.2, 0.8]).init(KEY, 3)
    with pytest.raises(ConfigError, match=r"add to 4 \(static\(weights\)\)"):
        static([1.0, 3.0])
    with pytest.raises(ConfigError, match="at least one domain, got 0"):
        static().init(KEY, 0)
