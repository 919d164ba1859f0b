"""The jitted functions of a run. Runs with equal shapes share them and compile once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from jaxmix.core.sharding import replicated
from jaxmix.mixers.base import Feedback, Mixer
from jaxmix.models.base import Model
from jaxmix.train.evaluate import build_evaluate
from jaxmix.train.optimizer import build_optimizer, learning_rate_schedule
from jaxmix.train.settings import TrainSettings
from jaxmix.train.state import RunState, train_state_shardings
from jaxmix.train.step import build_train_step

__all__ = ["MixerPrograms", "Programs", "build_mixer_programs", "build_programs"]


class Programs(NamedTuple):
    """Everything compiled that does not depend on the mixer.

    Attributes:
        train_step: see `build_train_step`.
        evaluate: see `build_evaluate`.
        learning_rate: step → rate, jitted.
        optimizer: the transformation inside `train_step`.
        mesh: where it all runs.
    """

    train_step: Callable[..., Any]
    evaluate: Callable[..., jax.Array]
    learning_rate: optax.Schedule
    optimizer: optax.GradientTransformation
    mesh: Mesh


def build_programs(model: Model, settings: TrainSettings, *, num_domains: int, mesh: Mesh) -> Programs:
    """Builds the train step, the evaluation and the optimizer for one model, mesh and number of domains."""
    schedule = learning_rate_schedule(
        settings.schedule,
        peak=settings.learning_rate,
        steps=settings.steps,
        warmup_steps=settings.warmup,
        final_fraction=settings.final_fraction,
    )
    optimizer = build_optimizer(
        schedule,
        beta1=settings.beta1,
        beta2=settings.beta2,
        eps=settings.epsilon,
        weight_decay=settings.weight_decay,
        clip_norm=settings.clip_norm,
    )
    train_step = build_train_step(
        model.apply,
        optimizer,
        num_domains=num_domains,
        normalisation=settings.loss_normalisation,
        accumulate=settings.accumulate,
        out_shardings=(train_state_shardings(model, optimizer, mesh), replicated(mesh)),
    )
    return Programs(
        train_step, build_evaluate(model.apply, num_domains=num_domains, mesh=mesh), jax.jit(schedule), optimizer, mesh
    )


class MixerPrograms(NamedTuple):
    """A mixer's update and readout, jitted.

    Attributes:
        advance: `(run_state, feedback, step) -> (mixer_state, pending, info)` after step `step`; `info` is None when
            no update was due.
        weights: `(mixer_state) -> f32[m]`.
        is_blind: the mixer needs no signal, so that its weights are known before the step they follow has run.
    """

    advance: Callable[[RunState, Feedback, int], tuple[Any, Feedback, Any]]
    weights: Callable[[Any], jax.Array]
    is_blind: bool


def build_mixer_programs(mixer: Mixer, mesh: Mesh) -> MixerPrograms:
    """Jits a mixer for the loop. Each program compiles once; a mixer that updates at every step has two."""
    everywhere = replicated(mesh)

    @partial(jax.jit, out_shardings=everywhere)
    def add(pending: Feedback, feedback: Feedback) -> Feedback:
        return jax.tree.map(jnp.add, pending, feedback)

    @partial(jax.jit, out_shardings=everywhere)
    def update(mixer_state: Any, key: jax.Array, step: jax.Array, feedback: Feedback) -> Any:
        return mixer.update(jax.random.fold_in(key, step), mixer_state, feedback)

    def advance(state: RunState, feedback: Feedback, step: int) -> tuple[Any, Feedback, Any]:
        if (step + 1) % mixer.cadence.update != 0:
            return state.mixer, add(state.pending, feedback), None
        measured, pending = Feedback(), state.pending
        if mixer.needs:
            if mixer.cadence.update > 1:
                feedback = add(pending, feedback)
                pending = jax.tree.map(lambda x: jax.device_put(np.zeros(x.shape, x.dtype), x.sharding), pending)
            validation_loss = state.validation_loss if "validation_loss" in mixer.needs else None
            measured = dataclasses.replace(feedback, validation_loss=validation_loss)
        on_mesh = jax.device_put(np.uint32(step), everywhere)
        mixer_state, info = update(state.mixer, state.mixer_key, on_mesh, measured)
        return mixer_state, pending, info

    return MixerPrograms(advance, jax.jit(mixer.weights, out_shardings=everywhere), is_blind=not mixer.needs)
