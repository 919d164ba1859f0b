"""`jaxmix finetune`: from a configuration to a run folder of reinforcement fine-tuning under a curriculum."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxmix.core.errors import ConfigError
from jaxmix.core.sharding import build_mesh
from jaxmix.data.files import read_json, write_whole
from jaxmix.data.tasks import PromptSet
from jaxmix.models import transformer
from jaxmix.models.base import Model
from jaxmix.models.partition import params_template
from jaxmix.report import load_run, write_report
from jaxmix.report.pages.finetune_metrics import share_of
from jaxmix.train.rl.loop import FinetuneResult, run_finetuning
from jaxmix.train.rl.start import warm_start
from jaxmix.train.rl.step import PolicyPrograms, build_policy_programs
from jaxmix.train.run.checkpoint import Checkpointer, read_params
from jaxmix.train.run.trackers import make_tracker
from jaxmix.workflows.config.sections import RunFolder, folder_of
from jaxmix.workflows.config.yaml import dump_yaml
from jaxmix.workflows.finetune.config import FinetuneConfig
from jaxmix.workflows.finetune.plan import plan_of
from jaxmix.workflows.finetune.reduction import reduce_prompts
from jaxmix.workflows.finetune.resolve import FinetuneRun, resolve_finetune
from jaxmix.workflows.provenance import (
    begin_run,
    check_fixed,
    check_same_data,
    in_its_folder,
    now,
    provenance_of,
    saved_steps,
    write_json,
)

REDUCTION, START, START_SETTINGS = "reduction.json", "start", "settings.json"
"""Inside a run folder: clusters and kept prompts; the supervised start, a checkpoint as any other."""


@dataclasses.dataclass(frozen=True)
class FinetuneOutcome:
    """The results of a run.

    Attributes:
        run_dir: its folder.
        result: how it ended.
        programs: the compiled functions, for a further run of the same shapes.
        report: the page, None where it was not asked for or another process writes it.
    """

    run_dir: Path
    result: FinetuneResult
    programs: PolicyPrograms
    report: Path | None

    def as_json(self) -> dict[str, Any]:
        result = self.result
        return {
            "run": str(self.run_dir),
            "steps": result.steps,
            "resumed_from": result.resumed_from,
            "prompts": result.prompts,
            "rollouts": result.rollouts,
            "unique_prompts": result.unique_prompts,
            "updates": result.updates,
            "skipped_updates": result.skipped_updates,
            "solved": dict(result.final_eval),
            "probabilities": dict(result.probabilities),
            "report": None if self.report is None else str(self.report),
        }


@in_its_folder
def run_finetune(
    config: FinetuneConfig,
    *,
    command: str,
    programs: PolicyPrograms | None = None,
    start_dir: Path | None = None,
    label: str = "finetune",
    extra: Mapping[str, Any] | None = None,
    has_page: bool = True,
    say: Callable[[str], None] = lambda line: None,
) -> FinetuneOutcome:
    """Fine-tunes as `config` says and fills its run folder, continuing what is there.

    The folder holds config.yaml, provenance.json, metrics.jsonl, timing.jsonl, checkpoints/, start/ (the supervised
    start) and reduction.json, both made once, curriculum.yaml (the result by arm) and report.html.

    Args:
        config: from `load_finetune`.
        command: what was typed, for provenance.json.
        programs: compiled functions of an earlier run of the same shapes.
        start_dir: where the supervised start is kept, to share it between runs; start/ in the run folder if None.
        label: in front of progress lines.
        extra: further entries of provenance.json.
        has_page: write report.html at the end.
        say: receives one line per stage.

    Raises:
        ConfigError: also when the folder holds a run that this configuration cannot continue.
        RunError: the run could not continue; its latest checkpoint is complete.
    """
    check_finetune_continuation(folder_of(config))
    run = resolve_finetune(config)
    folder, settings, model = run.folder, run.settings, transformer(run.model)
    data_hash = _prompts_hash(run.prompts, run.held_out)
    changed_data = check_same_data(folder, data_hash, allowed=settings.allow_changed_data)
    mesh = programs.mesh if programs is not None else build_mesh(**dict[str, Any](run.mesh))
    is_main = jax.process_index() == 0
    about = {**_about(run, data_hash), **(extra or {})}
    provenance = provenance_of(folder, command=command, content=about, changed_data=changed_data)
    params = _start(run, start_dir or folder.path / START, model, mesh, say)
    prompts = run.prompts
    programs = programs or build_policy_programs(
        model,
        settings,
        completion_length=prompts.completion_length,
        eos_id=prompts.eos_id,
        pad_id=prompts.pad_id,
        mesh=mesh,
    )
    if run.reduction.num_clusters is None:
        kept = prompts.rows_by_arm(run.tasks.kept_per_arm)
    else:
        prompts, kept = reduce_prompts(
            run.reduction,
            prompts,
            folder.path / REDUCTION,
            model=model,
            params=params,
            seed=settings.seed,
            is_suite=run.tasks.is_suite,
            say=say,
        )
    result = run_finetuning(
        folder.path,
        model=model,
        prompts=prompts,
        bandit=run.make_bandit(prompts),
        kept=kept,
        evaluation=run.held_out,
        settings=settings,
        initial_params=params,
        programs=programs,
        trackers=[make_tracker(t, folder.path, folder.plain) for t in run.trackers if t != "jsonl" and is_main],
        provenance={"config_hash": folder.config_hash},
        on_start=functools.partial(begin_run, folder, provenance),
        label=label,
    )
    page = None
    if is_main:
        write_json(folder.path / "provenance.json", {**provenance, "finished": now()})
        write_whole(folder.path / "curriculum.yaml", dump_yaml(_curriculum(run, result)))
        page = write_report(folder.path) if has_page else None
    return FinetuneOutcome(folder.path, result, programs, page)


def _start(run: FinetuneRun, folder: Path, model: Model, mesh: Mesh, say: Callable[[str], None]) -> Any:
    """The parameters that the run begins from; None for new ones. A supervised start is trained once and kept."""
    section = run.start
    if section.run is None and section.steps == 0:
        return None
    template = params_template(model, mesh)
    if section.run is not None:
        return read_params(Path(section.run), template)
    made_by = start_settings(run.folder.plain)
    if saved_steps(folder):
        if read_json(folder / START_SETTINGS) not in (made_by, None):
            raise ConfigError(
                "the supervised start was made with other settings of tasks, model or start",
                where=str(folder),
                fix="Remove it to train it again, or choose another folder with --out.",
            )
        return read_params(folder, template)
    say(f"supervised start: {section.steps} steps of {section.batch_size} prompts")
    params = warm_start(
        model,
        run.prompts,
        key=jax.random.key(section.seed),
        steps=section.steps,
        batch_size=section.batch_size,
        learning_rate=section.learning_rate,
        arm_weights=run.start_weights,
        mesh=mesh,
        report=lambda step, loss: say(f"supervised start, step {step}: {loss:.4f} nats per token"),
    )
    write_json(folder / START_SETTINGS, made_by)
    checkpointer = Checkpointer(folder / "checkpoints", keep=1, report=say)
    try:
        checkpointer.save(section.steps, {"train": {"params": params}}, {})
        checkpointer.wait()
    finally:
        checkpointer.close()
    return params


def start_settings(plain: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a supervised start depends on, of a written configuration."""
    tasks = {k: v for k, v in plain["tasks"].items() if k not in ("kept_per_arm", "evaluation")}
    return {"tasks": tasks, "model": plain["model"], "start": plain["start"]}


def check_finetune_continuation(folder: RunFolder) -> None:
    """Raises `ConfigError` if the folder has checkpoints that its configuration cannot continue.

    The length of the run, the learning rate and everything that is only logged may change; what decides the shapes in a
    checkpoint, or which prompts its cursors count, may not.
    """
    check_fixed(folder, _fixed)


def _fixed(plain: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that must not change when a run is continued, by dotted name."""
    train = plain.get("train", {})
    fixed = {f"model.{k}": v for k, v in plain.get("model", {}).items()}
    fixed |= {f"tasks.{k}": v for k, v in plain.get("tasks", {}).items() if k != "evaluation"}
    for section in ("start", "reduction"):
        fixed |= {f"{section}.{k}": v for k, v in (plain.get(section) or {}).items()}
    fixed["bandit.name"] = plain.get("bandit", {}).get("name")
    keys = ("seed", "batch_size", "rollouts", "groups_per_update", "accumulate_live_groups", "refill")
    return fixed | {f"train.{k}": train.get(k) for k in keys}


def _about(run: FinetuneRun, data_hash: str) -> dict[str, Any]:
    """What provenance.json tells of a fine-tuning run."""
    arms = zip(run.held_out.arm_names, run.held_out.families, run.held_out.levels, strict=True)
    return {
        "data_hash": data_hash,
        "seed": run.settings.seed,
        "arms": [
            {"name": name, "family": family, "level": level, "is_learnable": family not in run.noise}
            for name, family, level in arms
        ],
        "bandit": {"name": run.bandit_name},
        "plan": plan_of(run).as_json(),
    }


def _prompts_hash(*parts: PromptSet) -> str:
    digest = hashlib.sha256()
    for prompts in parts:
        for array in (prompts.tokens, prompts.targets, prompts.arms):
            digest.update(b"none" if array is None else np.ascontiguousarray(array).tobytes())
        digest.update(prompts.references.encode())
    return digest.hexdigest()


def _curriculum(run: FinetuneRun, result: FinetuneResult) -> dict[str, Any]:
    """The run's result by arm, for other runs and tools."""
    record = load_run(run.folder.path)
    return {
        "tasks": run.tasks.name,
        "bandit": run.bandit_name,
        "steps": result.steps,
        "prompts": result.prompts,
        "rollouts": result.rollouts,
        "unique_prompts": result.unique_prompts,
        "solved": {name: round(value, 6) for name, value in result.final_eval.items()},
        "probabilities": dict(result.probabilities),
        "realized": {name: share_of(record, [name]) for name in result.probabilities},
    }
