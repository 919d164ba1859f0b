"""Schedules: exact at boundaries, clear about wrong input."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerance import WEIGHTS

from jaxmix.core.counter import counter
from jaxmix.core.errors import ConfigError
from jaxmix.core.schedule import mean_schedule_weights, mixture_schedule, schedule_weights

PRIOR = jnp.asarray([0.5, 0.5])
POINTS = [{"at": 10, "weights": [1, 0]}, {"at": 20, "weights": [0.5, 0.5]}, {"at": 60, "weights": [0.25, 0.75]}]


def oracle(points, interpolation, position):
    """Plain Python, float64."""
    if position <= points[0]["at"]:
        return np.array(points[0]["weights"], float)
    for a, b in itertools.pairwise(points):
        if a["at"] <= position < b["at"]:
            f = (position - a["at"]) / (b["at"] - a["at"])
            f = {"step": 0.0, "linear": f, "cosine": (1 - np.cos(np.pi * f)) / 2}[interpolation]
            return (1 - f) * np.array(a["weights"], float) + f * np.array(b["weights"], float)
    return np.array(points[-1]["weights"], float)


@pytest.mark.parametrize("interpolation", ["step", "linear", "cosine"])
@pytest.mark.parametrize("unit", ["steps", "tokens"])
def test_equals_plain_python(interpolation, unit):
    schedule = mixture_schedule(POINTS, interpolation=interpolation, unit=unit)
    read = jax.jit(lambda position: schedule_weights(schedule, position, PRIOR))
    for position in range(75):
        got = read(jnp.int32(position))
        np.testing.assert_allclose(got, oracle(POINTS, interpolation, position), rtol=0, atol=WEIGHTS)
        np.testing.assert_array_equal(got, read(counter(position)))


@pytest.mark.parametrize("interpolation", ["step", "linear", "cosine"])
def test_exact_at_every_point(interpolation):
    schedule = mixture_schedule(POINTS, interpolation=interpolation)
    for point in POINTS:
        np.testing.assert_array_equal(schedule_weights(schedule, point["at"], PRIOR), point["weights"])


@pytest.mark.parametrize("boundary", [2**24 + 1, 2**31 + 1, 15_000_000_000_001])
def test_a_step_falls_on_its_token_where_float32_and_int32_cannot(boundary):
    points = [{"at": 0, "weights": [1, 0]}, {"at": boundary, "weights": [0, 1]}]
    step = mixture_schedule(points, unit="tokens")
    np.testing.assert_array_equal(schedule_weights(step, boundary - 1, PRIOR), [1, 0])
    np.testing.assert_array_equal(schedule_weights(step, boundary, PRIOR), [0, 1])
    line = mixture_schedule(points, unit="tokens", interpolation="linear")
    np.testing.assert_allclose(schedule_weights(line, boundary // 4, PRIOR), [0.75, 0.25], atol=1e-6)


def test_named_rows():
    schedule = mixture_schedule(
        [{"at": 0, "weights": "prior"}, {"at": 10, "weights": "uniform"}], interpolation="linear"
    )
    prior = jnp.asarray([0.7, 0.2, 0.1])
    np.testing.assert_array_equal(schedule_weights(schedule, 0, prior), prior)
    np.testing.assert_allclose(schedule_weights(schedule, 10, prior), [1 / 3] * 3, rtol=1e-6)


@pytest.mark.parametrize(
    ("points", "options", "message"),
    [
        ([], {}, "at least one point"),
        (POINTS, {"interpolation": "cosin"}, r"unknown interpolation 'cosin'.*Did you mean 'cosine'"),
        (POINTS, {"unit": "token"}, r"unknown unit 'token'.*Did you mean 'tokens'"),
        ([{"at": 0, "weight": [1]}], {}, r"no key 'weight' \(schedule.points\[0\]\).*Did you mean 'weights'"),
        ([{"at": 0}], {}, r"the point has no 'weights'"),
        ([7], {}, r"a point must be \{at, weights\}, got 7"),
        ([{"at": -1, "weights": [1]}], {}, r"whole number ≥ 0, got -1"),
        ([{"at": 1.5, "weights": [1]}], {}, r"whole number ≥ 0, got 1.5"),
        ([{"at": 0, "weights": [1]}, {"at": 0, "weights": [1]}], {}, r"must increase: 0 follows 0"),
        ([{"at": 0, "weights": [1]}, {"at": 5, "weights": [0.5, 0.5]}], {}, r"equally many weights, got \[1, 2\]"),
        ([{"at": 0, "weights": [1.2, -0.2]}], {}, r"number 1 is -0.2 \(schedule.points\[0\].weights\)"),
        ([{"at": 0, "weights": [3, 1]}], {}, r"add to 1, these add to 4"),
        ([{"at": 0, "weights": [float("nan"), 1]}], {}, r"number 0 is nan"),
        ([{"at": 0, "weights": "natural"}], {}, r"must be a list of numbers, got 'natural'"),
    ],
)
def test_errors_name_the_point(points, options, message):
    with pytest.raises(ConfigError, match=message):
        mixture_schedule(points, **options)


def test_wrong_number_of_domains():
    with pytest.raises(ConfigError, match="2 weights for 3 domains"):
        schedule_weights(mixture_schedule(POINTS), 0, jnp.full(3, 1 / 3))


@pytest.mark.parametrize("interpolation", ["step", "linear", "cosine"])
def test_the_mean_is_that_of_all_positions(interpolation):
    points = [{"at": 3, "weights": [1.0, 0.0]}, {"at": 9, "weights": "uniform"}, {"at": 20, "weights": "prior"}]
    schedule, prior = mixture_schedule(points, interpolation=interpolation), [0.1, 0.9]
    every = [schedule_weights(schedule, i, jnp.asarray(prior, jnp.float32)) for i in range(40)]
    np.testing.assert_allclose(mean_schedule_weights(schedule, 40, prior), np.mean(every, axis=0), atol=1e-6)
    assert mean_schedule_weights(schedule, 10**9, prior) == pytest.approx(prior, abs=1e-6)
