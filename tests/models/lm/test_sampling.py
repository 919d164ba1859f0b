import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmix.core.errors import ConfigError
from jaxmix.models.lm.sampling import Sampling, draw_by_weight, draw_tokens


def kept_by_sorting(probabilities, top_k, top_p):
    """bool[v] in float64: the k most likely, then the least set of them with mass p."""
    order = np.argsort(-probabilities, kind="stable")
    if top_k:
        order = order[:top_k]
    running = np.cumsum(probabilities[order])
    order = order[: np.searchsorted(running, top_p * running[-1]) + 1]
    return np.isin(np.arange(len(probabilities)), order)


@pytest.mark.parametrize("words", [7, 200])  # inversion in one stage and in two
def test_frequencies_are_the_probabilities(words):
    weights = np.random.default_rng(0).exponential(size=(2, words)) ** 2
    weights[:, ::3] = 0.0
    draws = 60_000
    rows = jnp.broadcast_to(jnp.asarray(weights, jnp.float32)[:, None], (2, draws, words))
    drawn = np.asarray(jax.jit(draw_by_weight)(jax.random.key(0), rows))
    for row, places in zip(weights, drawn, strict=True):
        counts = np.bincount(places, minlength=words)
        assert (counts[row == 0] == 0).all()
        expected = draws * row / row.sum()
        likely = expected > 5
        chi_square = ((counts - expected)[likely] ** 2 / expected[likely]).sum()
        degrees = likely.sum()
        assert chi_square < degrees + 4 * np.sqrt(2 * degrees)


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 0.8), (5, 1.0), (12, 0.6), (1, 1.0), (0, 1e-6)])
def test_only_the_most_likely_tokens_are_drawn(top_k, top_p):
    logits = np.random.default_rng(1).normal(size=(3, 30)) * 2
    sampling = Sampling(temperature=0.7, top_k=top_k, top_p=top_p)
    rows = jnp.broadcast_to(jnp.asarray(logits, jnp.float32)[:, None], (3, 20_000, 30))
    tokens, logp = jax.jit(draw_tokens, static_argnums=2)(jax.random.key(0), rows, sampling)
    for row, places, reported in zip(logits, np.asarray(tokens), np.asarray(logp), strict=True):
        probabilities = np.exp(row / 0.7) / np.exp(row / 0.7).sum()
        kept = kept_by_sorting(probabilities, top_k, top_p)
        counts = np.bincount(places, minlength=30)
        assert (counts[~kept] == 0).all()
        share = np.where(kept, probabilities, 0.0) / probabilities[kept].sum()
        assert (counts[share > 1e-3] > 0).all()
        assert np.abs(counts / 20_000 - share).max() < 0.02
        # The policy's own log-probability knows nothing of the tokens left out.
        np.testing.assert_allclose(reported, np.log(probabilities)[places], atol=1e-5)


def test_ties_stay_together():
    logits = jnp.log(jnp.array([0.3, 0.3, 0.3, 0.1]))
    rows = jnp.broadcast_to(logits, (2000, 4))
    tokens, _ = draw_tokens(jax.random.key(0), rows, Sampling(top_k=2))
    assert set(np.asarray(tokens).tolist()) == {0, 1, 2}


def test_impossible_words_and_large_logits():
    logits = jnp.array([[-jnp.inf, 1e4, -1e30, 0.0]])
    for temperature in (0.0, 1.0):
        tokens, logp = draw_tokens(jax.random.key(0), logits, Sampling(temperature=temperature))
        assert (int(tokens[0]), float(logp[0])) == (1, 0.0)


@pytest.mark.parametrize(
    "wrong", [{"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.5}, {"top_k": -1}, {"policy_temperature": 0.0}]
)
def test_settings_outside_their_range(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Sampling(**wrong)
