"""AdamW with a learning-rate schedule and clipping, from plain settings."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxmix.core.errors import ConfigError, nearest

SCHEDULES = ("constant", "cosine", "linear")


def learning_rate_schedule(
    kind: str, *, peak: float, steps: int, warmup_steps: int, final_fraction: float
) -> optax.Schedule:
    """Linear warm-up from 0 to `peak`, then the named decay to `final_fraction` × `peak` at `steps`.

    Args:
        kind: one of `SCHEDULES`; `constant` stays at `peak`.
        peak: the largest learning rate, > 0.
        steps: length of the run in optimizer steps.
        warmup_steps: steps of warm-up, below `steps`. The first step's rate is `peak / warmup_steps`, not 0.
        final_fraction: in [0, 1].
    """
    if kind not in SCHEDULES:
        raise ConfigError(f"unknown schedule {kind!r}", where="train.schedule", fix=nearest(kind, SCHEDULES))

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


def build_optimizer(
    schedule: optax.Schedule, *, beta1: float, beta2: float, eps: float, weight_decay: float, clip_norm: float
) -> optax.GradientTransformation:
    """AdamW behind global-norm clipping (`clip_norm` 0 switches clipping off).

    Decay acts on matrices only: parameters called `scale` or `bias`, and vectors, are left out.
    """
    adamw = optax.adamw(schedule, b1=beta1, b2=beta2, eps=eps, weight_decay=weight_decay, mask=_is_matrix)
    return optax.chain(optax.clip_by_global_norm(clip_norm), adamw) if clip_norm > 0 else adamw


def optimizer_with(settings: Any, schedule: optax.Schedule) -> optax.GradientTransformation:
    """`build_optimizer` with the fields that the settings of every loop have."""
    return build_optimizer(
        schedule,
        beta1=settings.beta1,
        beta2=settings.beta2,
        eps=settings.epsilon,
        weight_decay=settings.weight_decay,
        clip_norm=settings.clip_norm,
    )


def _is_matrix(params: Any) -> Any:
    def decays(path: Any, leaf: Any) -> bool:
        name = jax.tree_util.keystr(path[-1:], simple=True)
        return leaf.ndim >= 2 and name not in ("scale", "bias")

    return jax.tree_util.tree_map_with_path(decays, params)
