"""GRAPE against its formulas in float64."""

import numpy as np
import pytest
from driving import PRECISIONS, drive, evaluations, softmax
from gradient_records import gradients

from jaxmix.core.errors import ConfigError
from jaxmix.mixers import grape

TYPICAL = {"paper": (1e3, 1e4, 0.7), "repository": (1.5, 5.0, 0.9)}


def oracle(g, h, losses, rates, prior, *, variant="paper", score="log", **changes):
    m = len(prior)
    step_size, task_step_size, loss_decay = TYPICAL[variant]
    step_size = changes.get("step_size", step_size)
    task_step_size = changes.get("task_step_size", task_step_size)
    smoothing = changes.get("task_smoothing", 0.001)
    p, z = np.array(prior, float), np.full(m, 1 / m)
    divisor, products, history = [1.0 if score == "gap" else None] * m, np.zeros((m, m)), []
    for g_step, h_step, loss, rate in zip(g, h, losses, rates, strict=True):
        for i in range(m):
            if score != "gap" and np.isfinite(loss[i]):
                is_averaged = score == "ema" and divisor[i] is not None
                divisor[i] = loss_decay * divisor[i] + (1 - loss_decay) * loss[i] if is_averaged else loss[i]
        drawn, known = [j for j in range(m) if g_step[j].any()], [i for i in range(m) if divisor[i] is not None]
        for j in drawn:
            products[j] = h_step @ g_step[j]
        if drawn and known:
            factor = rate if variant == "paper" else 1.0
            relative = np.zeros((m, m))
            for i in known:
                relative[:, i] = factor * products[:, i] / max(divisor[i], 1e-6)
            progress = p @ relative
            unknown = [i for i in range(m) if i not in known]
            progress[unknown] = z[known] @ progress[known] / z[known].sum()
            p = softmax(np.log(np.maximum(p, 1e-30)) + step_size * relative @ z)
            z = softmax(np.log(z) - task_step_size * progress)
            z = (1 - smoothing) * z + smoothing / m
        history.append(np.stack([p, z]))
    return np.array(history)


def records(g, h, losses, rates):
    for g_step, h_step, loss, rate in zip(g, h, losses, rates, strict=True):
        yield {"validation_alignment": g_step @ h_step.T, "validation_loss": loss, "learning_rate": rate}


@pytest.mark.parametrize(("is_double", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("variant", ["paper", "repository"])
@pytest.mark.parametrize("score", ["log", "gap", "ema"])
def test_equals_the_formulas(variant, score, is_double, tolerance):
    m, steps = 5, 40
    g, h = gradients(1, steps, m, size=0.2)
    g[13] = 0
    losses = evaluations(2, steps, m, missing=0.2)
    losses[:3] = np.nan  # nothing was measured yet
    losses[:20, 4] = np.nan
    rates = np.linspace(5e-4, 1e-4, steps)
    prior = np.random.default_rng(3).dirichlet(np.ones(m) * 3)
    mixer = grape(variant, score=score)
    weights, infos, _ = drive(mixer, m, records(g, h, losses, rates), prior=prior, is_double=is_double)
    expected = oracle(g, h, losses, rates, prior, variant=variant, score=score)
    np.testing.assert_allclose(weights, expected[:, 0], rtol=0, atol=tolerance)
    np.testing.assert_allclose([info.extra["task_weights"] for info in infos], expected[:, 1], rtol=0, atol=tolerance)


def test_the_slow_task_gains_weight():
    # 0.95 nats of loss for the first task and none for the second, at a loss of 2: log-odds 0.476.
    record = {"validation_alignment": np.array([[1.0, 0.0], [1.0, 0.0]]), "validation_loss": np.array([2.1, 2.1])}
    _, infos, _ = drive(grape("repository", task_step_size=1.0), 2, [record])
    np.testing.assert_allclose(infos[0].extra["task_weights"], [0.383, 0.617], atol=5e-4)


def test_the_domain_that_helps_the_slow_task_gains_weight():
    record = {"validation_alignment": np.array([[1.0, 0.0], [0.0, 0.2]]), "validation_loss": np.array([2.0, 2.0])}
    weights, infos, _ = drive(grape("repository"), 2, [record] * 20)
    assert infos[-1].extra["task_weights"][1] > 0.5
    assert weights[0, 0] > 0.5 > weights[-1, 0]  # at first the helpful domain, in the end the one for the slow task


def test_task_weights_keep_a_floor():
    record = {"validation_alignment": np.array([[9.0, 0.0], [9.0, 0.0]]), "validation_loss": np.array([1.0, 1.0])}
    _, infos, _ = drive(grape("repository"), 2, [record] * 50)
    assert infos[-1].extra["task_weights"][0] == pytest.approx(0.0005, rel=1e-3)


def test_losses_of_zero_are_finite():
    record = {"validation_alignment": np.full((2, 2), 1e30), "validation_loss": np.zeros(2), "learning_rate": 1.0}
    weights, infos, _ = drive(grape(), 2, [record] * 3)
    assert np.isfinite(weights).all()
    assert np.isfinite(infos[-1].extra["task_weights"]).all()


def test_needs_and_cadence():
    assert grape().needs == {"validation_alignment", "validation_loss", "learning_rate"}
    assert grape("repository").needs == {"validation_alignment", "validation_loss"}
    assert grape("repository", score="gap").needs == {"validation_alignment"}
    assert grape(every=20).cadence[:2] == (20, 20)
    assert grape("repository", score="gap").cadence.validate == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"variant": "papr"}, "Did you mean 'paper'"),
        ({"score": "logs"}, "Did you mean 'log'"),
        ({"gradients": "exakt"}, "Did you mean 'exact'"),
        ({"step_size": -1.0}, r"grape\(step_size\)"),
        ({"task_step_size": -1.0}, r"grape\(task_step_size\)"),
        ({"task_smoothing": 2.0}, r"grape\(task_smoothing\)"),
        ({"loss_decay": -0.1}, r"grape\(loss_decay\)"),
        ({"every": 0}, r"grape\(every\)"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ConfigError, match=message):
        grape(**arguments)
