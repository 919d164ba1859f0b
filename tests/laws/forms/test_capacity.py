"""Capacity competition against bisection in NumPy, its derivatives against finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxmix.laws import allocate_capacity
from jaxmix.laws.forms.capacity import log_capacity


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def bisected(weights, exponent, scale, head, size):
    """The KKT solution of one mixture by bisection in log λ."""
    total = size + (len(weights) - 1) * head

    def capacity(nu):
        with np.errstate(divide="ignore", over="ignore"):
            return np.maximum(head, np.exp((np.log(weights * exponent * scale) - nu) / (1 + exponent)))

    low, high = -2000.0, 2000.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if capacity(middle).sum() > total else (low, middle)
    return capacity((low + high) / 2)


def drawn(rng, rows, domains):
    weights = rng.dirichlet(np.full(domains, 0.3), rows)
    weights[weights < 1e-3] = 0
    weights /= weights.sum(axis=1, keepdims=True)
    exponent = np.exp(rng.uniform(np.log(0.01), np.log(3.0), domains))
    scale = np.exp(rng.uniform(np.log(1e-3), np.log(1e3), domains))
    return weights, exponent, scale


@pytest.mark.parametrize("head", [1e-5, 1e-2, 0.5, 0.999])
@pytest.mark.parametrize("domains", [2, 17])
def test_equals_bisection(head, domains):
    rng = np.random.default_rng(domains)
    weights, exponent, scale = drawn(rng, 100, domains)
    found = allocate_capacity(weights, exponent, scale, head, 1.0)
    expected = np.stack([bisected(h, exponent, scale, head, 1.0) for h in weights])
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    assert np.abs(found.sum(axis=1) / (1 + (domains - 1) * head) - 1).max() < 1e-12
    np.testing.assert_allclose(found[weights == 0], head, rtol=1e-12)


def test_edges():
    exponent, scale = np.array([0.2, 1.0, 3.0]), np.array([1.0, 1e-3, 1e3])
    one_hot = allocate_capacity(np.eye(3), exponent, scale, 0.1, 10.0)
    np.testing.assert_allclose(one_hot, np.where(np.eye(3) > 0, 10.0, 0.1), rtol=1e-12)
    tiny = allocate_capacity(np.array([1.0, 1e-300, 5e-324]), exponent, scale, 0.1, 10.0)
    np.testing.assert_allclose(tiny, [10.0, 0.1, 0.1], rtol=1e-12)
    # A head that takes all, or more than there is, leaves nothing to compete for.
    for head in (10.0, 20.0):
        np.testing.assert_allclose(allocate_capacity(np.full(3, 1 / 3), exponent, scale, head, 10.0), head, rtol=1e-12)


def test_float32():
    rng = np.random.default_rng(0)
    weights, exponent, scale = drawn(rng, 200, 17)
    found = allocate_capacity(weights.astype(np.float32), exponent, scale, 1e-3, 1.0)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, allocate_capacity(weights, exponent, scale, 1e-3, 1.0), rtol=3e-5)
    gradient = jax.grad(lambda h: jnp.sum(log_capacity(h, exponent, np.log(scale), 1e-3, 1.0) ** 2))
    assert np.isfinite(gradient(jnp.asarray(weights, jnp.float32))).all()


def test_leading_axes_broadcast():
    rng = np.random.default_rng(1)
    weights, exponent, scale = drawn(rng, 6, 4)
    sizes = np.array([1.0, 3.0])
    found = jax.jit(allocate_capacity)(weights[:, None], exponent, scale, 0.01, sizes)
    assert found.shape == (6, 2, 4)
    one_by_one = jax.vmap(jax.vmap(lambda h, n: allocate_capacity(h, exponent, scale, 0.01, n), (None, 0)), (0, None))
    np.testing.assert_allclose(found, one_by_one(weights, sizes), rtol=1e-13)
    np.testing.assert_allclose(found[2, 1], bisected(weights[2], exponent, scale, 0.01, 3.0), rtol=1e-9)


def arguments():
    """A mixture with two domains above the head, one below it and one not drawn."""
    rng = np.random.default_rng(3)
    weights = np.array([0.55, 0.4499, 1e-4, 0.0])
    exponent, scale = rng.uniform(0.3, 0.8, 4), rng.uniform(0.5, 2.0, 4)
    return weights, exponent, scale, 0.05, 1.0


def test_derivatives_of_both_modes():
    weights, *rest = arguments()
    check = lambda *args: log_capacity(jnp.asarray(weights), args[0], jnp.log(args[1]), args[2], args[3])
    found = np.asarray(check(*rest))
    assert (found[:2] > np.log(0.05)).all()
    assert np.allclose(found[2:], np.log(0.05))
    check_grads(jax.jit(check), tuple(map(jnp.asarray, rest)), order=2, modes=("fwd", "rev"), atol=1e-6, rtol=1e-6)


def test_derivative_in_the_weights():
    weights, *rest = arguments()
    jacobian = np.asarray(jax.jacrev(lambda h: log_capacity(h, rest[0], jnp.log(rest[1]), *rest[2:]))(weights))
    step = 1e-7
    for i in (0, 1):
        moved = [np.log(bisected(weights + s * np.eye(4)[i], *rest)) for s in (step, -step)]
        np.testing.assert_allclose(jacobian[:, i], (moved[0] - moved[1]) / (2 * step), atol=1e-6)
    assert (jacobian[:, 2:] == 0).all()


def test_derivatives_are_those_of_the_specification():
    """u_i = p_i g_i − G π_i of a loss with adjoints g_i = dJ / d log x_i."""
    weights, exponent, scale, head, size = arguments()
    adjoint = np.array([0.3, -1.2, 0.7, 0.4])
    objective = lambda log_c, log_b, log_head, log_size: jnp.sum(
        adjoint * log_capacity(jnp.asarray(weights), jnp.exp(log_b), log_c, jnp.exp(log_head), jnp.exp(log_size))
    )
    found = jax.grad(objective, argnums=(0, 1, 2, 3))(np.log(scale), np.log(exponent), np.log(head), np.log(size))
    x = bisected(weights, exponent, scale, head, size)
    free = x > head * (1 + 1e-9)
    p = np.where(free, 1 / (1 + exponent), 0)
    total = (x * p).sum()
    pi, pushed = x * p / total, p * adjoint
    u = pushed - pushed.sum() * pi
    clipped = (~free).sum()
    np.testing.assert_allclose(found[0], u, atol=1e-9)
    np.testing.assert_allclose(found[1], u * (1 - exponent * np.log(x)), atol=1e-9)
    np.testing.assert_allclose(found[2], adjoint[~free].sum() - pushed.sum() * (clipped - 3) * head / total, atol=1e-9)
    np.testing.assert_allclose(found[3], pushed.sum() * size / total, atol=1e-9)
