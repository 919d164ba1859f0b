"""The cap on epochs against draws that are counted out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerance import WEIGHTS

from jaxmix.core.errors import ConfigError
from jaxmix.mixers import Feedback, epoch_cap, scheduled, static

KEY = jax.random.key(0)


def first_weights(mixer, num_domains, prior=None):
    return np.asarray(mixer.weights(mixer.init(KEY, num_domains, prior)))


class TestEpochCap:
    def simulate(self, mixer, budget, batch, m):
        """Draws exactly by the weights until the budget is spent; returns tokens drawn per domain."""
        state, update, weights = mixer.init(KEY, m), jax.jit(mixer.update), jax.jit(mixer.weights)
        drawn, carry = np.zeros(m), np.zeros(m)
        for _ in range(budget // batch):
            carry += np.asarray(weights(state), np.float64) * batch
            counts = np.floor(carry)
            counts[np.argmax(carry - counts)] += batch - counts.sum()
            carry -= counts
            drawn += counts
            state, _ = update(KEY, state, Feedback(token_count=jnp.asarray(counts, jnp.float32)))
        return drawn, np.asarray(weights(state))

    def test_greedy_weights_stop_at_the_cap_and_spend_the_budget(self):
        available, budget = [1000.0, 5000.0, 9000.0], 20_000
        mixer = epoch_cap(static([0.9, 0.1, 0.0]), available, float(budget), 2.0)
        drawn, _ = self.simulate(mixer, budget, 100, 3)
        assert drawn.sum() == budget
        np.testing.assert_allclose(drawn, [2000, 10_000, 8000], atol=2)
        assert (drawn <= 2 * np.asarray(available) + 1).all()

    def test_a_domain_at_its_cap_is_spread_over_the_whole_run(self):
        mixer = epoch_cap(static([0.9, 0.1]), [100.0, 10_000.0], 1000.0, 4.0)
        # Allowance 400 of a budget of 1000: share 0.4 from the start, not 0.9 until it runs dry.
        np.testing.assert_allclose(first_weights(mixer, 2), [0.4, 0.6], atol=1e-6)

    def test_changing_weights_never_pass_the_cap(self):
        points = [{"at": i * 20, "weights": [float(i % 3 == j) for j in range(3)]} for i in range(10)]
        available, budget = np.array([2000.0, 3000.0, 4000.0]), 20_000
        mixer = epoch_cap(scheduled(points=points), available.tolist(), float(budget), 2.5)
        drawn, _ = self.simulate(mixer, budget, 100, 3)
        assert drawn.sum() == budget
        assert (drawn <= 2.5 * available + 100).all()  # at most one batch late

    def test_does_nothing_while_no_cap_is_near(self):
        mixer = epoch_cap(static([0.7, 0.3]), [1e13, 1e13], 1e12, 4.0)
        np.testing.assert_allclose(first_weights(mixer, 2), [0.7, 0.3], rtol=0, atol=WEIGHTS)

    def test_past_the_end(self):
        mixer = epoch_cap(static([0.9, 0.1]), [300.0, 100.0], 400.0, 1.0)
        state = mixer.init(KEY, 2)
        some_left, _ = mixer.update(KEY, state, Feedback(token_count=jnp.asarray([300.0, 50.0])))
        np.testing.assert_allclose(mixer.weights(some_left), [0.0, 1.0], atol=1e-6)
        none_left, _ = mixer.update(KEY, state, Feedback(token_count=jnp.asarray([300.0, 100.0])))
        np.testing.assert_allclose(mixer.weights(none_left), [0.75, 0.25], atol=1e-6)

    def test_counts_exactly_past_float32(self):
        mixer = epoch_cap(static([0.5, 0.5]), [2.0**40 + 1, 2.0**41], 2.0**41, 1.0)
        state = mixer.init(KEY, 2)
        for amount in (2.0**39, 2.0**39):
            state, _ = mixer.update(KEY, state, Feedback(token_count=jnp.asarray([amount, 0.0])))
        # One token of 2^40 + 1 is left, over 2^40 still to be drawn.
        np.testing.assert_allclose(mixer.weights(state)[0], 2.0**-40, rtol=1e-5)

    def test_errors(self):
        with pytest.raises(ConfigError, match=r"budget of 1000 tokens needs 10 epochs of the 100 available"):
            epoch_cap(static(), [60.0, 40.0], 1000.0, 4.0)
        with pytest.raises(ConfigError, match="2 values for 3 domains"):
            epoch_cap(static(), [60.0, 40.0], 100.0).init(KEY, 3)
        with pytest.raises(ConfigError, match="finite, ≥ 0 and not all 0"):
            epoch_cap(static(), [-1.0, 40.0], 10.0)
        with pytest.raises(ConfigError, match="max_epochs must be finite and above 0"):
            epoch_cap(static(), [1.0, 40.0], 10.0, 0.0)
