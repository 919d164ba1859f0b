"""What a proposal is, and the checks that all ways of making one share."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmix.core.errors import ConfigError, RunError
from jaxmix.laws.base import Law

__all__ = ["Proposal", "available_or_inf", "bounds", "check_bounds", "not_finite", "weighted_mean"]


class Proposal(NamedTuple):
    """A mixture, and what the law expects of it.

    Attributes:
        weights: float64[m] on the simplex, within the bounds.
        predicted: float64[e], losses in nats, repetition counted in.
        objective: metric-weighted mean of `predicted`, plus the divergence from the prior.
        unconstrained_weights: float64[m], what the law would choose without bounds, prior and limits of data.
        unconstrained_predicted: float64[e].
        unconstrained_objective: metric-weighted mean of it.
        converged: whether the best start ended at a stationary point; False for simulated candidates.
        gap: an upper bound of what is left to gain if the objective is convex; nan for simulated candidates.
        start_objectives: float64[s], where each start ended; for candidates, the scores of those averaged.
    """

    weights: np.ndarray
    predicted: np.ndarray
    objective: float
    unconstrained_weights: np.ndarray
    unconstrained_predicted: np.ndarray
    unconstrained_objective: float
    converged: bool
    gap: float
    start_objectives: np.ndarray


def available_or_inf(available_tokens: Any, m: int) -> np.ndarray:
    if available_tokens is None:
        return np.full(m, np.inf)
    values = np.asarray(available_tokens, np.float64)
    if values.shape != (m,) or np.isnan(values).any() or (values < 0).any():
        raise ConfigError(
            f"available_tokens must be {m} numbers >= 0, got {values.tolist()}", where="propose(available_tokens)"
        )
    return values


def bounds(max_weights: Any, min_weights: Any, available: np.ndarray, m: int) -> tuple[np.ndarray, np.ndarray]:
    bounds = []
    for name, value in (("max_weights", 1.0 if max_weights is None else max_weights), ("min_weights", min_weights)):
        bound = np.asarray(value, np.float64)
        if bound.shape not in ((), (m,)) or np.isnan(bound).any() or (bound < 0).any():
            raise ConfigError(
                f"{name} must be one number >= 0 or {m} of them, got {bound.tolist()}", where=f"propose({name})"
            )
        bounds.append(np.broadcast_to(bound, (m,)).copy())
    caps, floors = bounds
    return np.where(available > 0, np.minimum(caps, 1.0), 0.0), floors


def check_bounds(caps: np.ndarray, floors: np.ndarray) -> None:
    if (floors > caps).any():
        i = int(np.argmax(floors > caps))
        raise ConfigError(f"domain {i} has floor {floors[i]} above cap {caps[i]}", where="propose(min_weights)")
    for name, total, is_bad in (
        ("max_weights", caps.sum(), caps.sum() < 1 - 1e-12),
        ("min_weights", floors.sum(), floors.sum() > 1 + 1e-12),
    ):
        if is_bad:
            raise ConfigError(
                f"{name} add up to {total:.6g}: no mixture keeps them",
                where=f"propose({name})",
                fix="Raise the caps." if name == "max_weights" else "Lower the floors.",
            )


def not_finite(law: Law) -> RunError:
    return RunError(
        f"law {law.name!r} predicts no finite loss for any mixture within the bounds",
        where="propose",
        fix="A law may be infinite where a domain's weight is 0: raise that cap above 0, or take another law.",
    )


def weighted_mean(shares: Any, losses: Any) -> Any:
    """Σ w L over metrics that count; a metric of weight 0 may have any loss."""
    module = jnp if isinstance(losses, jax.Array) else np
    return module.sum(shares * module.where(shares > 0, losses, 0.0))
