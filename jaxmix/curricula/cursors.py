"""The prompts that slots of an arm take: without replacement within an epoch, in a new order every epoch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmix.core.errors import ConfigError
from jaxmix.core.pytree import state
from jaxmix.core.types import Array, Int, PRNGKeyArray

_ROUNDS = 6


@state(version=1)
class CursorState:
    """State of `prompt_cursors`.

    Attributes:
        key: the typed key that all orders come from.
        drawn: prompts taken from each arm so far: `drawn // size` is its epoch, `drawn % size` its cursor.
    """

    key: PRNGKeyArray
    drawn: Int[Array, " k"]


class PromptCursors(NamedTuple):
    """Cursors as a bundle of pure functions.

    Attributes:
        init: `(key) -> CursorState`.
        take: `(state, arms i32[b]) -> (prompts i32[b], state)`, the next prompt of each slot's arm. Slots of the
            same arm take successive ones. A slot whose arm is −1 or has no prompts gets −1 and moves nothing.
        sizes: prompts per arm.
    """

    init: Callable[[PRNGKeyArray], CursorState]
    take: Callable[[CursorState, Int[Array, " b"]], tuple[Int[Array, " b"], CursorState]]
    sizes: Int[Array, " k"]


def prompt_cursors(kept: Any) -> PromptCursors:
    """Cursors over the prompts of each arm.

    Every epoch of an arm is a permutation of all its prompts, a function of (key, arm, epoch) alone: the state is one
    number per arm, drawing is O(batch), and a restored state goes on exactly.

    Args:
        kept: i32[k, l], prompt numbers per arm, padded with −1 in any place, as `reduce` returns them.

    Returns:
        See `PromptCursors`; `take` is pure and may be jitted. Arms of up to 2³⁰ prompts.

    Example:
        >>> cursors = prompt_cursors(jnp.array([[7, 8, 9], [5, -1, -1]]))
        >>> state = cursors.init(jax.random.key(0))
        >>> prompts, state = cursors.take(state, jnp.array([0, 0, 1, 0]))
        >>> sorted(prompts.tolist()), int(prompts[2])
        ([5, 7, 8, 9], 5)
    """
    kept = jnp.asarray(kept, jnp.int32)
    if kept.ndim != 2:
        raise ConfigError(f"kept has shape {kept.shape}, expected [arms, prompts]", where="prompt_cursors(kept)")
    is_prompt = kept >= 0
    front = jnp.take_along_axis(kept, jnp.argsort(~is_prompt, axis=1, stable=True), axis=1)
    sizes = jnp.sum(is_prompt, axis=1, dtype=jnp.int32)
    num_arms = kept.shape[0]

    def init(key: PRNGKeyArray) -> CursorState:
        return CursorState(key=key, drawn=jnp.zeros((num_arms,), jnp.int32))

    def take(state: CursorState, arms: Int[Array, " b"]) -> tuple[Int[Array, " b"], CursorState]:
        arm = jnp.clip(arms, 0, num_arms - 1).astype(jnp.int32)
        size = sizes[arm]
        takes = (arms >= 0) & (arms < num_arms) & (size > 0)
        is_same = (arm[:, None] == arm[None, :]) & takes[None, :]
        turn = state.drawn[arm] + jnp.sum(jnp.tril(is_same, -1), axis=1, dtype=jnp.int32)
        safe = jnp.maximum(size, 1)
        place = jax.vmap(
            lambda number, epoch, cursor, length: shuffled_place(
                jax.random.fold_in(jax.random.fold_in(state.key, number), epoch), cursor, length
            )
        )(arm, turn // safe, turn % safe, safe)
        prompts = jnp.where(takes, front[arm, place], -1)
        drawn = state.drawn.at[jnp.where(takes, arm, num_arms)].add(1, mode="drop")
        return prompts, CursorState(key=state.key, drawn=drawn)

    return PromptCursors(init, take, sizes)


def shuffled_place(key: PRNGKeyArray, place: Int[Array, ""], size: Int[Array, ""]) -> Int[Array, ""]:
    """Where element `place` of 0 … size − 1 goes in a pseudo-random permutation, without writing the permutation down.

    A Feistel network permutes the numbers below the least 4^h ≥ size; a number that lands outside is sent through again
    (less than four times on average), which leaves a permutation of the rest.

    Args:
        key: decides the permutation.
        place: i32[] in [0, size).
        size: i32[] in [1, 2³⁰]; traced sizes do not recompile.
    """
    halves = jnp.arange(1, 16, dtype=jnp.int32)
    half = 1 + jnp.sum((1 << (2 * halves)) < size, dtype=jnp.int32)
    mask = ((1 << half) - 1).astype(jnp.uint32)
    shift = half.astype(jnp.uint32)
    round_keys = jax.random.bits(key, (_ROUNDS,), jnp.uint32)

    def shuffle(number: Array) -> Array:
        left, right = number >> shift, number & mask
        for i in range(_ROUNDS):
            left, right = right, left ^ (_scramble(right ^ round_keys[i]) & mask)
        return (left << shift) | right

    limit = size.astype(jnp.uint32)
    start = shuffle(place.astype(jnp.uint32))
    return jax.lax.while_loop(lambda number: number >= limit, shuffle, start).astype(jnp.int32)


def _scramble(x: Array) -> Array:
    """The finalizer of MurmurHash3: every input bit reaches every output bit."""
    x = (x ^ (x >> jnp.uint32(16))) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> jnp.uint32(13))) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> jnp.uint32(16))
