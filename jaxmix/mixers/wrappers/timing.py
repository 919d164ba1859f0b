"""Wrappers that decide when the weights may change: from when on, how often, until when."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxmix.core.pytree import state
from jaxmix.core.types import Array, Int, Weights
from jaxmix.core.validate import check_number
from jaxmix.mixers.base import Feedback, Mixer, initial_weights
from jaxmix.mixers.wrappers.base import registry, wrapped


@state(version=1)
class WarmUpState:
    """Attributes:
    inner: the wrapped mixer's state.
    count: i32[], updates so far, at most the length of the warm-up.
    prior: f32[m] on the simplex.
    """

    inner: Any
    count: Int[Array, ""]
    prior: Weights


@registry.register
def warm_up(mixer: Mixer, updates: int, linear: bool = False) -> Mixer:
    """Draws by the prior until the inner mixer, which learns from the start, has had `updates` updates.

    Args:
        mixer: the inner mixer.
        updates: length of the warm-up; 0 does nothing. A state after `updates` updates is the first whose weights
            are the inner mixer's.
        linear: move from the prior to the inner mixer's weights q evenly instead of at once: after t updates the
            weights are `(1 − t/updates) prior + (t/updates) q`.
    """
    check_number("warm_up", "updates", updates, 0, below=2**31)

    def start(inner: Any, num_domains: int, prior: Weights | None) -> WarmUpState:
        return WarmUpState(inner=inner, count=jnp.int32(0), prior=initial_weights(num_domains, prior))

    def advance(state: WarmUpState, inner: Any, _: Feedback) -> WarmUpState:
        return WarmUpState(inner=inner, count=jnp.minimum(state.count + 1, updates), prior=state.prior)

    def weights(state: WarmUpState) -> Weights:
        own = mixer.weights(state.inner)
        prior = state.prior.astype(own.dtype)
        if linear:
            share = state.count.astype(own.dtype) / max(updates, 1)
            prior = prior + share * (own - prior)
        return jnp.where(state.count >= updates, own, prior)

    return wrapped(mixer, "warm_up", start=start, advance=advance, weights=weights)


@state(version=1)
class HoldState:
    """Attributes:
    inner: the wrapped mixer's state.
    count: i32[], updates since the weights last changed.
    held: f32[m] on the simplex.
    """

    inner: Any
    count: Int[Array, ""]
    held: Weights


@registry.register
def hold(mixer: Mixer, updates: int) -> Mixer:
    """Takes the inner mixer's weights at every `updates`-th update and keeps them in between.

    Args:
        mixer: the inner mixer; it learns at every update.
        updates: ≥ 1; 1 does nothing.
    """
    check_number("hold", "updates", updates, 1, below=2**31)

    def start(inner: Any, *_: Any) -> HoldState:
        return HoldState(inner=inner, count=jnp.int32(0), held=mixer.weights(inner))

    def advance(state: HoldState, inner: Any, _: Feedback) -> HoldState:
        count = (state.count + 1) % updates
        held = jnp.where(count == 0, mixer.weights(inner), state.held)
        return HoldState(inner=inner, count=count, held=held)

    return wrapped(mixer, "hold", start=start, advance=advance, weights=lambda state: state.held)


@state(version=1)
class FreezeAfterState:
    """Attributes:
    inner: the wrapped mixer's state; it stays as it is once frozen.
    count: i32[], updates so far, at most the number after which all stays.
    """

    inner: Any
    count: Int[Array, ""]


@registry.register
def freeze_after(mixer: Mixer, updates: int) -> Mixer:
    """Stops the mixer after `updates` updates: its weights, factors on losses and recommendation then stay.

    Do not stop a method that probes inside a sweep: choose a multiple of its round, or put `time_average` inside.

    Args:
        mixer: the inner mixer.
        updates: ≥ 0; 0 keeps the starting weights.
    """
    check_number("freeze_after", "updates", updates, 0, below=2**31)

    def start(inner: Any, *_: Any) -> FreezeAfterState:
        return FreezeAfterState(inner=inner, count=jnp.int32(0))

    def advance(state: FreezeAfterState, inner: Any, _: Feedback) -> FreezeAfterState:
        is_frozen = state.count >= updates
        inner = jax.tree.map(lambda old, new: jnp.where(is_frozen, old, new), state.inner, inner)
        return FreezeAfterState(inner=inner, count=jnp.minimum(state.count + 1, updates))

    return wrapped(mixer, "freeze_after", start=start, advance=advance)
