"""Sampling candidates by score: Gumbel top-k, or the best, within what each domain has left of its quota."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxmix.core.types import Array, Bool, Float, Int, PRNGKeyArray
from jaxmix.selection.candidates import Candidates


def sample(
    key: PRNGKeyArray,
    score: Float[Array, " c"],
    free: Bool[Array, " c"],
    candidates: Candidates,
    *,
    size: int,
    gain: Float[Array, ""],
    greedy: bool,
    uniform: Bool[Array, ""] | bool = False,
    domain: Int[Array, " n"] | None = None,
    room: Int[Array, " m"] | None = None,
) -> Int[Array, " k"]:
    r"""Samples `size` of the free candidates without replacement, one after the other from `softmax(gain · score)`.

        indices = top-k of  gain · score_i + Gumbel_i   over the free rows

    which is the Plackett–Luce law, without probabilities and without overflow. Greedy takes the best scores instead,
    ties in random order: a prefix of the super-batch would be a bad batch.

    Args:
        key: for the noise, or the ties. The noise does not depend on how candidates are split over devices.
        score: of the candidates on this device. A score that is not finite counts as the lowest.
        free: which of these may be drawn.
        candidates: how they lie on devices.
        size: k.
        gain: factor on the score, ≥ 0.
        greedy: no noise.
        uniform: draw without regard to the score.
        domain: i32[n], of all candidates.
        room: how many may still be drawn of each domain; rows of a domain outside [0, m) are not drawn.

    Returns:
        i32[k], global numbers, in the order drawn; −1 where candidates or room ran out.
    """
    lowest, highest = jnp.finfo(score.dtype).min, jnp.finfo(score.dtype).max
    value = jnp.clip(gain * jnp.where(jnp.isfinite(score), score, lowest), lowest, highest)
    value = jnp.where(uniform, jnp.zeros_like(value), value)
    noisy = value + candidates.local_part(jax.random.gumbel(key, (candidates.total,), value.dtype))
    value = jnp.where(free, jnp.where(uniform, noisy, value) if greedy else noisy, -jnp.inf)
    if greedy:
        order = jax.random.permutation(jax.random.fold_in(key, 1), candidates.total)
        value = candidates.gather(value)[order]
        if room is not None and domain is not None:
            value = _within_room(value, domain[order], room)
        found = top_rows(value, size)
        return jnp.where(found < 0, -1, order[found])
    if room is not None and domain is not None:
        return top_rows(_within_room(candidates.gather(value), domain, room), size)
    if candidates.shards * min(size, candidates.local_count) * 2 < candidates.total:
        # Each device offers its best. They are gathered in global order, so ties resolve as on one device.
        top, at = jax.lax.top_k(value, min(size, candidates.local_count))
        top, at = candidates.gather(top), candidates.gather(candidates.local_indices()[at])
        found = top_rows(top, size)
        return jnp.where(found < 0, -1, at[found])
    return top_rows(candidates.gather(value), size)


def top_rows(value: Float[Array, " c"], size: int) -> Int[Array, " k"]:
    """The rows of the `size` largest values, −1 for those that are −inf."""
    top, index = jax.lax.top_k(value, size)
    return jnp.where(top > -jnp.inf, index, -1)


def count_by_domain(domain: Int[Array, " c"], drawn: Int[Array, " k"], num_domains: int) -> Int[Array, " m"]:
    """How many of the rows `drawn` (−1: none) each domain has."""
    of_drawn = jnp.where(drawn >= 0, domain[jnp.maximum(drawn, 0)], -1)
    place = jnp.where((of_drawn >= 0) & (of_drawn < num_domains), of_drawn, num_domains)
    return jnp.zeros((num_domains,), jnp.int32).at[place].add(1, mode="drop")


def _within_room(value: Float[Array, " c"], domain: Int[Array, " c"], room: Int[Array, " m"]) -> Float[Array, " c"]:
    """−inf for all but the best `room` of each domain."""
    position = jnp.arange(value.shape[0], dtype=jnp.int32)
    by_domain, _, row = jax.lax.sort((domain, -value, position), num_keys=2, is_stable=True)
    is_first = jnp.concatenate([jnp.ones((1,), bool), by_domain[1:] != by_domain[:-1]])
    start = jax.lax.cummax(jnp.where(is_first, position, 0))
    rank = jnp.zeros_like(position).at[row].set(position - start)
    is_known = (domain >= 0) & (domain < room.shape[0])
    limit = jnp.where(is_known, room[jnp.clip(domain, 0, room.shape[0] - 1)], 0)
    return jnp.where(rank < limit, value, -jnp.inf)
