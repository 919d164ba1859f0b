"""DoGE against its formulas in float64 and the published figures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from driving import KEY, PRECISIONS, drive, softmax
from gradient_records import gradients, gram
from tolerance import WEIGHTS

from jaxmix.core.errors import ConfigError
from jaxmix.mixers import Feedback, doge


def oracle(g, h, rates, prior, *, target="universal", mu=0.01, most=5.0, smoothing=0.0):
    """One domain after another, in the words of the paper."""
    m = len(prior)
    alpha, last, history = np.array(prior, float), np.zeros(m), []
    for g_step, h_step, rate in zip(g, h, rates, strict=True):
        drawn = [j for j in range(m) if g_step[j].any()]
        if drawn:
            norm = np.mean([np.linalg.norm(g_step[j]) for j in drawn])
            for j in drawn:
                others = sum((g_step[i] for i in drawn if i != j), np.zeros(g_step.shape[1]))
                goal = others if target == "universal" else h_step.mean(0)
                last[j] = min(max(g_step[j] @ goal / (norm + 1e-6), 0.0), most)
            alpha = softmax(np.log(np.maximum(alpha, 1e-30)) + rate * last / mu)
            alpha = (1 - smoothing) * alpha + smoothing / m
        history.append(alpha)
    return np.array(history)


def records(g, h, rates):
    for g_step, h_step, rate in zip(g, h, rates, strict=True):
        yield {
            "gradient_alignment": gram(g_step),
            "validation_alignment": g_step @ h_step.T,
            "learning_rate": rate,
        }


@pytest.mark.parametrize(("is_double", "tolerance"), PRECISIONS)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"target": "validation"},
        {"target": "validation", "smoothing": 0.05},
        {"regularization": 0.05, "max_score": 0.5},
    ],
    ids=["universal", "validation", "smoothing", "cut"],
)
def test_equals_the_formulas(settings, is_double, tolerance):
    m, steps = 5, 40
    g, h = gradients(1, steps, m)
    g[7] = 0  # a step without any domain
    rates = 5e-4 * np.linspace(1, 0.2, steps)
    prior = np.random.default_rng(2).dirichlet(np.ones(m) * 3)
    weights, _, state = drive(doge(**settings), m, records(g, h, rates), prior=prior, is_double=is_double)
    words = {"regularization": "mu", "max_score": "most"}
    expected = oracle(g, h, rates, prior, **{words.get(k, k): v for k, v in settings.items()})
    np.testing.assert_allclose(weights, expected, rtol=0, atol=tolerance)
    np.testing.assert_allclose(doge(**settings).final(state), expected.mean(0), atol=tolerance)
    np.testing.assert_array_equal(weights[7], weights[6])


def single(aligned, *, rate=5e-4):
    """Four unit gradients of which each has one given inner product with the target."""
    alignment = np.repeat(np.asarray(aligned)[:, None], len(aligned), axis=1)
    return {"gradient_alignment": np.eye(len(aligned)), "validation_alignment": alignment, "learning_rate": rate}


def test_published_single_update():
    weights, _, _ = drive(doge(target="validation"), 4, [single([1, 0.2, -0.5, 0.2])])
    np.testing.assert_allclose(weights[0], [0.2582, 0.2481, 0.2456, 0.2481], atol=5e-5)


def test_a_log_weight_moves_by_a_quarter_at_most():
    weights, _, _ = drive(doge(target="validation"), 4, [single([1e6, -1e6, -1e6, -1e6])])
    assert np.log(weights[0, 0] / weights[0, 1]) == pytest.approx(5 * 5e-4 / 0.01, rel=1e-5)


def test_universal_leaves_a_domain_itself_out():
    # Orthogonal gradients: nobody helps another, however long the gradients are.
    record = {"gradient_alignment": np.diag([1.0, 100.0, 1e4]), "learning_rate": 1.0}
    weights, infos, _ = drive(doge(), 3, [record] * 3)
    np.testing.assert_allclose(weights, np.full((3, 3), 1 / 3), rtol=0, atol=WEIGHTS)
    assert infos[0].extra["gradient_norm"] == pytest.approx((1 + 10 + 100) / 3)


def test_proxy_draws_by_the_prior_and_weights_the_loss():
    m, steps = 4, 30
    g, h = gradients(3, steps, m)
    rates, prior = np.full(steps, 1e-3), np.array([0.4, 0.3, 0.3, 0.0])
    sampled, proxy = doge(), doge(mode="proxy")
    expected, _, end = drive(sampled, m, records(g, h, rates), prior=prior)
    weights, _, state = drive(proxy, m, records(g, h, rates), prior=prior)
    np.testing.assert_allclose(weights, np.tile(prior, (steps, 1)), rtol=0, atol=WEIGHTS)
    factors = np.asarray(proxy.loss_weights(state))
    np.testing.assert_allclose(factors[:3], expected[-1, :3] / prior[:3], rtol=1e-5)
    assert factors[3] == 0
    np.testing.assert_array_equal(proxy.final(state), sampled.final(end))
    assert sampled.loss_weights is None


def test_absent_domains_keep_their_score():
    mixer, m = doge(), 3
    g, h = gradients(4, 2, m, absent=0)
    g[1, 0] = 0
    _, infos, _ = drive(mixer, m, records(g, h, [1e-3, 5e-4]))
    assert infos[1].score[0] == pytest.approx(infos[0].score[0] / 2)


def test_needs_and_estimator():
    assert doge().needs == {"gradient_alignment", "learning_rate"}
    mixer = doge(target="validation", gradients="sketch", every=5)
    assert mixer.needs == {"gradient_alignment", "learning_rate", "validation_alignment"}
    assert (mixer.gradients, mixer.cadence.update) == ("sketch", 5)


def test_a_vector_has_no_norms():
    mixer = doge()
    feedback = Feedback(gradient_alignment=jnp.ones(3), learning_rate=jnp.float32(1))
    with pytest.raises(ConfigError, match=r"needs the norms.*shape \(3,\)"):
        jax.eval_shape(mixer.update, KEY, mixer.init(KEY, 3), feedback)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target": "univeral"}, "Did you mean 'universal'"),
        ({"mode": "prox"}, "Did you mean 'proxy'"),
        ({"gradients": "exakt"}, "Did you mean 'exact'"),
        ({"regularization": 0.0}, r"doge\(regularization\)"),
        ({"max_score": 0.0}, r"doge\(max_score\)"),
        ({"smoothing": 1.5}, r"doge\(smoothing\)"),
        ({"every": 0}, r"doge\(every\)"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ConfigError, match=message):
        doge(**arguments)
