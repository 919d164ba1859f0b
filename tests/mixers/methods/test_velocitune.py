"""Velocitune's rule in float64, the published update, and its invariance to affine rescaling of losses."""

import numpy as np
import pytest
from driving import KEY, PRECISIONS, drive, evaluations

from jaxmix.core.errors import ConfigError
from jaxmix.mixers.methods.velocitune import velocitune

M = 5
TARGETS = [1.0, 1.5, 0.5, 2.0, 0.8]
INITIAL = [4.0, 3.5, 3.0, 4.5, 4.0]
PRIOR = np.array([0.4, 0.3, 0.15, 0.1, 0.05])


def oracle(losses, targets, initial, prior, step_size):
    m = len(prior)
    p, history = np.array(prior, float), []
    held = [np.nan] * m
    initial = [np.nan] * m if initial is None else list(initial)
    for row in losses:
        velocity = np.full(m, np.nan)
        for j in range(m):
            if not np.isnan(row[j]):
                held[j] = row[j]
                initial[j] = row[j] if np.isnan(initial[j]) else initial[j]
            if not np.isnan(held[j]):
                way = initial[j] - targets[j]
                if way > 0:
                    velocity[j] = np.clip((held[j] - targets[j]) / way, 0, 1)
                else:
                    velocity[j] = float(held[j] > targets[j])
        velocity = np.where(np.isnan(velocity), np.nanmean(velocity), velocity)
        p = p * np.exp(step_size * velocity)
        p = p / p.sum()
        history.append(p)
    return np.array(history)


@pytest.mark.parametrize(("is_double", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("initial", [INITIAL, None])
@pytest.mark.parametrize("step_size", [1.0, 0.2])
def test_equals_the_rule(is_double, tolerance, initial, step_size):
    losses = evaluations(6, 40, M, missing=0.15)
    mixer = velocitune(TARGETS, initial_losses=initial, step_size=step_size)
    records = [{"validation_loss": row} for row in losses]
    weights, _, _ = drive(mixer, M, records, prior=PRIOR, is_double=is_double)
    np.testing.assert_allclose(weights, oracle(losses, TARGETS, initial, PRIOR, step_size), rtol=0, atol=tolerance)


def test_published_update():
    # Two domains with 0.3 of their way to go, one past its target, one with 0.7.
    mixer = velocitune([1.0, 2.0, 1.5, 1.0], initial_losses=[2.0, 4.0, 3.5, 3.0])
    weights, infos, _ = drive(mixer, 4, [{"validation_loss": [1.3, 2.6, 1.4, 2.4]}])
    np.testing.assert_allclose(infos[0].score, [0.3, 0.3, 0.0, 0.7], atol=1e-6)
    np.testing.assert_allclose(weights[0], [0.236, 0.236, 0.175, 0.353], atol=6e-4)


@pytest.mark.parametrize("given", [True, False])
def test_invariant_to_affine_rescaling_of_each_domain(given):
    scale, shift = np.array([2.0, 0.5, 3.0, 1.0, 10.0]), np.array([0.3, 5.0, -0.2, 0.0, 1.0])
    losses = evaluations(7, 30, M)
    found = []
    for a, b in ((np.ones(M), np.zeros(M)), (scale, shift)):
        initial = (a * INITIAL + b).tolist() if given else None
        mixer = velocitune((a * TARGETS + b).tolist(), initial_losses=initial)
        records = [{"validation_loss": a * row + b} for row in losses]
        found.append(drive(mixer, M, records, is_double=True)[0])
    np.testing.assert_allclose(found[0], found[1], rtol=0, atol=1e-12)


def test_the_first_evaluation_is_the_start_of_the_way():
    first, second = {"validation_loss": [4.0, 4.0]}, {"validation_loss": [3.0, 2.0]}
    weights, infos, _ = drive(velocitune(0.0), 2, [first, second], prior=[0.7, 0.3])
    np.testing.assert_array_equal(infos[0].score, 1)
    np.testing.assert_allclose(weights[0], [0.7, 0.3], rtol=1e-6)
    np.testing.assert_allclose(infos[1].score, [0.75, 0.5], rtol=1e-6)


def test_a_target_at_or_above_the_start_is_reached_until_it_is_lost():
    mixer = velocitune(2.0, initial_losses=[2.0, 1.0, 1.0])
    _, infos, _ = drive(mixer, 3, [{"validation_loss": [2.0, 0.5, 2.5]}])
    np.testing.assert_array_equal(infos[0].score, [0.0, 0.0, 1.0])


def test_errors():
    with pytest.raises(ConfigError, match=r"target_losses must be finite, got inf \(velocitune\(target_losses\)\)"):
        velocitune(float("inf"))
    with pytest.raises(ConfigError, match=r"number 0 of initial_losses must be finite"):
        velocitune(1.0, initial_losses=[float("nan"), 1.0])
    with pytest.raises(ConfigError, match=r"velocitune\(every\)"):
        velocitune(1.0, every=0)
    with pytest.raises(ConfigError, match=r"velocitune\(step_size\)"):
        velocitune(1.0, step_size=-1.0)
    with pytest.raises(ConfigError, match=r"2 numbers for 3 domains \(velocitune\(target_losses\)\)"):
        velocitune([1.0, 2.0]).init(KEY, 3)
    with pytest.raises(ConfigError, match=r"1 numbers for 3 domains \(velocitune\(initial_losses\)\)"):
        velocitune(1.0, initial_losses=[2.0]).init(KEY, 3)
