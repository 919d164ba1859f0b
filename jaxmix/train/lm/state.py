"""The state that a run carries from step to step and writes to its checkpoints."""

from __future__ import annotations

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec

from jaxmix.core.pytree import state
from jaxmix.core.sharding import named_shardings, replicated
from jaxmix.core.types import Array, DomainVector, Int, PRNGKeyArray
from jaxmix.mixers.base import REFERENCE_SIGNALS, Feedback, Mixer
from jaxmix.models.partition import fit_partition

T = TypeVar("T")


@state(version=1)
class TrainState:
    """The model's half: everything the train step reads and writes.

    Attributes:
        step: optimizer steps attempted, skipped ones included.
        params: the model's parameters, float32.
        opt_state: the optimizer's state.
        skipped: updates skipped so far because loss or gradient was not finite.
        consecutive_skipped: how many of the latest steps in a row were skipped.
    """

    step: Int[Array, ""]
    params: Any
    opt_state: optax.OptState
    skipped: Int[Array, ""]
    consecutive_skipped: Int[Array, ""]


@state(version=1)
class RunState:
    """All arrays of a checkpoint.

    Attributes:
        train: the model's half.
        mixer: the mixer's state, replicated.
        mixer_key: step s's update gets `fold_in(mixer_key, s)`.
        pending: feedback summed since the mixer's last update (all zero when it updates at every step).
        validation_loss: the latest validation losses, nan before the first evaluation.
    """

    train: TrainState
    mixer: Any
    mixer_key: PRNGKeyArray
    pending: Feedback
    validation_loss: DomainVector


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
    """A `TrainState` of shardings: moments are sharded like their parameters, scalars are replicated."""
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
    return layout(
        TrainState, step=scalar, params=placed, opt_state=opt_state, skipped=scalar, consecutive_skipped=scalar
    )


def layout(cls: type[T], **places: Any) -> T:
    """A node of the state `cls` with shardings in place of arrays, which its constructor would reject."""
    node = object.__new__(cls)
    node.__dict__.update(places)
    return node


def init_run_state(key: jax.Array, train: TrainState, mixer: Mixer, prior: jax.Array, mesh: Mesh) -> RunState:
    """Adds the mixer's half to a train state; `prior` is f32[m] on the simplex."""
    (num_domains,) = prior.shape

    def init(key: jax.Array, prior: jax.Array) -> tuple[Any, ...]:
        init_key, mixer_key = jax.random.split(key)
        zeros = jnp.zeros((num_domains,), jnp.float32)
        pending = Feedback(**dict.fromkeys(step_sums(mixer.needs), zeros))
        return mixer.init(init_key, num_domains, prior), mixer_key, pending, jnp.full_like(zeros, jnp.nan)

    return RunState(train, *jax.jit(init, out_shardings=replicated(mesh))(key, prior))
