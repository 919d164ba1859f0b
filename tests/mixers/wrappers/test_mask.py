"""Domains that a mixer must not know of, against the mixer of the others alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmix.core.errors import ConfigError
from jaxmix.mixers import Feedback, MixerInfo, floor, kl_to_prior, mask, odm, static
from jaxmix.mixers.base import SIGNALS

KEY = jax.random.key(0)
IS_ACTIVE = [True, False, True, True, False]
ACTIVE = [0, 2, 3]


def feedback(seed, m=5):
    rng = np.random.default_rng(seed)
    vector = lambda: jnp.asarray(rng.uniform(0.5, 4.0, m), jnp.float32)
    matrix = lambda: jnp.asarray(rng.normal(size=(m, m)), jnp.float32)
    shapes = {"gradient_alignment": matrix, "validation_alignment": matrix, "learning_rate": lambda: jnp.float32(0.1)}
    return Feedback(**{name: shapes.get(name, vector)() for name in SIGNALS})


def only_active(signals):
    pick = lambda leaf: np.asarray(leaf)[np.ix_(*[ACTIVE] * leaf.ndim)] if leaf.ndim else leaf
    return jax.tree.map(lambda leaf: jnp.asarray(pick(leaf)), signals)


@pytest.mark.parametrize("make", [odm, lambda: floor(odm(), 0.1), lambda: kl_to_prior(odm(), 0.5, [0.2, 0.3, 0.5])])
def test_equals_the_mixer_of_the_active_domains_alone(make):
    prior = jnp.asarray([0.4, 0.0, 0.1, 0.3, 0.2])
    inner, hidden = make(), mask(make(), IS_ACTIVE)
    a = inner.init(KEY, 3, jnp.asarray([0.5, 0.125, 0.375]))
    b = hidden.init(KEY, 5, prior)
    update, readout = jax.jit(hidden.update), jax.jit(hidden.weights)
    for step in range(30):
        np.testing.assert_allclose(readout(b)[np.array(ACTIVE)], inner.weights(a), atol=1e-6)
        np.testing.assert_array_equal(readout(b)[np.array([1, 4])], 0.0)
        a, alone = inner.update(KEY, a, only_active(feedback(step)))
        b, info = update(KEY, b, feedback(step))
        np.testing.assert_allclose(info.score[np.array(ACTIVE)], alone.score, rtol=1e-5)
        np.testing.assert_array_equal(info.score[np.array([1, 4])], 0.0)


@pytest.fixture
def spy():
    """A mixer that keeps the feedback it saw, and reports figures of every rank."""
    seen = []

    def update(key, state, signals):
        seen.append(signals)
        extra = {
            "scalar": jnp.float32(2.0),
            "vector": jnp.arange(3.0),
            "matrix": jnp.arange(9.0).reshape(3, 3),
            "history": jnp.ones((7, 3)),
            "drawn": jnp.ones(3, jnp.int32),
            "other": jnp.ones(2),
        }
        return state, MixerInfo(score=jnp.ones(3), extra=extra)

    half = lambda state: jnp.asarray([0.5, 0.25, 0.25])
    mixer = static()._replace(update=update, loss_weights=lambda state: 2.0 * half(state), final=half)
    return seen, mixer


def test_signals_of_any_rank_are_gathered(spy):
    seen, mixer = spy
    hidden = mask(mixer, IS_ACTIVE)
    signals = feedback(3)
    hidden.update(KEY, hidden.init(KEY, 5), signals)
    for name in SIGNALS:
        np.testing.assert_array_equal(getattr(seen[0], name), getattr(only_active(signals), name))
    hidden.update(KEY, hidden.init(KEY, 5), Feedback(gradient_alignment=jnp.arange(5.0)))
    np.testing.assert_array_equal(seen[1].gradient_alignment, [0, 2, 3])
    assert seen[1].loss_sum is None


def test_figures_are_spread_over_all_domains(spy):
    _, mixer = spy
    hidden = mask(mixer, IS_ACTIVE)
    state, info = hidden.update(KEY, hidden.init(KEY, 5), feedback(0))
    nan = np.nan
    np.testing.assert_array_equal(info.score, [1, 0, 1, 1, 0])
    assert float(info.extra["scalar"]) == 2.0
    np.testing.assert_array_equal(info.extra["vector"], [0, nan, 1, 2, nan])
    np.testing.assert_array_equal(info.extra["matrix"][2], [3, nan, 4, 5, nan])
    assert np.isnan(info.extra["matrix"][1]).all()
    assert info.extra["history"].shape == (7, 5)
    np.testing.assert_array_equal(info.extra["drawn"], [1, 0, 1, 1, 0])
    np.testing.assert_array_equal(info.extra["other"], [1, 1])
    np.testing.assert_array_equal(hidden.loss_weights(state), [1, 1, 0.5, 0.5, 1])
    np.testing.assert_array_equal(hidden.final(state), [0.5, 0, 0.25, 0.25, 0])


def test_without_anything_to_hide_the_mixer_stays_as_it_is():
    mixer = odm()
    assert mask(mixer, [True, True]) is mixer


def test_the_bundle_is_the_inner_mixers():
    mixer = odm()._replace(gradients="sketch")
    hidden = mask(mixer, IS_ACTIVE)
    assert (hidden.needs, hidden.cadence, hidden.gradients) == (mixer.needs, mixer.cadence, "sketch")
    assert (hidden.name, hidden.loss_weights, hidden.final) == ("mask(odm)", None, None)


def test_one_active_domain_gets_everything():
    hidden = mask(odm(), [False, True, False])
    state, _ = hidden.update(KEY, hidden.init(KEY, 3), feedback(0, 3))
    np.testing.assert_array_equal(hidden.weights(state), [0, 1, 0])


def test_errors():
    with pytest.raises(ConfigError, match="no domain is active"):
        mask(odm(), [False, False])
    with pytest.raises(ConfigError, match="5 values for 4 domains"):
        mask(odm(), IS_ACTIVE).init(KEY, 4)
    with pytest.raises(ConfigError, match="prior"):
        mask(static(), IS_ACTIVE).init(KEY, 5, jnp.asarray([0.0, 0.5, 0.0, 0.0, 0.5]))
