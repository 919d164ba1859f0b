"""Repeated data: what further epochs are worth, and caps on weights from a limit of epochs.

Muennighoff et al.: "Scaling Data-Constrained Language Models", arXiv 2305.16264.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxmix.core.errors import ConfigError
from jaxmix.core.types import Array, Float
from jaxmix.core.validate import Positive, checked

REPEAT_DECAY = 15.387756
"""R* of the paper: after about so many repetitions a token has lost 63 % of its worth."""

MAX_EPOCHS = 4.0
"""Up to so many passes over a domain the paper finds about the loss of as many new tokens."""


def effective_tokens(drawn: Any, available: Any, decay: float | Array = REPEAT_DECAY) -> Float[Array, "*r m"]:
    r"""Returns how many new tokens the drawn ones are worth.

    With D_j drawn and U_j available tokens of domain j, and R_j = D_j / U_j − 1 repetitions:

        D'_j = U_j + U_j R* (1 − exp(−R_j / R*))   where D_j > U_j,   else D_j

    Args:
        drawn: D, float[..., m], ≥ 0, any unit.
        available: U, [m], ≥ 0, in the unit of `drawn`; infinity for no limit. Tokens of a domain with U = 0 are
            worth nothing.
        decay: R*, > 0, repetitions.

    Returns:
        float[..., m], between 0 and `drawn`; differentiable, with a continuous derivative at D = U.

    Example:
        >>> [round(float(x), 3) for x in effective_tokens(jnp.array([1.0, 2.0, 100.0]), jnp.ones(3))]
        [1.0, 1.968, 16.363]

    References:
        arXiv 2305.16264, Equation 5 and the fitted constant of its section 6.
    """
    drawn = jnp.asarray(drawn)
    available = jnp.broadcast_to(jnp.asarray(available, drawn.dtype), drawn.shape)
    decay = jnp.asarray(decay, drawn.dtype)
    is_repeated = drawn > available
    # Where nothing is repeated the formula is fed harmless numbers, so that its derivative is finite too.
    unique = jnp.where(is_repeated & (available > 0), available, 1.0)
    repeats = jnp.where(is_repeated & (available > 0), drawn / unique - 1.0, 0.0)
    worth = unique * (1.0 - decay * jnp.expm1(-repeats / decay))
    return jnp.where(is_repeated, jnp.where(available > 0, worth, 0.0), drawn)


def effective_mixture(
    weights: Any, tokens: Any, available: Any, decay: float | Array = REPEAT_DECAY
) -> tuple[Float[Array, "*r m"], Float[Array, "*r"]]:
    """Returns the mixture and tokens of a run without repetition that is worth the same.

    The effective tokens D'_j of `effective_tokens(tokens · weights, available)` are put in place of D h_j:
    weights' = D' / Σ D' and tokens' = Σ D', so that every law takes them.

    Args:
        weights: float[..., m] on the simplex.
        tokens: [...], of the run, in the unit of `available`.
        available: [m], tokens there are.
        decay: R*.
    """
    weights = jnp.asarray(weights)
    total = jnp.broadcast_to(jnp.asarray(tokens, weights.dtype), weights.shape[:-1])
    worth = effective_tokens(total[..., None] * weights, available, decay)
    left = jnp.sum(worth, axis=-1)
    return worth / left[..., None], left


@checked
def caps_from_tokens(available_tokens: Any, tokens: Positive, max_epochs: Any) -> np.ndarray:
    """Returns the largest weight of each domain, float64[m]: `min(1, available · max_epochs / tokens)`.

    Args:
        available_tokens: [m], ≥ 0, billions; infinity for no limit.
        tokens: of the run, billions, > 0.
        max_epochs: one number or [m], > 0: passes allowed over each domain.

    Raises:
        ConfigError: numbers out of range, or caps that add up to less than 1: there are too few tokens for the run.
    """
    available = np.asarray(available_tokens, np.float64)
    epochs = np.broadcast_to(np.asarray(max_epochs, np.float64), available.shape)
    if available.ndim != 1 or np.isnan(available).any() or (available < 0).any():
        raise ConfigError(
            f"available tokens must be numbers >= 0, one per domain, got {available.tolist()}",
            where="caps_from_tokens(available_tokens)",
        )
    if not (epochs > 0).all():
        raise ConfigError(f"max_epochs must be > 0, got {max_epochs}", where="caps_from_tokens(max_epochs)")
    caps = np.minimum(available * epochs / tokens, 1.0)
    if caps.sum() < 1.0:
        raise ConfigError(
            f"{float((available * epochs).sum()):.6g} billion tokens may be drawn within the epochs allowed, and the "
            f"run takes {tokens:.6g}",
            where="caps_from_tokens",
            fix="Allow more epochs, take fewer tokens, or add data.",
        )
    return caps
