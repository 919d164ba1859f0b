"""What a run carries from step to step and therefore checkpoints."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec

from jaxmix.core.pytree import state
from jaxmix.core.sharding import named_shardings, replicated
from jaxmix.mixers.base import REFERENCE_SIGNALS, Feedback, Mixer
from jaxmix.models.partition import fit_partition


@state(version=1)
class TrainState:
    """The model's half: everything the train step reads and writes.

    Attributes:
        step: i32[], optimizer steps attempted, skipped ones included.
        params: the model's parameters, float32.
        opt_state: the optimizer's state.
        skipped: i32[], updates skipped so far because loss or gradient was not finite.
        consecutive_skipped: i32[], how many of the latest steps in a row were skipped.
    """

    step: Any
    params: Any
    opt_state: Any
    skipped: Any
    consecutive_skipped: Any


@state(version=1)
class RunState:
    """The whole of what a checkpoint holds in arrays.

    Attributes:
        train: the model's half.
        mixer: the mixer's state, replicated.
        mixer_key: typed key; step s's update gets `fold_in(mixer_key, s)`.
        pending: feedback summed since the mixer's last update (all zero when it updates at every step).
        validation_loss: f32[m], the latest validation losses, nan before the first evaluation.
    """

    train: TrainState
    mixer: Any
    mixer_key: Any
    pending: Feedback
    validation_loss: Any


def step_sums(needs: frozenset[str]) -> tuple[str, ...]:
    """The fields of `Feedback` that the train step sums up for a mixer with these needs."""
    return ("loss_sum", "token_count", *(REFERENCE_SIGNALS if needs & set(REFERENCE_SIGNALS) else ()))


def init_train_state(key: jax.Array, model: Any, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Initializes parameters and optimizer straight into their shardings: no device ever holds the whole model.

    Of `model`, a `Model` or a bundle like it, only `init` and `partition` are used.
    """

    def init(key: jax.Array) -> TrainState:
        params = model.init(key)
        zero = jnp.zeros((), jnp.int32)
        return TrainState(zero, params, optimizer.init(params), zero, zero)

    return jax.jit(init, out_shardings=train_state_shardings(model, optimizer, mesh))(key)


def train_state_shardings(model: Any, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """A `TrainState` of shardings: moments are laid out as their parameters, scalars are replicated."""
    params = jax.eval_shape(model.init, jax.random.key(0))
    specs = fit_partition(model.partition, params, mesh.shape)
    if specs is None:
        specs = jax.tree.map(lambda _: PartitionSpec(), params)
    placed = named_shardings(mesh, specs)
    opt_state = optax.tree_map_params(
        optimizer,
        lambda _, sharding: sharding,
        jax.eval_shape(optimizer.init, params),
        placed,
        transform_non_params=lambda _: replicated(mesh),
    )
    scalar = replicated(mesh)
    return TrainState(scalar, placed, opt_state, scalar, scalar)


def init_run_state(key: jax.Array, train: TrainState, mixer: Mixer, prior: jax.Array, mesh: Mesh) -> RunState:
    """Adds the mixer's half to a train state; `prior` is f32[m] on the simplex."""
    (num_domains,) = prior.shape

    def init(key: jax.Array, prior: jax.Array) -> tuple[Any, ...]:
        init_key, mixer_key = jax.random.split(key)
        zeros = jnp.zeros((num_domains,), jnp.float32)
        pending = Feedback(**dict.fromkeys(step_sums(mixer.needs), zeros))
        return mixer.init(init_key, num_domains, prior), mixer_key, pending, jnp.full_like(zeros, jnp.nan)

    return RunState(train, *jax.jit(init, out_shardings=replicated(mesh))(key, prior))
