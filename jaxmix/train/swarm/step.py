"""The devices' half of a swarm: many small models advanced by one compiled program.

Every array of a `SwarmState` has a leading axis of proxies, split over the mesh axis `proxy`. A program does a whole
stretch of steps; per step nothing passes between host and devices. The step itself is the lone run's
(`build_train_step`), so clipping, normalization and the skipping of broken updates are the same code.

How proxies share a device is chosen per platform and changes results by rounding only:

- GPU and TPU: `vmap`; matrix products of all proxies become one batched product.
- CPU: one proxy after the other (`lax.map`), each for the whole stretch, so that its parameters and activations stay
  in the core's cache; every core is a device of its own and runs single-threaded (`one_device_per_core`), since a
  small model's operations are too short to be cut up between threads. Batches are cut into micro-batches of about
  1,024 tokens for the same reason. Batched products (`vmap`) were measured slower there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxmix.core.pytree import state
from jaxmix.core.sharding import proxy_mesh, shard_map
from jaxmix.core.types import Array, Int
from jaxmix.models.base import Model
from jaxmix.train.lm.evaluate import loss_sums, mean_losses
from jaxmix.train.lm.programs import optimizer_of
from jaxmix.train.lm.settings import TrainSettings
from jaxmix.train.lm.state import TrainState
from jaxmix.train.lm.step import build_train_step
from jaxmix.train.run.micro_batches import sum_over
from jaxmix.train.swarm.plan import RowTable

_CACHED_TOKENS = 1024
_OVER_PROXIES = PartitionSpec("proxy")


@state(version=1)
class SwarmState:
    """The state of a swarm; outside a proxy's own step all leaves have a leading axis r of proxies.

    Attributes:
        train: the models' states, as a lone run's.
        stopped: the step at which a lone run would have stopped because too many updates in a row were not
            finite; −1 if it would not.
    """

    train: TrainState
    stopped: Int[Array, ""]


class SwarmPrograms(NamedTuple):
    """The compiled functions of a swarm. Proxies are split evenly over the devices of `mesh`.

    Attributes:
        init: `(keys [r]) -> SwarmState`.
        advance: `(state, table, domain i32[r, s, b], row i32[r, s, b], steps i32[]) -> (state, losses f32[r, s])`:
            the first `steps` of s steps; `losses` are mean training losses, 0 beyond. `state` is donated. `table` is
            (tokens [n, t + 1], targets [n]) for all proxies, or with a leading axis r a table for each.
        evaluate: `(state, batches) -> f32[r, m]`, nats per token; `batches` from `evaluate.held_out_batches`.
        mesh: with the axis `proxy`.
        is_table_shared: see `build_swarm_programs`.
    """

    init: Callable[[Any], SwarmState]
    advance: Callable[..., tuple[SwarmState, Array]]
    evaluate: Callable[[SwarmState, Any], Array]
    mesh: Mesh
    is_table_shared: bool

    def place(self, tree: Any, *, is_shared: bool = False) -> Any:
        """Puts arrays on the devices: split over proxies, or whole on each."""
        return jax.device_put(tree, NamedSharding(self.mesh, PartitionSpec() if is_shared else _OVER_PROXIES))


def build_swarm_programs(
    model: Model,
    settings: TrainSettings,
    *,
    num_domains: int,
    batch_size: int,
    seq_len: int,
    is_table_shared: bool = True,
    mesh: Mesh | None = None,
    width: int | None = None,
) -> SwarmPrograms:
    """Builds the functions of a swarm of one model and one optimizer.

    Args:
        model: of every proxy.
        settings: of every proxy; the seed is the proxy's own.
        num_domains: m.
        batch_size, seq_len: of every proxy, b and t.
        is_table_shared: one table of rows for all, or one for each.
        mesh: with the axis `proxy`; all devices by default.
        width: proxies that a device advances at a time; None: one on a CPU, all of them elsewhere.
    """
    mesh = mesh or proxy_mesh()
    is_cpu = mesh.devices.flat[0].platform == "cpu"
    width = (1 if is_cpu else None) if width is None else width
    accumulate = settings.accumulate * (micro_batches(batch_size // settings.accumulate, seq_len) if is_cpu else 1)
    optimizer, _ = optimizer_of(settings)
    train_step = build_train_step(
        model.apply,
        optimizer,
        num_domains=num_domains,
        normalization=settings.loss_normalization,
        accumulate=accumulate,
    )

    def init(key: Array) -> SwarmState:
        params, zero = model.init(key), jnp.zeros((), jnp.int32)
        return SwarmState(TrainState(zero, params, optimizer.init(params), zero, zero), zero - 1)

    def advance(state: SwarmState, table: Any, domain: Array, row: Array, steps: Array) -> tuple[SwarmState, Array]:
        def body(index: Array, carry: tuple[SwarmState, Array]) -> tuple[SwarmState, Array]:
            state, losses = carry
            train, info = train_step(state.train, _batch(table, row[index], domain[index]))
            is_stop = (train.consecutive_skipped >= settings.max_consecutive_skipped) & (state.stopped < 0)
            stopped = jnp.where(is_stop, train.step, state.stopped)
            return SwarmState(train, stopped), losses.at[index].set(info.loss)

        # The length is known only at run time, so stretches of any length share one compiled program.
        return jax.lax.fori_loop(0, steps, body, (state, jnp.zeros(len(row), jnp.float32)))

    def evaluate(params: Any, batches: Any) -> Array:
        sums = partial(loss_sums, model.apply, params, num_domains=num_domains)
        return mean_losses(sum_over(sums, batches))

    def local_advance(state: SwarmState, table: Any, domain: Array, row: Array, steps: Array) -> Any:
        if is_table_shared:
            return _each(lambda s, d, r: advance(s, table, d, r, steps), width, state, domain, row)
        return _each(lambda s, own, d, r: advance(s, own, d, r, steps), width, state, table, domain, row)

    def local_evaluate(params: Any, batches: Any) -> Array:
        return _each(lambda p: evaluate(p, batches), width, params)

    # Every core runs its own program; operations must not be split over cores as well.
    options = {"xla_cpu_multi_thread_eigen": False} if is_cpu and mesh.devices.size > 1 else None
    over = partial(shard_map, mesh=mesh, check=False)
    p, whole = _OVER_PROXIES, PartitionSpec()
    table_spec = whole if is_table_shared else p
    advance_specs = (p, table_spec, p, p, whole)
    advance_all = jax.jit(
        over(local_advance, in_specs=advance_specs, out_specs=p), donate_argnums=0, compiler_options=options
    )
    evaluate_all = jax.jit(over(local_evaluate, in_specs=(p, whole), out_specs=p), compiler_options=options)
    init_all = jax.jit(over(lambda keys: _each(init, width, keys), in_specs=p, out_specs=p))
    evaluate_state = lambda state, batches: evaluate_all(state.train.params, batches)
    return SwarmPrograms(init_all, advance_all, evaluate_state, mesh, is_table_shared)


def micro_batches(rows: int, seq_len: int) -> int:
    """The number of micro-batches of about 1,024 tokens each: a divisor of `rows`."""
    fitting = [n for n in range(1, rows + 1) if rows % n == 0 and rows // n * seq_len <= _CACHED_TOKENS]
    return fitting[0] if fitting else rows


def _batch(table: RowTable | Sequence[Array], row: Array, domain: Array) -> Mapping[str, Array]:
    tokens, counts = table
    tokens = jnp.take(tokens, row, axis=0, mode="clip").astype(jnp.int32)
    has_target = jnp.arange(tokens.shape[1] - 1)[None, :] < jnp.take(counts, row, mode="clip")[:, None]
    return {"tokens": tokens[:, :-1], "targets": jnp.where(has_target, tokens[:, 1:], -1), "domain": domain}


def _each(function: Callable[..., Any], width: int | None, *args: Any) -> Any:
    """`function` of every proxy of this device, `width` of them at a time (None: all)."""
    count = len(jax.tree.leaves(args[0])[0])
    if width is None or width >= count:
        return jax.vmap(function)(*args)
    if width == 1:
        return jax.lax.map(lambda x: function(*x), args)
    return jax.lax.map(lambda x: function(*x), args, batch_size=width)


def trimmed(state: SwarmState, count: int) -> SwarmState:
    """The first `count` proxies, on one device, as a checkpoint holds them whatever the mesh is."""
    device = jax.devices()[0]
    return jax.tree.map(lambda x: jax.device_put(np.asarray(jax.device_get(x))[:count], device), state)


def padded(tree: Any, count: int) -> Any:
    """Host arrays with the last proxy repeated up to `count`, so that the devices get equally many."""

    def pad(x: Any) -> np.ndarray:
        x = np.asarray(jax.device_get(x))
        return np.concatenate([x, np.repeat(x[-1:], count - len(x), axis=0)]) if len(x) < count else x

    return jax.tree.map(pad, tree)
