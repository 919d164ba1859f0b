"""When a mixer's evaluations are due, counted and asked step by step."""

import itertools

import pytest

from jaxmix.mixers.base import Cadence


@pytest.mark.parametrize("first_step", [0, 5])
@pytest.mark.parametrize(("round_length", "evaluations"), [(0, 0), (12, 2), (30, 1), (7, 9)])
@pytest.mark.parametrize("validate", [0, 1, 3])
def test_the_count_is_that_of_the_steps(validate, round_length, evaluations, first_step):
    cadence = Cadence(validate=validate, round_length=round_length, evaluations=evaluations, first_step=first_step)
    for steps, m in itertools.product((1, 4, 5, 6, 29, 30, 31, 100), (1, 2, 5)):
        expected = sum(cadence.is_validation_due(step, m) for step in range(steps + 1))
        assert cadence.count_validations(steps, m) == expected


def test_a_long_run_is_counted_at_once():
    assert Cadence(validate=10).count_validations(10**12, 3) == 10**11 + 1
