"""Adaptive Data Optimization: weights against the formulas in float64, points against SciPy's filter."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import savgol_filter

from jaxmix.core.errors import ConfigError
from jaxmix.mixers import Feedback, ado
from jaxmix.mixers.methods.ado import ado_preference, ado_weights, fit_points, learning_speed
from jaxmix.mixers.power_law import PowerLaw, fit_power_laws

KEY = jax.random.key(0)
SMALL = {"ignore": 20, "start": 40, "refit_every": 30, "min_points": 10, "subsample": 2, "window": 11, "buffer": 64}


def training(steps, m, seed=1, missing=0.25):
    """Falling losses with noise, and token counts with absences."""
    rng = np.random.default_rng(seed)
    t = np.arange(1, steps + 1)[:, None]
    floor, scale, exponent = rng.uniform(1.7, 2.5, m), rng.uniform(1, 4, m), rng.uniform(0.2, 0.7, m)
    losses = (floor + scale * t**-exponent) * (1 + 0.01 * rng.standard_normal((steps, m)))
    tokens = np.where(rng.random((steps, m)) < missing, 0, rng.integers(200, 4000, (steps, m)))
    return losses, tokens


def step_feedback(losses, tokens):
    dtype = jnp.result_type(float)
    return Feedback(loss_sum=jnp.asarray(losses * tokens, dtype), token_count=jnp.asarray(tokens, dtype))


def drive(mixer, losses, tokens, prior=None):
    """The states after every update."""
    state, update, states = mixer.init(KEY, losses.shape[1], prior), jax.jit(mixer.update), []
    for step in range(len(losses)):
        state, info = update(KEY, state, step_feedback(losses[step], tokens[step]))
        states.append((state, info))
    return states


def oracle(tokens, prior, laws, natural=None, variant="paper", credit=0.5, momentum=0.1, least=0.01):
    """The recursion as the released loop runs it; `laws[t]` is in force at update t, None before there is one."""
    mu = prior if natural is None else natural
    p, average, drawn, n, history = prior, prior, prior, 0.0, []
    for t, law in enumerate(laws):
        n += tokens[t].sum() / 1024
        drawn = 0.9 * drawn + 0.1 * tokens[t] / tokens[t].sum()
        if law is not None:
            a, e, alpha = law
            predicted = np.exp(e) + np.exp(a) / n**alpha
            speed = np.maximum(alpha, 0.05) * (predicted - np.exp(e)) / n
            base = drawn if variant == "paper" else drawn * (1 - drawn)
            r = mu * base**credit * speed
            r = np.maximum(r / r.sum(), least)
            r = r / r.sum()
            p = (1 - momentum) * average + momentum * r
            average = (1 - 1 / (t + 1)) * average + 1 / (t + 1) * r
        history.append(p)
    return np.array(history), average


@pytest.mark.parametrize(
    ("settings", "double"),
    [
        ({}, True),
        ({"natural": (0.4, 0.1, 0.1, 0.2, 0.2), "credit": 0.0, "momentum": 0.5}, False),
        ({"variant": "repository"}, False),
        pytest.param({}, False, marks=pytest.mark.slow),
        pytest.param({"variant": "repository"}, True, marks=pytest.mark.slow),
    ],
)
def test_equals_the_formulas(settings, double):
    steps, m = 240, 5
    losses, tokens = training(steps, m)
    prior = np.random.default_rng(2).dirichlet(np.ones(m) * 3)
    with jax.enable_x64(double):
        start = jnp.asarray(prior, jnp.result_type(float))
        states = drive(ado(**SMALL, **settings), losses, tokens, start)
        laws = [np.array(s.law, np.float64) if bool(s.has_law.all()) else None for s, _ in states]
        weights = np.array([s.weights for s, _ in states])
    rest = {name: np.array(value) if name == "natural" else value for name, value in settings.items()}
    expected, average = oracle(tokens, prior, laws, **rest)
    assert sum(law is not None for law in laws) >= 150
    assert np.abs(expected[-1] - prior).max() > 0.01
    np.testing.assert_allclose(weights, expected, atol=1e-12 if double else 1e-6)
    np.testing.assert_allclose(states[-1][0].average, average, atol=1e-12 if double else 2e-6)


def test_pure_functions_by_hand():
    law = PowerLaw(*(jnp.asarray(v, jnp.float32) for v in ([1.0, 2.0], [0.5, 0.7], [0.5, 0.01])))
    # The second exponent counts as 0.05 in front, not in the law.
    expected = [0.5 * np.e * 100**-0.5 / 100, 0.05 * np.e**2 * 100**-0.01 / 100]
    np.testing.assert_allclose(learning_speed(law, jnp.float32(100)), expected, rtol=1e-5)
    natural, drawn, speeds = jnp.asarray([0.5, 0.5]), jnp.asarray([0.64, 0.36]), jnp.asarray([1e-9, 1e-9])
    np.testing.assert_allclose(ado_preference(natural, drawn, speeds), [0.8 / 1.4, 0.6 / 1.4], rtol=1e-6)
    np.testing.assert_allclose(ado_preference(natural, drawn, speeds, variant="repository"), [0.5, 0.5], rtol=1e-6)
    slow = jnp.asarray([1e-9, 0.0])
    np.testing.assert_allclose(ado_preference(natural, drawn, slow), [1 / 1.01, 0.01 / 1.01], rtol=1e-6)
    weights, average = ado_weights(natural, jnp.asarray([0.9, 0.1]), jnp.int32(3))
    np.testing.assert_allclose(weights, [0.54, 0.46], rtol=1e-6)
    np.testing.assert_allclose(average, [0.6, 0.4], rtol=1e-6)


@pytest.mark.parametrize("steps", [pytest.param(200, marks=pytest.mark.slow), 203])
def test_points_are_those_of_the_released_pipeline(steps):
    # Every step filtered at once, the beginning dropped, every second kept.
    losses, tokens = training(steps, 3, missing=0.0)
    settings = SMALL | {"buffer": 256}
    state, _ = drive(ado(**settings), losses, tokens)[-1]
    examples, points, weights = (np.asarray(v) for v in fit_points(state.history, ignore=20))
    expected = savgol_filter(losses, 11, 3, axis=0)[20::2]
    is_point = weights > 0
    assert is_point.sum() == len(expected)
    np.testing.assert_allclose(points[is_point], expected, rtol=2e-6)
    np.testing.assert_allclose(examples[is_point], (np.cumsum(tokens.sum(1)) / 1024)[20::2], rtol=1e-6)


def test_a_full_buffer_keeps_the_whole_curve():
    losses, tokens = training(500, 2, missing=0.0)
    state, _ = drive(ado(**SMALL), losses, tokens)[-1]  # 240 points asked of a buffer of 64
    examples, points, weights = (np.asarray(v) for v in fit_points(state.history, ignore=20))
    stride = int(state.history.stride)
    assert stride == 8
    expected = savgol_filter(losses, 11, 3, axis=0)[20::stride]
    np.testing.assert_allclose(points[weights > 0], expected, rtol=2e-6)
    np.testing.assert_allclose(examples[weights > 0], (np.cumsum(tokens.sum(1)) / 1024)[20::stride], rtol=1e-6)


@pytest.mark.slow
def test_fits_at_its_cadence_from_the_smoothed_points():
    losses, tokens = training(140, 3)
    states = drive(ado(**SMALL), losses, tokens)
    changed = [t for t in range(1, 140) if not np.array_equal(states[t][0].law, states[t - 1][0].law)]
    assert changed == [60, 90, 120]
    state, info = states[90]
    examples, points, weights = fit_points(state.history, ignore=20)
    rows = [jnp.broadcast_to(v[None, :], points.T.shape) for v in (examples, weights)]
    fit = fit_power_laws(rows[0], points.T, rows[1])
    for ours, theirs in zip(state.law, fit.law, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(info.extra["irreducible_loss"], np.exp(state.law.log_floor), rtol=1e-6)
    # The law goes through the losses it was fitted to.
    np.testing.assert_allclose(info.extra["predicted_loss"], points.T[:, np.flatnonzero(weights)[-1]], rtol=0.05)


def test_a_fit_waits_for_enough_points():
    losses, tokens = training(100, 2)
    states = drive(ado(**SMALL | {"min_points": 30}), losses, tokens)
    fitted = [t for t, (state, _) in enumerate(states) if bool(state.has_law.all())]
    assert fitted[0] == 90  # 21 points at update 60, 36 at 90
    for state, info in states[:90]:
        np.testing.assert_array_equal(state.weights, [0.5, 0.5])
        np.testing.assert_array_equal(info.score, [0.5, 0.5])
        assert all((value == 0).all() for value in info.extra.values())


def test_absent_domains_repeat_their_loss():
    mixer = ado(**SMALL)
    state = mixer.init(KEY, 3)
    update = jax.jit(mixer.update)
    state, _ = update(KEY, state, step_feedback(np.array([3.0, 2.0, 9.0]), np.array([10, 30, 0])))
    np.testing.assert_allclose(state.loss, [3.0, 2.0, 2.25])  # the step's mean, before any loss of its own
    state, _ = update(KEY, state, step_feedback(np.array([1.0, 8.0, 4.0]), np.array([10, 0, 10])))
    np.testing.assert_allclose(state.loss, [1.0, 2.0, 4.0])
    after, _ = update(KEY, state, step_feedback(np.zeros(3), np.zeros(3)))
    np.testing.assert_array_equal(after.loss, state.loss)
    np.testing.assert_allclose(after.drawn, state.drawn, rtol=1e-6)
    assert after.history.examples == state.history.examples


def test_an_invalid_fit_keeps_the_last_law():
    losses, tokens = training(140, 2, missing=0.0)
    losses[61:, 1] = 0.0  # nothing to take the logarithm of
    mixer = ado(**SMALL | {"ignore": 0, "buffer": 20, "window": 1, "subsample": 1})
    states = [state for state, _ in drive(mixer, losses, tokens)]
    first, last = states[60], states[-1]
    assert first.has_law.all()
    assert not np.array_equal(first.law.log_scale[0], last.law.log_scale[0])
    assert np.isfinite(last.weights).all()
    history = dataclasses.replace(last.history, losses=last.history.losses.at[:, 1].set(-1.0))
    spoiled = dataclasses.replace(last, history=history, count=jnp.int32(150))
    after, _ = jax.jit(mixer.update)(KEY, spoiled, step_feedback(np.array([2.0, 0.0]), np.array([9, 9])))
    assert [bool(a == b) for a, b in zip(after.law.log_floor, last.law.log_floor, strict=True)] == [False, True]


def test_draws_more_of_what_still_falls():
    t = np.arange(1, 401.0)[:, None]
    losses = np.concatenate([1.8 + 8 * t**-0.4, np.full_like(t, 2.5), 2.0 + 1.0 * t**-0.4], axis=1)
    states = drive(ado(**SMALL), losses, np.full((400, 3), 1000))
    weights = np.asarray(states[-1][0].weights)
    assert weights[0] > weights[2] > weights[1]
    speed = np.asarray(states[-1][1].extra["learning_speed"])
    # dL/dn at n = 400 · 3000/1024 examples, 3000/1024 of them a step.
    assert speed[0] == pytest.approx(8 * 0.4 * 400**-1.4 * 1024 / 3000, rel=0.02)
    assert speed[2] == pytest.approx(0.4 * 400**-1.4 * 1024 / 3000, rel=0.02)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"variant": "papr"}, "Did you mean 'paper'"),
        ({"refit_every": 0}, "at least 1, got 0"),
        ({"min_points": 3}, "at least 4, got 3"),
        ({"buffer": 60}, "at least 100, got 60"),
        ({"buffer": 101}, "buffer must be even, got 101"),
        ({"window": 10}, "window must be odd, got 10"),
        ({"credit_decay": 1.0}, "credit_decay must be finite"),
        ({"momentum": 1.5}, "at most 1, got 1.5"),
        ({"tokens_per_example": 0.0}, "above 0, got 0"),
        ({"min_irreducible": float("nan")}, "min_irreducible must be finite"),
        ({"natural": [0.5, -0.1]}, "number 1 is -0.1"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ConfigError, match=message):
        ado(**arguments)


def test_natural_must_fit_the_domains():
    with pytest.raises(ConfigError, match=r"2 numbers for 3 domains \(ado\(natural\)\)"):
        ado(natural=[0.5, 0.5]).init(KEY, 3)
