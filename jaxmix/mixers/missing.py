"""Values that are missing from an update: the last one is kept, and the mean of the others stands in before the first.

A domain has no new value when a step did not draw it or its validation loss was not measured. The mean of the others
moves it neither up nor down among them.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from jaxmix.core.segment import mean_by_domain
from jaxmix.core.types import Array, Bool, DomainVector

LARGEST = 1e30
"""Losses are clipped to ± this, so that sums over domains and evaluations stay finite in float32."""


def finite_or_nan(losses: DomainVector, dtype: Any) -> DomainVector:
    """Validation losses as `dtype`, within ± `LARGEST`; what is not finite becomes nan, "not measured"."""
    losses = losses.astype(dtype)
    return jnp.where(jnp.isfinite(losses), jnp.clip(losses, -LARGEST, LARGEST), jnp.nan)


def fresh_mean(sums: DomainVector, counts: DomainVector, dtype: Any) -> tuple[DomainVector, Bool[Array, " m"]]:
    """`(sums / counts, is_fresh)`: the mean over a step's tokens, and whether the domain has a finite one (else 0)."""
    is_fresh = (counts > 0) & jnp.isfinite(sums)
    mean = mean_by_domain(jnp.where(is_fresh, sums, 0.0).astype(dtype), counts.astype(dtype), 0.0)
    return jnp.clip(mean, -LARGEST, LARGEST), is_fresh


def keep_last(last: DomainVector, new: DomainVector) -> DomainVector:
    """`new`, and `last` where `new` is nan."""
    return jnp.where(jnp.isnan(new), last, new)


def mean_for_unknown(score: DomainVector, is_known: Bool[Array, " m"]) -> DomainVector:
    """The score, with the mean of the known ones where it is unknown; 0 if none is known."""
    count = jnp.sum(is_known.astype(score.dtype))
    mean = jnp.sum(jnp.where(is_known, score, 0.0)) / jnp.maximum(count, 1.0)
    return jnp.where(is_known, score, mean)
