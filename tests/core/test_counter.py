"""Counters against Python integers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmix.core import counter as c
from jaxmix.core.errors import ConfigError


def value(count):
    return (np.asarray(count.high, np.int64) * 2**30 + np.asarray(count.low, np.int64)).tolist()


@pytest.mark.parametrize("start", [0, 2**30 - 1, 2**31, 123_456_789_012_345])
@pytest.mark.parametrize("amount", [0, 1, 2**24 + 2, 2**30 - 64, 2**30, 5 * 2**32])
def test_adding_floats_is_exact(start, amount):
    assert value(c.add(c.counter(start), jnp.float32(amount))) == start + amount


def test_adding_integers_and_counters_is_exact():
    assert value(c.add(c.counter(2**30 - 1), jnp.int32(2**31 - 1))) == 2**30 + 2**31 - 2
    assert value(c.add(c.counter(2**45 + 2**30 - 1), c.counter(2**40 + 2**30 - 1))) == 2**45 + 2**40 + 2**31 - 2


def test_a_million_small_steps_where_float32_would_stall():
    start = c.counter(2**24)
    end = jax.lax.fori_loop(0, 1000, lambda _, x: c.add(x, jnp.float32(1.0)), start)
    assert value(end) == 2**24 + 1000


def test_total():
    numbers = np.random.default_rng(0).integers(0, 2**40, 1000)
    assert value(c.total(c.counter(numbers))) == numbers.sum()
    assert value(c.total(c.counter(np.full(2**15, 2**30 - 1)))) == 2**15 * (2**30 - 1)


def test_difference_and_order():
    a, b = 2**50 + 12345, 2**50 + 12346
    assert c.difference(c.counter(a), c.counter(b)) == -1.0
    assert float(c.difference(c.counter(7 * 2**40), c.counter(2**40 - 2**20))) == 6 * 2**40 + 2**20
    assert not c.is_at_least(c.counter(a), c.counter(b))
    assert c.is_at_least(c.counter(b), c.counter(a))
    assert c.is_at_least(c.counter(a), c.counter(a))
    assert c.is_at_least(c.counter(2**31), c.counter(2**30 - 1))


@pytest.mark.parametrize("bad", [-1, 2**61])
def test_range(bad):
    with pytest.raises(ConfigError, match="must lie in"):
        c.counter(bad)
