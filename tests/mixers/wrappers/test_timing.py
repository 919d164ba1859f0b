"""From when on, how often and until when weights change."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerance import WEIGHTS

from jaxmix.core.errors import ConfigError
from jaxmix.mixers import Feedback, MixerInfo, freeze_after, hold, odm, static, warm_up

KEY = jax.random.key(0)
PRIOR = np.array([0.5, 0.3, 0.2], np.float32)


def trajectory(mixer, steps):
    """Weights after 0, 1, … updates, and the state after the last."""
    rng, state = np.random.default_rng(1), mixer.init(KEY, 3, jnp.asarray(PRIOR))
    rows = [mixer.weights(state)]
    for _ in range(steps):
        counts = rng.integers(1, 9, 3).astype(np.float32)
        losses = counts * rng.uniform(1, 4, 3).astype(np.float32)
        state, _ = mixer.update(KEY, state, Feedback(loss_sum=jnp.asarray(losses), token_count=jnp.asarray(counts)))
        rows.append(mixer.weights(state))
    return np.stack(rows), state


@pytest.fixture(scope="module")
def alone():
    return trajectory(odm("repository"), 12)


def test_warm_up_draws_by_the_prior_while_the_mixer_learns(alone):
    rows, state = trajectory(warm_up(odm("repository"), 5), 12)
    np.testing.assert_array_equal(rows[:5], np.broadcast_to(PRIOR, (5, 3)))
    np.testing.assert_array_equal(rows[5:], alone[0][5:])
    np.testing.assert_array_equal(state.inner.estimate, alone[1].estimate)


def test_a_linear_warm_up_goes_over_evenly(alone):
    rows, _ = trajectory(warm_up(odm("repository"), 5, linear=True), 12)
    share = np.minimum(np.arange(13) / 5, 1.0)[:, None]
    np.testing.assert_allclose(rows, (1 - share) * PRIOR + share * alone[0], atol=1e-6)
    np.testing.assert_array_equal(rows[5:], alone[0][5:])


def test_a_warm_up_of_nothing_does_nothing(alone):
    np.testing.assert_array_equal(trajectory(warm_up(odm("repository"), 0), 12)[0], alone[0])
    np.testing.assert_array_equal(trajectory(warm_up(odm("repository"), 0, linear=True), 12)[0], alone[0])


def test_a_warm_up_overrides_weights_of_the_mixers_own():
    mixer = warm_up(static([0.1, 0.1, 0.8]), 2)
    state = mixer.init(KEY, 3)
    np.testing.assert_allclose(mixer.weights(state), 1 / 3, rtol=0, atol=WEIGHTS)
    for _ in range(2):
        state, _ = mixer.update(KEY, state, Feedback())
    np.testing.assert_allclose(mixer.weights(state), [0.1, 0.1, 0.8], rtol=0, atol=WEIGHTS)


@pytest.mark.parametrize("updates", [1, 3, 4])
def test_held_weights_change_at_multiples_only(alone, updates):
    rows, state = trajectory(hold(odm("repository"), updates), 12)
    np.testing.assert_array_equal(rows, alone[0][np.arange(13) // updates * updates])
    np.testing.assert_array_equal(state.inner.estimate, alone[1].estimate)


@pytest.mark.parametrize("updates", [0, 1, 6, 40])
def test_a_frozen_mixer_stays_as_it_is(alone, updates):
    rows, state = trajectory(freeze_after(odm("repository"), updates), 12)
    np.testing.assert_array_equal(rows, alone[0][np.minimum(np.arange(13), updates)])
    assert int(state.inner.count) == min(updates, 12)


def test_a_frozen_mixer_may_hold_random_keys():
    """Typed keys in the state are kept like everything else."""
    inner = static()._replace(
        init=lambda key, m, prior=None: key,
        update=lambda key, state, feedback: (jax.random.fold_in(state, 1), MixerInfo(jnp.zeros(3), {})),
        weights=lambda state: jax.random.dirichlet(state, jnp.ones(3)),
    )
    rows, _ = trajectory(freeze_after(inner, 2), 5)
    assert len(np.unique(rows, axis=0)) == 3
    np.testing.assert_array_equal(rows[2:], np.broadcast_to(rows[2], (4, 3)))


@pytest.mark.parametrize("wrapper", [warm_up, hold, freeze_after])
@pytest.mark.parametrize("updates", [-1, 2**31])
def test_a_wrong_number_of_updates_is_refused(wrapper, updates):
    with pytest.raises(ConfigError, match=rf"{wrapper.__name__}\(updates\)"):
        wrapper(static(), updates)


def test_weights_cannot_be_held_for_nothing():
    with pytest.raises(ConfigError, match="at least 1 and below 2147483648"):
        hold(static(), 0)
