"""Chameleon's weights against its formulas in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmix.core.errors import ConfigError
from jaxmix.mixers import chameleon_weights
from jaxmix.mixers.methods.chameleon import leverage_scores


def oracle(x, mode="pretraining", regularization=10.0, temperature=None, center=True, normalize=True):
    m = len(x)
    kernel = np.asarray(x, float) @ np.asarray(x, float).T
    if center:
        shift = np.eye(m) - 1 / m
        kernel = shift @ kernel @ shift
    leverage = np.diag(kernel @ np.linalg.inv(kernel + regularization * m * np.eye(m)))
    leverage = leverage / leverage.sum() if normalize else leverage
    score = 1 / leverage if mode == "pretraining" else leverage
    score = score / ({"pretraining": 5.0, "finetuning": 0.2}[mode] if temperature is None else temperature)
    e = np.exp(score - score.max())
    return e / e.sum()


@pytest.mark.parametrize(("is_double", "tolerance"), [(False, 1e-5), (True, 1e-12)])
@pytest.mark.parametrize("mode", ["pretraining", "finetuning"])
@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("shape", [(5, 32), (9, 4), (2, 64)])
def test_equals_the_formulas(mode, center, normalize, shape, is_double, tolerance):
    x = np.random.default_rng(1).normal(size=shape) + 0.3
    settings = {"mode": mode, "center": center, "normalize": normalize, "regularization": 3.0}
    with jax.enable_x64(is_double):
        weights = chameleon_weights(x, **settings)
    np.testing.assert_allclose(weights, oracle(x, **settings), rtol=0, atol=tolerance)


def test_near_duplicates_both_gain():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5, 128))
    x[1] = x[0] + 0.1 * rng.normal(size=128)
    weights = np.asarray(chameleon_weights(x))
    np.testing.assert_allclose(weights, [0.33, 0.32, 0.117, 0.117, 0.117], atol=0.02)
    distinct = np.asarray(chameleon_weights(x, mode="finetuning"))
    assert distinct[:2].max() < distinct[2:].min()


def test_leverage_of_tiny_embeddings_keeps_its_digits():
    x = 1e-6 * np.random.default_rng(2).normal(size=(4, 16))
    got = leverage_scores(jnp.asarray(x, jnp.float32), 10.0, center=False)
    np.testing.assert_allclose(got, (x**2).sum(1) / 40, rtol=1e-5)


def test_degenerate_embeddings():
    np.testing.assert_allclose(chameleon_weights(np.ones((3, 4))), np.full(3, 1 / 3), atol=1e-6)
    np.testing.assert_allclose(chameleon_weights(np.zeros((3, 4)), mode="finetuning"), np.full(3, 1 / 3), atol=1e-6)
    np.testing.assert_allclose(chameleon_weights(np.ones((1, 4))), [1.0])


def test_permuting_the_domains_permutes_the_weights():
    x, order = np.random.default_rng(3).normal(size=(6, 20)), [3, 1, 5, 0, 2, 4]
    np.testing.assert_allclose(np.asarray(chameleon_weights(x))[order], chameleon_weights(x[order]), atol=2e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "pretrain"}, "Did you mean 'pretraining'"),
        ({"regularization": 0.0}, "regularization"),
        ({"temperature": 0.0}, "temperature"),
        ({"embeddings": np.ones(3)}, r"shape \(3,\)"),
        ({"embeddings": np.array([[1.0, np.nan]])}, "finite"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ConfigError, match=message):
        chameleon_weights(**{"embeddings": np.eye(3), **arguments})
