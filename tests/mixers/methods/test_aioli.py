"""Aioli against NumPy in float64, against planted interactions, and against the figures of its public parameters."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmix.core.errors import ConfigError
from jaxmix.mixers import Feedback
from jaxmix.mixers.lmo import normalized_interaction
from jaxmix.mixers.methods.aioli import aioli, estimate_interaction, probe_mixtures

KEY = jax.random.key(5)
PUBLIC = np.array([[0.595, 0.130, 0.228], [0.005, 0.459, 0.033], [0.161, 0.113, 0.800]])
"""A fitted interaction of Arxiv, Books and StackExchange at step 1500, published with the code."""


def drive(mixer, world, steps, m, *, prior=None, lead=1, with_x64=False, key=KEY):
    """Runs the loop's order in a world with exact shares; returns the final state and the weights every batch saw.

    `world(step, shares) -> drop of the losses`; weights after the update of step s draw batch s + 1 + lead.
    """
    dtype = np.float64 if with_x64 else np.float32
    state = mixer.init(key, m, prior)
    update, weights = jax.jit(mixer.update), jax.jit(mixer.weights)
    queue = [np.asarray(weights(state))] * (lead + 1)
    losses = np.full(m, 4.0)
    held = np.full(m, np.nan)
    if mixer.cadence.is_validation_due(0, m):
        held = losses.copy()
    drawn, states = [], []
    for step in range(steps):
        shares = queue.pop(0).astype(np.float64)
        drawn.append(shares)
        losses = losses - world(step, shares)
        if mixer.cadence.is_validation_due(step + 1, m):
            held = losses.copy()
        feedback = Feedback(token_count=jnp.asarray(shares * 1e6, dtype), validation_loss=jnp.asarray(held, dtype))
        state, _ = update(jax.random.fold_in(key, step), state, feedback)
        states.append(state)
        queue.append(np.asarray(weights(state)))
    return states, np.array(drawn), losses


def oracle(order, drops, shares, smoothing, estimator):
    """Interaction from one round, solved group by group, as the paper writes it."""
    m = shares.shape[1]
    beta, counts = np.zeros((m, m)), np.zeros((m, m))
    sweeps = len(order) // m
    for k, j in enumerate(order):
        for i in range(m):
            beta[i, j] += drops[k, i] / sweeps
        counts[j] += shares[k]
    nominal = np.array([[(1 - smoothing) * (a == b) + smoothing / m for b in range(m)] for a in range(m)])
    if estimator == "diagonal":
        return np.diag([beta[j, j] / nominal[j, j] for j in range(m)])
    mixtures = nominal if estimator == "nominal" else counts / counts.sum(1, keepdims=True)
    return np.array([np.linalg.solve(mixtures, beta[i]) for i in range(m)])


def oracle_step(weights, average, interaction, *, is_first, step_size, memory, ema):
    shifted = interaction - min(interaction.min(), 0.0)
    fresh = shifted / shifted.sum()
    average = fresh if is_first else ema * average + (1 - ema) * fresh
    logits = memory * np.log(weights) + step_size * average.sum(0)
    new = np.exp(logits - logits.max())
    return new / new.sum(), average


@pytest.mark.parametrize("estimator", ["realized", "nominal", "diagonal"])
@pytest.mark.parametrize(
    ("variant", "memory", "ema"), [("paper", 1.0, 0.0), ("released", 0.0, 0.1), ("paper", 0.7, 0.5)]
)
@pytest.mark.parametrize("with_x64", [False, True], ids=["float32", "x64"])
def test_weights_follow_the_paper(estimator, variant, memory, ema, with_x64):
    m, sweeps, interval, length, smoothing, step_size = 4, 3, 3, 45, 0.4, 0.8
    rng = np.random.default_rng(0)
    dtype = np.float64 if with_x64 else np.float32
    with jax.enable_x64(with_x64):
        mixer = aioli(
            variant=variant, round_length=length, sweeps=sweeps, interval=interval, smoothing=smoothing,
            step_size=step_size, memory=memory, ema=ema, estimator=estimator,
        )  # fmt: skip
        update = jax.jit(mixer.update)
        state = mixer.init(KEY, m, jnp.asarray([0.4, 0.3, 0.2, 0.1], dtype))
        weights, average = np.array([0.4, 0.3, 0.2, 0.1]), None
        held = losses = rng.uniform(2, 4, m)
        for done in range(3 * length):
            position = done % length
            if position == 0:
                order, table, drops, last = np.asarray(state.order), np.zeros((m * sweeps, m)), [], held
            counts = rng.integers(1, 100, m).astype(np.float64)
            losses = losses + rng.normal(0, 1.0, m)
            if mixer.cadence.is_validation_due(done + 1, m):
                held = losses
            feedback = Feedback(token_count=jnp.asarray(counts, dtype), validation_loss=jnp.asarray(held, dtype))
            state, info = update(jax.random.fold_in(KEY, done), state, feedback)
            if position < m * sweeps * interval:
                table[position // interval] += counts
                if (position + 1) % interval == 0:
                    drops.append(last - held)
                    last = held
            if position + 1 == m * sweeps * interval:
                found = oracle(order, np.array(drops), table, smoothing, estimator)
                weights, average = oracle_step(
                    weights, average, found, is_first=done < length, step_size=step_size, memory=memory, ema=ema
                )
                # The shares drawn here are random, so that the realized system is badly conditioned on purpose.
                tolerance = 1e-10 if with_x64 else 2e-2
                np.testing.assert_allclose(info.extra["interaction"], found, rtol=tolerance, atol=tolerance)
            np.testing.assert_allclose(state.weights, weights, atol=1e-12 if with_x64 else 1e-3)
        assert len(drops) == m * sweeps


@pytest.mark.parametrize("m", [2, 3, 7])
@pytest.mark.parametrize("lead", [0, 1])
def test_recovers_a_planted_interaction(m, lead):
    rng = np.random.default_rng(m)
    truth = rng.normal(0.02, 0.02, (m, m))
    with jax.enable_x64():
        mixer = aioli(round_length=200, sweeps=4, interval=4, smoothing=0.5, lead=lead)
        states, _, _ = drive(mixer, lambda step, p: truth @ p / 4, 200, m, lead=lead, with_x64=True)
        found = np.asarray(states[-1].interaction)
    assert np.linalg.norm(found - truth) / np.linalg.norm(truth) < 1e-11


def test_probes_are_sharp_in_a_loop_with_the_expected_lead():
    mixer = aioli(round_length=60, sweeps=2, interval=4, smoothing=0.25, lead=1)
    states, drawn, _ = drive(mixer, lambda step, p: p * 0.01, 150, 3, lead=1)
    for start in (0, 60, 120):
        order = np.asarray(states[start].order)  # the state after the first step of a round
        for k in range(6):
            for q in range(4):
                np.testing.assert_allclose(drawn[start + 4 * k + q], probe_mixtures(3, 0.25)[order[k]], atol=1e-6)
    np.testing.assert_allclose(drawn[24:60], np.broadcast_to(drawn[24], (36, 3)))


def test_every_sweep_probes_every_domain_and_rounds_differ():
    states, _, _ = drive(aioli(round_length=80, sweeps=3, interval=2), lambda step, p: p * 0.01, 240, 5)
    orders = [np.asarray(states[start].order).reshape(3, 5) for start in (0, 80, 160)]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order, axis=1), np.tile(np.arange(5), (3, 1)))
    assert len({o.tobytes() for o in orders}) == 3


def momentum_world(truth, decay):
    """Losses that fall with the exponentially filtered shares, as under an optimizer with momentum."""
    filtered = np.full(truth.shape[1], 1 / truth.shape[1])

    def drop(step, shares):
        nonlocal filtered
        filtered = decay * filtered + (1 - decay) * shares
        return truth @ filtered

    return drop


def test_filtered_regression_is_exact_under_momentum_and_the_plain_one_is_not():
    truth = np.random.default_rng(1).normal(0.01, 0.01, (3, 3))
    errors = {}
    with jax.enable_x64():
        for estimator in ("filtered", "realized"):
            mixer = aioli(round_length=100, sweeps=4, interval=4, smoothing=0.5, estimator=estimator)
            states, _, _ = drive(mixer, momentum_world(truth, 0.9), 100, 3, prior=None, with_x64=True)
            found = np.asarray(states[-1].interaction) / (1 if estimator == "filtered" else 4)
            scale = 1 if estimator == "realized" else 1 / 4
            errors[estimator] = np.linalg.norm(found * scale - truth) / np.linalg.norm(truth)
    assert errors["filtered"] < 1e-10
    assert errors["realized"] > 0.3


@pytest.mark.parametrize(("interval", "share"), [(2, 0.07), (4, 0.11), (6, 0.16), (10, 0.26), (20, 0.48), (50, 0.76)])
def test_share_of_the_contrast_that_momentum_leaves(interval, share):
    # Between-domain contrast: the part of A that differs from its row means.
    truth = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]) * 0.01
    sweeps, rounds = 4, max(2, 40 // interval)
    length = 3 * sweeps * interval + 1
    mixer = aioli(round_length=length, sweeps=sweeps, interval=interval, smoothing=0.5, lead=0)
    states, _, _ = drive(mixer, momentum_world(truth, 0.9), rounds * length, 3, lead=0)
    found = np.mean([np.asarray(states[(r + 1) * length - 1].interaction) / interval for r in range(rounds)], axis=0)
    contrast = lambda a: a - a.mean(1, keepdims=True)
    measured = np.sum(contrast(found) * contrast(truth)) / np.sum(contrast(truth) ** 2)
    assert measured == pytest.approx(share, abs=0.04)


def test_interleaving_keeps_a_trend_out():
    # A decays with the length of the window as time constant; the error of one sweep and of many, spec 13.1.
    truth = np.random.default_rng(2).normal(0.02, 0.01, (3, 3))
    errors = {}
    for sweeps in (1, 4, 12):
        interval = 48 // sweeps
        steps = 3 * 48
        mixer = aioli(round_length=steps + 1, sweeps=sweeps, interval=interval, smoothing=0.5, lead=0)
        decay = lambda step, steps=steps: np.exp(-step / steps)
        found = []
        for seed in range(8):
            world = lambda step, p, decay=decay: truth @ p * decay(step)
            states, _, _ = drive(mixer, world, steps, 3, lead=0, key=jax.random.key(seed))
            found.append(np.asarray(states[-1].interaction) / interval)
        mean_truth = truth * np.mean([decay(step) for step in range(steps)])
        error = [np.linalg.norm(f - mean_truth) / np.linalg.norm(mean_truth) for f in found]
        errors[sweeps] = np.median(error)
    assert errors[1] > 3 * errors[4] > 6 * errors[12]


def test_noise_grows_with_smoothing_and_falls_with_sweeps():
    rng = np.random.default_rng(3)
    truth = PUBLIC / 500 * 6
    error = {}
    for smoothing in (0.0, 0.25, 0.5, 0.75):
        for sweeps in (1, 4):
            order = np.tile(np.arange(3), sweeps).astype(np.int32)
            shares = np.asarray(probe_mixtures(3, smoothing), np.float64)[order]
            runs = []
            for _ in range(200):
                evaluations = np.cumsum(np.vstack([np.zeros(3), -(shares @ truth.T)]), axis=0)
                noisy = evaluations + rng.normal(0, 1e-3, evaluations.shape)
                drops = noisy[:-1] - noisy[1:]
                found = oracle(order, drops, shares, smoothing, "nominal")
                runs.append(np.linalg.norm(found - truth) / np.linalg.norm(truth))
            error[smoothing, sweeps] = np.mean(runs)
    expected = {(0.0, 1): 0.296, (0.25, 1): 0.384, (0.5, 1): 0.565, (0.75, 1): 1.114,
                (0.0, 4): 0.139, (0.25, 4): 0.184, (0.5, 4): 0.274, (0.75, 4): 0.546}  # fmt: skip
    for case, value in expected.items():
        assert error[case] == pytest.approx(value, rel=0.25), case


def test_probe_mixtures():
    for flag, m, condition in ((0.625, 2, 4.0), (0.5, 3, 4.0), (0.75, 7, 1.412)):
        smoothing = (1 - flag) * m / (m - 1)
        mixtures = np.asarray(probe_mixtures(m, smoothing), np.float64)
        np.testing.assert_allclose(np.diag(mixtures), flag, rtol=1e-6)
        np.testing.assert_allclose(mixtures.sum(1), 1, rtol=1e-6)
        assert np.linalg.cond(mixtures) == pytest.approx(condition, abs=1e-3)
        assert np.linalg.cond(mixtures) == pytest.approx(1 / (1 - smoothing), rel=1e-5)


@pytest.mark.parametrize(
    ("rounds", "settings", "expected", "digits"),
    [
        (1, {"variant": "paper"}, [0.3323, 0.3315, 0.3362], 5e-5),
        (20, {"variant": "paper"}, [0.310, 0.296, 0.394], 5e-4),
        (20, {"variant": "released"}, [0.332, 0.332, 0.336], 5e-4),
    ],
)
def test_public_interaction(rounds, settings, expected, digits):
    mixer = aioli(round_length=25, sweeps=2, interval=4, smoothing=0.5, step_size=0.1, **settings)
    states, _, _ = drive(mixer, lambda step, p: PUBLIC @ p / 500, 25 * rounds, 3)
    np.testing.assert_allclose(states[-1].weights, expected, atol=digits + 2e-5)


def test_the_memoryless_rule_is_bounded():
    for interaction in (np.diag([1.0, 0.0, 0.0]), np.diag([1.0, 1.0, 0.0])):
        mixer = aioli(variant="released", round_length=25, sweeps=2, interval=4, smoothing=0.5, step_size=0.1)
        states, _, _ = drive(mixer, lambda step, p, a=interaction: a @ p / 500, 200, 3)
        assert states[-1].weights.min() >= 0.3115 - 1e-4
        assert states[-1].weights.max() <= 0.3559 + 1e-4
        assert np.ptp(states[-1].weights) > 0.015


@pytest.mark.slow
def test_swapped_groups_need_forgetting():
    # The better of two domains swaps in the middle of 5000 steps, step size 0.2; where each rule crosses again.
    good, bad = np.array([[1e-3, 0], [0, 0.0]]), np.array([[0.0, 0], [0, 1e-3]])
    crossing, mean_loss = {}, {}
    for name, options in {
        "paper": {"variant": "paper"},
        "half": {"variant": "paper", "memory": 0.7},
        "released": {"variant": "released"},
    }.items():
        mixer = aioli(round_length=250, sweeps=4, interval=4, smoothing=0.75, step_size=0.2, **options)
        world = lambda step, p: (good if step < 2500 else bad) @ p
        states, _, losses = drive(mixer, world, 5000, 2)
        second = np.array([float(s.weights[1]) for s in states[::10]])
        after = np.flatnonzero(second[250:] > 0.5)
        crossing[name] = 2500 + 10 * int(after[0]) if len(after) else None
        mean_loss[name] = losses.mean()
    assert crossing["paper"] is None
    assert crossing["released"] < 2600
    assert 2600 < crossing["half"] < 3100
    stratified = 4.0 - 5000 * 0.5e-3 / 2
    assert mean_loss["half"] < mean_loss["released"] < mean_loss["paper"] < stratified


def test_initial_phase_and_what_comes_after():
    prior = jnp.asarray([0.9, 0.05, 0.05])
    for after, expected in (("uniform", [1 / 3] * 3), ("prior", [0.9, 0.05, 0.05])):
        mixer = aioli(round_length=40, sweeps=2, interval=4, initial_steps=30, after_initial=after)
        states, drawn, _ = drive(mixer, lambda step, p: p * 0.0, 60, 3, prior=prior)
        np.testing.assert_allclose(drawn[:30], np.broadcast_to(prior, (30, 3)), atol=1e-6)
        order = np.asarray(states[31].order)
        np.testing.assert_allclose(drawn[30], probe_mixtures(3, 0.75)[order[0]], atol=1e-6)
        np.testing.assert_allclose(states[40].weights, expected, atol=1e-6)
    evaluated = [step for step in range(200) if mixer.cadence.is_validation_due(step, 3)]
    assert evaluated[:8] == [30, 34, 38, 42, 46, 50, 54, 70]


def test_a_round_that_cannot_finish_does_not_begin():
    mixer = aioli(round_length=40, sweeps=2, interval=4, total_steps=100)
    _, drawn, _ = drive(mixer, lambda step, p: p * 0.01, 100, 3)
    np.testing.assert_allclose(drawn[80:], np.broadcast_to(drawn[39], (20, 3)), atol=0.2)
    assert np.ptp(drawn[40:64], axis=0).max() > 0.1
    assert np.ptp(drawn[80:], axis=0).max() == 0


def test_evaluations_per_round():
    mixer = aioli(round_length=250, sweeps=4, interval=6)
    due = [step for step in range(250) if mixer.cadence.is_validation_due(step, 3)]
    assert len(due) == 3 * 4 + 1
    assert sum(mixer.cadence.is_validation_due(s, 3) for s in range(500)) == 26  # 260 in the paper's 5000 steps


def test_a_failed_evaluation_leaves_the_weights():
    mixer = aioli(round_length=30, sweeps=1, interval=4, step_size=2.0)
    bad = lambda step, p: np.where(step == 6, np.nan, 1.0) * p * 0.01
    states, _, _ = drive(mixer, bad, 60, 3)
    np.testing.assert_allclose(states[-1].weights, np.full(3, 1 / 3), atol=1e-6)
    assert np.isfinite(states[-1].average).all()


def test_permuting_the_domains_and_their_order_permutes_everything():
    order = np.array([2, 0, 1])
    mixer = aioli(round_length=30, sweeps=2, interval=3)
    update = jax.jit(mixer.update)
    plain = mixer.init(KEY, 3)
    inverse = jnp.asarray(np.argsort(order), jnp.int32)
    other = dataclasses.replace(plain, order=inverse[plain.order])
    rng = np.random.default_rng(0)
    for _ in range(30):
        counts, losses = rng.uniform(1, 9, 3).astype(np.float32), rng.uniform(1, 2, 3).astype(np.float32)
        plain, _ = update(KEY, plain, Feedback(token_count=jnp.asarray(counts), validation_loss=jnp.asarray(losses)))
        other, _ = update(
            KEY, other, Feedback(token_count=jnp.asarray(counts[order]), validation_loss=jnp.asarray(losses[order]))
        )
    np.testing.assert_allclose(plain.weights[order], other.weights, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"variant": "papr"}, "unknown variant"),
        ({"estimator": "full"}, "unknown estimator"),
        ({"interval": 1}, r"at least 2, got 1 \(aioli\(interval\)\)"),
        ({"smoothing": 1.0}, r"aioli\(smoothing\)"),
        ({"after_initial": "zero"}, r"aioli\(after_initial\)"),
        ({"memory": 1.5}, r"aioli\(memory\)"),
    ],
)
def test_wrong_arguments(options, match):
    with pytest.raises(ConfigError, match=match):
        aioli(**options)


def test_probes_must_fit_into_a_round():
    with pytest.raises(ConfigError, match=r"7 x 4 sweeps x 10 steps = 280.*Lengthen"):
        aioli(round_length=280, sweeps=4, interval=10).init(KEY, 7)


def test_normalized_interaction():
    shifted = PUBLIC - 0.3
    np.testing.assert_allclose(
        normalized_interaction(jnp.asarray(PUBLIC, jnp.float32)), PUBLIC / PUBLIC.sum(), rtol=1e-6
    )
    lifted = shifted - shifted.min()
    np.testing.assert_allclose(
        normalized_interaction(jnp.asarray(shifted, jnp.float32)), lifted / lifted.sum(), rtol=1e-5
    )
    np.testing.assert_allclose(normalized_interaction(jnp.zeros((3, 3))), np.full((3, 3), 1 / 9))
    assert np.isfinite(normalized_interaction(jnp.full((3, 3), 1e38))).all()


def test_estimators_agree_when_the_draws_are_nominal():
    rng = np.random.default_rng(4)
    order = np.concatenate([rng.permutation(4) for _ in range(3)]).astype(np.int32)
    shares = np.asarray(probe_mixtures(4, 0.3), np.float64)[order]
    truth = rng.normal(size=(4, 4))
    for estimator in ("realized", "nominal", "filtered"):
        found = estimate_interaction(
            jnp.asarray(shares @ truth.T, jnp.float32), jnp.asarray(shares, jnp.float32), jnp.asarray(order),
            smoothing=0.3, estimator=estimator,
        )  # fmt: skip
        np.testing.assert_allclose(found, truth, atol=2e-5)
