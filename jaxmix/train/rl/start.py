"""A supervised start: the policy learns from reference answers before it is rewarded for its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxmix.core.errors import ConfigError
from jaxmix.core.sharding import batch_sharding, build_mesh, replicated, use_mesh
from jaxmix.core.validate import check_count, check_number
from jaxmix.curricula.base import check_per_arm
from jaxmix.curricula.cursors import prompt_cursors
from jaxmix.data.tasks.prompts import PromptSet, answer_length
from jaxmix.models.base import Model
from jaxmix.models.lm.generation import is_prompt_token
from jaxmix.train.lm.state import TrainState, init_train_state, train_state_shardings
from jaxmix.train.run.optimizer import build_optimizer, learning_rate_schedule
from jaxmix.train.run.settings import LoopSettings
from jaxmix.train.run.update import guarded_update


def warm_start(
    model: Model,
    prompts: PromptSet,
    *,
    key: Any,
    steps: int,
    batch_size: int,
    learning_rate: float,
    arm_weights: Sequence[float] | None = None,
    mesh: Mesh | None = None,
    report: Callable[[int, float], None] | None = None,
) -> Any:
    """Trains a fresh model on prompts with their reference answers, and returns its parameters.

        minimize mean −log p(answer token | prompt, answer so far)

    over the tokens of the answers up to and including their ends; prompts and padding carry no loss. Adam at a constant
    rate, gradients clipped at norm 1. Each row takes an arm with probability ∝ `arm_weights` and the next prompt of a
    shuffled pass over it. One compiled program.

    Args:
        model: with `decoding`.
        prompts: with `targets`.
        key: typed; decides parameters and batches.
        steps: ≥ 1.
        batch_size: rows of a step, a multiple of the devices.
        learning_rate: > 0.
        arm_weights: ≥ 0, one per arm; those of arms without prompts must be 0. None: every arm that has prompts alike.
        mesh: all devices along "data" by default.
        report: called with step and loss, ten times.

    Raises:
        ConfigError: no targets, weights that do not fit the arms, numbers outside their ranges.
    """
    check_count("warm_start", "steps", steps)
    check_count("warm_start", "batch_size", batch_size)
    check_number("warm_start", "learning_rate", learning_rate, above=0.0)
    if model.decoding is None:
        raise ConfigError("this model cannot score answers", where="warm_start(model)")
    if prompts.targets is None:
        raise ConfigError(
            "the prompts have no reference answers", where="warm_start(prompts)", fix="Start from other parameters."
        )
    table = prompts.rows_by_arm()
    has_prompts = (table >= 0).any(axis=1)
    weights = np.asarray(
        has_prompts
        if arm_weights is None
        else check_per_arm("warm_start", "arm_weights", arm_weights, len(table), 0.0),
        np.float32,
    )
    if weights.sum() <= 0 or (weights[~has_prompts] > 0).any():
        raise ConfigError("weights must be on arms that have prompts", where="warm_start(arm_weights)")
    mesh = build_mesh() if mesh is None else mesh
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size % shards:
        raise ConfigError(
            f"a batch of {batch_size} rows cannot be divided over {shards} devices",
            where="warm_start(batch_size)",
            fix=f"Use a multiple of {shards}.",
        )
    score = model.decoding.score
    cursors = prompt_cursors(table)
    length = np.minimum(answer_length(prompts.targets, prompts.eos_id), prompts.completion_length)
    counted = np.arange(prompts.completion_length) < length[:, None]
    settings = LoopSettings(beta2=0.999, weight_decay=0.0, clip_norm=1.0)
    optimizer = build_optimizer(settings, learning_rate_schedule("constant", peak=learning_rate))

    def step(train: TrainState, places: Any, key: Any, data: dict[str, Any]) -> tuple[TrainState, Any, Any]:
        drawn = jax.random.categorical(jax.random.fold_in(key, train.step), data["weights"], shape=(batch_size,))
        rows, places = cursors.take(places, drawn.astype(jnp.int32))
        take = lambda name: jax.lax.with_sharding_constraint(data[name][rows], batch_sharding(mesh))
        tokens, answers, mask = take("tokens"), take("targets"), take("counted")

        def loss(params: Any) -> Any:
            logp = score(params, tokens, is_prompt_token(tokens, prompts.pad_id), answers[:, None], mask[:, None])
            return -jnp.sum(logp) / jnp.sum(mask, dtype=jnp.float32)

        value, grads = jax.value_and_grad(loss)(train.params)
        return guarded_update(train, value, grads, optimizer).state, places, value

    whole = replicated(mesh)
    advance = jax.jit(
        step, donate_argnums=(0, 1), out_shardings=(train_state_shardings(model, optimizer, mesh), whole, whole)
    )
    with np.errstate(divide="ignore"):
        logits = np.log(weights)
    data: Any = {"tokens": prompts.tokens, "targets": prompts.targets, "counted": counted, "weights": logits}
    init_key, cursor_key, arm_key = jax.random.split(key, 3)
    with use_mesh(mesh):
        data = jax.device_put(data, whole)
        arm_key = jax.device_put(arm_key, whole)
        train = init_train_state(init_key, model, optimizer, mesh)
        places = jax.device_put(cursors.init(cursor_key), whole)
        for number in range(steps):
            train, places, value = advance(train, places, arm_key, data)
            if report is not None and (number + 1) % max(steps // 10, 1) == 0:
                report(number + 1, float(value))
    return train.params
