"""DGA against its formulas in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from driving import KEY, PRECISIONS, drive, softmax
from gradient_records import gradients, gram

from jaxmix.core.errors import ConfigError
from jaxmix.mixers import Feedback, dga


def oracle(g, h, prior, *, step_size=1.0, target_weights=None, decay=0.0, normalize=False, scale_decay=0.9):
    m = len(prior)
    q = np.full(m, 1 / m) if target_weights is None else np.asarray(target_weights, float)
    p = average = np.array(prior, float)
    last, scale, history = np.zeros(m), None, []
    for g_step, h_step in zip(g, h, strict=True):
        drawn = [j for j in range(m) if g_step[j].any()]
        if drawn:
            square = np.mean([g_step[j] @ g_step[j] for j in drawn])
            scale = square if scale is None else scale_decay * scale + (1 - scale_decay) * square
            for j in drawn:
                last[j] = g_step[j] @ (q @ h_step) / (scale if normalize else 1.0)
            p = softmax(np.log(np.maximum(p, 1e-30)) + step_size * last)
        average = decay * average + (1 - decay) * p
        history.append(average)
    return np.array(history)


def records(g, h):
    for g_step, h_step in zip(g, h, strict=True):
        yield {"gradient_alignment": gram(g_step), "validation_alignment": g_step @ h_step.T}


SETTINGS = {
    "plain": {"step_size": 0.2},
    "weighted": {"step_size": 0.2, "target_weights": [0.1, 0.2, 0.3, 0.4, 0.0]},
    "normalize": {"step_size": 0.5, "normalize": True, "scale_decay": 0.7},
    "ema": {"step_size": 0.3, "decay": 0.8},
}


@pytest.mark.parametrize(("is_double", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_equals_the_formulas(settings, is_double, tolerance):
    m, steps = 5, 40
    g, h = gradients(1, steps, m, size=0.3)
    g[11] = 0
    prior = np.random.default_rng(2).dirichlet(np.ones(m) * 3)
    weights, _, _ = drive(dga(**settings), m, records(g, h), prior=prior, is_double=is_double)
    np.testing.assert_allclose(weights, oracle(g, h, prior, **settings), rtol=0, atol=tolerance)


def test_published_single_update():
    # The target's gradient is that of the first domain, the second is orthogonal to it.
    weights, _, _ = drive(dga(), 2, [{"validation_alignment": np.array([[1.0, 1.0], [0.0, 0.0]])}])
    np.testing.assert_allclose(weights[0], [0.731, 0.269], atol=5e-4)


def test_training_targets_as_matrix_and_as_vector():
    m, steps, q = 4, 30, [0.0, 1.0, 0.0, 0.0]
    g, _ = gradients(5, steps, m, absent=0.2, size=0.3)
    g[:, 1] += 0.1  # the target is always drawn
    matrix, _, _ = drive(dga(target="training", target_weights=q), m, records(g, g))
    vector, _, _ = drive(dga(target="training"), m, [{"gradient_alignment": x @ x[1]} for x in g])
    np.testing.assert_allclose(matrix, vector, atol=1e-6)
    np.testing.assert_allclose(matrix, oracle(g, g, np.full(m, 0.25), target_weights=q), atol=1e-6)


def test_normalized_weights_do_not_depend_on_the_scale_of_gradients():
    g, h = gradients(6, 30, 4)
    small, _, _ = drive(dga(normalize=True), 4, records(1e-3 * g, 1e-3 * h))
    large, _, _ = drive(dga(normalize=True), 4, records(1e3 * g, 1e3 * h))
    np.testing.assert_allclose(small, large, atol=2e-6)


def test_final_is_the_mean_of_the_unsmoothed_weights():
    g, h = gradients(7, 30, 4, size=0.3)
    plain, _, _ = drive(dga(), 4, records(g, h))
    mixer = dga(decay=0.9)
    _, _, state = drive(mixer, 4, records(g, h))
    assert mixer.name == "dga"
    np.testing.assert_allclose(mixer.final(state), plain.mean(0), atol=1e-6)


def test_needs():
    assert dga().needs == {"validation_alignment"}
    assert dga(normalize=True).needs == {"validation_alignment", "gradient_alignment"}
    assert dga(target="training", normalize=True).needs == {"gradient_alignment"}


def test_a_vector_has_one_target_and_no_norms():
    feedback = Feedback(gradient_alignment=jnp.ones(2))
    for settings, message in (({"target_weights": [0.5, 0.5]}, "one target already"), ({"normalize": True}, "norms")):
        mixer = dga(target="training", **settings)
        with pytest.raises(ConfigError, match=message):
            jax.eval_shape(mixer.update, KEY, mixer.init(KEY, 2), feedback)


def test_targets_are_checked_when_the_number_of_domains_is_known():
    with pytest.raises(ConfigError, match=r"2 weights for 3 domains \(dga\(target_weights\)\)"):
        dga(target_weights=[0.5, 0.5]).init(KEY, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target": "trainin"}, "Did you mean 'training'"),
        ({"gradients": "last"}, "last_layer"),
        ({"step_size": -1.0}, r"dga\(step_size\)"),
        ({"decay": 1.0}, "decay"),
        ({"scale_decay": 2.0}, r"dga\(scale_decay\)"),
        ({"every": 0}, r"dga\(every\)"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ConfigError, match=message):
        dga(**arguments)
