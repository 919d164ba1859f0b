"""The loop of reinforcement fine-tuning, whose steps draw → roll out → reward → collect → update.

Within a step the host waits for one thing, the tokens to be rewarded, and sends one back, the rewards.
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from numpy.typing import ArrayLike

from jaxmix.core.errors import ConfigError, RunError
from jaxmix.core.sharding import batch_sharding, build_mesh, process_shard, replicated
from jaxmix.core.types import Array, Bool, Float, Int
from jaxmix.curricula.base import Bandit
from jaxmix.curricula.cursors import prompt_cursors
from jaxmix.data.tasks.prompts import PromptSet
from jaxmix.models.base import Model
from jaxmix.train.rl.settings import FinetuneSettings
from jaxmix.train.rl.step import (
    FinetuneState,
    PolicyPrograms,
    UpdateInfo,
    build_curriculum_programs,
    build_policy_programs,
    init_policy,
)
from jaxmix.train.run.driver import Driver, End, Hook, Loop, Record, View
from jaxmix.train.run.trackers import Tracker

_PARAMS, _CURSORS, _STEPS, _EVALUATION = range(4)


@dataclasses.dataclass(frozen=True)
class FinetuneResult:
    """The result of a run.

    Attributes:
        steps: generated batches, earlier sessions included.
        prompts, rollouts, unique_prompts: the three currencies: prompts generated for (live or not), completions, and
            different prompts ever seen.
        updates: optimizer steps attempted.
        final_eval: solve rate by arm of the evaluation set, and "mean" over its arms.
        probabilities: of the bandit at the end, by arm.
        skipped_updates: those that were not finite.
        resumed_from: step this session continued at, None for a fresh start.
        params: the policy, on the mesh.
    """

    steps: int
    prompts: int
    rollouts: int
    unique_prompts: int
    updates: int
    final_eval: dict[str, float]
    probabilities: dict[str, float]
    skipped_updates: int
    resumed_from: int | None
    params: Any = dataclasses.field(repr=False)


def run_finetuning(
    run_dir: str | Path,
    *,
    model: Model,
    prompts: PromptSet,
    bandit: Bandit,
    kept: ArrayLike | None = None,
    evaluation: PromptSet,
    settings: FinetuneSettings,
    initial_params: Any = None,
    mesh: Mesh | None = None,
    programs: PolicyPrograms | None = None,
    hooks: Sequence[Hook] = (),
    trackers: Sequence[Tracker] = (),
    on_start: Callable[[], None] = lambda: None,
    provenance: Mapping[str, Any] | None = None,
    label: str = "finetune",
    show_progress: bool = True,
) -> FinetuneResult:
    """Fine-tunes `model` on verifiable prompts by GRPO under a curriculum, continuing a run found in `run_dir`.

    A step draws an arm for every slot, the next prompt of each arm, rolls all of them out, asks `prompts.reward`, and
    updates the bandit, which has therefore seen every step before the next. The policy is updated when enough groups
    have been collected; see `FinetuneSettings`.

    Writes metrics.jsonl (deterministic values only), timing.jsonl and checkpoints/. A checkpoint holds policy,
    optimizer, bandit, cursors, the groups that wait, the key and the sums since the last record: a run killed at any
    moment ends bit for bit as the uninterrupted one, if rewards depend only on their arguments.

    Several processes: all draw the same arms from the one key, each rewards its own share of the groups, rewards are
    gathered before the bandit and the buffer see them, and every process keeps the same states. Every process holds
    all prompts.

    Args:
        run_dir: of the run.
        model: with `decoding`.
        prompts: to train on, with their verifier.
        bandit: over the arms of `prompts`.
        kept: i32[k, l], which prompts of each arm may be drawn, padded with −1; None: all.
        evaluation: held-out prompts; their arms may differ, but not eos_id, pad_id and completion_length.
        settings: see `FinetuneSettings`.
        initial_params: of the policy, from `warm_start` say; they are copied. None: fresh ones.
        mesh: all devices along "data" by default.
        programs: from `build_policy_programs` with the same model and settings, to share compiled code between runs.
        hooks: your own evaluations, see `Hook`.
        trackers: in addition to the files.
        on_start: see `Driver.run`.
        provenance: plain values, kept in every checkpoint.
        label: in front of progress lines.
        show_progress: print on process 0.

    Raises:
        ConfigError: before any file or device is touched: settings, prompts, bandit and model do not fit one another;
            or the run in `run_dir` is another one.
        RunError: interrupted (SIGINT, SIGTERM; saved first), a reward outside [0, 1], a hook failed, or too many
            updates in a row were not finite.
    """
    table = prompts.rows_by_arm() if kept is None else np.asarray(kept, np.int32)
    _check(model, prompts, bandit, table, evaluation, settings)
    mesh = programs.mesh if programs is not None else mesh if mesh is not None else build_mesh()
    if programs is None:
        programs = build_policy_programs(
            model,
            settings,
            completion_length=prompts.completion_length,
            eos_id=prompts.eos_id,
            pad_id=prompts.pad_id,
            mesh=mesh,
        )
    elif differing := programs.settings.differs_in(settings):
        raise ConfigError(
            f"the programs were built with another {', '.join(differing)}",
            where="run_finetuning(programs)",
            fix="Build them from these settings, or leave them out.",
        )
    about = dict(provenance or {})
    loop = _FinetuneLoop(model, prompts, bandit, table, evaluation, settings, programs, initial_params, about)
    driver = Driver(loop, run_dir, hooks=hooks, trackers=trackers, label=label, show_progress=show_progress)
    return driver.run(on_start)


def _check(
    model: Model,
    prompts: PromptSet,
    bandit: Bandit,
    table: np.ndarray,
    evaluation: PromptSet,
    settings: FinetuneSettings,
) -> None:
    problem = lambda what, where, fix="": ConfigError(what, where=f"run_finetuning({where})", fix=fix)
    if bandit.num_arms != prompts.num_arms or len(table) != prompts.num_arms:
        raise problem(
            f"the bandit has {bandit.num_arms} arms, kept {len(table)}, the prompts {prompts.num_arms}", "bandit"
        )
    if table.ndim != 2 or table.max(initial=-1) >= len(prompts):
        raise problem(f"kept names prompts beyond the {len(prompts)} there are", "kept")
    empty = [name for name, row in zip(prompts.arm_names, table, strict=True) if not (row >= 0).any()]
    if empty:
        raise problem(f"no prompts in the arms {', '.join(empty)}", "prompts", "Leave these arms out.")
    strayed = (table >= 0) & (prompts.arms[np.maximum(table, 0)] != np.arange(len(table))[:, None])
    if strayed.any():
        raise problem(
            f"kept lists {int(strayed.sum())} prompts under an arm that is not theirs",
            "kept",
            "Give the prompts the arms that kept was made for: dataclasses.replace(prompts, arms=…, arm_names=…).",
        )
    for name in ("eos_id", "pad_id", "completion_length"):
        if getattr(prompts, name) != getattr(evaluation, name):
            raise problem(f"{name} differs from that of the training prompts", "evaluation")
    if not len(evaluation):
        raise problem("no held-out prompts", "evaluation")
    words = getattr(model.config, "vocab_size", prompts.vocab_size)
    if words < max(prompts.vocab_size, evaluation.vocab_size):
        raise problem(f"the model knows {words} tokens, the prompts use {prompts.vocab_size}", "model")
    if settings.refill and bandit.keep is None:
        raise problem(
            f"the bandit {bandit.name} does not say which groups it keeps",
            "bandit",
            "Use dapo, or set refill to false.",
        )


class _Groups(NamedTuple):
    """The groups that one step generated, and the updates it made.

    Attributes:
        arms: of the groups.
        rewards: of their completions.
        is_live: whether a group has a gradient.
        tokens: completions' tokens that are not padding.
        infos: of the updates.
        probabilities, drawn: see `Bandit` and `CursorState`; None unless a record follows the step.
    """

    arms: Int[np.ndarray, " b"]
    rewards: Float[np.ndarray, "b g"]
    is_live: Bool[np.ndarray, " b"]
    tokens: int
    infos: list[UpdateInfo]
    probabilities: Float[Array, " k"] | None
    drawn: Int[Array, " k"] | None


@dataclasses.dataclass(eq=False)
class _FinetuneLoop(Loop[FinetuneResult]):
    model: Model
    prompts: PromptSet
    bandit: Bandit
    table: np.ndarray
    evaluation: PromptSet
    settings: FinetuneSettings
    programs: PolicyPrograms
    initial_params: Any
    provenance: dict[str, Any]

    def __post_init__(self) -> None:
        super().__init__(self.settings, self.programs.mesh)
        self.names = self.prompts.arm_names
        self.count = 0  # groups in the buffer
        self.waited = 0  # batches since the last update
        self.tokens = 0  # generated in this session
        self.updates = 0  # optimizer steps attempted
        self.skipped = 0
        self.solved: dict[str, float] = {}
        self.seconds["reward"] = 0.0

    def init(self) -> FinetuneState:
        whole, settings = replicated(self.mesh), self.settings
        cursors = prompt_cursors(self.table)
        self.curriculum = build_curriculum_programs(self.bandit, cursors, batch_size=settings.prompts, mesh=self.mesh)
        self.device_prompts = jax.device_put(self.prompts.tokens, whole)
        self.eval_batches = self._place_evaluation()
        key = jax.random.key(settings.seed)
        fold = lambda stream: jax.random.fold_in(key, stream)
        train = init_policy(fold(_PARAMS), self.model, self.programs, self.initial_params)
        place = lambda tree: jax.tree.map(lambda x: jax.device_put(x, whole), tree)
        self.eval_key = place(fold(_EVALUATION))
        return FinetuneState(
            train=train,
            reference=jax.tree.map(jnp.copy, train.params) if settings.kl_weight > 0 else None,
            bandit=place(self.bandit.init()),
            cursors=place(cursors.init(fold(_CURSORS))),
            buffer=self.programs.buffer(self.prompts.prompt_length),
            key=place(fold(_STEPS)),
            step=place(jnp.int32(0)),
        )

    def identity(self) -> dict[str, Any]:
        digest = hashlib.sha256()
        for array in (self.prompts.tokens, self.prompts.arms, self.table):
            digest.update(np.ascontiguousarray(array).tobytes())
        return {
            "bandit": self.bandit.name,
            "seed": self.settings.seed,
            "batch_size": self.settings.prompts,
            "rollouts": self.settings.rollouts,
            "prompts": digest.hexdigest()[:16],
        }

    def meta(self) -> dict[str, Any]:
        return {"count": self.count, "waited": self.waited, "provenance": self.provenance}

    def restore(self, step: int, meta: Mapping[str, Any], *, is_model_alone: bool) -> list[str]:
        self.count, self.waited = int(meta["count"]), int(meta["waited"])
        counters = jax.device_get((self.state.train.step, self.state.train.skipped))
        self.updates, self.skipped = (int(x) for x in counters)
        return []

    # ── a step ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def step(self, step: int, batch: None) -> tuple[UpdateInfo | None, _Groups]:
        state, settings, programs = self.state, self.settings, self.programs
        draw = self.curriculum.draw(state.bandit, state.cursors, state.key, state.step, self.device_prompts)
        made = programs.rollout(state.train.params, draw.key, draw.prompts)
        rows, tokens = jax.device_get((draw.rows, made.tokens))
        rewards = self._rewards(rows, tokens)
        is_live = np.isfinite(rewards).all(axis=1) & (rewards != rewards[:, :1]).any(axis=1)

        kept = self._kept(rewards, is_live)
        sent, sent_kept = jax.device_put((rewards, kept), replicated(self.mesh))
        bandit = self.curriculum.absorb(state.bandit, draw.arms, sent)
        buffer = programs.collect(state.buffer, draw.prompts, made, sent, sent_kept)
        self.state = dataclasses.replace(state, bandit=bandit, cursors=draw.cursors, buffer=buffer, step=draw.step)
        self.count = min(self.count + int(kept.sum()), settings.capacity)
        self.waited += 1
        infos = []
        while self.count >= settings.groups or (self.count > 0 and self.waited >= settings.patience):
            infos.append(self._update_policy())
        logged = (
            (self.curriculum.probabilities(bandit), draw.cursors.drawn) if self.is_logged(step + 1) else (None, None)
        )
        generated = int((tokens != self.prompts.pad_id).sum())
        groups = _Groups(self.prompts.arms[rows], rewards, is_live, generated, infos, *logged)
        return infos[-1] if infos else None, groups

    def _kept(self, rewards: np.ndarray, is_live: np.ndarray) -> np.ndarray:
        """bool[b], the groups of a batch that are trained on."""
        if not self.settings.waits:
            return np.ones_like(is_live)
        if self.settings.refill and self.curriculum.keep is not None:
            sent = jax.device_put(rewards, replicated(self.mesh))
            return np.asarray(jax.device_get(self.curriculum.keep(sent)))
        return is_live

    def _update_policy(self) -> UpdateInfo:
        state = self.state
        train, buffer, info = self.programs.update(state.train, state.reference, state.buffer)
        self.state = dataclasses.replace(state, train=train, buffer=buffer)
        self.count = max(self.count - self.settings.groups, 0)
        self.waited = 0
        return info

    def _rewards(self, rows: np.ndarray, completions: np.ndarray) -> np.ndarray:
        """f32[b, g]: this process scores its share of the groups and gathers the rest from the other processes."""
        began = time.perf_counter()
        index, count = process_shard()
        share = slice(index * len(rows) // count, (index + 1) * len(rows) // count)
        rewards = np.asarray(self.prompts.reward(rows[share], completions[share]), np.float32)
        if rewards.shape != completions[share].shape[:2] or (rewards < 0).any() or (rewards > 1).any():
            raise RunError(
                f"the reward returned {rewards.shape} numbers from {rewards.min(initial=0):g} to "
                f"{rewards.max(initial=0):g}, not all in [0, 1], for completions of shape {completions[share].shape}",
                where="prompts.reward",
                fix="Return float32[b, g] in [0, 1], see jaxmix.curricula.rescale_rewards; nan where a verifier fails.",
            )
        if count > 1:
            from jax.experimental import multihost_utils

            rewards = np.asarray(multihost_utils.process_allgather(rewards, tiled=True))
        self.seconds["reward"] += time.perf_counter() - began
        return rewards

    # ── evaluation and records ──────────────────────────────────────────────────────────────────────────────────────

    def _place_evaluation(self) -> list[tuple[int, Any]]:
        """Held-out prompts in batches of one size, the last one padded: (number of real prompts, i32[e, p]) of each."""
        mesh, tokens = self.mesh, self.evaluation.tokens
        shards = mesh.shape["data"] * mesh.shape["fsdp"]
        size = -(-min(self.settings.eval_batch, len(tokens)) // shards) * shards
        batches = []
        for first in range(0, len(tokens), size):
            part = tokens[first : first + size]
            filled = np.concatenate([part, np.repeat(part[:1], size - len(part), axis=0)])
            batches.append((len(part), jax.device_put(filled, batch_sharding(mesh))))
        return batches

    def evaluations(self) -> Sequence[Hook]:
        return [Hook(self.settings.eval_every, self._evaluate, "eval")]

    def _evaluate(self, view: View) -> dict[str, float]:
        """Solve rates on the held-out prompts."""
        base = jax.random.fold_in(self.eval_key, view.step)
        made = [
            self.programs.evaluate(view.params, jax.random.fold_in(base, i), prompts)
            for i, (_, prompts) in enumerate(self.eval_batches)
        ]
        parts = [tokens[:n] for tokens, (n, _) in zip(jax.device_get(made), self.eval_batches, strict=True)]
        rewards = self.evaluation.reward(np.arange(len(self.evaluation)), np.concatenate(parts))
        by_prompt = np.asarray(rewards, np.float64).mean(axis=1)
        arms = self.evaluation.arms
        self.solved = {
            name: float(by_prompt[arms == arm].mean())
            for arm, name in enumerate(self.evaluation.arm_names)
            if (arms == arm).any()
        }
        self.solved["mean"] = float(np.mean(list(self.solved.values())))
        view.note(f"step {view.step}: {self.solved['mean']:.4f} of the held-out prompts solved")
        return {f"solve/{name}": value for name, value in self.solved.items()}

    def measure(self, info: UpdateInfo | None, groups: _Groups) -> None:
        num_arms = len(self.names)
        # A verifier that failed (nan) counts as not solved.
        solved = np.nan_to_num(groups.rewards.astype(np.float64)).mean(axis=1)
        self.metrics.add(
            {
                "slots": np.bincount(groups.arms, minlength=num_arms),
                "solved": np.bincount(groups.arms, weights=solved, minlength=num_arms),
                "live": groups.is_live.sum(),
                "failed": (~np.isfinite(groups.rewards)).any(axis=1).sum(),
                "updates": len(groups.infos),
            }
        )
        for shown in groups.infos:
            self.metrics.add({f"train/{name}": value for name, value in shown.averages().items()})
        self.updates += len(groups.infos) * self.settings.updates_per_batch
        self.skipped = self.skipped if info is None else int(info.skipped)
        self.tokens += groups.tokens

    def record(self, step: int, info: UpdateInfo | None, groups: _Groups) -> Record:
        """Arms that were not drawn have no solve rate; an interval without updates has no loss."""
        probabilities = np.asarray(groups.probabilities)
        sums = self.metrics.take()
        slots, solved, updates = sums["slots"], sums["solved"], float(sums["updates"])
        total = max(float(slots.sum()), 1.0)
        fields: dict[str, Any] = self._currencies(step, groups.drawn, self.updates)
        fields |= {name: float(sums[name]) / updates for name in sums if name.startswith("train/")}
        fields |= {"reward/mean": float(solved.sum()) / total, "reward/live_share": float(sums["live"]) / total}
        fields["reward/failed"] = float(sums["failed"]) / total
        for name, count, sum_of_arm in zip(self.names, slots.tolist(), solved.tolist(), strict=True):
            fields[f"arm/share/{name}"] = count / total
            if count > 0:
                fields[f"arm/solve/{name}"] = sum_of_arm / count
        fields["train/skipped"] = self.skipped
        fields |= {f"bandit/probability/{n}": float(p) for n, p in zip(self.names, probabilities, strict=True)}
        return Record(fields, self.tokens, probabilities)

    def position(self, step: int) -> dict[str, int]:
        drawn, updates = jax.device_get((self.state.cursors.drawn, self.state.train.step))
        return self._currencies(step, drawn, updates)

    def _currencies(self, step: int, drawn: Any, updates: Any) -> dict[str, Any]:
        sizes = (self.table >= 0).sum(axis=1)
        # Without replacement within an epoch: an arm has shown as many different prompts as it has drawn, or all.
        return {
            "prompts": step * self.settings.prompts,
            "rollouts": step * self.settings.prompts * self.settings.rollouts,
            "unique_prompts": int(np.minimum(drawn, sizes).sum()),
            "updates": int(updates),
        }

    def result(self, end: End) -> FinetuneResult:
        probabilities, skipped = jax.device_get(
            (self.curriculum.probabilities(self.state.bandit), self.state.train.skipped)
        )
        return FinetuneResult(
            steps=end.steps,
            **self.position(end.steps),
            final_eval=self.solved,
            probabilities=dict(zip(self.names, map(float, probabilities), strict=True)),
            skipped_updates=int(skipped),
            resumed_from=end.resumed_from,
            params=self.state.train.params,
        )
