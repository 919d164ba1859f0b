"""Worlds fitted to tables of real runs, such as RegMix's.

Liu et al.: "RegMix: Data Mixture as Regression for Language Model Pre-training", arXiv 2407.01492, for the tables;
Ye et al.: "Data Mixing Laws", arXiv 2403.16952, for the law.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxmix.core.types import Array, Float
from jaxmix.simulate.worlds import World, as_array, log_linear_world


class LogLinearFit(NamedTuple):
    """Coefficients of `L_i(p) = c_i + b_i exp(−Σ_j A_ij p_j)`.

    Attributes:
        irreducible: c.
        scale: b > 0.
        interaction: A; its rows average 0 over the domains.
    """

    irreducible: Float[Array, " n"]
    scale: Float[Array, " n"]
    interaction: Float[Array, "n m"]


def fit_log_linear(
    mixtures: ArrayLike, losses: ArrayLike, *, num_floors: int = 32, num_iterations: int = 60
) -> LogLinearFit:
    """Fits `L_i(p) = c_i + b_i exp(−Σ_j A_ij p_j)` to a table of runs by least squares in L.

    For a given c, `log(L − c)` is linear in p, and its least squares weighted by (L − c)² have a closed form. The best
    of `num_floors` values of c between 0 and 0.95 of the lowest loss starts Levenberg and Marquardt's iteration.

    Args:
        mixtures: f[r, m], shares of r > m runs.
        losses: f[r, n] > 0, final losses of each run.
        num_floors: number of starting values tried.
        num_iterations: of Levenberg and Marquardt's.

    Numerics: a ridge in the start (1e-6 of the mean weight) and the damping decide what the table leaves open: a
    domain that no run drew keeps an average entry. c stays ≥ 0.
    """
    p, y = as_array(mixtures), as_array(losses)

    def fit(column: Array) -> tuple[Array, Array]:
        floors = jnp.linspace(0.0, 0.95, num_floors, dtype=p.dtype) * jnp.min(column)
        slopes, errors = jax.vmap(_fit_above, in_axes=(None, None, 0))(p, column, floors)
        best = jnp.argmin(errors)
        return _polish(p, column, floors[best], slopes[best], num_iterations)

    floors, slopes = jax.vmap(fit, in_axes=1)(y)
    # On the simplex a constant in a row's slopes is a factor of its scale.
    level = jnp.mean(slopes, axis=1)
    return LogLinearFit(floors, jnp.exp(level), level[:, None] - slopes)


def _fit_above(p: Array, losses: Array, floor: Array) -> tuple[Array, Array]:
    """Slopes s of `floor + exp(p s)` by weighted least squares in the logarithm, and their mean squared error."""
    weight = (losses - floor) ** 2
    weight = weight / jnp.mean(weight)
    target = jnp.log(losses - floor)
    center = jnp.average(target, weights=weight)
    normal = (p * weight[:, None]).T @ p + 1e-6 * p.shape[0] * jnp.eye(p.shape[1], dtype=p.dtype)
    slopes = jnp.linalg.solve(normal, p.T @ (weight * (target - center))) + center
    return slopes, jnp.mean((floor + jnp.exp(p @ slopes) - losses) ** 2)


def _polish(p: Array, losses: Array, floor: Array, slopes: Array, num_iterations: int) -> tuple[Array, Array]:
    """Levenberg and Marquardt's iteration on floor and slopes: damping falls after a step that helps, else rises."""

    def predict(x: Array) -> Array:
        return x[0] + jnp.exp(p @ x[1:])

    def iterate(carry: tuple[Array, Array, Array], _: None) -> tuple[tuple[Array, Array, Array], None]:
        x, damping, error = carry
        grown = predict(x) - x[0]
        jacobian = jnp.concatenate([jnp.ones_like(grown)[:, None], grown[:, None] * p], axis=1)
        normal = jacobian.T @ jacobian
        damped = normal + damping * jnp.diag(jnp.diag(normal) + 1e-6 * jnp.mean(jnp.diag(normal)))
        moved = x - jnp.linalg.solve(damped, jacobian.T @ (predict(x) - losses))
        moved = moved.at[0].max(0.0)
        new_error = jnp.sum((predict(moved) - losses) ** 2)
        helps = new_error < error
        damping = jnp.clip(jnp.where(helps, 0.3 * damping, 4.0 * damping), 1e-6, 1e6)
        return (jnp.where(helps, moved, x), damping, jnp.where(helps, new_error, error)), None

    x = jnp.concatenate([floor[None], slopes])
    start = (x, jnp.full_like(floor, 1e-2), jnp.sum((predict(x) - losses) ** 2))
    (x, _, _), _ = jax.lax.scan(iterate, start, length=num_iterations)
    return x[0], x[1:]


def replay_world(
    mixtures: ArrayLike,
    losses: ArrayLike,
    *,
    num_steps: int,
    start_loss: float,
    noise: ArrayLike = 0.0,
    train_noise: ArrayLike = 0.0,
) -> World:
    """A world fitted to the final losses of real runs on many mixtures, such as RegMix's tables.

    After `num_steps` steps the losses are those of `fit_log_linear` at the mean of the mixtures drawn; on the way
    the reducible loss falls exponentially from `start_loss`, see `log_linear_world`.

    Args:
        mixtures: f[r, m], shares of r runs.
        losses: f[r, m], their final losses. A column of nan is a domain whose loss was not measured: its loss stays
            nan, and its shares act on the others.
        num_steps: of a whole run.
        start_loss: nats, of an untrained model: above every loss in the table.
        noise, train_noise: see `World`.
    """
    y = as_array(losses)
    is_known = ~jnp.any(jnp.isnan(y), axis=0)
    fit = fit_log_linear(mixtures, jnp.where(is_known[None, :], y, 1.0))
    reducible = start_loss - fit.irreducible
    # b exp(−A p) = (start − c) exp(−(A + log((start − c) / b)) p) on the simplex.
    interaction = fit.interaction + jnp.log(reducible / fit.scale)[:, None]
    return log_linear_world(
        interaction,
        irreducible=jnp.where(is_known, fit.irreducible, jnp.nan),
        reducible=reducible,
        num_steps=num_steps,
        noise=noise,
        train_noise=train_noise,
    )
