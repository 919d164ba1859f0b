"""Helpers for gradient signals: which domains were measured, their norms, and a running scale.

A domain that the measured step did not draw has a zero row and column in every gradient signal.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from jaxmix.core.errors import ConfigError
from jaxmix.core.types import Array, Bool, DomainVector, Float, Weights
from jaxmix.core.validate import check_one_per_domain, check_simplex

LARGEST = 1e30
"""Scores are cut here, far beyond what a step can act on, so that float32 holds their sums."""


def is_measured(rows: Float[Array, "m n"] | Float[Array, " m"]) -> Bool[Array, " m"]:
    """Which domains have a finite row that is not all zeros."""
    rows = rows[:, None] if rows.ndim == 1 else rows
    return jnp.any(rows != 0, axis=1) & jnp.all(jnp.isfinite(rows), axis=1)


def squared_norms(gram: Any, name: str) -> DomainVector:
    """The diagonal of `gradient_alignment` f32[m, m]: 0 for a domain that was not drawn or is not finite."""
    if gram.ndim != 2:
        raise ConfigError(
            f"mixer {name!r} needs the norms of the domains' gradients, on the diagonal of gradient_alignment "
            f"[m, m], and got the shape {gram.shape}",
            where="Feedback.gradient_alignment",
            fix="Measure all inner products between domains.",
        )
    diagonal = jnp.diagonal(gram)
    return jnp.where((diagonal > 0) & jnp.isfinite(diagonal), diagonal, 0.0)


def masked_mean(values: DomainVector, mask: Bool[Array, " m"]) -> Float[Array, ""]:
    """Mean of the values under the mask; 0 if there are none. Divided first, so that large values stay finite."""
    count = jnp.maximum(jnp.sum(mask.astype(values.dtype)), 1.0)
    return jnp.sum(jnp.where(mask, values, 0.0) / count)


def running_scale(scale: Float[Array, ""], now: Float[Array, ""], decay: float) -> Float[Array, ""]:
    """`decay · scale + (1 − decay) · now`; the first value > 0 is taken as it is, a value of 0 changes nothing."""
    moved = jnp.where(scale > 0, decay * scale + (1.0 - decay) * now, now)
    return jnp.where(now > 0, moved, scale)


def bounded(score: Array) -> Array:
    """The score within ±1e30."""
    return jnp.clip(score, -LARGEST, LARGEST)


def weigh_targets(alignment: Float[Array, "m n"], targets: Float[Array, " n"]) -> DomainVector:
    """`Σ_i targets_i · alignment_ji`, which stays finite for entries up to ±1e30."""
    return jnp.sum(alignment * targets[None, :], axis=1)


def target_row(weights: Sequence[float] | None, like: Weights, where: str) -> Weights:
    """The checked weights of the evaluation domains, as many as `like` has; uniform if `None`."""
    if weights is None:
        return jnp.full_like(like, 1.0 / like.shape[0])
    check_one_per_domain(len(weights), like.shape[0], where)
    row = jnp.asarray(check_simplex(list(weights), where), like.dtype)
    return row / jnp.sum(row)
