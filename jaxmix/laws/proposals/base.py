"""Proposals, and the checks of their constraints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float64

from jaxmix.core.errors import ConfigError, RunError
from jaxmix.core.validate import check_number
from jaxmix.laws.base import Law, Shape, check_available
from jaxmix.laws.checks import metric_shares, on_simplex


class Proposal(NamedTuple):
    """A mixture, and what the law expects of it.

    Attributes:
        weights: on the simplex, within the bounds.
        predicted: losses in nats, repetition included.
        objective: metric-weighted mean of `predicted`, plus the divergence from the prior.
        unconstrained_weights: what the law would choose without bounds, prior and limits of data.
        unconstrained_predicted: losses of that mixture.
        unconstrained_objective: their metric-weighted mean.
        converged: whether the best start ended at a stationary point; False for simulated candidates.
        gap: an upper bound of what is left to gain if the objective is convex; nan for simulated candidates.
        start_objectives: where each start ended; for candidates, the scores of those averaged.
    """

    weights: Float64[np.ndarray, " m"]
    predicted: Float64[np.ndarray, " e"]
    objective: float
    unconstrained_weights: Float64[np.ndarray, " m"]
    unconstrained_predicted: Float64[np.ndarray, " e"]
    unconstrained_objective: float
    converged: bool
    gap: float
    start_objectives: Float64[np.ndarray, " s"]


class Constraints(NamedTuple):
    """Checked arguments of a proposal.

    Attributes:
        shares: weights of the metrics, adding up to 1.
        prior: on the simplex.
        caps: ≤ 1; 0 where nothing is available, or where the prior is 0 and `kl_strength` is not.
        floors: ≥ 0.
        available: billions of tokens, inf where there is no limit.
    """

    shares: Float64[np.ndarray, " e"]
    prior: Float64[np.ndarray, " m"]
    caps: Float64[np.ndarray, " m"]
    floors: Float64[np.ndarray, " m"]
    available: Float64[np.ndarray, " m"]


def check_constraints(
    shape: Shape,
    *,
    metric_weights: Any,
    prior: Any,
    max_weights: Any,
    min_weights: Any,
    kl_strength: float,
    available_tokens: Any,
    names: Sequence[str] | None = None,
) -> Constraints:
    """Returns the constraints; raises `ConfigError` where an argument is out of range or no mixture is feasible.

    `names` are the domains', for errors.
    """
    m = shape.num_domains
    check_number("propose", "kl_strength", kl_strength, 0.0)
    shares = metric_shares(metric_weights, shape, "propose(metric_weights)")
    prior = on_simplex(np.ones(m) if prior is None else prior, m, "propose(prior)")
    available = np.full(m, np.inf) if available_tokens is None else check_available(available_tokens, m, "propose")
    floors = _bound("min_weights", min_weights, m)
    caps = np.minimum(_bound("max_weights", 1.0 if max_weights is None else max_weights, m), 1.0)
    caps = np.where((available > 0) & ((prior > 0) | (kl_strength == 0)), caps, 0.0)
    _check_bounds(caps, floors, range(m) if names is None else names)
    return Constraints(shares, prior, caps, floors, available)


def _bound(name: str, value: Any, m: int) -> np.ndarray:
    bound = np.asarray(value, np.float64)
    if bound.shape not in ((), (m,)) or np.isnan(bound).any() or (bound < 0).any():
        raise ConfigError(
            f"{name} must be one number >= 0 or {m} of them, got {bound.tolist()}", where=f"propose({name})"
        )
    return np.broadcast_to(bound, (m,)).copy()


def _check_bounds(caps: np.ndarray, floors: np.ndarray, names: Sequence[Any]) -> None:
    if (floors > caps).any():
        i = int(np.argmax(floors > caps))
        raise ConfigError(
            f"domain {names[i]} has floor {floors[i]:g} above cap {caps[i]:g}", where="propose(min_weights)"
        )
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
