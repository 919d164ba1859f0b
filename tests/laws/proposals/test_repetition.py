import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmix.core.errors import ConfigError
from jaxmix.laws.proposals.repetition import caps_from_tokens, effective_mixture, effective_tokens


def oracle(drawn, available, decay):
    worth = []
    for d, u in zip(drawn, available, strict=True):
        if d <= u:
            worth.append(d)
        else:
            worth.append(u + u * decay * (1 - np.exp(-(d / u - 1) / decay)) if u > 0 else 0.0)
    return np.array(worth)


def test_effective_tokens_against_the_formula():
    drawn, available = np.array([0.0, 1.0, 4.0, 300.0, 2.0, 5.0]), np.array([1.0, 1.0, 2.0, 3.0, 0.0, np.inf])
    with jax.enable_x64(True):
        worth = effective_tokens(jnp.asarray(drawn), jnp.asarray(available), 7.0)
        np.testing.assert_allclose(worth, oracle(drawn, available, 7.0), rtol=1e-14)
    # Endless repetition is worth U (1 + R*) at most.
    assert effective_tokens(jnp.array([1e9]), jnp.array([2.0]), 7.0)[0] == pytest.approx(16.0, rel=1e-5)


def test_the_first_repetition_is_worth_a_new_token():
    slope = jax.vmap(jax.grad(lambda d: effective_tokens(d[None], jnp.ones(1), 15.0)[0]))
    np.testing.assert_allclose(slope(jnp.array([0.5, 1.0, 1.0001, 16.0])), [1, 1, 1, np.exp(-1)], rtol=1e-4)
    never = jax.grad(lambda d: effective_tokens(d[None], jnp.array([jnp.inf]), 15.0)[0])(jnp.float32(3.0))
    assert never == 1.0
    nothing = jax.grad(lambda d: effective_tokens(d[None], jnp.zeros(1), 15.0)[0])(jnp.float32(3.0))
    assert nothing == 0.0


def test_the_effective_mixture_draws_the_effective_tokens():
    weights, available = jnp.array([0.7, 0.2, 0.1]), jnp.array([1.0, 100.0, 0.5])
    mixture, total = effective_mixture(weights, 10.0, available)
    worth = oracle(10.0 * np.asarray(weights), np.asarray(available), 15.387756)
    np.testing.assert_allclose(mixture * total, worth, rtol=1e-6)
    assert float(mixture.sum()) == pytest.approx(1.0)
    batch, totals = effective_mixture(jnp.stack([weights, weights]), jnp.array([10.0, 1e-3]), available)
    np.testing.assert_allclose(batch[0], mixture)
    np.testing.assert_allclose(batch[1], weights, rtol=1e-6)
    assert totals.shape == (2,)


def test_caps_follow_from_epochs():
    np.testing.assert_allclose(caps_from_tokens([1.0, 10.0, np.inf], 20.0, 4), [0.2, 1.0, 1.0])
    np.testing.assert_allclose(caps_from_tokens([1.0, 10.0, 2.0], 20.0, [4, 1, 10]), [0.2, 0.5, 1.0])
    with pytest.raises(ConfigError, match=r"8 billion tokens may be drawn.*takes 20"):
        caps_from_tokens([1.0, 1.0], 20.0, 4)
    with pytest.raises(ConfigError, match="max_epochs must be > 0"):
        caps_from_tokens([1.0, 1.0], 2.0, 0)
    with pytest.raises(ConfigError, match="one per domain"):
        caps_from_tokens([1.0, -1.0], 2.0, 4)
