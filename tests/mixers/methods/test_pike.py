"""PiKE against its formulas in float64 and the published figures."""

import jax.numpy as jnp
import numpy as np
import pytest
from driving import KEY, PRECISIONS, drive, softmax
from gradient_records import gradients, gram

from jaxmix.core.errors import ConfigError
from jaxmix.mixers import Feedback, pike


def oracle(g, noise, prior, batch_size, *, norm_gain=0.05, noise_gain=0.05, normalize=True, **changes):
    m, decay, smoothing = len(prior), changes.get("scale_decay", 0.9), changes.get("smoothing", 0.0)
    p, last, scale, history = np.array(prior, float), np.zeros(m), None, []
    for g_step, s in zip(g, noise, strict=True):
        drawn = [j for j in range(m) if g_step[j].any()]
        if drawn:
            square = np.mean([np.linalg.norm(g_step[j]) ** 2 for j in drawn])
            scale = square if scale is None else decay * scale + (1 - decay) * square
            for j in drawn:
                score = norm_gain * np.linalg.norm(g_step[j]) ** 2 - noise_gain / (2 * batch_size) * s[j]
                last[j] = score / scale if normalize else score
            p = softmax(np.log(np.maximum(p, 1e-30)) + last)
            p = (1 - smoothing) * p + smoothing / m
        history.append(p)
    return np.array(history)


def records(g, noise):
    for g_step, s in zip(g, noise, strict=True):
        yield {"gradient_alignment": gram(g_step), "gradient_noise": np.where(g_step.any(1), s, 0.0)}


SETTINGS = {
    "normalized": {},
    "paper": {"normalize": False, "norm_gain": 0.02, "noise_gain": 0.3},
    "changed": {"scale_decay": 0.5, "smoothing": 0.05, "norm_gain": 0.2},
}


@pytest.mark.parametrize(("is_double", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_equals_the_formulas(settings, is_double, tolerance):
    m, steps = 5, 40
    g, _ = gradients(1, steps, m)
    g[9] = 0
    noise = np.random.default_rng(2).uniform(0, 60, (steps, m))
    prior = np.random.default_rng(3).dirichlet(np.ones(m) * 3)
    weights, _, _ = drive(pike(16, **settings), m, records(g, noise), prior=prior, is_double=is_double)
    np.testing.assert_allclose(weights, oracle(g, noise, prior, 16, **settings), rtol=0, atol=tolerance)


def test_published_single_update():
    record = {"gradient_alignment": np.eye(2), "gradient_noise": np.array([1.0, 9.0])}
    weights, _, _ = drive(pike(8, noise_gain=0.2, normalize=False), 2, [record])
    np.testing.assert_allclose(weights[0], [0.525, 0.475], atol=5e-4)


def test_a_larger_batch_forgives_noise():
    record = {"gradient_alignment": np.eye(2), "gradient_noise": np.array([1.0, 9.0])}
    small, _, _ = drive(pike(8), 2, [record])
    large, _, _ = drive(pike(80), 2, [record])
    logit = lambda w: np.log(w[0, 0] / w[0, 1])
    assert logit(small) == pytest.approx(10 * logit(large), rel=1e-4)


def test_normalized_weights_do_not_depend_on_the_scale_of_gradients():
    g, _ = gradients(6, 30, 4)
    noise = np.random.default_rng(7).uniform(0, 60, (30, 4))
    small, _, _ = drive(pike(8), 4, records(1e-3 * g, 1e-6 * noise))
    large, _, _ = drive(pike(8), 4, records(1e3 * g, 1e6 * noise))
    np.testing.assert_allclose(small, large, atol=2e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0])
def test_noise_that_was_not_measured_keeps_its_last_value(bad):
    good = {"gradient_alignment": np.diag([1.0, 2.0, 3.0]), "gradient_noise": np.array([1.0, 2.0, 3.0])}
    spoilt = {**good, "gradient_noise": np.array([5.0, bad, 5.0])}
    weights, infos, _ = drive(pike(8), 3, [good, spoilt])
    assert np.isfinite(weights).all()
    assert infos[1].score[1] == pytest.approx(infos[0].score[1], rel=1e-6)
    assert infos[1].score[0] < infos[0].score[0]


def test_a_vector_has_no_norms():
    mixer = pike(8)
    with pytest.raises(ConfigError, match="norms"):
        mixer.update(KEY, mixer.init(KEY, 2), Feedback(gradient_alignment=jnp.ones(2), gradient_noise=jnp.ones(2)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, r"pike\(batch_size\)"),
        ({"norm_gain": -1.0}, r"pike\(norm_gain\)"),
        ({"noise_gain": -1.0}, r"pike\(noise_gain\)"),
        ({"scale_decay": 2.0}, r"pike\(scale_decay\)"),
        ({"smoothing": 2.0}, r"pike\(smoothing\)"),
        ({"every": 0}, r"pike\(every\)"),
        ({"gradients": "exakt"}, "Did you mean 'exact'"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ConfigError, match=message):
        pike(**{"batch_size": 8, **arguments})
