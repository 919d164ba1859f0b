"""Derivatives of the capacity law by hand: one pass instead of forty of forward mode.

Domains touch each other only through the multiplier ν of the allocation, so that the derivative of metric i by the
exponent or scale of domain j is a diagonal and a product: (what ν does to i) × (what j does to ν).
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from jaxmix.core.types import Array


def size_columns(
    log_size: Array, exponent: Array, log_scale: Array, log_head: Array, own: np.ndarray
) -> tuple[Array, dict[str, Array]]:
    """The capacity term c x^{−b} [r, e] and its derivatives by log b, log c [e, m, r] and log H [e, 1, r].

    With F the domains above the head, p = 1 / (1 + b), S = Σ_F x p, π = x p / S on F, and n the number at the head:

        dν = Σ_F π_j ((1 − b_j log x_j) dlog b_j + dlog c_j) + (n − (m − 1)) H / S dlog H

    Args:
        log_size: log x, [r, m].
        exponent: b, [m].
        log_scale: log c, [m].
        log_head: log H, [r, 1].
        own: domain of each metric [e], −1 if none.
    """
    m = log_size.shape[1]
    free = (log_size > log_head).astype(log_size.dtype)
    power = 1.0 / (1.0 + exponent)
    weighted = jnp.exp(log_size) * power[None, :] * free
    total = jnp.maximum(jnp.sum(weighted, axis=1, keepdims=True), jnp.finfo(log_size.dtype).tiny)
    share = weighted / total
    by_exponent = share * (1.0 - exponent[None, :] * log_size)
    clipped = m - jnp.sum(free, axis=1, keepdims=True)
    by_head = (clipped - (m - 1)) * jnp.exp(log_head) / total

    term = jnp.exp(log_scale[None, :] - exponent[None, :] * log_size)[:, own]
    term = jnp.where(own[None, :] >= 0, term, 0.0)
    b, p, log_x, is_free = exponent[own][None, :], power[own][None, :], log_size[:, own], free[:, own]
    coupling = term * b * p * is_free
    is_own = jnp.asarray(own[:, None] == np.arange(m)[None, :], term.dtype)[:, :, None]
    alone_scale = term * (1.0 - b * p * is_free)
    alone_exponent = -term * b * (log_x + p * is_free * (1.0 - b * log_x))
    outer = lambda by: by.T[None] * coupling.T[:, None, :]
    return term, {
        "scale": outer(share) + is_own * alone_scale.T[:, None, :],
        "exponent": outer(by_exponent) + is_own * alone_exponent.T[:, None, :],
        "head": (coupling * by_head - (1.0 - is_free) * b * term).T[:, None, :],
    }


def noise_columns(noise: Array, amount: Array, noise_exponent: Array) -> dict[str, Array]:
    """Derivatives [r, e] of A (D m)^{−a}: by log A, by a, and by m relative to m."""
    return {
        "log_scale": noise,
        "exponent": -noise * jnp.log(amount),
        "log_amount": -noise * noise_exponent[None, :],
    }
