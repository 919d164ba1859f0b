"""Wrappers against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

from jaxmix.core.errors import ConfigError
from jaxmix.mixers import Feedback, build, ema, epoch_cap, floor, kl_to_prior, odm, scheduled, static, wrap_with
from jaxmix.mixers.wrappers import geometric_mean

KEY = jax.random.key(0)


def first_weights(mixer, num_domains, prior=None):
    return np.asarray(mixer.weights(mixer.init(KEY, num_domains, prior)))


class TestFloor:
    def test_lifts_and_keeps_ratios(self):
        got = first_weights(floor(static([0.6, 0.3, 0.1, 0.0]), 0.15), 4)
        np.testing.assert_allclose(got, [0.7 * 2 / 3, 0.7 / 3, 0.15, 0.15], atol=1e-6)

    def test_leaves_alone_what_keeps_it(self):
        np.testing.assert_allclose(first_weights(floor(static([0.6, 0.4]), 0.1), 2), [0.6, 0.4], atol=1e-7)

    def test_one_over_m_is_uniform(self):
        np.testing.assert_allclose(first_weights(floor(static([0.9, 0.1, 0.0]), 1 / 3), 3), 1 / 3, atol=1e-6)

    def test_errors(self):
        with pytest.raises(ConfigError, match=r"0.3 for each of 4 domains.*at most 0.25"):
            floor(static(), 0.3).init(KEY, 4)
        with pytest.raises(ConfigError, match=r"\[0, 1\], got -0.1"):
            floor(static(), -0.1)


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
        with pytest.raises(ConfigError, match=r"\[0, 1\), got 1.0"):
            ema(static(), 1.0)


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
        np.testing.assert_allclose(first_weights(mixer, 2), [0.7, 0.3], atol=1e-7)

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
        with pytest.raises(ConfigError, match="max_epochs must be finite and > 0"):
            epoch_cap(static(), [1.0, 40.0], 10.0, 0.0)


class TestKlToPrior:
    @pytest.mark.parametrize("strength", [0.1, 1.0, 5.0])
    def test_minimises_the_two_divergences(self, strength):
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
        np.testing.assert_allclose(first_weights(kl_to_prior(static(q), 0.0), 3, prior), q, atol=1e-7)
        np.testing.assert_allclose(first_weights(kl_to_prior(static(q), 1e7), 3, prior), prior, atol=1e-5)

    def test_zeros(self):
        w = lambda *values: jnp.asarray(values, jnp.float32)
        np.testing.assert_allclose(geometric_mean(w(0.5, 0.5, 0), w(0.5, 0, 0.5), 0.1), [1, 0, 0], atol=1e-7)
        np.testing.assert_array_equal(geometric_mean(w(1, 0), w(0, 1), 0.1), [0, 1])

    def test_errors(self):
        with pytest.raises(ConfigError, match=r"≥ 0, got -1\.0"):
            kl_to_prior(static(), -1.0)
        with pytest.raises(ConfigError, match="2 weights for 3 domains"):
            kl_to_prior(static(), 1.0, [0.5, 0.5]).init(KEY, 3)


class TestBuild:
    def test_order_is_inside_out(self):
        mixer = build("odm", {"variant": "repository"}, [{"ema": 0.5}, {"floor": {"minimum": 0.01}}])
        assert mixer.name == "floor(ema(odm))"
        assert build("static").name == "static"
        assert build("static", wrap=[{"floor": 0.0}]).name == "floor(static)"

    @pytest.mark.parametrize(
        ("name", "options", "wrap", "message"),
        [
            ("odmm", {}, [], r"unknown mixer 'odmm' \(mixer.name\). Did you mean 'odm'"),
            ("odm", {"discont": 0.5}, [], r"no argument 'discont' \(mixer.name\). Did you mean 'discount'"),
            ("odm", {}, [{"flor": 0.1}], r"unknown wrapper 'flor' \(mixer.wrap\[0\]\). Did you mean 'floor'"),
            ("odm", {}, [{"ema": 0.1}, {"floor": {"min": 0.1}}], r"no argument 'min' \(mixer.wrap\[1\]\)"),
            ("odm", {}, [{"floor": 0.1, "ema": 0.5}], r"one name with its argument.*mixer.wrap\[0\]"),
        ],
    )
    def test_errors_say_where(self, name, options, wrap, message):
        with pytest.raises(ConfigError, match=message):
            build(name, options, wrap)

    def test_wrappers_leave_the_inner_state_alone(self):
        feedback = Feedback(loss_sum=jnp.asarray([3.0, 1.0, 2.0]), token_count=jnp.ones(3))
        inner, wrapped = odm(), wrap_with(odm(), [{"floor": 0.2}, {"ema": 0.9}])
        a, b = inner.init(KEY, 3), wrapped.init(KEY, 3)
        for _ in range(5):
            a, _ = inner.update(KEY, a, feedback)
            b, _ = wrapped.update(KEY, b, feedback)
        np.testing.assert_array_equal(a.estimate, b.inner.inner.estimate)
