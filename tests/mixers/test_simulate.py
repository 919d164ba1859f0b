"""Worlds against their laws in float64, and the simulator's order against a loop written out."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmix.core.errors import ConfigError
from jaxmix.core.pytree import state
from jaxmix.mixers import Cadence, Feedback, Mixer, MixerInfo, odm, static
from jaxmix.mixers.base import SIGNALS, require
from jaxmix.mixers.simulate import best_static, run_static, simulate, systematic_counts
from jaxmix.mixers.worlds import decaying, linear_world, log_linear_world, power_law_world, quadratic_world, swapped

KEY = jax.random.key(0)
M = 4


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def random_shares(rng, steps, m=M):
    return rng.dirichlet(np.ones(m), steps)


def drive(world, shares, key=KEY):
    """Losses [s + 1, m] under a given sequence of shares, by `world.step` alone."""

    def one(state, now):
        state = world.step(now[0], state, now[1])
        return state, world.losses(state)

    start = world.init(key)
    keys = jax.random.split(key, len(shares))
    _, losses = jax.lax.scan(one, start, (keys, jnp.asarray(shares, jnp.result_type(float))))
    return np.concatenate([np.asarray(world.losses(start))[None], losses])


@state(version=1)
class TiltState:
    weights: object
    seen: object


def tilt(cadence=Cadence(), needs=("loss_sum", "token_count", "validation_loss")):
    """A mixer whose weights follow everything it is shown, so that any slip of the order shows."""
    needs = frozenset(needs)

    def init(key, num_domains, prior=None):
        weights = jnp.full(num_domains, 1 / num_domains) if prior is None else prior
        return TiltState(weights=weights, seen=jnp.zeros((3, num_domains), weights.dtype))

    def update(key, state, feedback):
        require(feedback, needs, "tilt")
        seen = jnp.stack([feedback.loss_sum, feedback.token_count, feedback.validation_loss])
        score = feedback.loss_sum / jnp.maximum(feedback.token_count, 1e-3) + feedback.validation_loss
        weights = jax.nn.softmax(jnp.log(state.weights) + 0.3 * score)
        return TiltState(weights=weights, seen=seen), MixerInfo(score=score, extra={})

    return Mixer(init, update, lambda state: state.weights, needs, cadence, "tilt")


def test_linear_world_equals_its_law(x64):
    rng = np.random.default_rng(0)
    a, shares = rng.normal(size=(M, M)) * 0.01, random_shares(rng, 50)
    expected = 5.0 - np.cumsum(shares @ a.T, axis=0)
    np.testing.assert_allclose(drive(linear_world(a), shares)[1:], expected, rtol=1e-12)


@pytest.mark.parametrize(("lag", "update", "validate"), [(0, 1, 1), (1, 1, 3), (0, 4, 2), (2, 3, 4)])
def test_simulate_keeps_the_order_of_the_loop(x64, lag, update, validate):
    rng = np.random.default_rng(1)
    a, steps = rng.uniform(0, 0.05, (M, M)), 24
    run = simulate(tilt(Cadence(update, validate)), linear_world(a), key=KEY, num_steps=steps, lag=lag)
    losses, held, history = np.full(M, 5.0), np.full(M, 5.0), [np.full(M, 1 / M)]
    loss_sum, tokens, drawn, seen = np.zeros(M), np.zeros(M), [], None
    for step in range(steps):
        p = history[max(step - lag, 0)]
        drawn.append(p)
        loss_sum, tokens = loss_sum + p * losses, tokens + p
        losses = losses - a @ p
        if (step + 1) % validate == 0:
            held = losses
        now = history[-1]
        if (step + 1) % update == 0:
            seen = np.stack([loss_sum, tokens, held])
            now = now * np.exp(0.3 * (loss_sum / np.maximum(tokens, 1e-3) + held))
            now = now / now.sum()
            loss_sum, tokens = np.zeros(M), np.zeros(M)
        history.append(now)
    np.testing.assert_allclose(run.weights, drawn, rtol=1e-10)
    np.testing.assert_allclose(run.final_losses, losses, rtol=1e-10)
    np.testing.assert_allclose(run.state.seen, seen, rtol=1e-10)
    assert run.updates == steps // update
    assert run.evaluations == steps // validate + 1
