"""Worlds against their laws, written out in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmix.core.errors import ConfigError
from jaxmix.simulate.worlds import decaying, linear_world, log_linear_world, power_law_world, quadratic_world, swapped

KEY = jax.random.key(0)
M = 4


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def random_shares(rng, steps, m=M):
    return rng.dirichlet(np.ones(m), steps)


def drive(world, shares, key=KEY):
    """Losses [s + 1, m] under a given sequence of shares."""

    def one(state, now):
        state = world.step(now[0], state, now[1])
        return state, world.losses(state)

    start = world.init(key)
    keys = jax.random.split(key, len(shares))
    _, losses = jax.lax.scan(one, start, (keys, jnp.asarray(shares, jnp.result_type(float))))
    return np.concatenate([np.asarray(world.losses(start))[None], losses])


def test_linear_world_equals_its_law(x64):
    rng = np.random.default_rng(0)
    a, shares, start = rng.normal(size=(M, M)) * 0.01, random_shares(rng, 50), rng.uniform(1, 5, M)
    got = drive(linear_world(a, start_losses=start), shares)
    np.testing.assert_allclose(got[0], start)
    np.testing.assert_allclose(got[1:], start - np.cumsum(shares @ a.T, axis=0), rtol=1e-12)


def test_linear_world_with_momentum_and_a_changing_interaction(x64):
    rng = np.random.default_rng(1)
    a, b, shares = rng.normal(size=(M, M)), rng.normal(size=(M, M)), random_shares(rng, 40)
    for interaction, at in (
        (decaying(a, 15.0), lambda t: a * np.exp(-t / 15)),
        (swapped(a, b, 17), lambda t: a if t < 17 else b),
    ):
        losses, filtered, expected = np.full(M, 5.0), np.zeros(M), []
        for t, p in enumerate(shares):
            filtered = 0.9 * filtered + 0.1 * p
            losses = losses - at(t) @ filtered
            expected.append(losses)
        got = drive(linear_world(interaction, num_domains=M, momentum=0.9), shares)
        np.testing.assert_allclose(got[1:], expected, rtol=1e-12)


def test_log_linear_world_ends_at_its_law(x64):
    rng = np.random.default_rng(2)
    a, c, b = rng.normal(size=(M, M)), rng.uniform(1, 3, M), rng.uniform(1, 3, M)
    world = log_linear_world(a, irreducible=c, reducible=b, num_steps=500)
    for p in random_shares(rng, 4):
        got = drive(world, np.broadcast_to(p, (500, M)))
        np.testing.assert_allclose(got[-1], c + b * np.exp(-a @ p), rtol=1e-12)
    shares = random_shares(rng, 500)
    np.testing.assert_allclose(drive(world, shares)[-1], c + b * np.exp(-a @ shares.mean(0)), rtol=1e-12)


def test_log_linear_world_in_float32():
    a = np.asarray([[2.0, 0.5], [0.0, 1.0]])
    world = log_linear_world(a, irreducible=1.0, reducible=2.0, num_steps=4000)
    got = drive(world, np.broadcast_to(np.asarray([0.3, 0.7]), (4000, 2)))
    np.testing.assert_allclose(got[-1], 1 + 2 * np.exp(-a @ [0.3, 0.7]), rtol=1e-6)


def test_power_law_world_equals_its_law(x64):
    rng = np.random.default_rng(3)
    t, c, b = rng.uniform(size=(M, M)), rng.uniform(1, 3, M), rng.uniform(1, 3, M)
    alpha, n0, shares = rng.uniform(0.1, 0.6, M), rng.uniform(1, 9, M), random_shares(rng, 30)
    world = power_law_world(t, irreducible=c, scale=b, exponent=alpha, start=n0, tokens_per_step=64)
    tokens = 64 * np.cumsum(np.concatenate([np.zeros((1, M)), shares]), axis=0)
    np.testing.assert_allclose(drive(world, shares), c + b * (n0 + tokens @ t.T) ** -alpha, rtol=1e-12)


def bowls(seed=4, size=6):
    rng = np.random.default_rng(seed)
    factors = rng.normal(size=(M, size, size)) / 3
    return np.einsum("mrp,mrq->mpq", factors, factors), rng.normal(size=(M, size)), rng.normal(size=size)


def bowl_losses(h, optima, x):
    return np.asarray([0.5 * (x - o) @ a @ (x - o) for a, o in zip(h, optima, strict=True)])


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_quadratic_world_equals_the_optimizer_written_out(x64, name):
    h, optima, x = bowls()
    shares, c = random_shares(np.random.default_rng(6), 60), np.arange(M) / 10
    optimizer = optax.sgd if name == "sgd" else lambda rate: optax.adam(rate, b1=0.9, b2=0.99, eps=1e-8)
    world = quadratic_world(h, optima, x, learning_rate=0.05, irreducible=c, optimizer=optimizer)
    expected, first, second = [bowl_losses(h, optima, x)], np.zeros(6), np.zeros(6)
    for t, p in enumerate(shares, start=1):
        g = sum(p[j] * h[j] @ (x - optima[j]) for j in range(M))
        if name == "adam":
            first, second = 0.9 * first + 0.1 * g, 0.99 * second + 0.01 * g**2
            g = first / (1 - 0.9**t) / (np.sqrt(second / (1 - 0.99**t)) + 1e-8)
        x = x - 0.05 * g
        expected.append(bowl_losses(h, optima, x))
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam raises a float to an integer step
        got = drive(world, shares)
    np.testing.assert_allclose(got, c + np.asarray(expected), rtol=1e-9)


def test_gradients_are_those_of_the_losses(x64):
    world = quadratic_world(*bowls(), learning_rate=0.1)
    state = world.step(KEY, world.init(KEY), jnp.asarray([0.1, 0.2, 0.3, 0.4]))
    jacobian = jax.jacobian(lambda x: world.losses(state._replace(params=x)))(state.params)
    np.testing.assert_allclose(world.gradients(state).train, jacobian, rtol=1e-10)
    np.testing.assert_allclose(world.gradients(state).validation, jacobian, rtol=1e-10)


def test_gradient_noise_has_the_stated_trace():
    h, optima, x = bowls()
    noise, p = np.asarray([1.0, 2.0, 3.0, 4.0]), np.asarray([0.4, 0.3, 0.2, 0.1], np.float32)
    world = quadratic_world(h, optima, x, learning_rate=0.5, gradient_noise=noise)
    step = lambda key: world.step(key, world.init(key), jnp.asarray(p)).params
    moved = np.asarray(jax.vmap(step)(jax.random.split(KEY, 4000)), np.float64)
    trace = np.var(moved, axis=0).sum() / 0.5**2
    np.testing.assert_allclose(trace, p @ noise, rtol=4 * np.sqrt(2 / (4000 * 6)))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: linear_world(np.ones((2, 3))), r"shape \(2, 3\), expected \(2, 2\) \(linear_world\(interaction\)\)"),
        (lambda: linear_world(decaying(np.eye(2), 5.0)), "needs num_domains"),
        (lambda: linear_world(np.eye(2), momentum=1.0), "below 1.0, got 1.0"),
        (lambda: linear_world(np.eye(2), start_losses=np.ones(3)), "expected one number or 2"),
        (lambda: quadratic_world(np.ones((2, 3, 2)), np.ones((2, 3)), np.ones(3), learning_rate=0.1), "hessians"),
    ],
)
def test_errors(build, message):
    with pytest.raises(ConfigError, match=message):
        build()
