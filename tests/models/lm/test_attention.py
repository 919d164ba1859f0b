"""Rotary positions and blocked attention against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerance import float32_tolerance

from jaxmix.models.lm.attention import apply_rotary, blocked_causal_attention, causal_attention, rotary_table


def rotary_oracle(x, base):
    """Position by position, pair by pair, as a complex rotation."""
    x = np.asarray(x, np.float64)
    _, length, _, size = x.shape
    out = np.empty_like(x)
    for position in range(length):
        for i in range(size // 2):
            turn = np.exp(1j * position * base ** (-2 * i / size))
            z = (x[:, position, :, i] + 1j * x[:, position, :, i + size // 2]) * turn
            out[:, position, :, i], out[:, position, :, i + size // 2] = z.real, z.imag
    return out


def attention_oracle(query, key, value):
    """One query at a time over the keys up to it."""
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    rows, length, heads, size = query.shape
    out = np.empty_like(query)
    for b in range(rows):
        for h in range(heads):
            g = h * key.shape[2] // heads
            for t in range(length):
                scores = key[b, : t + 1, g] @ query[b, t, h] / np.sqrt(size)
                weights = np.exp(scores - scores.max())
                out[b, t, h] = weights @ value[b, : t + 1, g] / weights.sum()
    return out


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def test_rotary_turns_each_pair_by_its_angle():
    x = normal(0, 2, 9, 3, 8)
    result = apply_rotary(x, rotary_table(9, 8, 100.0))
    # Two products; an angle of up to 8 is itself rounded.
    np.testing.assert_allclose(result, rotary_oracle(x, 100.0), rtol=0, atol=float32_tolerance(x, 2 + 8))


@pytest.mark.parametrize(
    ("heads", "groups", "length", "block"),
    [(2, 2, 1, 4), (2, 2, 4, 4), (4, 2, 11, 4), (3, 1, 13, 5), (2, 1, 3, 64), (1, 1, 20, 1)],
)
def test_blocked_attention_is_dense_attention(heads, groups, length, block):
    query, key, value = normal(0, 2, length, heads, 6), normal(1, 2, length, groups, 6), normal(2, 2, length, groups, 6)
    result = blocked_causal_attention(query, key, value, block=block)
    atol = float32_tolerance(value, length + query.shape[-1])
    np.testing.assert_allclose(result, attention_oracle(query, key, value), rtol=0, atol=atol)


def test_large_scores_do_not_overflow():
    query, key, value = 200 * normal(0, 1, 7, 1, 4), 200 * normal(1, 1, 7, 1, 4), normal(2, 1, 7, 1, 4)
    result = blocked_causal_attention(query, key, value, block=3)
    np.testing.assert_allclose(result, attention_oracle(query, key, value), atol=1e-4)


def test_gradients_of_blocked_and_dot_product_attention_agree():
    query, key, value, up = (
        normal(0, 2, 11, 4, 8),
        normal(1, 2, 11, 2, 8),
        normal(2, 2, 11, 2, 8),
        normal(3, 2, 11, 4, 8),
    )

    def objective(kind):
        return lambda q, k, v: jnp.sum(up * causal_attention(q, k, v, kind=kind, block=4))

    blocked, dense = (
        jax.jit(jax.grad(objective(kind), argnums=(0, 1, 2)))(query, key, value) for kind in ("blocked", "dot_product")
    )
    for one, other in zip(blocked, dense, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=float32_tolerance(other, 2 * (11 + 8)))  # there and back


def test_no_product_reaches_above_the_diagonal():
    """With 8 blocks the scores and their use take (8 + 1) / 16 of the dense form's operations."""

    def flops(block):
        x = jax.ShapeDtypeStruct((1, 128, 1, 16), jnp.float32)
        compiled = jax.jit(lambda q, k, v: blocked_causal_attention(q, k, v, block=block)).lower(x, x, x).compile()
        return compiled.cost_analysis()["flops"]

    assert flops(16) < 0.62 * flops(128)


def test_auto_is_blocked_on_cpu():
    query, key, value = normal(0, 2, 9, 2, 4), normal(1, 2, 9, 2, 4), normal(2, 2, 9, 2, 4)
    auto = causal_attention(query, key, value, kind="auto", block=4)
    np.testing.assert_array_equal(auto, blocked_causal_attention(query, key, value, block=4))
