"""M-steps: the state that maximizes F for given sums, in closed form."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxmix.clustering.base import GemState, Sums
from jaxmix.core.special import inverse_bessel_ratio, log_vmf_normalizer
from jaxmix.core.types import Array

_SHORT = 1e-12
"""A resultant shorter than this has no direction."""


@functools.partial(jax.jit, static_argnames=("rule", "learned_weights"))
def maximize(
    state: GemState, sums: Sums, max_concentration: Any, *, rule: str, learned_weights: bool = False
) -> GemState:
    r"""The M-step (16)–(21).

        μ_k = S1_k / |S1_k|,     R_k = |S1_k| / S0_k
        soft:       A_d(κ_k) = R_k by Newton's method, clipped to [0, κ_max];   b_k = log(K S0_k) if weights are learned
        cosine:     A_d(κ) = Σ_k |S1_k|, one κ for all
        distance:   c_k = S1_k / S0_k,  s = d / Σ w|x − c|²,   κ_k = s |c_k|,   g(κ_k) + b_k = −s |c_k|² / 2

    S0 = `sums.mass` and S1 = `sums.resultant` over the weight in all. The concentration objective
    `S0_k [κ R_k + g(κ)]` is concave, so clipping its maximizer gives the maximizer on the interval. A cluster whose
    |S1_k| is below 1e-12 keeps its direction and gets κ_k = 0 (soft) or nothing at all (hard).
    """
    dtype = state.mean_directions.dtype
    k, d = state.mean_directions.shape
    mass, resultant = sums.mass / sums.weight, sums.resultant / sums.weight
    length = jnp.sqrt(jnp.sum(resultant * resultant, axis=1))
    has_direction = length > _SHORT
    safe = jnp.where(has_direction, length, 1)
    directions = jnp.where(has_direction[:, None], resultant / safe[:, None], state.mean_directions)
    ratio = jnp.where(has_direction, jnp.minimum(length / jnp.where(has_direction, mass, 1), 1), 0)
    clip = lambda kappa: jnp.clip(kappa, 0, jnp.asarray(max_concentration, dtype))
    if rule == "soft":
        kappa = clip(inverse_bessel_ratio(ratio, d))
        learned = jnp.log(jnp.maximum(k * mass, jnp.finfo(dtype).tiny))
        return GemState(directions, kappa, learned if learned_weights else state.biases)
    if rule == "cosine":
        shared = clip(inverse_bessel_ratio(jnp.minimum(jnp.sum(length), 1), d))
        return GemState(directions, jnp.full((k,), shared), jnp.zeros((k,), dtype))
    scale = d / jnp.maximum(1 - jnp.sum(length * ratio), jnp.finfo(dtype).eps)
    reach = jnp.where(has_direction, ratio, 1)  # a centroid that nobody chose lies on the sphere
    kappa = scale * reach
    return GemState(directions, kappa, -0.5 * scale * reach**2 - log_vmf_normalizer(kappa, d))


def expected_value(state: GemState, sums: Sums, *, learned_weights: bool) -> Array:
    """The part of F that depends on the state: `Σ_k κ_k μ_k·S1_k + S0_k (g(κ_k) + log K α_k)` (22)."""
    normalizer = log_vmf_normalizer(state.concentrations, state.mean_directions.shape[1])
    if learned_weights:
        normalizer = normalizer + state.biases
    along = state.concentrations * jnp.sum(state.mean_directions * sums.resultant, axis=1)
    return jnp.sum(along + sums.mass * normalizer) / sums.weight


def hard_objective(sums: Sums, rule: str) -> Array:
    """F of a hard clusterer after its M-step: the mean cosine, or minus the mean squared distance."""
    length = jnp.sqrt(jnp.sum(sums.resultant**2, axis=1)) / sums.weight
    if rule == "cosine":
        return jnp.sum(length)
    mass = sums.mass / sums.weight
    return jnp.sum(length * length / jnp.where(mass > 0, mass, 1)) - 1
