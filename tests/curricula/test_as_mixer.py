"""A bandit as a mixer, against a slow NumPy run of its equations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmix.mixers as mixers
from jaxmix.core.errors import ConfigError
from jaxmix.curricula import as_mixer, space, uniform
from jaxmix.curricula.as_mixer import improvement_rewards
from jaxmix.curricula.base import signal_of
from jaxmix.mixers import Feedback
from jaxmix.workflows.config.load import from_mapping
from jaxmix.workflows.config.resolve import resolve_run

KEY = jax.random.key(0)
PRIOR = np.array([0.5, 0.3, 0.2, 0.0])


def slow_rewards(first, fast, slow):
    relative = [(s - f) / s for f, s in zip(fast, slow, strict=True)]
    best = max(relative)
    rows = []
    for r, f, start in zip(relative, fast, first, strict=True):
        x = max(0.0, r) / best if best > 0 else 0.0
        q = max(0.0, 1 - f / start)
        rows.append([(1 - x) * q, (1 - x) * q + x])
    return np.array(rows)


def test_rewards_carry_improvement_in_their_spread_and_the_rest_in_their_mean():
    rng = np.random.default_rng(0)
    first = rng.uniform(1, 5, 6)
    slow = first * rng.uniform(0.3, 1.2, 6)
    fast = slow * rng.uniform(0.8, 1.1, 6)
    rewards = improvement_rewards(*(jnp.asarray(x, jnp.float32) for x in (first, fast, slow)))
    expected = slow_rewards(first, fast, slow)
    np.testing.assert_allclose(rewards, expected, atol=1e-5)
    assert (np.asarray(rewards) >= 0).all()
    assert (np.asarray(rewards) <= 1).all()
    np.testing.assert_allclose(signal_of(rewards), expected[:, 1] - expected[:, 0], atol=1e-5)
    assert float(signal_of(rewards).max()) == pytest.approx(1.0)
    scaled = improvement_rewards(*(jnp.asarray(3 * x, jnp.float32) for x in (first, fast, slow)))
    np.testing.assert_allclose(scaled, rewards, atol=1e-5)


def test_losses_that_rise_or_are_0_give_no_improvement():
    one = jnp.ones(3)
    np.testing.assert_array_equal(improvement_rewards(one, 1.1 * one, one), np.zeros((3, 2)))
    np.testing.assert_array_equal(improvement_rewards(0 * one, 0 * one, 0 * one), np.ones((3, 2)))  # all done


def test_a_run_against_numpy():
    """Averages, first visits, absent domains, and the bandit told of exactly those that were drawn."""
    mixer, bandit = as_mixer(space(4), update_every=3), space(4)
    assert mixer.cadence.update == 3
    update, learn, chances = jax.jit(mixer.update), jax.jit(bandit.update), jax.jit(bandit.probabilities)
    state = mixer.init(KEY, 4, jnp.asarray(PRIOR, jnp.float32))
    told = bandit.init()
    first, fast, slow = np.zeros(4), np.zeros(4), np.zeros(4)
    is_seen = np.zeros(4, bool)
    rng = np.random.default_rng(1)
    for step in range(30):
        losses = np.array([4.0 * 0.95**step, 3.0, 5.0 - 0.05 * step, 2.0]) * rng.uniform(0.98, 1.02, 4)
        counts = np.where(rng.random(4) < 0.7, rng.integers(1, 50, 4), 0)
        state, info = update(
            KEY,
            state,
            Feedback(loss_sum=jnp.asarray(losses * counts, jnp.float32), token_count=jnp.asarray(counts, jnp.float32)),
        )
        drawn = counts > 0
        new = drawn & ~is_seen
        first[new] = fast[new] = slow[new] = losses[new]
        old = drawn & is_seen
        fast[old] += 0.3 * (losses - fast)[old]
        slow[old] += 0.08 * (losses - slow)[old]
        is_seen |= drawn
        if drawn.any():
            with np.errstate(invalid="ignore", divide="ignore"):
                rewards = np.nan_to_num(
                    slow_rewards(np.where(is_seen, first, 1), np.where(is_seen, fast, 1), np.where(is_seen, slow, 1))
                )
            arms = jnp.asarray(np.where(drawn, np.arange(4), -1), jnp.int32)
            told = learn(told, arms, jnp.asarray(rewards, jnp.float32))
        expected = PRIOR * np.asarray(chances(told), np.float64)
        np.testing.assert_allclose(mixer.weights(state), expected / expected.sum(), atol=2e-4)
        assert info.score.shape == (4,)
    assert float(mixer.weights(state)[3]) == 0.0
    assert np.asarray(state.bandit.pulls).sum() > 0


def test_a_bandit_that_ignores_rewards_keeps_the_prior():
    mixer = as_mixer(uniform)
    prior = jnp.asarray(PRIOR, jnp.float32)
    state = mixer.init(KEY, 4, prior)
    state, _ = mixer.update(KEY, state, Feedback(loss_sum=jnp.ones(4), token_count=jnp.ones(4)))
    np.testing.assert_allclose(mixer.weights(state), PRIOR, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: as_mixer(space(3)).init(KEY, 4), "has 3 arms, and there are 4 domains"),
        (lambda: as_mixer(space, slow_rate=0.5), "fast_rate must be"),
        (lambda: as_mixer(space, update_every=0), "update_every must be"),
        (lambda: mixers.make("curriculum", bandit="spaces"), "unknown bandit 'spaces'.*Did you mean 'space'"),
        (lambda: mixers.make("curriculum", options={"rul": "literal"}), "no argument 'rul'.*Did you mean 'rule'"),
        (lambda: mixers.make("curriculum", options={"rule": "wild"}), "unknown rule 'wild'"),
    ],
)
def test_wrong_arguments_are_named(make, match):
    with pytest.raises(ConfigError, match=match):
        make()


def test_a_train_configuration_can_name_it():
    mapping = {
        "sources": {name: {"path": f"{name}.jsonl"} for name in "abc"},
        "train": {"steps": 10},
        "mixer": {"name": "curriculum", "bandit": "staged", "options": {"order": [2, 0, 1]}},
    }
    mixer = resolve_run(from_mapping(mapping)).mixer
    np.testing.assert_allclose(mixer.weights(mixer.init(KEY, 3)), [0, 0, 1], atol=1e-6)
    mapping["mixer"]["options"]["order"] = [0, 1]
    with pytest.raises(ConfigError, match="does not name each of the arms"):
        from_mapping(mapping)
