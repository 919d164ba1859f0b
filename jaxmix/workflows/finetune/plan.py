"""What a fine-tuning run will cost, computed before it starts."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxmix.models.lm.accounting import count_params, flops_per_token
from jaxmix.train.run.records import read_records
from jaxmix.workflows.finetune.config import FinetuneConfig
from jaxmix.workflows.finetune.resolve import FinetuneRun, resolve_finetune


@dataclasses.dataclass(frozen=True)
class ArmPlan:
    """One arm: its prompts for training, of which so many are used, and for evaluation."""

    name: str
    family: str
    level: int
    available: int
    kept: int
    held_out: int


@dataclasses.dataclass(frozen=True)
class FinetunePlan:
    """The cost of a run.

    Attributes:
        arms: what is drawn from.
        bandit: its name.
        num_params: of the policy.
        steps: generated batches.
        prompts, rollouts: in all; refilling may draw up to ten times as many a step.
        unique_prompts: at most, of those that are kept.
        updates: at most: fewer where updates wait for live groups.
        evaluations, evaluation_rollouts: how many, and of how many completions each.
        generation_flops, update_flops, evaluation_flops, start_flops: floating-point operations at most, every
            completion at full length and every update made.
        parameter_bytes: parameters, gradients and optimizer.
        cache_bytes: keys and values of the largest batch that is generated.
        wall_seconds: at the pace of the run that this continues; None where nothing has been timed.
        notes: what to check before training.
    """

    arms: tuple[ArmPlan, ...]
    bandit: str
    num_params: int
    steps: int
    prompts: int
    rollouts: int
    unique_prompts: int
    updates: int
    evaluations: int
    evaluation_rollouts: int
    generation_flops: float
    update_flops: float
    evaluation_flops: float
    start_flops: float
    parameter_bytes: int
    cache_bytes: int
    wall_seconds: float | None
    notes: tuple[str, ...]

    @property
    def flops(self) -> float:
        return self.generation_flops + self.update_flops + self.evaluation_flops + self.start_flops

    def as_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "flops": self.flops}


def make_finetune_plan(config: FinetuneConfig) -> FinetunePlan:
    """The plan of a configuration. Makes or reads the prompts; touches no device."""
    return plan_of(resolve_finetune(config))


def plan_of(run: FinetuneRun) -> FinetunePlan:
    """Computes the plan.

        generation   2 N · rollouts · (p / G + t)       the prompt is computed once for its G completions
        update       6 N · groups · G · (p + t)          forward and backward, `updates_per_batch` times
        evaluation   2 N · evaluations · held-out prompts · samples · (p / samples + t)
        start        6 N · steps · batch · (p + t)

    N = parameters of matrices by `flops_per_token`, with its attention; p and t slots of prompt and completion.
    """
    prompts, held_out, model = run.prompts, run.held_out, run.model
    settings, start, section = run.settings, run.start, run.reduction
    forward, length = flops_per_token(model) / 3.0, prompts.prompt_length + prompts.completion_length
    counts, tested = (np.bincount(p.arms, minlength=p.num_arms) for p in (prompts, held_out))
    kept = counts if run.tasks.kept_per_arm is None else np.minimum(counts, run.tasks.kept_per_arm)
    reduced = None if section.num_clusters is None else section.num_clusters * section.per_cluster
    drawn = settings.steps * settings.prompts
    rollouts = drawn * settings.rollouts
    updates = drawn // settings.groups * settings.updates_per_batch
    evaluations = -(-settings.steps // settings.eval_every) + 1
    per_evaluation = len(held_out) * settings.eval_samples
    at_once = max(settings.prompts * settings.rollouts, min(settings.eval_batch, len(held_out)) * settings.eval_samples)
    per_token = 2 * model.num_layers * model.key_heads * model.size_of_head
    item = 2 if model.compute_dtype == "bfloat16" else 4
    num_params = count_params(model)
    generation = forward * (drawn * prompts.prompt_length + rollouts * prompts.completion_length)
    evaluation = (
        forward * evaluations * (len(held_out) * prompts.prompt_length + per_evaluation * prompts.completion_length)
    )
    return FinetunePlan(
        arms=tuple(
            ArmPlan(name, family, level, int(available), int(used), int(test))
            for name, family, level, available, used, test in zip(
                prompts.arm_names, prompts.families, prompts.levels, counts, kept, tested, strict=True
            )
        ),
        bandit=run.bandit_name,
        num_params=num_params,
        steps=settings.steps,
        prompts=drawn,
        rollouts=rollouts,
        unique_prompts=int(min(drawn, kept.sum() if reduced is None else reduced)),
        updates=updates,
        evaluations=evaluations,
        evaluation_rollouts=per_evaluation,
        generation_flops=generation,
        update_flops=3.0 * forward * updates * settings.groups * settings.rollouts * length,
        evaluation_flops=evaluation,
        start_flops=3.0 * forward * start.steps * start.batch_size * length,
        parameter_bytes=16 * num_params,
        cache_bytes=item * per_token * at_once * length,
        wall_seconds=_seconds_left(run),
        notes=tuple(_notes(run, kept, evaluation, generation)),
    )


def _notes(run: FinetuneRun, kept: Any, evaluation: float, generation: float) -> list[str]:
    prompts, held_out, notes = run.prompts, run.held_out, []
    settings, start, section = run.settings, run.start, run.reduction
    empty = [name for name, count in zip(prompts.arm_names, kept, strict=True) if count == 0]
    if empty:
        notes.append(f"no prompts for {', '.join(empty)}: they cannot be drawn")
    if held_out.arm_names != prompts.arm_names:
        notes.append("the held-out prompts have other arms than the training prompts")
    texts = [{row[row != p.pad_id].tobytes() for row in p.tokens} for p in (prompts, held_out)]
    if texts[0] & texts[1]:
        notes.append(f"{len(texts[0] & texts[1])} held-out prompts are also training prompts: remove them from one")
    if evaluation > 0.5 * generation:
        notes.append(
            f"evaluations take {evaluation / generation:.0%} of what the rollouts take: raise train.eval_every, or "
            "lower tasks.evaluation.per_arm"
        )
    if not settings.waits and not settings.scale_by_live_share:
        notes.append(
            "an update follows every batch, live groups or not: under Adam that hides most of what a curriculum saves"
        )
    if section.num_clusters is not None:
        notes.append(
            f"the bandit's arms are {section.num_clusters} clusters of at most {section.per_cluster} "
            "prompts; the table shows what they are taken from"
        )
    if start.run is None and start.steps == 0:
        notes.append("the policy starts from fresh parameters: groups of equal rewards have no gradient")
    if settings.top_p < 1 or settings.top_k:
        notes.append("with top_p or top_k, rollouts are drawn from another policy than the one whose gradient is taken")
    return notes


def _seconds_left(run: FinetuneRun) -> float | None:
    """Seconds that the remaining steps take at the median pace of the run so far; None without timings."""
    try:
        records = read_records(run.folder.path / "timing.jsonl")
        pace = [r["step_seconds"] for r in records[1:]]
        return statistics.median(pace) * max(0, run.settings.steps - records[-1]["step"]) if pace else None
    except (OSError, ValueError, KeyError, TypeError, json.JSONDecodeError):
        return None


def finetune_plan_rows(plan: FinetunePlan) -> tuple[tuple[str, ...], Sequence[tuple[str, ...]]]:
    """The plan's table of families: headings and rows."""
    columns = ("family", "levels", "prompts", "trained on", "held out")
    rows = []
    for family in dict.fromkeys(arm.family for arm in plan.arms):
        arms = [arm for arm in plan.arms if arm.family == family]
        sums = (sum(getattr(arm, key) for arm in arms) for key in ("available", "kept", "held_out"))
        rows.append((family, str(len(arms)), *(f"{x:,}" for x in sums)))
    return columns, rows


def finetune_plan_lines(plan: FinetunePlan) -> list[str]:
    """The plan's other numbers, one line each."""
    wall = "unknown until steps have been timed"
    if plan.wall_seconds is not None:
        wall = f"about {plan.wall_seconds / 60:,.1f} minutes more at the pace of the run so far"
    return [
        f"Steps: {plan.steps:,} generated batches, {plan.prompts:,} prompts, {plan.rollouts:,} rollouts",
        f"Prompts: {plan.unique_prompts:,} different ones at most, of {len(plan.arms)} arms; bandit {plan.bandit}",
        f"Updates: {plan.updates:,} at most",
        f"Evaluations: {plan.evaluations} of {plan.evaluation_rollouts:,} completions",
        f"Model: {plan.num_params:,} parameters",
        f"Cost: {plan.flops:.3g} floating-point operations at most: rollouts {plan.generation_flops:.2g}, updates "
        f"{plan.update_flops:.2g}, evaluations {plan.evaluation_flops:.2g}, start {plan.start_flops:.2g}",
        f"Memory: parameters, gradients and optimizer {plan.parameter_bytes / 1e6:,.1f} MB, key-value cache "
        f"{plan.cache_bytes / 1e6:,.1f} MB",
        f"Time: {wall}",
        *(f"Note: {line}" for line in plan.notes),
    ]
