"""AdamW with a learning-rate schedule and gradient clipping."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from jaxmix.train.run.settings import LoopSettings


def learning_rate_schedule(
    kind: Literal["constant", "cosine", "linear"],
    *,
    peak: float,
    steps: int = 1,
    warmup_steps: int = 0,
    final_fraction: float = 1.0,
) -> optax.Schedule:
    """Linear warm-up from 0 to `peak`, then the named decay to `final_fraction` × `peak` at `steps`.

    Args:
        kind: of the decay; `constant` stays at `peak`, whatever `steps` and `final_fraction` are.
        peak: the largest learning rate, > 0.
        steps: length of the run in optimizer steps.
        warmup_steps: steps of warm-up. The first step's rate is `peak / warmup_steps`, not 0.
        final_fraction: in [0, 1].
    """

    def schedule(count: Any) -> jax.Array:
        position = jnp.asarray(count, jnp.float32)
        warmup = jnp.minimum((position + 1.0) / max(warmup_steps, 1), 1.0)
        progress = jnp.clip((position - warmup_steps) / max(steps - warmup_steps, 1), 0.0, 1.0)
        if kind == "cosine":
            decay = final_fraction + (1.0 - final_fraction) * 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
        elif kind == "linear":
            decay = 1.0 - (1.0 - final_fraction) * progress
        else:
            decay = jnp.ones_like(progress)
        return peak * warmup * decay

    return schedule


def build_optimizer(settings: LoopSettings, schedule: optax.Schedule) -> optax.GradientTransformation:
    """AdamW behind global-norm clipping (`clip_norm` 0 switches clipping off).

    Decay acts on matrices only: parameters called `scale` or `bias`, and vectors, are left out.
    """
    adamw = optax.adamw(
        schedule,
        b1=settings.beta1,
        b2=settings.beta2,
        eps=settings.epsilon,
        weight_decay=settings.weight_decay,
        mask=_is_matrix,
    )
    return optax.chain(optax.clip_by_global_norm(settings.clip_norm), adamw) if settings.clip_norm > 0 else adamw


def _is_matrix(params: Any) -> Any:
    def decays(path: Any, leaf: Any) -> bool:
        name = jax.tree_util.keystr(path[-1:], simple=True)
        return leaf.ndim >= 2 and name not in ("scale", "bias")

    return jax.tree_util.tree_map_with_path(decays, params)
