"""Sums per domain against a loop in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from jaxmix.core.segment import mean_by_domain, sum_by_domain


def oracle(values, domain, num_domains):
    total = np.zeros(num_domains)
    for row, k in zip(np.asarray(values, np.float64), domain, strict=True):
        if 0 <= k < num_domains:
            total[k] += row.sum()
    return total


@pytest.mark.parametrize("shape", [(1,), (7,), (64,), (5, 3), (32, 129)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_equals_the_loop(shape, dtype):
    rng = np.random.default_rng(0)
    values = jnp.asarray(rng.normal(size=shape), dtype)
    domain = rng.integers(-2, 7, size=shape[0]).astype(np.int32)
    got = sum_by_domain(values, jnp.asarray(domain), 5)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, oracle(values.astype(jnp.float32), domain, 5), rtol=1e-5, atol=1e-5)


def test_bfloat16_is_accumulated_in_float32():
    # 4096 ones sum to 256 in bfloat16 arithmetic, where 256 + 1 = 256.
    values = jnp.ones((4, 1024), jnp.bfloat16)
    np.testing.assert_array_equal(sum_by_domain(values, jnp.zeros(4, jnp.int32), 2), [4096.0, 0.0])


def test_float32_is_not_rounded_by_a_matrix_unit():
    values = jnp.asarray([1.0 + 2.0**-20, 2.0**-22], jnp.float32)
    got = sum_by_domain(values, jnp.asarray([0, 1], jnp.int32), 2)
    np.testing.assert_array_equal(got, values)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_non_finite_row_stays_in_its_domain(bad):
    values = jnp.asarray([1.0, bad, 3.0, bad], jnp.float32)
    got = sum_by_domain(values, jnp.asarray([0, 1, 2, -1], jnp.int32), 3)
    np.testing.assert_array_equal(got, [1.0, np.nan, 3.0])


@settings(max_examples=25)
@given(st.lists(st.tuples(st.integers(-3, 9), st.floats(-1e6, 1e6, width=32)), min_size=6, max_size=6))
def test_property_domains_partition_the_total(rows):
    domain = np.asarray([k for k, _ in rows], np.int32)
    values = np.asarray([v for _, v in rows], np.float32)
    got = sum_by_domain(jnp.asarray(values), jnp.asarray(domain), 4)
    np.testing.assert_allclose(got, oracle(values, domain, 4), rtol=1e-5, atol=1.0)


def test_gradient_is_the_membership():
    domain = jnp.asarray([1, 0, 5], jnp.int32)
    gradient = jax.grad(lambda v: sum_by_domain(v, domain, 2)[1])(jnp.ones((3, 2)))
    np.testing.assert_array_equal(gradient, [[1, 1], [0, 0], [0, 0]])


def test_under_vmap_and_jit():
    values, domain = jnp.arange(12.0).reshape(2, 6), jnp.asarray([0, 1, 2, 0, 1, 2], jnp.int32)
    got = jax.jit(jax.vmap(sum_by_domain, (0, None, None)), static_argnums=2)(values, domain, 3)
    np.testing.assert_array_equal(got, [[3, 5, 7], [15, 17, 19]])


def test_mean_takes_the_fallback_for_empty_domains():
    sums, counts = jnp.asarray([6.0, 0.0, 5.0]), jnp.asarray([3.0, 0.0, 2.0])
    np.testing.assert_array_equal(mean_by_domain(sums, counts, 0.0), [2.0, 0.0, 2.5])
    np.testing.assert_array_equal(mean_by_domain(sums, counts, jnp.asarray([7.0, 8.0, 9.0])), [2.0, 8.0, 2.5])
    gradient = jax.grad(lambda s, c: jnp.sum(mean_by_domain(s, c, 1.0)), argnums=(0, 1))(sums, counts)
    assert all(np.isfinite(g).all() for g in gradient)
