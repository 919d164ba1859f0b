"""Foresight against NumPy in float64, its plan against SciPy, and what it gains in worlds whose laws are known."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

from jaxmix.core.errors import ConfigError
from jaxmix.mixers import Feedback
from jaxmix.mixers.methods.foresight import foresight, planned_weights, shrunk_slopes
from jaxmix.simulate.mixers import run_static, simulate
from jaxmix.simulate.worlds import power_law_world

KEY = jax.random.key(0)


def plan_oracle(slope, exposure, remaining, transfer, exponent, objective):
    """The best mixture by SciPy, over the logits."""
    m = len(slope)
    mixing = (1 - transfer) * np.eye(m) + transfer

    def final(p):
        return np.sum(objective * slope / exponent * (1 + remaining * (mixing @ p) / exposure) ** -exponent)

    bounds, total = [(0.0, 1.0)] * m, {"type": "eq", "fun": lambda p: p.sum() - 1}
    found = minimize(
        final,
        np.full(m, 1 / m),
        method="SLSQP",
        bounds=bounds,
        constraints=total,
        options={"ftol": 1e-14, "maxiter": 999},
    )
    return found.x, final


@pytest.mark.parametrize(
    ("exponent", "transfer"),
    [(0.3, 0.1), (1.0, 0.0), *(pytest.param(*pair, marks=pytest.mark.slow) for pair in ((0.3, 0.0), (1.0, 0.1)))],
)
def test_the_plan_is_the_best_mixture_for_the_rest(transfer, exponent):
    rng = np.random.default_rng(0)
    with jax.enable_x64():
        for _ in range(10):
            m = 6
            slope, exposure = rng.uniform(0.1, 1, m), rng.uniform(100, 300, m)
            objective = rng.uniform(0.5, 2, m)
            got = planned_weights(
                jnp.full(m, 1 / m), jnp.asarray(slope), jnp.asarray(exposure), jnp.asarray(2000.0),
                transfer=transfer, exponent=exponent, objective=jnp.asarray(objective),
            )  # fmt: skip
            best, final = plan_oracle(slope, exposure, 2000.0, transfer, exponent, objective)
            gain = final(np.full(m, 1 / m)) - final(best)
            assert final(np.asarray(got)) - final(best) < 2e-3 * gain
            if transfer == 0.0:
                np.testing.assert_allclose(got, best, atol=5e-3)


def test_two_equal_curves_get_what_levels_them():
    # Same slope, one is behind: at the end both have the same exposure, (100 + 400) / 2 + 150 / 2 of 300 to go.
    got = planned_weights(
        jnp.asarray([0.5, 0.5]), jnp.ones(2), jnp.asarray([100.0, 200.0]), jnp.asarray(300.0),
        transfer=0.0, exponent=0.5, objective=jnp.ones(2),
    )  # fmt: skip
    # Slopes are per e-fold, so that the one that is behind is also the one with the smaller constant.
    end = np.array([100.0, 200.0]) + 300.0 * np.asarray(got)
    marginal = np.array([100.0, 200.0]) ** 0.5 * end**-1.5
    assert marginal[0] == pytest.approx(marginal[1], rel=1e-3)


def test_shrinking_trusts_a_window_by_what_its_noise_does_not_explain():
    slopes = np.array([[0.5, 0.5, 0.5, 0.5], [0.1, 0.9, 0.2, 0.8]])
    sharp = shrunk_slopes(jnp.asarray(slopes, jnp.float32), jnp.full((2, 4), 1e-6, jnp.float32))
    np.testing.assert_allclose(sharp, slopes[1], atol=1e-3)
    blurred = shrunk_slopes(jnp.asarray(slopes, jnp.float32), jnp.asarray([[1e-6] * 4, [0.5] * 4], jnp.float32))
    np.testing.assert_allclose(blurred, slopes[0], atol=1e-3)
    half = np.asarray(shrunk_slopes(jnp.asarray(slopes, jnp.float32), jnp.asarray([[1e-6] * 4, [0.0625] * 4])))
    assert (np.abs(half - 0.5) < np.abs(slopes[1] - 0.5)).all()
    assert (half[[1, 3]] > 0.55).all()


class Oracle:
    """The whole mixer with loops, in float64."""

    def __init__(self, total_steps, m, *, every, ignore, start, windows, transfer, exponent, smoothing, horizon):
        self.total, self.m, self.every, self.ignore, self.start = total_steps, m, every, ignore, start
        self.horizon = horizon
        self.windows, self.transfer, self.exponent, self.smoothing = windows, transfer, exponent, smoothing
        self.weights, self.drawn, self.count = np.full(m, 1 / m), np.zeros(m), 0
        self.seen = [[[] for _ in range(m)] for _ in windows]  # (weight, x, y) with discounted weights

    def spread(self, x):
        return np.array([x[i] + self.transfer * (x.sum() - x[i]) for i in range(self.m)])

    def update(self, loss_sum, counts):
        before, self.drawn = self.spread(self.drawn), self.drawn + counts
        after, self.count = self.spread(self.drawn), self.count + 1
        progress = self.count * self.every / self.total
        value, variance = np.zeros((len(self.windows), self.m)), np.full((len(self.windows), self.m), 1e6)
        for k, power in enumerate(self.windows):
            for i in range(self.m):
                kept = (before[i] / after[i]) ** power if after[i] > 0 else 1.0
                past = [(w * kept, x, y) for w, x, y in self.seen[k][i]]
                if counts[i] > 0 and progress > self.ignore:
                    past.append((counts[i], np.log((before[i] + after[i]) / 2), loss_sum[i] / counts[i]))
                self.seen[k][i] = past
                if len(past) < 2:
                    continue
                w, x, y = np.array(past).T
                observations = w.sum() ** 2 / (w**2).sum()
                dx, dy = x - np.average(x, weights=w), y - np.average(y, weights=w)
                xx, xy, yy = (w * dx * dx).sum(), (w * dx * dy).sum(), (w * dy * dy).sum()
                if observations > 3.5:
                    value[k, i] = -xy / xx
                    residual = max(yy - xy**2 / xx, 0) / w.sum()
                    variance[k, i] = max(residual / (xx / w.sum() * max(observations - 2, 1)), 1e-12)
        slope = np.full(self.m, (value[0] / variance[0]).sum() / (1 / variance[0]).sum())
        for k in range(len(self.windows)):
            difference = value[k] - slope
            real = max(((difference**2 - variance[k]) / variance[k]).sum() / (1 / variance[k]).sum(), 0)
            slope = slope + difference * real / (real + variance[k])
        self.slope = slope = np.maximum(slope, 0.02 * max(slope.mean(), 1e-6))
        if progress < self.start or not (variance < 1e6).any():
            return
        steps = max(self.total - self.count * self.every, self.every)
        remaining = self.drawn.sum() * max(steps / (self.count * self.every), self.horizon)
        p = np.maximum(self.weights, 1e-4)
        p = p / p.sum()
        exposure = np.maximum(after, 1e-3 * max(after.mean(), 1))
        for _ in range(100):
            growth = 1 + remaining * self.spread(p) / exposure
            marginal = self.spread(slope * growth ** (-self.exponent - 1) / exposure)
            p = p * np.sqrt(marginal)
            p = p / p.sum()
        self.weights = (1 - self.smoothing) * p + self.smoothing / self.m


@pytest.mark.parametrize("transfer", [0.0, 0.05])
@pytest.mark.parametrize("with_x64", [False, True], ids=["float32", "x64"])
def test_weights_follow_the_description(transfer, with_x64):
    m, total = 4, 120
    options = {"every": 2, "ignore": 0.06, "start": 0.11, "windows": (1.0, 3.0), "exponent": 0.5, "smoothing": 0.01}
    dtype = np.float64 if with_x64 else np.float32
    rng = np.random.default_rng(1)
    with jax.enable_x64(with_x64):
        horizon = 10 * transfer
        mixer = foresight(total, transfer=transfer, least_horizon=horizon, **options)
        update, state = jax.jit(mixer.update), mixer.init(KEY, m)
        oracle = Oracle(total, m, transfer=transfer, horizon=horizon, **options)
        for step in range(60):
            counts = rng.integers(0, 40, m).astype(np.float64)
            counts[step % m] = 0
            loss = 2 + np.array([0.5, 1, 2, 3]) * (1 + oracle.drawn / 100) ** -0.4 + rng.normal(0, 0.01, m)
            feedback = Feedback(token_count=jnp.asarray(counts, dtype), loss_sum=jnp.asarray(counts * loss, dtype))
            state, info = update(KEY, state, feedback)
            oracle.update(counts * loss, counts)
            tolerance = 1e-11 if with_x64 else 2e-4
            np.testing.assert_allclose(info.score, oracle.slope, rtol=tolerance * 10, atol=tolerance)
            np.testing.assert_allclose(state.weights, oracle.weights, atol=tolerance)
    assert np.ptp(oracle.weights) > 0.1


@pytest.mark.parametrize("signal", ["train", pytest.param("validation", marks=pytest.mark.slow)])
def test_it_comes_near_the_best_static_mixture_of_a_power_law(signal):
    m, steps = 5, 1000
    scale, exponent = jnp.asarray([0.3, 0.6, 1.0, 2.0, 4.0]), jnp.asarray([0.3, 0.4, 0.5, 0.4, 0.3])
    world = power_law_world(
        jnp.eye(m), irreducible=1.0, scale=scale, exponent=exponent, start=5.0, tokens_per_step=1.0, train_noise=0.02,
    )  # fmt: skip
    total = lambda losses: float(jnp.sum(losses))
    even = total(run_static(world, jnp.full(m, 1 / m), key=KEY, num_steps=steps))
    rng = np.random.default_rng(0)
    tries = jnp.asarray(rng.dirichlet(np.full(m, 2.0), 400), jnp.float32)
    losses = jax.jit(jax.vmap(lambda p: run_static(world, p, key=KEY, num_steps=steps)))(tries)
    best = float(jnp.sum(losses, axis=1).min())
    got = total(simulate(foresight(steps, signal=signal), world, key=KEY, num_steps=steps).final_losses)
    assert even - got > 0.8 * (even - best)


def test_nothing_is_known_nothing_moves():
    mixer = foresight(100, every=1)
    state = mixer.init(KEY, 3, jnp.asarray([0.5, 0.3, 0.2]))
    for _ in range(50):
        state, info = mixer.update(KEY, state, Feedback(token_count=jnp.zeros(3), loss_sum=jnp.zeros(3)))
    np.testing.assert_allclose(state.weights, [0.5, 0.3, 0.2], atol=1e-6)
    assert np.isfinite(info.score).all()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"windows": (3.0, 1.0)}, r"increasing powers.*foresight\(windows\)"),
        ({"windows": ()}, r"foresight\(windows\)"),
        ({"start": 0.01}, r"foresight\(start\)"),
        ({"signal": "test"}, "unknown signal 'test'"),
        ({"exponent": 0.0}, r"foresight\(exponent\)"),
        ({"objective": [1.0, -1.0]}, r"objective must be ≥ 0"),
    ],
)
def test_wrong_arguments(options, match):
    with pytest.raises(ConfigError, match=match):
        foresight(100, **options)


def test_the_objective_has_one_number_per_domain():
    with pytest.raises(ConfigError, match="2 numbers for 3 domains"):
        foresight(100, objective=[1.0, 2.0]).init(KEY, 3)
