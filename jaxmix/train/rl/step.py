"""The compiled programs of reinforcement fine-tuning: draw prompts, roll out, collect groups, update, evaluate.

One program per phase, each compiled once in a run. Those of the policy do not depend on the bandit, so that runs under
different curricula share them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from jaxmix.core.errors import ConfigError
from jaxmix.core.pytree import state
from jaxmix.core.sharding import batch_sharding, replicated
from jaxmix.core.types import Array, Bool, Float, Int, PRNGKeyArray
from jaxmix.curricula.base import Bandit
from jaxmix.curricula.cursors import CursorState, PromptCursors
from jaxmix.models.base import Model
from jaxmix.models.lm.generation import Rollouts, generate, is_prompt_token
from jaxmix.models.lm.sampling import Sampling
from jaxmix.train.grpo import group_advantages, token_objective, token_weights, without_failed
from jaxmix.train.lm.state import TrainState, init_train_state, train_state_shardings
from jaxmix.train.rl.settings import FinetuneSettings
from jaxmix.train.run.micro_batches import split_rows, sum_over
from jaxmix.train.run.optimizer import build_optimizer, learning_rate_schedule
from jaxmix.train.run.update import guarded_update

_ARMS, _ROLLOUTS = 0, 1
"""Streams of random numbers of a run; each step folds its number into its own of each."""


@state(version=1)
class GroupBuffer:
    """Groups that wait for an update in the first `count` of c slots, oldest first. Replicated.

    Attributes:
        prompts, tokens, mask, logp: see `Draw` and `Rollouts`.
        rewards: of their completions.
        count: of groups.
    """

    prompts: Int[Array, "c p"]
    tokens: Int[Array, "c g t"]
    mask: Bool[Array, "c g t"]
    logp: Float[Array, "c g t"]
    rewards: Float[Array, "c g"]
    count: Int[Array, ""]


@state(version=1)
class FinetuneState:
    """All arrays of a checkpoint.

    Attributes:
        train: policy, optimizer state, counters; its steps are optimizer steps.
        reference: parameters of the frozen policy; None without a penalty.
        bandit: state of the curriculum.
        cursors: state of the prompts' cursors.
        buffer: groups that wait.
        key: arms and rollouts of step s follow from it and s.
        step: generated batches.
    """

    train: TrainState
    reference: Any
    bandit: Any
    cursors: CursorState
    buffer: GroupBuffer
    key: PRNGKeyArray
    step: Int[Array, ""]


class Draw(NamedTuple):
    """The prompts of the next batch.

    Attributes:
        arms: which the bandit drew.
        rows: of the prompts.
        prompts: split over the mesh.
        key: of the rollouts.
        cursors: after it.
        step: after it.
    """

    arms: Int[Array, " b"]
    rows: Int[Array, " b"]
    prompts: Int[Array, "b p"]
    key: PRNGKeyArray
    cursors: CursorState
    step: Int[Array, ""]


class UpdateInfo(NamedTuple):
    """The report of one update, averaged over its optimizer steps, and the counters after it.

    Attributes:
        loss: of `grpo_loss`.
        grad_norm: before clipping.
        clip_low, clip_high, kl, drift: see `GrpoInfo`.
        surprise: mean −log-probability of the tokens trained on, an estimate of the policy's entropy there.
        skipped, consecutive_skipped: see `TrainState`.
    """

    loss: Float[Array, ""]
    grad_norm: Float[Array, ""]
    clip_low: Float[Array, ""]
    clip_high: Float[Array, ""]
    kl: Float[Array, ""]
    drift: Float[Array, ""]
    surprise: Float[Array, ""]
    skipped: Int[Array, ""]
    consecutive_skipped: Int[Array, ""]

    def averages(self) -> dict[str, Any]:
        """All but the counters, by name."""
        return {name: value for name, value in self._asdict().items() if "skipped" not in name}


class CurriculumPrograms(NamedTuple):
    """Attributes:
    draw: `(bandit state, cursors, key, step, table i32[n, p]) -> Draw`.
    absorb: `(bandit state, arms i32[b], rewards f32[b, g]) -> bandit state`.
    probabilities: `(bandit state) -> f32[k]`.
    keep: `(rewards f32[b, g]) -> bool[b]`; None for bandits that keep every group.
    """

    draw: Callable[..., Draw]
    absorb: Callable[..., Any]
    probabilities: Callable[[Any], Array]
    keep: Callable[[Array], Array] | None


class PolicyPrograms(NamedTuple):
    """Attributes:
    rollout: `(params, key, prompts i32[b, p]) -> Rollouts`, the tokens on every device.
    collect: `(buffer, prompts, rollouts, rewards f32[b, g], kept bool[b]) -> buffer`: appends the kept groups, those
        that find no place are dropped. The buffer is donated.
    update: `(train, reference, buffer) -> (train, buffer, UpdateInfo)`: trains on the first groups of the buffer and
        takes them out. Train state and buffer are donated.
    evaluate: `(params, key, prompts i32[e, p]) -> tokens i32[e, s, t]`.
    buffer: `(prompt_length) -> GroupBuffer`, an empty one.
    optimizer: inside `update`.
    settings: they were built from.
    mesh: where they run.
    """

    rollout: Callable[..., Rollouts]
    collect: Callable[..., GroupBuffer]
    update: Callable[..., tuple[TrainState, GroupBuffer, UpdateInfo]]
    evaluate: Callable[..., Array]
    buffer: Callable[[int], GroupBuffer]
    optimizer: optax.GradientTransformation
    settings: FinetuneSettings
    mesh: Mesh


def build_curriculum_programs(
    bandit: Bandit, cursors: PromptCursors, *, batch_size: int, mesh: Mesh
) -> CurriculumPrograms:
    """Compiles the bandit's programs; `cursors` are over the prompts of its arms, a step draws `batch_size` prompts."""
    whole = replicated(mesh)
    placed = Draw(whole, whole, batch_sharding(mesh), whole, whole, whole)  # type: ignore[arg-type]

    def draw(bandit_state: Any, places: CursorState, key: PRNGKeyArray, step: Array, table: Array) -> Draw:
        fold = lambda stream: jax.random.fold_in(jax.random.fold_in(key, stream), step)
        arms = bandit.sample(fold(_ARMS), bandit_state, batch_size)
        rows, places = cursors.take(places, arms)
        return Draw(arms, rows, table[rows], fold(_ROLLOUTS), places, step + 1)

    return CurriculumPrograms(
        draw=jax.jit(draw, out_shardings=placed),
        absorb=jax.jit(bandit.update, out_shardings=whole),
        probabilities=jax.jit(bandit.probabilities, out_shardings=whole),
        keep=None if bandit.keep is None else jax.jit(bandit.keep, out_shardings=whole),
    )


def build_policy_programs(
    model: Model, settings: FinetuneSettings, *, completion_length: int, eos_id: int, pad_id: int, mesh: Mesh
) -> PolicyPrograms:
    """Compiles the policy's programs, shared by runs with the same model, settings and kind of prompts.

    The update is `grpo_loss` over the first groups of the buffer (those that are there, when it is called early), its
    weights taken over all of them and its gradient summed over `micro_batches`. Rollouts run under the parameters of
    the moment and keep the log-probabilities they were drawn with, which is what later updates are clipped against.

    Args:
        model: with `decoding`.
        settings: of the run.
        completion_length: most tokens of a completion.
        eos_id, pad_id: of the prompts.
        mesh: rows are split over "data" and "fsdp".

    Raises:
        ConfigError: the model cannot generate, or groups do not divide over the devices.
    """
    if model.decoding is None:
        raise ConfigError("this model cannot generate", where="model", fix="Build it with jaxmix.models.transformer.")
    score = model.decoding.score
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    for name, rows in (
        ("batch_size", settings.prompts),
        ("groups_per_update / micro_batches", settings.groups // settings.micro_batches),
    ):
        if rows % shards:
            raise ConfigError(
                f"{rows} groups cannot be divided over {shards} devices (data x fsdp)",
                where=f"train.{name}",
                fix=f"Use a multiple of {shards}, or fewer devices.",
            )
    whole, by_row = replicated(mesh), batch_sharding(mesh)
    schedule = learning_rate_schedule("constant", peak=settings.learning_rate, warmup_steps=settings.warmup_updates)
    optimizer = build_optimizer(settings, schedule)
    sampling = Sampling(settings.temperature, settings.top_k, settings.top_p)
    drawing = {"length": completion_length, "eos_id": eos_id, "pad_id": pad_id}

    def rollout(params: Any, key: PRNGKeyArray, prompts: Array) -> Rollouts:
        return generate(model, params, key, prompts, num_rollouts=settings.rollouts, sampling=sampling, **drawing)

    def evaluate(params: Any, key: PRNGKeyArray, prompts: Array) -> Array:
        cold = Sampling(settings.eval_temperature)
        return generate(
            model, params, key, prompts, num_rollouts=settings.eval_samples, sampling=cold, **drawing
        ).tokens

    def buffer(prompt_length: int) -> GroupBuffer:
        groups = (settings.capacity, settings.rollouts)
        return GroupBuffer(
            prompts=jnp.full((settings.capacity, prompt_length), pad_id, jnp.int32),
            tokens=jnp.full((*groups, completion_length), pad_id, jnp.int32),
            mask=jnp.zeros((*groups, completion_length), bool),
            logp=jnp.zeros((*groups, completion_length), jnp.float32),
            rewards=jnp.zeros(groups, jnp.float32),
            count=jnp.int32(0),
        )

    def collect(
        buffer: GroupBuffer, prompts: Array, made: Rollouts, rewards: Float[Array, "b g"], kept: Bool[Array, " b"]
    ) -> GroupBuffer:
        place = jnp.where(kept, buffer.count + jnp.cumsum(kept, dtype=jnp.int32) - 1, settings.capacity)
        put = lambda old, new: old.at[place].set(new, mode="drop")
        return GroupBuffer(
            prompts=put(buffer.prompts, prompts),
            tokens=put(buffer.tokens, made.tokens),
            mask=put(buffer.mask, made.mask),
            logp=put(buffer.logp, made.logp),
            rewards=put(buffer.rewards, rewards),
            count=jnp.minimum(buffer.count + jnp.sum(kept, dtype=jnp.int32), settings.capacity),
        )

    def update(train: TrainState, reference: Any, buffer: GroupBuffer) -> tuple[TrainState, GroupBuffer, UpdateInfo]:
        groups = settings.groups
        is_present = jnp.arange(groups) < buffer.count
        first = lambda x: jax.lax.with_sharding_constraint(x[:groups], by_row)
        mask = without_failed(first(buffer.mask) & is_present[:, None, None], first(buffer.rewards))
        is_present = jnp.any(mask, axis=(1, 2))
        advantages, is_live = group_advantages(first(buffer.rewards), standardize=settings.standardize)
        batch = {
            "prompts": first(buffer.prompts),
            "tokens": first(buffer.tokens),
            "mask": mask,
            "logp": first(buffer.logp),
            "advantages": advantages,
            "weights": token_weights(mask, settings.aggregate),
        }
        micro_batches = jax.tree.map(lambda x: split_rows(x, settings.micro_batches), batch)
        if reference is not None:
            micro_batches["reference"] = jax.lax.map(lambda micro: logp_of(reference, micro), micro_batches)
        stepper = optimizer
        if settings.scale_by_live_share:
            count = lambda x: jnp.sum(x, dtype=jnp.float32)
            stepper = scaled(optimizer, count(is_live & is_present) / jnp.maximum(count(is_present), 1.0))

        def once(train: TrainState, _: None) -> tuple[TrainState, Array]:
            (loss, sums), grads = sum_over(partial(gradient, train.params), micro_batches)
            result = guarded_update(train, loss, grads, stepper)
            means = sums / jnp.maximum(jnp.sum(mask, dtype=jnp.float32), 1.0)
            return result.state, jnp.stack([loss, result.grad_norm, *means])

        train, shown = jax.lax.scan(once, train, None, length=settings.updates_per_batch)
        info = UpdateInfo._make([*jnp.mean(shown, axis=0), train.skipped, train.consecutive_skipped])
        rest = jax.tree.map(lambda x: jnp.roll(x, -groups, axis=0) if x.ndim else jnp.maximum(x - groups, 0), buffer)
        return train, rest, info

    def logp_of(params: Any, micro: Any) -> Array:
        valid = is_prompt_token(micro["prompts"], pad_id)
        return score(params, micro["prompts"], valid, micro["tokens"], micro["mask"], settings.temperature)

    def objective(params: Any, micro: Any) -> tuple[Array, Array]:
        logp = logp_of(params, micro)
        tokens = token_objective(
            logp,
            micro["logp"],
            micro.get("reference"),
            micro["advantages"],
            micro["mask"],
            clip_low=settings.clip_low,
            clip_high=settings.clip_high,
            kl_weight=settings.kl_weight,
        )
        shown = (tokens.is_low, tokens.is_high, tokens.kl, tokens.drift, -logp)
        return jnp.sum(micro["weights"] * tokens.loss), jnp.stack([jnp.sum(x, dtype=jnp.float32) for x in shown])

    gradient = jax.value_and_grad(objective, has_aux=True)
    train_places = train_state_shardings(model, optimizer, mesh)
    return PolicyPrograms(
        rollout=jax.jit(rollout, out_shardings=Rollouts(whole, by_row, by_row)),  # type: ignore[arg-type]
        collect=jax.jit(collect, donate_argnums=0, out_shardings=whole),
        update=jax.jit(update, donate_argnums=(0, 2), out_shardings=(train_places, whole, whole)),
        evaluate=jax.jit(evaluate, out_shardings=whole),
        buffer=lambda length: jax.device_put(buffer(length), whole),
        optimizer=optimizer,
        settings=settings,
        mesh=mesh,
    )


def scaled(optimizer: optax.GradientTransformation, share: Array) -> optax.GradientTransformation:
    """The optimizer with its updates multiplied by `share`, outside any normalization of its own."""

    def update(grads: Any, opt_state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return jax.tree.map(lambda x: x * share, updates), opt_state

    return optax.GradientTransformation(optimizer.init, update)


def init_policy(key: PRNGKeyArray, model: Model, programs: PolicyPrograms, params: Any = None) -> TrainState:
    """A train state on the programs' mesh, of given parameters (copied: updates donate theirs) or fresh ones."""
    if params is None:
        return init_train_state(key, model, programs.optimizer, programs.mesh)
    places = train_state_shardings(model, programs.optimizer, programs.mesh)
    copied = jax.tree.map(lambda x, place: jax.device_put(jnp.array(x, copy=True), place), params, places.params)
    zero = jax.device_put(jnp.int32(0), replicated(programs.mesh))
    opt_state = jax.jit(programs.optimizer.init, out_shardings=places.opt_state)(copied)
    return TrainState(zero, copied, opt_state, jnp.copy(zero), jnp.copy(zero))
