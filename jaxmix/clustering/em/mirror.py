r"""The E-step that the paper's sources describe: majorization and mirror ascent (4)–(8), kept for comparison.

Around γ^t the penalty is at least a separable function of the rows (Jensen on |Σ w_i (γ_i − γ_i^t)|²), so each row has

    s_i(γ) = ⟨γ, l_i − λ(π_t − u)⟩ + H(γ) − (λ/2) |γ − γ_i^t|²                                        (6)

and a mirror step with η = 1/(1 + λ/2) never lowers it:

    q ← (1 − η) q + η [l_i − λ(π_t − u) − λ(e^q − γ_i^t)],    q ← q − logsumexp(q),    q = log γ        (7)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxmix.clustering.base import GemState, Sums
from jaxmix.clustering.em.block_sums import HIGHEST, as_rows, by_blocks, linear_rule
from jaxmix.clustering.em.dual import Penalty
from jaxmix.core.types import Array


def mirror_pass(
    state: GemState,
    x: Array,
    sample_weight: Array,
    table: Any,
    penalty: Penalty,
    total: Array,
    add: Callable[[Any], Any],
    num_steps: int,
) -> tuple[Sums, Array, Array]:
    """(sums, new table, F after the E-step), from the log posterior weights `table` [n, k] of the iteration before."""
    slopes, offsets = linear_rule(GemState(state.mean_directions, state.concentrations, jnp.zeros_like(state.biases)))
    k, d = slopes.shape
    dtype, strength = slopes.dtype, penalty.strength
    zero = jnp.zeros((), dtype)

    def old_mass(weights: Array, rows: Array) -> tuple[Array, None]:
        return jnp.sum(weights[:, None] * jnp.exp(rows), axis=0), None

    mass = add(by_blocks(old_mass, (table,), sample_weight, None, jnp.zeros((k,), dtype))[0])
    pull = strength * (mass / total - penalty.target)
    rate = 1 / (1 + 0.5 * strength)

    def block(weights: Array, x: Array, old: Array) -> tuple[tuple[Array, Array, Array], Array]:
        rows = as_rows(x, dtype)
        logits = jnp.matmul(rows, slopes.T, precision=HIGHEST) + offsets[None, :]
        before = jnp.exp(old)

        def ascend(_: Any, log_weights: Array) -> Array:
            slope = logits - pull[None, :] - strength * (jnp.exp(log_weights) - before)
            return jax.nn.log_softmax((1 - rate) * log_weights + rate * slope, axis=1)

        log_weights = jax.lax.fori_loop(0, num_steps, ascend, old)
        posterior = jnp.exp(log_weights)
        weighted = weights[:, None] * posterior
        value = jnp.sum(weighted * (logits - log_weights))
        resultant = jnp.matmul(weighted.T, rows, precision=HIGHEST)
        return (value, jnp.sum(weighted, axis=0), resultant), log_weights

    zeros = zero, jnp.zeros((k,), dtype), jnp.zeros((k, d), dtype)
    found, table = by_blocks(block, (x, table), sample_weight, table, zeros)
    value, mass, resultant = add(found)
    off = mass / total - penalty.target
    objective = value / total - jnp.log(jnp.asarray(dtype.type(k))) - 0.5 * strength * jnp.sum(off**2)
    return Sums(total, total, value, mass, resultant, jnp.zeros((k, k), dtype)), table, objective
