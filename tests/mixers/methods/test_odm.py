"""Online Data Mixing against its formulas in float64 and the published figures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmix.core.errors import ConfigError
from jaxmix.mixers import Feedback, odm
from jaxmix.mixers.methods.odm import exploration_rate, odm_weights

KEY = jax.random.key(0)


def rate(t, m):
    return 1 / m if t <= 0 else min(1 / m, np.sqrt(np.log(m) / (m * t)))


def oracle(losses, present, prior, variant, discount=0.9, warmup=0):
    """The rule as written in the paper or in the repository, one step after another, float64."""
    m = len(prior)
    p, estimate, history = np.array(prior, float), np.zeros(m), []
    for t, (loss, here) in enumerate(zip(losses, present, strict=True), start=1):
        for j in np.flatnonzero(here):
            reward = loss[j] / p[j] if variant == "paper" else np.exp(loss[j])
            estimate[j] = discount * estimate[j] + (1 - discount) * reward
        if variant == "paper":
            gibbs = np.exp(rate(t - 1, m) * (estimate - estimate.max()))
            share = gibbs / gibbs.sum()
        else:
            share = estimate / estimate.sum()
        if t > warmup:
            p = (1 - m * rate(t, m)) * share + rate(t, m)
        history.append(p)
    return np.array(history)


@pytest.mark.parametrize("variant", ["paper", "repository"])
@pytest.mark.parametrize(("discount", "warmup"), [(0.9, 0), (0.9, 25), (0.0, 0), (0.5, 7)])
def test_equals_the_formulas(variant, discount, warmup):
    rng = np.random.default_rng(1)
    m, steps = 5, 60
    losses, counts = rng.uniform(0.5, 4, (steps, m)), rng.integers(1, 50, (steps, m))
    present = rng.random((steps, m)) < 0.7
    present[0] = True
    prior = rng.dirichlet(np.ones(m) * 3)
    mixer = odm(variant, discount=discount, warmup_updates=warmup)
    state, update = mixer.init(KEY, m, jnp.asarray(prior, jnp.float32)), jax.jit(mixer.update)
    expected = oracle(losses, present, prior, variant, discount, warmup)
    for t in range(steps):
        counted = np.where(present[t], counts[t], 0)
        feedback = Feedback(
            loss_sum=jnp.asarray(losses[t] * counted, jnp.float32), token_count=jnp.asarray(counted, jnp.float32)
        )
        state, info = update(KEY, state, feedback)
        np.testing.assert_allclose(mixer.weights(state), expected[t], atol=3e-6)
        np.testing.assert_allclose(info.extra["exploration_rate"], rate(t + 1, m), rtol=1e-6)


@pytest.mark.parametrize(("t", "ratio"), [(100, 2.29), (1000, 1.30), (10_000, 1.09), (100_000, 1.03)])
def test_paper_rule_flattens_as_specified(t, ratio):
    # 22 domains at uniform weights: the importance-weighted loss is 22 l.
    m = 22
    estimate = jnp.full(m, 2.0 * m).at[0].set(3.0 * m)
    p = np.asarray(odm_weights(estimate, jnp.int32(t), "paper"), np.float64)
    share = p - rate(t, m)  # the Gibbs part, up to its factor
    assert share[0] / share[1] == pytest.approx(ratio, abs=0.006)


def test_repository_rule_tends_to_perplexity():
    mixer = odm("repository")
    state, update = mixer.init(KEY, 3), jax.jit(mixer.update)
    feedback = Feedback(loss_sum=jnp.asarray([30.0, 20.0, 10.0]), token_count=jnp.full(3, 10.0))
    for _ in range(200):
        state, _ = update(KEY, state, feedback)
    np.testing.assert_allclose(mixer.weights(state), [0.623, 0.256, 0.121], atol=5e-4)


def test_exploration_rate():
    for m in (1, 2, 22):
        for t in (0, 1, 2, 50, 10_000):
            np.testing.assert_allclose(exploration_rate(jnp.int32(t), m), rate(t, m), rtol=1e-6)


@pytest.mark.parametrize("variant", ["paper", "repository"])
def test_absent_domains_hold_their_estimate(variant):
    mixer = odm(variant)
    state = mixer.init(KEY, 3)
    state, _ = mixer.update(KEY, state, Feedback(loss_sum=jnp.asarray([3.0, 2.0, 1.0]), token_count=jnp.ones(3)))
    after, info = mixer.update(
        KEY, state, Feedback(loss_sum=jnp.asarray([3.0, 0.0, 1.0]), token_count=jnp.asarray([1.0, 0.0, 1.0]))
    )
    assert info.score[1] == state.estimate[1]
    assert (after.estimate != state.estimate).tolist() == [True, False, True]


def test_a_non_finite_loss_counts_as_absent():
    mixer = odm()
    state = mixer.init(KEY, 2)
    after, _ = mixer.update(KEY, state, Feedback(loss_sum=jnp.asarray([jnp.nan, 1.0]), token_count=jnp.ones(2)))
    assert after.estimate[0] == 0
    assert after.estimate[1] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"variant": "papr"}, "Did you mean 'paper'"),
        ({"discount": 1.0}, r"at least 0 and below 1\.0, got 1\.0"),
        ({"warmup_updates": -1}, "at least 0, got -1"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ConfigError, match=message):
        odm(**arguments)
