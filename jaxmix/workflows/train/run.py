"""`jaxmix train`: from a configuration to a run folder."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxmix.core.errors import ConfigError
from jaxmix.data.files import write_whole
from jaxmix.workflows.config.resolve import (
    prior_weights,
    resolve_max_epochs,
    resolve_model_config,
    resolve_on_exhaust,
    resolve_settings,
)
from jaxmix.workflows.config.sections import RunConfig, config_hash
from jaxmix.workflows.config.strict import dump_yaml, parse_yaml, to_plain
from jaxmix.workflows.provenance import now, provenance_of, write_json
from jaxmix.workflows.train.data import RunData, prepare_and_open
from jaxmix.workflows.train.inactive import kept_out_names, resolve_drawing_mixer
from jaxmix.workflows.train.selection import compute_of, drawn_rows, resolve_selection

if TYPE_CHECKING:
    from jaxmix.train.lm.evaluate import ValidationSet
    from jaxmix.train.lm.loop import RunResult
    from jaxmix.train.lm.programs import Programs


@dataclasses.dataclass(frozen=True)
class TrainOutcome:
    """What a run left.

    Attributes:
        run_dir: its folder.
        result: how training ended.
        average_weights: mean sampling weight by domain over the logged steps.
        programs: the compiled functions, for a further run of the same shapes.
        report: the page, None where it was not asked for or another process writes it.
    """

    run_dir: Path
    result: RunResult
    average_weights: dict[str, float]
    programs: Programs
    report: Path | None

    def as_json(self) -> dict[str, Any]:
        result = self.result
        losses = [loss for loss in result.final_eval.values() if math.isfinite(loss)]
        return {
            "run": str(self.run_dir),
            "steps": result.steps,
            "resumed_from": result.resumed_from,
            "ended_early": result.ended_early,
            "skipped_steps": result.skipped_steps,
            "validation_loss": result.final_eval,
            "test_loss": result.final_test,
            "mean_validation_loss": sum(losses) / len(losses) if losses else None,
            "final_weights": result.final_weights,
            "recommended_weights": result.recommended,
            "average_weights": self.average_weights,
            "tokens_per_second": result.tokens_per_second if math.isfinite(result.tokens_per_second) else None,
            "report": None if self.report is None else str(self.report),
        }


def resolved(config: RunConfig) -> RunConfig:
    """The configuration with the loop's defaults written out, so that a later default changes no old run."""
    settings = dataclasses.asdict(resolve_settings(config))
    for key in ("steps", "checkpoint_every", "keep", "resume"):  # these have keys of their own
        del settings[key]
    selection = resolve_selection(config)
    written = {} if selection is None else {k: v for k, v in selection.relevant.items() if k != "method"}
    return dataclasses.replace(
        config,
        train=dataclasses.replace(config.train, settings=settings),
        selection=dataclasses.replace(config.selection, settings=written),
    )


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
        RunError: the run could not go on; its newest checkpoint is whole.
    """
    import jax

    from jaxmix.core.sharding import build_mesh, process_shard
    from jaxmix.data import MixtureStream
    from jaxmix.models import transformer
    from jaxmix.train import build_programs, run_training
    from jaxmix.train.lm.programs import with_selection
    from jaxmix.train.run.trackers import make_tracker
    from jaxmix.train.selection.super_batch import pieces_for
    from jaxmix.workflows.train.reference import load_reference

    config = resolved(config)
    assert config.out is not None
    run_dir = Path(config.out)
    check_continuation(config, run_dir)
    settings = resolve_settings(config)
    axes: dict[str, Any] = dict(config.train.mesh)
    mesh = programs.mesh if programs is not None else build_mesh(**axes)
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    _check_rows(config, settings.accumulate * shards)
    selection, drawn = resolve_selection(config), drawn_rows(config, multiple=shards)
    data = data or prepare_and_open(config)
    names = tuple(data.train)
    prior = prior_weights(config, data.sizes if config.data.unit == "tokens" else data.counts)
    assert prior is not None
    mixer = resolve_drawing_mixer(config, prior, data.sizes)
    model_config = resolve_model_config(config, vocab_size=data.vocab_size)
    model = transformer(model_config)
    limits = resolve_max_epochs(config, names)
    stream = MixtureStream(
        data.train,
        batch_size=drawn,
        seq_len=config.data.seq_len,
        seed=settings.seed,
        unit=config.data.unit,
        block=config.data.block,
        on_exhaust=resolve_on_exhaust(config, names),
        max_epochs={name: limit for name, limit in limits.items() if limit is not None},
        weights=prior,
        shard=process_shard(),
    )
    validation, control, test = _held_out(config, data)
    is_main = jax.process_index() == 0
    about = {"name": mixer.name, "needs": sorted(mixer.needs), "update_every": mixer.cadence.update}
    about_run = {"mixer": about, "compute": compute_of(config, mixer, model_config).as_json(), **(extra or {})}
    provenance = _provenance(config, run_dir, data, prior, limits, command, about_run)
    if is_main:
        write_whole(run_dir / "config.yaml", dump_yaml(to_plain(config)))
        write_json(run_dir / "provenance.json", provenance)
    trackers = [make_tracker(t, run_dir, to_plain(config)) for t in config.track if t != "jsonl" and is_main]
    programs = programs or build_programs(model, settings, num_domains=len(names), mesh=mesh)
    programs = with_selection(
        programs,
        model,
        settings,
        selection,
        mixer=mixer,
        batch_size=config.data.batch_size,
        num_domains=len(names),
    )
    pieces = 1
    if programs.selection is not None and programs.selection.scan.reference:
        pieces = pieces_for(drawn, config.data.batch_size, accumulate=settings.accumulate, mesh=mesh)
    reference = load_reference(config, data, mesh, pieces=pieces)
    result = run_training(
        run_dir,
        model=model,
        mixer=mixer,
        stream=stream,
        validation=validation,
        settings=settings,
        prior=np.asarray([prior[name] for name in names]),
        control=control,
        test=test,
        reference=reference,
        selection=selection,
        batch_size=config.data.batch_size,
        programs=programs,
        trackers=trackers,
        config_hash=provenance["config_hash"],
        label=label,
    )
    average, page = dict(result.final_weights), None
    if is_main:
        from jaxmix.report import load_run, write_report

        write_json(run_dir / "provenance.json", {**provenance, "finished": now()})
        run = load_run(run_dir)
        average = run.average_weights() or average
        trained = {n: share for n in names if (share := run.final("train", f"select/share/{n}")) is not None}
        write_whole(run_dir / "mixture.yaml", dump_yaml(_mixture(config, data, result, average, trained)))
        page = write_report(run_dir) if has_page else None
    return TrainOutcome(run_dir, result, average, programs, page)


def _held_out(config: RunConfig, data: RunData) -> tuple[ValidationSet, ValidationSet | None, ValidationSet | None]:
    """Rows for the report, for the mixer's own evaluations, and for the test at the end."""
    from jaxmix.train.lm.evaluate import subset, validation_set

    settings = config.data
    part = "validation" if settings.test_rows else "all"
    validation = validation_set(
        data.validation, seq_len=settings.seq_len, rows_per_domain=settings.validation_rows, part=part
    )
    control = subset(validation, settings.control_rows) if settings.control_rows else None
    if not settings.test_rows:
        return validation, control, None
    test = validation_set(data.validation, seq_len=settings.seq_len, rows_per_domain=settings.test_rows, part="test")
    return validation, control, test


def check_continuation(config: RunConfig, run_dir: Path) -> None:
    """Raises `ConfigError` if the folder has checkpoints that `config` cannot continue.

    The length of the run, the learning rate, weights and everything that is only logged may change; what decides
    the shapes in a checkpoint, or what its data cursors count, may not.
    """
    path = run_dir / "config.yaml"
    if config.checkpoint.resume == "never" or not path.is_file() or not any((run_dir / "checkpoints").glob("[0-9]*")):
        return
    old = parse_yaml(path.read_text(encoding="utf-8"), where=str(path))
    before, after = _fixed(old), _fixed(to_plain(config))
    for key in {**before, **after}:
        if before.get(key) != after.get(key):
            raise ConfigError(
                f"{key} was {before.get(key)!r} and is now {after.get(key)!r}: the checkpoints cannot be continued",
                where=str(run_dir),
                fix="Choose another run folder with --out, or take the old value.",
            )


def _fixed(plain: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a run keeps for life, by dotted name."""
    data, mixer = plain.get("data", {}), plain.get("mixer", {})
    fixed = {f"model.{k}": v for k, v in plain.get("model", {}).items()}
    fixed |= {f"data.{k}": data.get(k) for k in ("tokenizer", "seq_len", "batch_size", "block", "unit")}
    # Rows drawn a step, of which cursors count the blocks.
    fixed["selection.filter_ratio"] = (plain.get("selection") or {}).get("filter_ratio")
    fixed["mixer.name"] = mixer.get("name")
    fixed["mixer.wrap"] = [next(iter(entry)) for entry in mixer.get("wrap", ())]
    if mixer.get("name") not in ("static", "scheduled"):  # a mixer's state holds the drawn sources only
        fixed["mixture.weights of 0"] = kept_out_names(plain)
    fixed["train.seed"] = plain.get("train", {}).get("seed", 0)
    return fixed


def _check_rows(config: RunConfig, parts: int) -> None:
    if config.data.batch_size % parts:
        raise ConfigError(
            f"data.batch_size {config.data.batch_size} cannot be divided by {parts} (micro-batches x data x fsdp)",
            where="data.batch_size",
            fix=f"Use a multiple of {parts}, or fewer devices in train.mesh.",
        )


def _provenance(
    config: RunConfig,
    run_dir: Path,
    data: RunData,
    prior: Mapping[str, float],
    limits: Mapping[str, float | None],
    command: str,
    extra: Mapping[str, Any],
) -> dict[str, Any]:
    total = sum(data.sizes.values())
    content = {
        "tokenizer_hash": data.tokenizer_hash,
        "data_hash": data.data_hash,
        "seed": resolve_settings(config).seed,
        "prior": dict(prior),
        "natural_shares": {name: size / total for name, size in data.sizes.items()},
        "train_tokens": dict(data.sizes),
        "max_epochs": {name: limit for name, limit in limits.items() if limit is not None},
        **extra,
    }
    is_continued = config.checkpoint.resume != "never"
    return provenance_of(
        run_dir, command=command, config_hash=config_hash(config), is_continued=is_continued, content=content
    )


def _mixture(
    config: RunConfig, data: RunData, result: RunResult, average: Mapping[str, float], trained: Mapping[str, float]
) -> dict[str, Any]:
    """The run's result as a mixture for other runs and tools; `trained` is what selection implied, {} without one."""
    return {
        "unit": config.data.unit,
        "tokenizer": config.data.tokenizer,
        "tokenizer_hash": data.tokenizer_hash,
        "mixer": config.mixer.name,
        "steps": result.steps,
        "tokens": int(sum(drawn["tokens"] for drawn in result.realized.values())),
        "final": dict(result.final_weights),
        "recommended": dict(result.recommended),
        "average": dict(average),
        "realized": {name: drawn["share"] for name, drawn in result.realized.items()},
        **({"trained": dict(trained)} if trained else {}),
    }
