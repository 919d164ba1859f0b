"""Random worlds: a mixer that does well in most of them does not owe it to one.

Both functions draw their laws from a key alone, so that `vmap` over keys runs many worlds as one program. Their numbers
are chosen so that the best of 65 static mixtures has 4 to 15 % less reducible loss than even shares, a large step size
does harm, and a mixer that only looks at the level of the losses is misled by what no training can remove.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxmix.core.types import PRNGKeyArray
from jaxmix.simulate.worlds import World, log_linear_world, quadratic_world


def random_quadratic_world(
    key: PRNGKeyArray,
    *,
    num_domains: int = 5,
    num_shared: int = 4,
    num_private: int = 3,
    conflict: float = 0.3,
    learning_rate: float = 0.02,
    gradient_noise: float = 0.005,
    start_loss: float = 2.0,
    optimizer: Callable[[Any], optax.GradientTransformation] = optax.sgd,
) -> World:
    """Quadratic tasks with shared and private directions, made for runs of about 800 steps.

    Every domain curves `num_shared` directions that it has in common with the others, to a random extent (0 to 0.5),
    and `num_private` that no other sees. Curvatures spread evenly over 1.5 decades of their logarithm, so that some
    directions are learned at once and some not at all within a run; domains differ in speed and distance by log-normal
    factors (0.3).

    Args:
        key: of the world.
        num_domains, num_shared, num_private: sizes; P = num_shared + num_domains · num_private.
        conflict: std of the domains' optima about their common one in the shared directions, whose own is 1.
        learning_rate, gradient_noise, optimizer: see `quadratic_world`.
        start_loss: mean reducible loss before the first step; the irreducible ones are even in [2, 4].
    """
    m, size = num_domains, num_shared + num_domains * num_private
    keys = jax.random.split(key, 9)
    normal = lambda i, *shape: jax.random.normal(keys[i], shape)
    speed = jnp.exp(0.3 * normal(0, m, 1))
    private = speed * 10 ** (-1.5 * jax.random.uniform(keys[1], (m, num_private)))
    involved = 0.5 * jax.random.uniform(keys[2], (m, num_shared))
    shared = speed * involved * 10 ** (-1.5 * jax.random.uniform(keys[3], (1, num_shared)))
    own = jnp.eye(m)[:, :, None] * private[:, None, :]
    curvature = jnp.concatenate([shared, own.reshape(m, -1)], axis=1)
    far = jnp.exp(0.3 * normal(4, m, 1)) * normal(5, m, size - num_shared)
    optima = jnp.concatenate([normal(6, 1, num_shared) + conflict * normal(7, m, num_shared), far], axis=1)
    start = 0.5 * jnp.mean(jnp.sum(curvature * optima**2, axis=1))
    return quadratic_world(
        jax.vmap(jnp.diag)(curvature),
        optima * jnp.sqrt(start_loss / start),
        jnp.zeros(size),
        learning_rate=learning_rate,
        gradient_noise=gradient_noise,
        irreducible=jax.random.uniform(keys[8], (m,), minval=2.0, maxval=4.0),
        optimizer=optimizer,
    )


def random_log_linear_world(
    key: PRNGKeyArray, *, num_steps: int, num_domains: int = 4, transfer: float = 0.3, noise: float = 0.003
) -> World:
    """Log-linear laws whose interaction is nearly diagonal, with noisy evaluations.

    Args:
        key: of the world.
        num_steps: of a run.
        num_domains: m.
        transfer: the entries of A off the diagonal are even in [0, transfer]; those on it in [0.5, 3].
        noise: std of an evaluation, nats. Irreducible losses are even in [1, 4], reducible ones about 2.
    """
    m = num_domains
    keys = jax.random.split(key, 4)
    own = jax.random.uniform(keys[0], (m, 1), minval=0.5, maxval=3.0)
    across = transfer * jax.random.uniform(keys[1], (m, m))
    return log_linear_world(
        jnp.where(jnp.eye(m, dtype=bool), own, across),
        irreducible=jax.random.uniform(keys[2], (m,), minval=1.0, maxval=4.0),
        reducible=2.0 * jnp.exp(0.2 * jax.random.normal(keys[3], (m,))),
        num_steps=num_steps,
        noise=noise,
    )
