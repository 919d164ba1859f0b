"""A world made from a table of real runs, such as RegMix's: a mixer is tried on what others have paid for.

Liu et al.: "RegMix: Data Mixture as Regression for Language Model Pre-training", arXiv 2407.01492, for the tables;
Ye et al.: "Data Mixing Laws", arXiv 2403.16952, for the law.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxmix.core.types import Array, Float
from jaxmix.mixers.worlds import World, as_array, log_linear_world

__all__ = ["LogLinearFit", "fit_log_linear", "replay_world"]


class LogLinearFit(NamedTuple):
    """Attributes:
    irreducible: f[n], c.
    scale: f[n], b > 0.
    interaction: f[n, m], A, of `L_i(p) = c_i + b_i exp(−Σ_j A_ij p_j)`; its rows average 0 over the domains.
    """

    irreducible: Float[Array, " n"]
    scale: Float[Array, " n"]
    interaction: Float[Array, "n m"]


def fit_log_linear(mixtures: ArrayLike, losses: ArrayLike, *, num_floors: int = 64) -> LogLinearFit:
    """Fits `L_i(p) = c_i + b_i exp(−Σ_j A_ij p_j)` to a table of runs, by a search over c.

    For a given c, `log(L − c)` is linear in p; its weighted least squares (weights (L − c)², so that errors count
    as they do in L) have a closed form. c is tried at `num_floors` even steps from 0 to 0.98 of the lowest loss.

    Args:
        mixtures: f[r, m], shares of r > m runs.
        losses: f[r, n] > 0, final losses of each run.
        num_floors: number of values tried.

    Numerics: a small ridge (1e-6 of the mean weight) decides what the table leaves open: a domain that no run drew
    gets an average row entry.
    """
    p, y = as_array(mixtures), as_array(losses)
    m = p.shape[1]

    def fit(column: Array, floor: Array) -> tuple[Array, Array]:
        weight = (column - floor) ** 2
        weight = weight / jnp.mean(weight)
        target = jnp.log(column - floor)
        centre = jnp.average(target, weights=weight)
        normal = (p * weight[:, None]).T @ p + 1e-6 * p.shape[0] * jnp.eye(m, dtype=p.dtype)
        slope = jnp.linalg.solve(normal, p.T @ (weight * (target - centre))) + centre
        error = jnp.mean((floor + jnp.exp(p @ slope) - column) ** 2)
        return slope, error

    def best(column: Array) -> tuple[Array, Array]:
        floors = jnp.linspace(0.0, 0.98, num_floors, dtype=p.dtype) * jnp.min(column)
        slopes, errors = jax.vmap(fit, in_axes=(None, 0))(column, floors)
        winner = jnp.argmin(errors)
        return floors[winner], slopes[winner]

    floors, slopes = jax.vmap(best, in_axes=1)(y)
    # On the simplex a constant in a row's slopes is a factor of its scale.
    level = jnp.mean(slopes, axis=1)
    return LogLinearFit(floors, jnp.exp(level), level[:, None] - slopes)


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
        losses: f[r, m], their final losses. A column of nan is a domain whose loss nobody measured: its loss stays
            nan, and its shares act on the others.
        num_steps: of a whole run.
        start_loss: nats, of an untrained model: above every loss in the table.
        noise, train_noise: see `World`.
    """
    y = as_array(losses)
    is_measured = ~jnp.any(jnp.isnan(y), axis=0)
    fit = fit_log_linear(mixtures, jnp.where(is_measured[None, :], y, 1.0))
    reducible = start_loss - fit.irreducible
    # b exp(−A p) = (start − c) exp(−(A + log((start − c) / b)) p) on the simplex.
    interaction = fit.interaction + jnp.log(reducible / fit.scale)[:, None]
    return log_linear_world(
        interaction,
        irreducible=jnp.where(is_measured, fit.irreducible, jnp.nan),
        reducible=reducible,
        num_steps=num_steps,
        noise=noise,
        train_noise=train_noise,
    )
