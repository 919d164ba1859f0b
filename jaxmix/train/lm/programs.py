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
from jaxmix.train.lm.evaluate import build_evaluate
from jaxmix.train.lm.settings import TrainSettings
from jaxmix.train.lm.signals import GRADIENT_SIGNALS, build_gradient_signals
from jaxmix.train.lm.state import RunState, step_sums, train_state_shardings
from jaxmix.train.lm.step import build_train_step
from jaxmix.train.run.optimizer import build_optimizer, learning_rate_schedule
from jaxmix.train.selection.program import SelectionProgram, build_selection, build_token_choice
from jaxmix.train.selection.settings import SelectionSettings, chooses_in_step, forward_passes_of


class Programs(NamedTuple):
    """The compiled functions that do not depend on the mixer.

    Attributes:
        train_step: see `build_train_step`.
        build_step: `(choose=None) -> train_step`.
        evaluate: see `build_evaluate`.
        learning_rate: step → rate, jitted.
        optimizer: the transformation inside `train_step`.
        mesh: where it all runs.
        model, settings, num_domains: they were built from.
        selection: chooses what the train step trains on, see `with_selection`; None: all that is drawn.
        known_selections: all that were compiled for runs with these programs.
    """

    train_step: Callable[..., Any]
    build_step: Callable[..., Any]
    evaluate: Callable[..., jax.Array]
    learning_rate: optax.Schedule
    optimizer: optax.GradientTransformation
    mesh: Mesh
    model: Model
    settings: TrainSettings
    num_domains: int
    selection: SelectionProgram | None = None
    known_selections: tuple[SelectionProgram, ...] = ()


def build_programs(model: Model, settings: TrainSettings, *, num_domains: int, mesh: Mesh) -> Programs:
    """Builds the train step, the evaluation and the optimizer for one model, mesh and number of domains."""
    optimizer, schedule = optimizer_of(settings)
    build_step = partial(
        build_train_step,
        model.apply,
        optimizer,
        num_domains=num_domains,
        normalization=settings.loss_normalization,
        accumulate=settings.accumulate,
        out_shardings=(train_state_shardings(model, optimizer, mesh), replicated(mesh)),
    )
    evaluate = build_evaluate(model.apply, num_domains=num_domains, mesh=mesh)
    return Programs(
        build_step(), build_step, evaluate, jax.jit(schedule), optimizer, mesh, model, settings, num_domains
    )


def with_selection(
    programs: Programs, selection: SelectionSettings | None, *, mixer: Mixer, batch_size: int
) -> Programs:
    """`programs` with the selection that a run asks for; one made for an earlier run is used again.

    Args:
        programs: from `build_programs`.
        selection: None for none.
        mixer: decides which losses the selection has to measure.
        batch_size: rows trained on in a step.
    """
    if selection is None:
        return programs._replace(selection=None)
    forward_passes = forward_passes_of(selection, mixer.needs)
    for known in programs.known_selections:
        if (known.settings, known.forward_passes, known.batch_size) == (selection, forward_passes, batch_size):
            return programs._replace(selection=known)
    apply, accumulate = programs.model.apply, programs.settings.accumulate
    shared: Any = {"forward_passes": forward_passes, "num_domains": programs.num_domains, "mesh": programs.mesh}
    program = build_selection(apply, selection, batch_size=batch_size, accumulate=accumulate, **shared)
    if chooses_in_step(selection, forward_passes, accumulate=accumulate):
        choose = build_token_choice(selection, **shared)
        program = program._replace(train_step=programs.build_step(choose=choose))
    return programs._replace(selection=program, known_selections=(*programs.known_selections, program))


def optimizer_of(settings: TrainSettings) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The optimizer that `settings` describe, and its learning rate by step."""
    schedule = learning_rate_schedule(
        settings.schedule,
        peak=settings.learning_rate,
        steps=settings.steps,
        warmup_steps=settings.warmup,
        final_fraction=settings.final_fraction,
    )
    return build_optimizer(settings, schedule), schedule


class MixerPrograms(NamedTuple):
    """A mixer's update and readout, jitted, and what has to be measured for it.

    Attributes:
        advance: `(run_state, feedback, step) -> (mixer_state, pending, info)` after step `step`; `info` is None when
            no update was due.
        weights: `(mixer_state) -> f32[m]`.
        loss_weights: `(mixer_state) -> f32[m]`, None for mixers that weight no losses.
        gradients: `(params, batch, held_out, mixer_key, step) -> signals`, None for mixers that need none.
    """

    advance: Callable[[RunState, Feedback, int], tuple[Any, Feedback, Any]]
    weights: Callable[[Any], jax.Array]
    loss_weights: Callable[[Any], jax.Array] | None
    gradients: Callable[..., dict[str, jax.Array]] | None


def build_mixer_programs(mixer: Mixer, programs: Programs, settings: TrainSettings) -> MixerPrograms:
    """Jits a mixer for a run of `programs`. Each program compiles once; a mixer that updates at every step has two.

    Of `settings`, only those of sketched gradients are read.
    """
    everywhere = replicated(programs.mesh)

    @partial(jax.jit, out_shardings=everywhere)
    def add(pending: Feedback, feedback: Feedback) -> Feedback:
        return jax.tree.map(jnp.add, pending, feedback)

    @partial(jax.jit, out_shardings=everywhere)
    def update(mixer_state: Any, key: jax.Array, step: jax.Array, feedback: Feedback) -> Any:
        return mixer.update(jax.random.fold_in(key, step), mixer_state, feedback)

    def advance(state: RunState, feedback: Feedback, step: int) -> tuple[Any, Feedback, Any]:
        sums = Feedback(**{name: getattr(feedback, name) for name in step_sums(mixer.needs)})
        if (step + 1) % mixer.cadence.update != 0:
            return state.mixer, add(state.pending, sums), None
        summed, pending = Feedback(), state.pending
        if mixer.needs:
            if mixer.cadence.update > 1:
                sums = add(pending, sums)
                pending = jax.tree.map(lambda x: jax.device_put(np.zeros(x.shape, x.dtype), x.sharding), pending)
            summed = dataclasses.replace(feedback, **{name: getattr(sums, name) for name in step_sums(mixer.needs)})
        on_mesh = jax.device_put(np.uint32(step), everywhere)
        mixer_state, info = update(state.mixer, state.mixer_key, on_mesh, summed)
        return mixer_state, pending, info

    gradients = None
    if mixer.needs & GRADIENT_SIGNALS:
        measure = build_gradient_signals(
            programs.model,
            needs=mixer.needs & GRADIENT_SIGNALS,
            num_domains=programs.num_domains,
            estimator=mixer.gradients,
            rows_per_domain=settings.gradient_rows,
            sketch_size=settings.sketch_size,
            mesh=programs.mesh,
        )

        @partial(jax.jit, out_shardings=everywhere)
        def gradients(params: Any, batch: Any, held_out: Any, key: jax.Array, step: jax.Array) -> dict[str, jax.Array]:
            # Updates fold in step numbers from below; the complement keeps the two apart.
            return measure(params, batch, held_out, jax.random.fold_in(key, ~step))

    return MixerPrograms(
        advance,
        jax.jit(mixer.weights, out_shardings=everywhere),
        None if mixer.loss_weights is None else jax.jit(mixer.loss_weights, out_shardings=everywhere),
        gradients,
    )
