"""Sums and means per domain, bit for bit the same on every run and backend."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxmix.core.types import Array, DomainIds, DomainVector, Float


def sum_by_domain(
    values: Float[Array, " b"] | Float[Array, "b t"], domain: DomainIds, num_domains: int
) -> DomainVector:
    """Sums the values of the rows of each domain: `out_k = Σ_{i: domain_i = k} Σ_t values_it`.

    Args:
        values: f[b] or f[b, t], one row per example; any float type.
        domain: i[b], the domain of each row. Rows with a number below 0 or ≥ `num_domains` contribute nothing,
            whatever their values are.
        num_domains: m, static.

    Returns:
        float32[m].

    Numerics: accumulates in float32. A product with one-hot rows and not a scatter-add, whose order of additions
    is not fixed on GPUs; at highest precision, because a matrix unit would round float32 to bfloat16 or TF32.
    A non-finite row makes only its own domain non-finite.
    """
    rows = values.astype(jnp.float32)
    if rows.ndim == 2:
        rows = jnp.sum(rows, axis=1)
    is_member = domain[:, None] == jnp.arange(num_domains, dtype=domain.dtype)[None, :]
    # 0 · inf is nan: non-finite rows are left out of the product, so that they affect their own domain alone.
    is_finite = jnp.isfinite(rows)
    total = jnp.einsum(
        "b,bm->m",
        jnp.where(is_finite, rows, 0.0),
        is_member.astype(jnp.float32),
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )
    spoiled = jnp.any(is_member & ~is_finite[:, None], axis=0)
    return jnp.where(spoiled, jnp.nan, total)


def mean_by_domain(sums: DomainVector, counts: DomainVector, fallback: DomainVector | float) -> DomainVector:
    """Returns `sums / counts`, and `fallback` for domains whose count is 0. Gradients are finite everywhere.

    Args:
        sums: f32[m].
        counts: f32[m] ≥ 0.
        fallback: f32[m] or a number, the mean of a domain that has no tokens.
    """
    is_present = counts > 0
    safe = jnp.where(is_present, counts, 1.0)
    return jnp.where(is_present, sums / safe, fallback)
