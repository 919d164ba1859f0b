"""Averages over time against their recursions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerance import WEIGHTS

from jaxmix.core.errors import ConfigError
from jaxmix.mixers import Feedback, MixerInfo, ema, scheduled, static, time_average

KEY = jax.random.key(0)


class TestEma:
    def test_equals_the_recursion(self):
        inner = scheduled(points=[{"at": 0, "weights": [1, 0]}, {"at": 3, "weights": [0.2, 0.8]}])
        mixer = ema(inner, 0.7)
        state, average = mixer.init(KEY, 2), np.array([1.0, 0.0])
        for step in range(1, 10):
            state, _ = mixer.update(KEY, state, Feedback())
            average = 0.7 * average + 0.3 * np.array([1.0, 0.0] if step < 3 else [0.2, 0.8])
            np.testing.assert_allclose(mixer.weights(state), average, atol=1e-6)

    def test_errors(self):
        with pytest.raises(ConfigError, match=r"at least 0 and below 1\.0, got 1\.0"):
            ema(static(), 1.0)


class TestTimeAverage:
    @pytest.mark.parametrize("is_64_bit", [False, True])
    def test_is_the_mean_of_all_weights_so_far(self, is_64_bit):
        seen = [np.random.default_rng(i).dirichlet(np.ones(4)) for i in range(50)]
        with jax.enable_x64(is_64_bit):
            table = jnp.asarray(np.stack(seen), jnp.result_type(float))
            # A mixer whose state is a count, and whose weights are read off a table.
            inner = static()._replace(
                init=lambda key, m, prior=None: jnp.int32(0),
                update=lambda key, state, feedback: (state + 1, MixerInfo(jnp.zeros(4), {})),
                weights=lambda state: table[state],
            )
            mixer = time_average(inner)
            state = mixer.init(KEY, 4)
            for step in range(1, 50):
                state, _ = mixer.update(KEY, state, Feedback())
                expected = np.mean(seen[: step + 1], axis=0)
                np.testing.assert_allclose(mixer.weights(state), expected, atol=1e-12 if is_64_bit else 1e-6)

    def test_starts_at_the_inner_mixers_weights(self):
        mixer = time_average(static([0.9, 0.1]))
        np.testing.assert_allclose(mixer.weights(mixer.init(KEY, 2)), [0.9, 0.1], rtol=0, atol=WEIGHTS)
