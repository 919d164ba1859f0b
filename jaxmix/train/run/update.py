"""One optimizer update, skipped where values are not finite."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmix.core.types import Array, Bool, Float
from jaxmix.train.lm.state import TrainState


class Update(NamedTuple):
    """The outcome of `guarded_update`.

    Attributes:
        state: after the step.
        grad_norm: global norm before clipping.
        is_finite: whether the update was made.
    """

    state: TrainState
    grad_norm: Float[Array, ""]
    is_finite: Bool[Array, ""]


def guarded_update(state: TrainState, loss: Array, grads: Any, optimizer: optax.GradientTransformation) -> Update:
    """Applies `optimizer` to `grads`, or counts the step as skipped where loss or gradient norm is not finite.

    Args:
        state: before the step; parameters and optimizer state stay as they are when the step is skipped.
        loss: f32[], that `grads` are of.
        grads: tree like `state.params`.
    """
    grad_norm = optax.tree.norm(grads)
    is_finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
    # optax mixes int32 counters with Python floats, which strict promotion would reject.
    with jax.numpy_dtype_promotion("standard"):
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    proposed = (optax.apply_updates(state.params, updates), opt_state)
    params, opt_state = jax.tree.map(
        lambda new, old: jnp.where(is_finite, new, old), proposed, (state.params, state.opt_state)
    )
    broken = 1 - is_finite.astype(jnp.int32)
    after = TrainState(
        step=state.step + 1,
        params=params,
        opt_state=opt_state,
        skipped=state.skipped + broken,
        consecutive_skipped=(state.consecutive_skipped + broken) * broken,
    )
    return Update(after, grad_norm, is_finite)
