"""R&B's balancing against its formulas in float64."""

import jax.numpy as jnp
import numpy as np
import pytest
from driving import KEY, PRECISIONS, drive, softmax
from gradient_records import gradients, gram
from tolerance import WEIGHTS

from jaxmix.core.errors import ConfigError
from jaxmix.mixers import Feedback, r_and_b
from jaxmix.mixers.methods.r_and_b import unit_norm


def oracle(g, prior, *, sharpness=3.0, evaluation_weights=None, round_updates=100, smoothing=0.0):
    m = len(prior)
    q = np.full(m, 1 / m) if evaluation_weights is None else np.asarray(evaluation_weights, float)
    p, matrix, history = np.array(prior, float), np.zeros((m, m)), []
    seen = {(i, j): [] for i in range(m) for j in range(m)}
    for update, g_step in enumerate(g, start=1):
        for i, j in seen:
            if g_step[i].any() and g_step[j].any():
                seen[i, j].append(g_step[i] @ g_step[j])
        if update % round_updates == 0:
            for (i, j), products in seen.items():
                matrix[i, j] = np.mean(products) if products else matrix[i, j]
                products.clear()
            v = matrix @ q
            if v.any():
                p = (1 - smoothing) * softmax(sharpness * v / np.linalg.norm(v)) + smoothing / m
        history.append(p)
    return np.array(history)


def records(g):
    return ({"gradient_alignment": gram(step)} for step in g)


SETTINGS = {
    "every_update": {"round_updates": 1},
    "rounds": {"round_updates": 4, "smoothing": 0.1},
    "weighted": {"round_updates": 3, "sharpness": 1.0, "evaluation_weights": [0.0, 0.0, 0.6, 0.4, 0.0]},
}


@pytest.mark.parametrize(("is_double", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_equals_the_formulas(settings, is_double, tolerance):
    m, steps = 5, 40
    g, _ = gradients(1, steps, m, absent=0.5)
    g[:5] = 0
    g[20:26, 2] = 0  # absent for a whole round
    prior = np.random.default_rng(2).dirichlet(np.ones(m) * 3)
    weights, _, _ = drive(r_and_b(**settings), m, records(g), prior=prior, is_double=is_double)
    np.testing.assert_allclose(weights, oracle(g, prior, **settings), rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("direction", "most"), [([np.sqrt(2 / 3), -np.sqrt(1 / 6), -np.sqrt(1 / 6)], 0.630), ([1.0, 0.0, 0.0], 0.576)]
)
def test_the_spread_of_three_domains_is_bounded(direction, most):
    # The direction that raises the first weight most among all unit vectors, and among those ≥ 0.
    assert softmax(unit_norm(jnp.asarray(direction)))[0] == pytest.approx(most, abs=5e-4)
    rng = np.random.default_rng(0)
    others = rng.normal(size=(2000, 3)) if min(direction) < 0 else rng.uniform(size=(2000, 3))
    assert max(softmax(x / np.linalg.norm(x)).max() for x in others) <= most + 5e-4


def test_weights_have_no_memory_of_earlier_rounds():
    g, _ = gradients(3, 12, 4, absent=0)
    whole, _, _ = drive(r_and_b(round_updates=4), 4, records(g))
    alone, _, _ = drive(r_and_b(round_updates=4), 4, records(g[8:]))
    np.testing.assert_allclose(whole[-1], alone[-1], rtol=0, atol=WEIGHTS)


def test_weights_change_at_the_end_of_a_round_only():
    g, _ = gradients(4, 9, 4, absent=0)
    weights, _, _ = drive(r_and_b(round_updates=3), 4, records(g))
    has_changed = np.abs(np.diff(weights, axis=0)).max(1) > 0
    np.testing.assert_array_equal(np.flatnonzero(has_changed) + 2, [3, 6, 9])


def test_last_layer_every_step():
    mixer = r_and_b()
    assert (mixer.gradients, mixer.cadence.update, mixer.needs) == ("last_layer", 1, {"gradient_alignment"})


def test_a_vector_is_refused():
    mixer = r_and_b()
    with pytest.raises(ConfigError, match="norms"):
        mixer.update(KEY, mixer.init(KEY, 2), Feedback(gradient_alignment=jnp.ones(2)))


def test_evaluation_weights_are_checked_when_the_number_of_domains_is_known():
    with pytest.raises(ConfigError, match="2 weights for 3 domains"):
        r_and_b(evaluation_weights=[0.5, 0.5]).init(KEY, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gradients": "last"}, "last_layer"),
        ({"sharpness": -1.0}, r"r_and_b\(sharpness\)"),
        ({"round_updates": 0}, r"r_and_b\(round_updates\)"),
        ({"every": 0}, r"r_and_b\(every\)"),
        ({"smoothing": 2.0}, r"r_and_b\(smoothing\)"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ConfigError, match=message):
        r_and_b(**arguments)
