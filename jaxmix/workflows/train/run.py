"""`jaxmix train`: from a configuration to a run folder."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxmix.core.errors import ConfigError
from jaxmix.core.sharding import build_mesh, process_shard
from jaxmix.data import MixtureStream
from jaxmix.models import transformer
from jaxmix.report import RunRecord, load_run, write_report
from jaxmix.report.tables import mean_over_domains
from jaxmix.train.lm.evaluate import ValidationSet, subset, validation_set
from jaxmix.train.lm.loop import RunResult, run_training
from jaxmix.train.lm.programs import Programs, build_programs, with_selection
from jaxmix.train.run.trackers import make_tracker
from jaxmix.train.selection.super_batch import scoring_micro_batches
from jaxmix.workflows.config.mixer import inactive_names
from jaxmix.workflows.config.mixture import MIXTURE_FILE, Mixture, write_mixture
from jaxmix.workflows.config.resolve import Run, resolve_run
from jaxmix.workflows.config.sections import DataConfig, RunConfig, RunFolder, folder_of
from jaxmix.workflows.provenance import (
    begin_run,
    check_fixed,
    check_same_data,
    in_its_folder,
    now,
    provenance_of,
    write_json,
)
from jaxmix.workflows.train.cost import compute_of
from jaxmix.workflows.train.data import RunData, prepare_and_open
from jaxmix.workflows.train.reference import load_reference


@dataclasses.dataclass(frozen=True)
class TrainOutcome:
    """The results of a run.

    Attributes:
        run_dir: its folder.
        result: how training ended.
        average_weights: mean sampling weight by domain over all steps.
        record: the run as its folder tells it, on process 0.
        programs: the compiled functions, for a further run of the same shapes.
        report: the page, None where it was not asked for or another process writes it.
    """

    run_dir: Path
    result: RunResult
    average_weights: dict[str, float]
    record: RunRecord | None
    programs: Programs
    report: Path | None

    def as_json(self) -> dict[str, Any]:
        result = self.result
        losses = {name: loss for name, loss in result.final_eval.items() if math.isfinite(loss)}
        return {
            "run": str(self.run_dir),
            "steps": result.steps,
            "resumed_from": result.resumed_from,
            "ended_early": result.ended_early,
            "skipped_steps": result.skipped_steps,
            "validation_loss": result.final_eval,
            "test_loss": result.final_test,
            "mean_validation_loss": mean_over_domains(losses) if losses else None,
            "final_weights": result.final_weights,
            "recommended_weights": result.recommended,
            "average_weights": self.average_weights,
            "token_shares": {} if self.record is None else self.record.token_shares(),
            "ran_out": {} if self.record is None else self.record.ran_out,
            "tokens_per_second": result.tokens_per_second if math.isfinite(result.tokens_per_second) else None,
            "report": None if self.report is None else str(self.report),
        }


@in_its_folder
def run_train(
    config: RunConfig,
    *,
    command: str,
    data: RunData | None = None,
    programs: Programs | None = None,
    label: str = "train",
    extra: Mapping[str, Any] | None = None,
    has_page: bool = True,
) -> TrainOutcome:
    """Trains as `config` says and fills its run folder, continuing what is there.

    Args:
        config: checked configuration.
        command: what was typed, for provenance.json.
        data: opened data, to share between runs; prepared and opened here if None.
        programs: compiled functions of an earlier run of the same shapes.
        label: in front of progress lines.
        extra: further entries of provenance.json.
        has_page: write report.html at the end.

    Raises:
        ConfigError: also when the folder holds a run that this configuration cannot continue.
        RunError: the run could not continue; its latest checkpoint is complete.
    """
    check_continuation(folder_of(config))
    mesh = programs.mesh if programs is not None else build_mesh(**dict[str, Any](config.mesh))
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    _check_rows(config.data.batch_size, config.train.accumulate * shards)
    data = data or prepare_and_open(config)
    run = resolve_run(config, data.known, is_drawing=True)
    folder, settings, rows = run.folder, run.settings, run.data.batch_size
    changed_data = check_same_data(folder, data.data_hash, allowed=settings.allow_changed_data)
    model, is_main = transformer(run.model), jax.process_index() == 0
    validation, control, test = _held_out(run.data, data)
    held_out = {"eval": validation, **({} if test is None else {"test": test})}
    about = {**_about(run, data), "held_out_tokens": {kind: rows.count_tokens() for kind, rows in held_out.items()}}
    about |= extra or {}
    provenance = provenance_of(folder, command=command, content=about, changed_data=changed_data)
    programs = programs or build_programs(model, settings, num_domains=len(data.train), mesh=mesh)
    programs = with_selection(programs, run.selection, mixer=run.mixer, batch_size=rows)
    prior, drawn, pieces = run.prior, run.drawn(shards=shards), 1
    assert prior is not None  # the sizes of opened data are known
    if programs.selection is not None and programs.selection.forward_passes.reference:
        pieces = scoring_micro_batches(drawn, rows, accumulate=settings.accumulate, mesh=mesh)
    result = run_training(
        folder.path,
        model=model,
        mixer=run.mixer,
        stream=MixtureStream(
            data.train,
            batch_size=drawn,
            seq_len=run.data.seq_len,
            seed=settings.seed,
            unit=run.data.unit,
            block=run.data.block,
            on_exhaust=run.on_exhaust,
            max_epochs=run.limits,
            weights=prior,
            shard=process_shard(),
        ),
        validation=validation,
        settings=settings,
        prior=np.asarray(list(prior.values())),
        control=control,
        test=test,
        reference=load_reference(run.reference, data, mesh, pieces=pieces),
        selection=run.selection,
        batch_size=rows,
        programs=programs,
        trackers=[make_tracker(t, folder.path, folder.plain) for t in run.trackers if t != "jsonl" and is_main],
        config_hash=folder.config_hash,
        on_start=functools.partial(begin_run, folder, provenance),
        label=label,
    )
    average, record, page = dict(result.final_weights), None, None
    if is_main:
        early = {} if result.ended_early is None else {"ended_early": result.ended_early}
        write_json(folder.path / "provenance.json", {**provenance, "finished": now(), **early})
        record = load_run(folder.path)
        average = record.average_weights() or average
        trained = {n: share for n in data.train if (share := record.final("train", f"select/share/{n}")) is not None}
        mixture = _mixture(run, data, result, average, trained)
        write_mixture(folder.path / MIXTURE_FILE, mixture)
        page = write_report(folder.path) if has_page else None
    return TrainOutcome(folder.path, result, average, record, programs, page)


def _held_out(settings: DataConfig, data: RunData) -> tuple[ValidationSet, ValidationSet | None, ValidationSet | None]:
    """Rows for the report, for the mixer's own evaluations, and for the test at the end."""
    part = "validation" if settings.test_rows else "all"
    validation = validation_set(
        data.validation, seq_len=settings.seq_len, rows_per_domain=settings.validation_rows, part=part
    )
    control = subset(validation, settings.control_rows) if settings.control_rows else None
    if not settings.test_rows:
        return validation, control, None
    test = validation_set(data.validation, seq_len=settings.seq_len, rows_per_domain=settings.test_rows, part="test")
    return validation, control, test


def check_continuation(folder: RunFolder) -> None:
    """Raises `ConfigError` if the folder has checkpoints that its configuration cannot continue.

    The length of the run, the learning rate, weights and everything that is only logged may change; what decides
    the shapes in a checkpoint, or what its data cursors count, may not.
    """
    check_fixed(folder, _fixed)


def _fixed(plain: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that must not change when a run is continued, by dotted name."""
    data, mixer = plain.get("data", {}), plain.get("mixer", {})
    fixed = {f"model.{k}": v for k, v in plain.get("model", {}).items()}
    fixed |= {f"data.{k}": data.get(k) for k in ("tokenizer", "seq_len", "batch_size", "block", "unit")}
    # Rows drawn a step, of which cursors count the blocks.
    fixed["selection.filter_ratio"] = (plain.get("selection") or {}).get("filter_ratio")
    fixed["mixer.name"] = mixer.get("name")
    fixed["mixer.wrap"] = [next(iter(entry)) for entry in mixer.get("wrap", ())]
    if mixer.get("name") not in ("static", "scheduled"):  # a mixer's state holds the drawn sources only
        fixed["mixture.weights of 0"] = inactive_names(plain)
    fixed["train.seed"] = plain.get("train", {}).get("seed", 0)
    return fixed


def _check_rows(rows: int, parts: int) -> None:
    if rows % parts:
        raise ConfigError(
            f"data.batch_size {rows} cannot be divided by {parts} (micro-batches x data x fsdp)",
            where="data.batch_size",
            fix=f"Use a multiple of {parts}, or fewer devices in train.mesh.",
        )


def _about(run: Run, data: RunData) -> dict[str, Any]:
    """What provenance.json tells of a training run."""
    total, mixer = sum(data.sizes.values()), run.mixer
    return {
        "tokenizer_hash": data.tokenizer_hash,
        "data_hash": data.data_hash,
        "seed": run.settings.seed,
        "prior": run.prior,
        "natural_shares": {name: size / total for name, size in data.sizes.items()},
        "train_tokens": dict(data.sizes),
        "max_epochs": run.limits,
        "mixer": {"name": mixer.name, "needs": sorted(mixer.needs), "update_every": mixer.cadence.update},
        "compute": compute_of(run).as_json(),
    }


def _mixture(
    run: Run, data: RunData, result: RunResult, average: Mapping[str, float], trained: Mapping[str, float]
) -> Mixture:
    """The run's result as a mixture for other runs and tools; `trained` is what selection implied, {} without one."""
    total = int(sum(drawn["tokens"] for drawn in result.realized.values()))
    about = {
        "mixer": run.mixer_name,
        "steps": result.steps,
        "tokenizer": run.data.tokenizer,
        "tokenizer_hash": data.tokenizer_hash,
        "final": dict(result.final_weights),
        "average": dict(average),
        "realized": {name: drawn["tokens"] / max(1, total) for name, drawn in result.realized.items()},
        **({"trained": dict(trained)} if trained else {}),
    }
    return Mixture(
        weights=dict(result.recommended),
        unit=run.data.unit,
        tokens=total,
        available_tokens=dict(data.sizes),
        about=about,
    )
