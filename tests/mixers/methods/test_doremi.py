"""DoReMi token by token in float64, the published figures of its dynamics, and the weighted loss of a proxy run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from driving import KEY, PRECISIONS, drive, sums_of, token_losses
from tolerance import WEIGHTS

from jaxmix.core.errors import ConfigError
from jaxmix.mixers import Feedback
from jaxmix.mixers.methods.doremi import doremi

M = 5
PRIOR = np.array([0.4, 0.3, 0.15, 0.1, 0.05])


def oracle(steps, prior, *, step_size, smoothing, clip, initial_score=0.0):
    """Algorithm 1 of the paper, one step after another; returns alpha of every step."""
    m = len(prior)
    alpha, scores, history = np.array(prior, float), np.full(m, initial_score), []
    for step in steps:
        for j, (loss, reference) in enumerate(step):
            if len(loss) == 0:
                continue
            excess = loss - reference
            scores[j] = np.mean(np.maximum(excess, 0)) if clip == "token" else max(np.mean(excess), 0)
        raw = alpha * np.exp(step_size * scores)
        alpha = (1 - smoothing) * raw / raw.sum() + smoothing / m
        history.append(alpha)
    return np.array(history)


@pytest.mark.parametrize(("is_double", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("clip", ["token", "domain"])
@pytest.mark.parametrize("mode", ["sample", "proxy"])
@pytest.mark.parametrize(("step_size", "smoothing", "initial_score"), [(1.0, 1e-3, 0.0), (0.1, 1e-4, 0.5)])
def test_equals_the_algorithm(is_double, tolerance, clip, mode, step_size, smoothing, initial_score):
    steps = token_losses(1, 40, M)
    settings = {"step_size": step_size, "smoothing": smoothing, "clip": clip, "initial_score": initial_score}
    mixer = doremi(mode=mode, **settings)
    weights, infos, state = drive(mixer, M, map(sums_of, steps), prior=PRIOR, is_double=is_double)
    expected = oracle(steps, PRIOR, **settings)
    found = weights if mode == "sample" else [info.extra["domain_weight"] for info in infos]
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)
    np.testing.assert_allclose(mixer.final(state), expected.mean(axis=0), rtol=0, atol=tolerance)
    if mode == "proxy":
        np.testing.assert_allclose(weights, np.tile(PRIOR, (40, 1)), rtol=0, atol=tolerance)


def constant_excess(*excess):
    return {"clipped_excess_sum": np.array(excess) * 10.0, "token_count": np.full(len(excess), 10.0)}


def test_one_step():
    weights, _, _ = drive(doremi(), 4, [constant_excess(0, 0.1, 0, 0)])
    np.testing.assert_allclose(weights[0], [0.2436, 0.2692, 0.2436, 0.2436], atol=5e-5)


def test_a_gap_that_stays_takes_everything_within_73_steps_down_to_a_known_floor():
    weights, _, _ = drive(doremi(), 4, [constant_excess(0, 0.1, 0, 0)] * 400, is_double=True)
    assert np.flatnonzero(weights[:, 1] >= 0.99)[0] + 1 == 73
    np.testing.assert_allclose(weights[-1][[0, 2, 3]], (1e-3 / 4) / (1 - np.exp(-0.1)), rtol=0.01)
    np.testing.assert_allclose(weights[-1][0], 0.00262, atol=2e-5)


def test_clipping_tokens_is_not_clipping_means():
    tokens = [(np.array([3.0, 1.0]), np.array([1.0, 3.0])), (np.array([2.0]), np.array([2.0]))]
    by_token, _, _ = drive(doremi(), 2, [sums_of(tokens)])
    by_domain, _, _ = drive(doremi(clip="domain"), 2, [sums_of(tokens)])
    assert by_token[0][0] > 0.7  # a mean clipped excess of 1
    np.testing.assert_allclose(by_domain[0], 0.5, rtol=0, atol=WEIGHTS)  # the two tokens cancel


def test_absent_domains_keep_their_score():
    first = constant_excess(0.2, 0.4, 0.1)
    second = {"clipped_excess_sum": [1.0, np.nan, 3.0], "token_count": [10.0, 0.0, 10.0]}
    _, infos, _ = drive(doremi(), 3, [first, second])
    np.testing.assert_allclose(infos[1].score, [0.1, 0.4, 0.3], rtol=1e-6)


def test_a_step_without_tokens_moves_nothing():
    weights, _, _ = drive(
        doremi(), 2, [constant_excess(0.0, 1.0), {"clipped_excess_sum": [0, 0], "token_count": [0, 0]}]
    )
    np.testing.assert_array_equal(weights[0], weights[1])


def test_signals_depend_on_the_clip():
    assert doremi().needs == {"clipped_excess_sum", "token_count"}
    assert doremi(clip="domain").needs == {"loss_sum", "reference_loss_sum", "token_count"}


@pytest.mark.parametrize("normalizer", ["token", "domain"])
def test_the_weighted_loss_is_the_named_one(normalizer):
    """What train.loss_normalization makes of the loss weights, against the loss of the code and of the paper."""
    steps = token_losses(2, 12, M, absent=0.0)
    mixer = doremi(mode="proxy", normalizer=normalizer, step_size=0.2)
    _, infos, state = drive(mixer, M, map(sums_of, steps), prior=PRIOR, is_double=True)
    with jax.enable_x64(True):
        factors = np.asarray(mixer.loss_weights(state))
    alpha, losses = infos[-1].extra["domain_weight"], [loss for loss, _ in steps[-1]]
    if normalizer == "token":  # the code: Σ w l / Σ w over all tokens, w = alpha / sampling weights
        trained = sum((f * x).sum() for f, x in zip(factors, losses, strict=True))
        trained /= sum(f * len(x) for f, x in zip(factors, losses, strict=True))
        tokens = [(alpha[j] / PRIOR[j], token) for j in range(M) for token in losses[j]]
        expected = sum(w * token for w, token in tokens) / sum(w for w, _ in tokens)
    else:  # the paper: Σ_j alpha_j · mean loss of j
        trained = np.mean([f * x.mean() for f, x in zip(factors, losses, strict=True)])
        expected = sum(a * x.mean() for a, x in zip(alpha, losses, strict=True))
    assert trained == pytest.approx(expected, rel=1e-12)


def test_loss_weights_start_at_one_and_pass_over_domains_that_are_not_drawn():
    mixer = doremi(mode="proxy")
    state = mixer.init(KEY, 3, jnp.asarray([0.75, 0.25, 0.0]))
    np.testing.assert_array_equal(mixer.loss_weights(state), [1.0, 1.0, 0.0])
    signals = Feedback(clipped_excess_sum=jnp.asarray([0.0, 5.0, 0.0]), token_count=jnp.asarray([10.0, 10.0, 0.0]))
    state, _ = jax.jit(mixer.update)(KEY, state, signals)
    assert np.isfinite(mixer.loss_weights(state)).all()
    assert mixer.loss_weights(state)[1] > 1 > mixer.loss_weights(state)[0]
    assert doremi().loss_weights is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"clip": "tokens"}, r"unknown clip 'tokens' \(doremi\(clip\)\).*'token'"),
        ({"mode": "proxi"}, "'proxy'"),
        ({"normalizer": "domains"}, "'domain'"),
        ({"step_size": -1.0}, r"doremi\(step_size\)"),
        ({"smoothing": 1.5}, r"doremi\(smoothing\)"),
        ({"initial_score": float("nan")}, r"doremi\(initial_score\)"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ConfigError, match=message):
        doremi(**arguments)
