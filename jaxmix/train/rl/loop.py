"""The loop of reinforcement fine-tuning: checkpoint → evaluate → draw → roll out → reward → collect → update → log.

Of each step the host fetches one thing, the tokens to be rewarded, and sends one back, the rewards.
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxmix.core.errors import ConfigError, RunError
from jaxmix.core.sharding import batch_sharding, build_mesh, process_shard, replicated, use_mesh
from jaxmix.curricula.base import Bandit
from jaxmix.curricula.cursors import prompt_cursors
from jaxmix.data.tasks.prompts import PromptSet
from jaxmix.models.base import Model
from jaxmix.train.rl.log import FinetuneLog, RolloutWindow
from jaxmix.train.rl.settings import FinetuneSettings
from jaxmix.train.rl.step import (
    FinetuneState,
    PolicyPrograms,
    build_curriculum_programs,
    build_policy_programs,
    init_policy,
)
from jaxmix.train.run.checkpoint import Checkpointer, check_same_run
from jaxmix.train.run.interrupt import Interruption, interrupted
from jaxmix.train.run.trackers import Tracker

_PARAMS, _CURSORS, _STEPS, _EVALUATION = range(4)


@dataclasses.dataclass(frozen=True)
class FinetuneResult:
    """How a run ended.

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
    kept: Any = None,
    evaluation: PromptSet,
    settings: FinetuneSettings,
    initial_params: Any = None,
    mesh: Mesh | None = None,
    programs: PolicyPrograms | None = None,
    trackers: Sequence[Tracker] = (),
    provenance: Mapping[str, Any] | None = None,
    label: str = "finetune",
    show_progress: bool = True,
) -> FinetuneResult:
    """Fine-tunes `model` on verifiable prompts by GRPO under a curriculum, continuing a run found in `run_dir`.

    A step draws an arm for every slot, the next prompt of each arm, rolls all of them out, asks `prompts.reward`, and
    tells the bandit, which therefore knows of every step before the next. The policy is updated when enough groups
    have been collected; see `FinetuneSettings`.

    Writes metrics.jsonl (deterministic values only), timing.jsonl and checkpoints/. A checkpoint holds policy,
    optimizer, bandit, cursors, the groups that wait, the key and the sums since the last record: a run killed at any
    moment ends bit for bit as the uninterrupted one, given rewards that depend on nothing but their arguments.

    Several processes: all draw the same arms from the one key, each rewards its own share of the groups, rewards are
    gathered before the bandit and the buffer see them, and every process keeps the same states. Every process holds
    all prompts.

    Args:
        run_dir: of the run.
        model: with `decoding`.
        prompts: to train on, with their verifier.
        bandit: over the arms of `prompts`.
        kept: i32[k, l], which prompts of each arm may be drawn, padded with −1; None: all.
        evaluation: held-out prompts, with arms of their own or the same ones; same end, padding and completion length.
        settings: see `FinetuneSettings`.
        initial_params: of the policy, from `warm_start` say; they are copied. None: fresh ones.
        mesh: all devices along "data" by default.
        programs: from `build_policy_programs` with the same model and settings, to share compiled code between runs.
        trackers: besides the files.
        provenance: plain values, kept in every checkpoint.
        label: in front of progress lines.
        show_progress: print on process 0.

    Raises:
        ConfigError: before any file or device is touched: settings, prompts, bandit and model do not fit one another;
            or the run in `run_dir` is another one.
        RunError: interrupted (SIGINT, SIGTERM; saved first), a reward outside [0, 1], or too many updates in a row that
            were not finite.
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
    run = _Run(Path(run_dir), model, prompts, bandit, table, evaluation, settings, programs, dict(provenance or {}))
    return run.execute(initial_params, trackers, label, show_progress and jax.process_index() == 0)


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


class _Run:
    """The mutable middle of `run_finetuning`."""

    def __init__(
        self,
        run_dir: Path,
        model: Model,
        prompts: PromptSet,
        bandit: Bandit,
        table: np.ndarray,
        evaluation: PromptSet,
        settings: FinetuneSettings,
        programs: PolicyPrograms,
        provenance: dict[str, Any],
    ):
        self.run_dir, self.model, self.prompts, self.bandit = run_dir, model, prompts, bandit
        self.table, self.evaluation, self.settings, self.programs = table, evaluation, settings, programs
        self.provenance = provenance
        self.count = 0  # groups in the buffer
        self.waited = 0  # batches since the last update
        self.evaluated_at: int | None = None
        self.solved: dict[str, float] = {}

    def execute(
        self, initial_params: Any, trackers: Sequence[Tracker], label: str, show_progress: bool
    ) -> FinetuneResult:
        with Interruption() as interruption, use_mesh(self.programs.mesh):
            reports: list[str] = []
            self.checkpointer = Checkpointer(
                self.run_dir / "checkpoints", keep=self.settings.keep, report=reports.append
            )
            try:
                meta = self._begin(initial_params)
                start = 0 if meta is None else int(meta["step"])
                self.log = FinetuneLog(
                    self.run_dir,
                    self.prompts.arm_names,
                    settings=self.settings,
                    trackers=trackers,
                    first=start,
                    label=label,
                    show_progress=show_progress,
                )
                try:
                    for line in reports:
                        self.log.note(line)
                    if meta is not None:
                        self.log.window = RolloutWindow.from_json(meta["window"])
                        self.log.note(f"resumed at step {start}")
                    return self._train(start, None if meta is None else start, interruption)
                finally:
                    self.log.close()
            finally:
                self.checkpointer.close()

    def _begin(self, initial_params: Any) -> Mapping[str, Any] | None:
        """Sets everything up, from the newest checkpoint if there is one, whose JSON part is returned."""
        mesh, settings = self.programs.mesh, self.settings
        whole = replicated(mesh)
        cursors = prompt_cursors(self.table)
        self.curriculum = build_curriculum_programs(self.bandit, cursors, batch_size=settings.prompts, mesh=mesh)
        self.device_prompts = jax.device_put(self.prompts.tokens, whole)
        self.eval_prompts = self._place_evaluation()
        key = jax.random.key(settings.seed)
        fold = lambda stream: jax.random.fold_in(key, stream)
        train = init_policy(fold(_PARAMS), self.model, self.programs, initial_params)
        place = lambda tree: jax.tree.map(lambda x: jax.device_put(x, whole), tree)
        self.eval_key = place(fold(_EVALUATION))
        self.state = FinetuneState(
            train=train,
            reference=jax.tree.map(jnp.copy, train.params) if settings.kl_weight > 0 else None,
            bandit=place(self.bandit.init()),
            cursors=place(cursors.init(fold(_CURSORS))),
            buffer=self.programs.buffer(self.prompts.prompt_length),
            key=place(fold(_STEPS)),
            step=place(jnp.int32(0)),
        )
        if self.checkpointer.begins_afresh(settings.resume):
            return None
        if (stored := self.checkpointer.peek()) is not None:
            check_same_run(stored, self._identity(), self.run_dir)
        restored = self.checkpointer.restore(self.state)
        assert restored is not None
        self.state = restored.state
        self.count, self.waited = int(restored.meta["count"]), int(restored.meta["waited"])
        return {**restored.meta, "step": restored.step}

    def _identity(self) -> dict[str, Any]:
        """What the arrays of a checkpoint do not show: with another one the run would silently be a different run."""
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

    # ── the order of a step ─────────────────────────────────────────────────────────────────────────────────────────

    def _train(self, start: int, resumed_from: int | None, interruption: Interruption) -> FinetuneResult:
        settings, step = self.settings, start
        while step < settings.steps:
            if step % settings.checkpoint_every == 0 and step not in (0, resumed_from):
                self._save(step)
            if interruption.is_requested(step):
                self._save(step)
                self.checkpointer.wait()
                raise interrupted(step, self.run_dir)
            if step % settings.eval_every == 0:
                self._evaluate(step)
            self._step()
            step += 1
            if step % settings.log_every == 0 or step == settings.steps:
                self._record(step)
        if self.evaluated_at != step:
            self._evaluate(step)
        if step != resumed_from:
            self._save(step)
            self.checkpointer.wait()
        return self._result(step, resumed_from)

    def _step(self) -> None:
        state, settings, programs = self.state, self.settings, self.programs
        draw = self.curriculum.draw(state.bandit, state.cursors, state.key, state.step, self.device_prompts)
        made = programs.rollout(state.train.params, draw.key, draw.prompts)
        rows, tokens, skipped = jax.device_get((draw.rows, made.tokens, state.train.consecutive_skipped))
        self._check_skipped(int(skipped))
        rewards = self._rewards(rows, tokens)
        is_live = np.isfinite(rewards).all(axis=1) & (rewards != rewards[:, :1]).any(axis=1)
        self.log.window.add_rollouts(self.prompts.arms[rows], rewards, is_live)
        self.log.generated += int((tokens != self.prompts.pad_id).sum())

        kept = self._kept(rewards, is_live)
        sent, sent_kept = jax.device_put((rewards, kept), replicated(programs.mesh))
        bandit = self.curriculum.absorb(state.bandit, draw.arms, sent)
        buffer = programs.collect(state.buffer, draw.prompts, made, sent, sent_kept)
        self.state = dataclasses.replace(state, bandit=bandit, cursors=draw.cursors, buffer=buffer, step=draw.step)
        self.count = min(self.count + int(kept.sum()), settings.capacity)
        self.waited += 1
        while self.count >= settings.groups or (self.count > 0 and self.waited >= settings.patience):
            self._update()

    def _kept(self, rewards: np.ndarray, is_live: np.ndarray) -> np.ndarray:
        """bool[b], the groups of a batch that are trained on."""
        if not self.settings.waits:
            return np.ones_like(is_live)
        if self.settings.refill and self.curriculum.keep is not None:
            sent = jax.device_put(rewards, replicated(self.programs.mesh))
            return np.asarray(jax.device_get(self.curriculum.keep(sent)))
        return is_live

    def _update(self) -> None:
        state = self.state
        train, buffer, info = self.programs.update(state.train, state.reference, state.buffer)
        self.state = dataclasses.replace(state, train=train, buffer=buffer)
        self.log.window.add_update(info)
        self.count = max(self.count - self.settings.groups, 0)
        self.waited = 0

    def _rewards(self, rows: np.ndarray, completions: np.ndarray) -> np.ndarray:
        """f32[b, g]: this process asks for its share of the groups and receives the others'."""
        began = time.perf_counter()
        index, count = process_shard()
        share = slice(index * len(rows) // count, (index + 1) * len(rows) // count)
        rewards = np.asarray(self.prompts.reward(rows[share], completions[share]), np.float32)
        if rewards.shape != completions[share].shape[:2] or (rewards < 0).any() or (rewards > 1).any():
            raise RunError(
                f"the reward returned {rewards.shape} numbers, not all in [0, 1], for completions of shape "
                f"{completions[share].shape}",
                where="prompts.reward",
                fix="Return float32[b, g] in [0, 1]; nan where a verifier fails.",
            )
        if count > 1:
            from jax.experimental import multihost_utils

            rewards = np.asarray(multihost_utils.process_allgather(rewards, tiled=True))
        self.log.reward_seconds += time.perf_counter() - began
        return rewards

    def _check_skipped(self, skipped: int) -> None:
        if skipped >= self.settings.max_consecutive_skipped:
            raise RunError(
                f"{skipped} updates in a row had a loss or gradient that was not finite",
                where="train.max_consecutive_skipped",
                fix="Lower the learning rate.",
            )

    # ── evaluation, records, checkpoints ────────────────────────────────────────────────────────────────────────────

    def _place_evaluation(self) -> list[tuple[int, Any]]:
        """Held-out prompts in pieces of one size, the last one filled up: (how many count, i32[e, p]) of each."""
        mesh, tokens = self.programs.mesh, self.evaluation.tokens
        shards = mesh.shape["data"] * mesh.shape["fsdp"]
        size = -(-min(self.settings.eval_batch, len(tokens)) // shards) * shards
        pieces = []
        for first in range(0, len(tokens), size):
            part = tokens[first : first + size]
            filled = np.concatenate([part, np.repeat(part[:1], size - len(part), axis=0)])
            pieces.append((len(part), jax.device_put(filled, batch_sharding(mesh))))
        return pieces

    def _evaluate(self, step: int) -> None:
        self.evaluated_at = step
        base = jax.random.fold_in(self.eval_key, step)
        made = [
            self.programs.evaluate(self.state.train.params, jax.random.fold_in(base, i), piece)
            for i, (_, piece) in enumerate(self.eval_prompts)
        ]
        parts = [tokens[:n] for tokens, (n, _) in zip(jax.device_get(made), self.eval_prompts, strict=True)]
        rewards = self.evaluation.reward(np.arange(len(self.evaluation)), np.concatenate(parts))
        by_prompt = np.asarray(rewards, np.float64).mean(axis=1)
        arms = self.evaluation.arms
        self.solved = {
            name: float(by_prompt[arms == arm].mean())
            for arm, name in enumerate(self.evaluation.arm_names)
            if (arms == arm).any()
        }
        self.solved["mean"] = float(np.mean(list(self.solved.values())))
        self.log.evaluation(step, self._currencies(step), self.solved)
        self.log.note(f"step {step}: {self.solved['mean']:.4f} of the held-out prompts solved")

    def _currencies(self, step: int) -> dict[str, int]:
        drawn, updates = jax.device_get((self.state.cursors.drawn, self.state.train.step))
        sizes = (self.table >= 0).sum(axis=1)
        # Without replacement within an epoch: an arm has shown as many different prompts as it has drawn, or all.
        return {
            "prompts": step * self.settings.prompts,
            "rollouts": step * self.settings.prompts * self.settings.rollouts,
            "unique_prompts": int(np.minimum(drawn, sizes).sum()),
            "updates": int(updates),
        }

    def _record(self, step: int) -> None:
        probabilities, skipped = jax.device_get(
            (self.curriculum.probabilities(self.state.bandit), self.state.train.skipped)
        )
        self.log.train(step, self._currencies(step), probabilities, int(skipped))

    def _save(self, step: int) -> None:
        meta = {
            **self._identity(),
            "count": self.count,
            "waited": self.waited,
            "window": self.log.window.to_json(),
            "provenance": self.provenance,
        }
        self.log.save_blocked += self.checkpointer.save(step, self.state, meta)

    def _result(self, step: int, resumed_from: int | None) -> FinetuneResult:
        currencies = self._currencies(step)
        probabilities, skipped = jax.device_get(
            (self.curriculum.probabilities(self.state.bandit), self.state.train.skipped)
        )
        return FinetuneResult(
            steps=step,
            **currencies,
            final_eval=self.solved,
            probabilities=dict(zip(self.prompts.arm_names, map(float, probabilities), strict=True)),
            skipped_updates=int(skipped),
            resumed_from=resumed_from,
            params=self.state.train.params,
        )
