"""Schedules as mixers: the right weights before the right update."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmix.core.errors import ConfigError
from jaxmix.core.schedule import mixture_schedule
from jaxmix.mixers import Feedback, scheduled

KEY = jax.random.key(0)
POINTS = [{"at": 0, "weights": [1, 0]}, {"at": 5, "weights": [0, 1]}]


def test_step_five_is_the_first_with_new_weights():
    mixer = scheduled(points=POINTS)
    state, update = mixer.init(KEY, 2), jax.jit(mixer.update)
    seen = []
    for _ in range(8):
        seen.append(int(np.argmax(mixer.weights(state))))  # what this step draws by
        state, _ = update(KEY, state, Feedback())
    assert seen == [0, 0, 0, 0, 0, 1, 1, 1]


def test_tokens_are_counted_over_all_domains_exactly():
    boundary = 50 * (2**24 - 1 + 3)
    mixer = scheduled(points=[POINTS[0], {"at": boundary, "weights": [0, 1]}], unit="tokens")
    assert mixer.needs == {"token_count"}
    feedback = Feedback(token_count=jnp.asarray([2.0**24 - 1, 3.0]))
    state, update = mixer.init(KEY, 2), jax.jit(mixer.update)
    for _ in range(49):
        state, _ = update(KEY, state, feedback)
    almost, _ = update(KEY, state, Feedback(token_count=jnp.asarray([2.0**24 - 1, 2.0])))
    np.testing.assert_array_equal(mixer.weights(almost), [1, 0])
    there, _ = update(KEY, state, feedback)
    np.testing.assert_array_equal(mixer.weights(there), [0, 1])


def test_the_two_ways_to_give_a_schedule_agree():
    by_object = scheduled(mixture_schedule(POINTS, interpolation="linear"))
    by_points = scheduled(points=POINTS, interpolation="linear")
    states = [mixer.init(KEY, 2) for mixer in (by_object, by_points)]
    for _ in range(7):
        a, b = by_object.weights(states[0]), by_points.weights(states[1])
        np.testing.assert_array_equal(a, b)
        states = [m.update(KEY, s, Feedback())[0] for m, s in zip((by_object, by_points), states, strict=True)]


def test_errors():
    with pytest.raises(ConfigError, match="either a schedule or points"):
        scheduled()
    with pytest.raises(ConfigError, match="either a schedule or points"):
        scheduled(mixture_schedule(POINTS), points=POINTS)
    with pytest.raises(ConfigError, match=r"scheduled.points\[0\]"):
        scheduled(points=[{"at": 0}])
    with pytest.raises(ConfigError, match="2 weights for 3 domains"):
        scheduled(points=POINTS).init(KEY, 3)
