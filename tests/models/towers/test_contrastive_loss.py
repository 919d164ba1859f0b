"""Both losses and their gradients against NumPy in float64; blocks change nothing but the memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerance import float32_tolerance

from jaxmix.core.errors import ConfigError
from jaxmix.models import sharded_loss, sigmoid_loss, softmax_loss

LOSSES = {"sigmoid": sigmoid_loss, "softmax": softmax_loss}


def embeddings(rows=13, dim=6, seed=0):
    rng = np.random.default_rng(seed)
    image, text = rng.normal(size=(rows, dim)), rng.normal(size=(rows, dim))
    text = text + 0.7 * image
    return tuple(x / np.linalg.norm(x, axis=1, keepdims=True) for x in (image, text))


def softmax(x, axis):
    weights = np.exp(x - x.max(axis, keepdims=True))
    return weights / weights.sum(axis, keepdims=True)


def oracle(loss, image, text, temperature, bias):
    """(value, gradients) pair by pair."""
    rows = len(image)
    cosine = image @ text.T
    logits = temperature * cosine + bias
    slopes = np.zeros((rows, rows))
    value = 0.0
    if loss == "sigmoid":
        for i in range(rows):
            for j in range(rows):
                sign = -1 if i == j else 1
                value += np.log1p(np.exp(sign * logits[i, j]))
                slopes[i, j] = sign / (1 + np.exp(-sign * logits[i, j]))
    else:
        for i in range(rows):
            for line in (logits[i], logits[:, i]):
                value += 0.5 * (np.log(np.exp(line - line.max()).sum()) + line.max() - logits[i, i])
        slopes = 0.5 * softmax(logits, 0) + 0.5 * softmax(logits, 1) - np.eye(rows)
    slopes = slopes / rows
    gradients = (temperature * slopes @ text, temperature * slopes.T @ image, np.sum(slopes * cosine), np.sum(slopes))
    return value / rows, gradients


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("block", [None, 1, 5, 13])
def test_value_and_gradients_equal_numpy_in_float64(loss, block):
    arguments = (*embeddings(), 7.0, -3.0)
    value, gradients = oracle(loss, *arguments)
    with jax.enable_x64(True):
        function = jax.value_and_grad(lambda *a: LOSSES[loss](*a, block=block), argnums=(0, 1, 2, 3))
        result, slopes = jax.jit(function)(*(jnp.asarray(x, jnp.float64) for x in arguments))
        assert result.dtype == jnp.float64
    np.testing.assert_allclose(result, value, rtol=1e-12)
    for slope, expected in zip(slopes, gradients, strict=True):
        np.testing.assert_allclose(slope, expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("loss", LOSSES)
def test_single_precision_is_near_and_stays_single(loss):
    arguments = (*embeddings(64, 16), 10.0, -10.0)
    value, gradients = oracle(loss, *arguments)
    single = tuple(jnp.asarray(x, jnp.float32) for x in arguments)
    result, slopes = jax.value_and_grad(LOSSES[loss], argnums=(0, 1, 2))(*single)
    assert result.dtype == jnp.float32
    assert result.shape == ()
    terms = 64 + 64 + 16  # a line of logits and the lines, each logit an inner product
    np.testing.assert_allclose(result, value, rtol=float32_tolerance(1.0, terms))
    for slope, expected in zip(slopes, gradients, strict=False):
        # Probabilities of a line add to 1, of either sign: what is summed is of that size.
        np.testing.assert_allclose(slope, expected, rtol=1e-4, atol=float32_tolerance(1.0, terms))
    half = LOSSES[loss](single[0].astype(jnp.bfloat16), single[1].astype(jnp.bfloat16), 10.0, -10.0)
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, value, rtol=2e-2)


@pytest.mark.parametrize("loss", LOSSES)
def test_extreme_temperatures_stay_finite_and_exact(loss):
    arguments = (*embeddings(9, 4), 300.0, 50.0)
    value, _ = oracle(loss, *arguments)
    single = tuple(jnp.asarray(x, jnp.float32) for x in arguments)
    for block in (None, 4):
        result, slopes = jax.value_and_grad(lambda *a: LOSSES[loss](*a, block=block), argnums=(0, 1, 2))(*single)  # noqa: B023
        np.testing.assert_allclose(result, value, rtol=1e-5)
        assert all(bool(jnp.all(jnp.isfinite(slope))) for slope in slopes)


def test_a_softmax_does_not_see_the_bias():
    image, text = (jnp.asarray(x, jnp.float32) for x in embeddings())
    value, slope = jax.value_and_grad(lambda bias: softmax_loss(image, text, 10.0, bias))(4.0)
    assert value == softmax_loss(image, text, 10.0)
    assert slope == 0


@pytest.mark.parametrize("loss", LOSSES)
def test_blocks_leave_no_matrix_of_all_logits_in_the_program(loss):
    rows = jax.ShapeDtypeStruct((96, 8), jnp.float32)

    def program(block):
        function = jax.grad(lambda u, v: LOSSES[loss](u, v, 10.0, -10.0, block=block), argnums=(0, 1))
        return jax.jit(function).lower(rows, rows).compile().as_text()

    assert "[96,96]" in program(None)
    text = program(16)
    assert "[16,96]" in text
    assert "[96,96]" not in text
    assert "[6,16,96]" not in text


def test_forward_mode_gives_the_same_slope():
    image, text = (jnp.asarray(x, jnp.float32) for x in embeddings())
    for loss in LOSSES.values():
        objective = lambda t: loss(image, text, t, -2.0, block=5)  # noqa: B023
        _, slope = jax.jvp(objective, (5.0,), (1.0,))
        np.testing.assert_allclose(slope, jax.grad(objective)(5.0), rtol=1e-5)


def test_errors_come_before_work():
    rows = jnp.eye(4)
    with pytest.raises(ConfigError, match=r"same shape, b ≥ 1, got \[0, 4\] and \[0, 4\]"):
        sigmoid_loss(rows[:0], rows[:0], 1.0, 0.0)
    with pytest.raises(ConfigError, match="block must be at least 1, got 0"):
        softmax_loss(rows, rows, 1.0, block=0)
    with pytest.raises(ConfigError, match=r"unknown loss 'sigmod'.*Did you mean 'sigmoid'"):
        sharded_loss(jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",)), loss="sigmod")
