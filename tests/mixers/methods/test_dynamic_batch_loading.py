"""Sheared-LLaMA's rule in float64, paper and released code, and the published single updates."""

import numpy as np
import pytest
from driving import KEY, PRECISIONS, drive, evaluations, softmax

from jaxmix.core.errors import ConfigError
from jaxmix.mixers.methods.dynamic_batch_loading import dynamic_batch_loading

M = 7
TARGETS = [1.9643, 0.7459, 2.1393, 1.6117, 1.7590, 1.4449, 2.1251]  # published for 1.3B, RedPajama's seven domains
PRIOR = np.array([0.67, 0.045, 0.045, 0.02, 0.045, 0.025, 0.15])


def oracle(losses, targets, prior, *, step_size, smoothing, clip, variant):
    m = len(prior)
    p, held, history = np.array(prior, float), np.full(m, np.nan), []
    for row in losses:
        held = np.where(np.isnan(row), held, row)
        d = held - np.array(targets)
        d = np.maximum(d, 0) if clip else d
        d = np.where(np.isnan(d), np.nanmean(d), d)
        p = softmax((p if variant == "bandit" else np.log(p)) + step_size * d)
        p = (1 - smoothing) * p + smoothing / m
        history.append(p)
    return np.array(history)


@pytest.mark.parametrize(("is_double", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("variant", ["exponentiated", "bandit"])
@pytest.mark.parametrize(("step_size", "smoothing"), [(1.0, 1e-4), (0.2, 0.05), (0.0, 0.0)])
def test_equals_the_rule(is_double, tolerance, clip, variant, step_size, smoothing):
    losses = evaluations(5, 40, M, missing=0.15)
    settings = {"step_size": step_size, "smoothing": smoothing, "clip": clip, "variant": variant}
    mixer = dynamic_batch_loading(TARGETS, **settings)
    records = [{"validation_loss": row} for row in losses]
    weights, _, _ = drive(mixer, M, records, prior=PRIOR, is_double=is_double)
    np.testing.assert_allclose(weights, oracle(losses, TARGETS, PRIOR, **settings), rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("clip", "expected"), [(True, [0.289, 0.237, 0.237, 0.237]), (False, [0.308, 0.252, 0.187, 0.252])]
)
def test_published_single_updates(clip, expected):
    mixer = dynamic_batch_loading(2.0, clip=clip)
    weights, _, _ = drive(mixer, 4, [{"validation_loss": [2.2, 2.0, 1.7, 2.0]}])
    np.testing.assert_allclose(weights[0], expected, atol=6e-4)


def test_nothing_measured_moves_nothing():
    weights, infos, _ = drive(dynamic_batch_loading(1.0), 2, [{"validation_loss": [np.nan, np.inf]}], prior=[0.8, 0.2])
    np.testing.assert_allclose(weights[0], [0.8, 0.2], rtol=1e-6)
    np.testing.assert_array_equal(infos[0].score, 0)


def test_a_domain_without_a_loss_moves_with_the_mean():
    weights, infos, _ = drive(dynamic_batch_loading(0.0), 3, [{"validation_loss": [3.0, np.nan, 1.0]}])
    np.testing.assert_allclose(infos[0].score, [3.0, 2.0, 1.0], rtol=1e-6)
    np.testing.assert_allclose(weights[0][1] / weights[0][2], np.exp(1.0), rtol=1e-3)


def test_cadence():
    assert dynamic_batch_loading(1.0).cadence[:2] == (400, 400)
    assert dynamic_batch_loading(1.0, every=50).cadence[:2] == (50, 50)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target_losses": [1.0, float("nan")]}, r"number 1 of target_losses must be finite, got nan"),
        ({"target_losses": float("inf")}, r"dynamic_batch_loading\(target_losses\)"),
        ({"every": 0}, r"whole number ≥ 1, got 0 \(dynamic_batch_loading\(every\)\)"),
        ({"variant": "bandits"}, "'bandit'"),
        ({"step_size": -1.0, "variant": "bandit"}, r"dynamic_batch_loading\(step_size\)"),
        ({"smoothing": 2.0}, r"dynamic_batch_loading\(smoothing\)"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ConfigError, match=message):
        dynamic_batch_loading(**{"target_losses": 1.0, **arguments})


def test_targets_are_counted_in_init():
    with pytest.raises(ConfigError, match=r"2 numbers for 3 domains \(dynamic_batch_loading\(target_losses\)\)"):
        dynamic_batch_loading([1.0, 2.0]).init(KEY, 3)
