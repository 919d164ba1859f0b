"""Cross-entropy per token against NumPy, and in chunks against whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerance import float32_tolerance

from jaxmix.models.lm.loss import token_losses


def problem(rows=2, length=7, width=5, words=11):
    keys = jax.random.split(jax.random.key(0), 3)
    hidden = jax.random.normal(keys[0], (rows, length, width))
    readout = jax.random.normal(keys[1], (words, width))
    targets = jax.random.randint(keys[2], (rows, length), 0, words).at[0, 2].set(-1).at[1, 6].set(-1)
    return hidden, readout, targets


def oracle(hidden, readout, targets):
    logits = np.asarray(hidden, np.float64) @ np.asarray(readout, np.float64).T
    log_normalizer = np.log(np.exp(logits).sum(-1))
    at_target = np.take_along_axis(logits, np.maximum(targets, 0)[..., None], -1)[..., 0]
    return np.where(targets < 0, 0.0, log_normalizer - at_target), np.where(targets < 0, 0.0, log_normalizer)


@pytest.mark.parametrize("chunk", [0, 1, 2, 3, 7, 100])
def test_loss_is_cross_entropy_in_any_chunks(chunk):
    hidden, readout, targets = problem()
    rounding = float32_tolerance(hidden @ readout.T, len(readout) + hidden.shape[-1])
    for result, expected in zip(
        token_losses(hidden, readout, targets, chunk=chunk), oracle(hidden, readout, np.asarray(targets)), strict=True
    ):
        np.testing.assert_allclose(result, expected, rtol=0, atol=rounding)


def test_gradient_does_not_depend_on_chunks():
    hidden, readout, targets = problem()

    def objective(chunk):
        def total(hidden, readout):
            loss, log_normalizer = token_losses(hidden, readout, targets, chunk=chunk)
            return jnp.sum(loss + 0.1 * jnp.square(log_normalizer))

        return jax.grad(total, argnums=(0, 1))(hidden, readout)

    for whole, chunked in zip(objective(0), objective(3), strict=True):
        terms = targets.size + len(readout) + hidden.shape[-1]
        np.testing.assert_allclose(whole, chunked, rtol=0, atol=float32_tolerance(whole, terms))


def test_tokens_without_loss_have_no_gradient():
    hidden, readout, targets = problem()
    gradient = jax.grad(lambda h: jnp.sum(token_losses(h, readout, targets)[0]))(hidden)
    np.testing.assert_array_equal(gradient[0, 2], np.zeros(5))
    assert np.abs(np.asarray(gradient[0, 1])).max() > 0


def test_chunks_bound_the_memory():
    """A vocabulary of 4,096 on 64 positions: whole logits are 1 MiB, chunks of 8 an eighth of that."""
    hidden = jax.ShapeDtypeStruct((1, 64, 8), jnp.float32)
    readout = jax.ShapeDtypeStruct((4096, 8), jnp.float32)
    targets = jax.ShapeDtypeStruct((1, 64), jnp.int32)

    def scratch(chunk):
        def total(h, r, t):
            return jnp.sum(token_losses(h, r, t, chunk=chunk)[0])

        return jax.jit(jax.grad(total)).lower(hidden, readout, targets).compile().memory_analysis().temp_size_in_bytes

    assert scratch(8) < 0.5 * scratch(0)


@pytest.mark.parametrize("chunk", [0, 3, 7])
def test_sixteen_bit_gradients_are_those_of_float64(chunk):
    """One rounding of the logits' gradient and one of each result: within 3 · 2⁻⁸ of the exact gradient's norm."""
    hidden, readout, targets = problem(length=8, words=200)
    weight = jnp.linspace(0.5, 1.5, 16).reshape(2, 8)

    def gradients(hidden, readout):
        def total(hidden, readout):
            loss, log_normalizer = token_losses(hidden, readout, targets, chunk=chunk)
            return jnp.sum(weight.astype(loss.dtype) * loss + 0.1 * jnp.square(log_normalizer))

        return jax.grad(total, argnums=(0, 1))(hidden, readout)

    half = [x.astype(jnp.bfloat16) for x in (hidden, readout)]
    with jax.enable_x64(True):
        exact = [np.asarray(x) for x in gradients(*(np.asarray(x, np.float64) for x in half))]
    for found, expected in zip(gradients(*half), exact, strict=True):
        error = np.linalg.norm(np.asarray(found, np.float64) - expected)
        assert error <= 3 * 2**-8 * np.linalg.norm(expected)


def test_sixteen_bit_products_stay_sixteen_bit():
    hidden, readout, targets = problem()
    total = lambda h, r: jnp.sum(token_losses(h, r, targets, chunk=3)[0])
    half = [x.astype(jnp.bfloat16) for x in (hidden, readout)]
    text = jax.jit(jax.grad(total, argnums=(0, 1))).lower(*half).as_text()
    products = [line.split(" : (")[1].split(")")[0] for line in text.splitlines() if "dot_general" in line]
    assert len(products) >= 3
    assert all("f32" not in operands for operands in products)
