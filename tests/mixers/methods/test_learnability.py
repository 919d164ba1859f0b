"""Domain-level learnability against its formula in float64."""

import numpy as np
import pytest
from driving import PRECISIONS, drive, sums_of, token_losses

from jaxmix.core.errors import ConfigError
from jaxmix.mixers import doremi
from jaxmix.mixers.methods.learnability import learnability

M = 5
PRIOR = np.array([0.4, 0.3, 0.15, 0.1, 0.05])


def oracle(steps, prior, *, step_size, memory, smoothing, averaging, clip):
    m = len(prior)
    p, scores, history = np.array(prior, float), [None] * m, []
    for step in steps:
        for j, (loss, reference) in enumerate(step):
            if len(loss) == 0:
                continue
            gap = np.mean(loss) - np.mean(reference)
            gap = max(gap, 0) if clip else gap
            scores[j] = gap if scores[j] is None else averaging * scores[j] + (1 - averaging) * gap
        raw = p**memory * np.exp([step_size * (s or 0.0) for s in scores])
        p = (1 - smoothing) * raw / raw.sum() + smoothing / m
        history.append(p)
    return np.array(history)


@pytest.mark.parametrize(("is_double", "tolerance"), PRECISIONS)
@pytest.mark.parametrize(
    "settings",
    [
        {"step_size": 1.0, "memory": 1.0, "smoothing": 1e-3, "averaging": 0.0, "clip": False},
        {"step_size": 2.0, "memory": 0.0, "smoothing": 0.0, "averaging": 0.9, "clip": False},
        {"step_size": 0.3, "memory": 0.8, "smoothing": 0.05, "averaging": 0.5, "clip": True},
    ],
)
def test_equals_the_formula(is_double, tolerance, settings):
    steps = token_losses(3, 40, M)
    weights, _, _ = drive(learnability(**settings), M, map(sums_of, steps), prior=PRIOR, is_double=is_double)
    np.testing.assert_allclose(weights, oracle(steps, PRIOR, **settings), rtol=0, atol=tolerance)


def test_clipped_it_is_doremi_by_domain():
    records = [sums_of(step) for step in token_losses(4, 30, M)]
    ours, _, _ = drive(learnability(clip=True), M, records)
    theirs, _, _ = drive(doremi(clip="domain"), M, records)
    np.testing.assert_array_equal(ours, theirs)


def test_what_the_reference_finds_harder_loses_weight():
    noise = {"loss_sum": [30.0, 30.0], "reference_loss_sum": [20.0, 60.0], "token_count": [10.0, 10.0]}
    weights, infos, _ = drive(learnability(smoothing=0.0), 2, [noise])
    np.testing.assert_allclose(infos[0].score, [1.0, -3.0], rtol=1e-6)
    np.testing.assert_allclose(weights[0][1], 1 / (1 + np.exp(4.0)), rtol=1e-5)


def test_absent_domains_hold_their_score():
    one = {"loss_sum": [3.0, 2.0], "reference_loss_sum": [1.0, 1.0], "token_count": [1.0, 1.0]}
    two = {"loss_sum": [2.0, np.inf], "reference_loss_sum": [1.0, 0.0], "token_count": [1.0, 0.0]}
    _, infos, _ = drive(learnability(averaging=0.5), 2, [one, two])
    np.testing.assert_allclose(infos[1].score, [1.5, 1.0], rtol=1e-6)


def test_a_step_without_tokens_moves_nothing():
    one = {"loss_sum": [3.0, 2.0], "reference_loss_sum": [1.0, 1.0], "token_count": [1.0, 1.0]}
    weights, _, _ = drive(learnability(), 2, [one, {signal: [0.0, 0.0] for signal in one}])
    assert weights[0][0] > 0.7
    np.testing.assert_array_equal(weights[0], weights[1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"averaging": 1.0}, r"at least 0 and below 1\.0, got 1\.0 \(learnability\(averaging\)\)"),
        ({"memory": 1.1}, r"learnability\(memory\)"),
        ({"step_size": -0.1}, r"learnability\(step_size\)"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ConfigError, match=message):
        learnability(**arguments)
