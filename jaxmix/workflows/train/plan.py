"""What a configuration would do, computed without touching data or devices."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxmix.core.errors import ConfigError
from jaxmix.core.schedule import mean_schedule_weights
from jaxmix.core.validate import MESH_AXES
from jaxmix.models.lm.accounting import count_params
from jaxmix.models.lm.config import TransformerConfig
from jaxmix.workflows.config.resolve import Run, resolve_run
from jaxmix.workflows.config.sections import RunConfig
from jaxmix.workflows.train.cost import compute_of, known_pace
from jaxmix.workflows.train.data import known_sizes


@dataclasses.dataclass(frozen=True)
class SourcePlan:
    """Expected use of one source if the weights stay at the prior, or follow the schedule.

    Attributes:
        name: domain.
        weight: share of the mixture, None while sizes are unknown and the weights follow from them.
        rows: expected rows drawn.
        tokens: expected tokens drawn.
        available: tokens of its training part, None if unknown.
        epochs: passes over it, as if it had no limit.
        max_epochs: the limit, None for none; without `max_epochs` 1 where `on_exhaust` is not "repeat".
    """

    name: str
    weight: float | None
    rows: float | None
    tokens: float | None
    available: float | None
    epochs: float | None
    max_epochs: float | None


@dataclasses.dataclass(frozen=True)
class Memory:
    """Estimated bytes on one device, see `estimate_memory`."""

    params: int
    gradients: int
    optimizer: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        return self.params + self.gradients + self.optimizer + self.activations + self.logits


@dataclasses.dataclass(frozen=True)
class Plan:
    """The whole plan; `as_json` for machines.

    Attributes:
        steps, tokens_per_step, tokens: optimizer steps, tokens of one, tokens of all.
        sources: one entry per source.
        mixer: its name; a learned mixture leaves the prior during the run.
        num_params: parameters of the model.
        flops: floating-point operations of the whole run: of training, and with selection of scoring too.
        rows_trained, rows_scanned: of the whole run; equal without selection.
        relative_flops: of a step, over those of training on its rows alone.
        wall_seconds: at the pace of `paced_by`, a run folder; None where nothing has been timed yet.
        selection: what is selected, None for nothing.
        memory: per device.
        devices: data × fsdp × tensor, None along an axis that takes what is there.
        evaluations, checkpoints: how many of each.
        mixer_evaluations: how many further evaluations the mixer asks for.
        unknown: what could not be computed, and why.
        notes: what to check before training.
    """

    steps: int
    tokens_per_step: int
    tokens: int
    sources: tuple[SourcePlan, ...]
    mixer: str
    num_params: int
    flops: float
    rows_trained: int
    rows_scanned: int
    relative_flops: float
    wall_seconds: float | None
    paced_by: str | None
    selection: str | None
    memory: Memory
    devices: dict[str, int | None]
    evaluations: int
    mixer_evaluations: int
    checkpoints: int
    unknown: tuple[str, ...]
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "memory": {**dataclasses.asdict(self.memory), "total": self.memory.total}}


def estimate_memory(
    model: TransformerConfig, *, rows: int, seq_len: int, parameter_shards: int, is_accumulating: bool
) -> Memory:
    """Bytes on one device during a step, from the settings alone.

    With N parameters over s shards, n = rows · seq_len tokens at a time, and c bytes of the compute dtype:

        params 4·N/s   gradients 4·N/s (twice when accumulating)   AdamW 8·N/s
        activations  n · [ L·A + 4·d ],   with remat "block" n · [ L·4·d + A ],   with "dots" n · L·M
        A = 8·d + c·(2·d + 2·(h+g)·k + (i+1)·f) + 4·h·t      M = 4·d + c·(d + (h+2·g)·k + i·f)
        logits 2 · 4 · v · n   (of one chunk of positions with loss_chunk)

    The term 4·h·t is the attention matrix; cuDNN attention (GPU, bfloat16) does not store it. The compiler reuses
    and fuses, so this is a guide within about a factor of two, not a promise: measured on the CPU without remat, the
    estimate was 0.6 to 0.8 of what XLA took. On the CPU XLA undoes remat, and the memory stays that of "none".

    Args:
        model: settings of the transformer.
        rows: rows of a micro-batch on one device.
        seq_len: tokens of a row.
        parameter_shards: fsdp × tensor.
        is_accumulating: more than one micro-batch per step.
    """
    params = 4 * count_params(model) // parameter_shards
    c = 2 if model.compute_dtype == "bfloat16" else 8 if model.compute_dtype == "float64" else 4
    d, layers, inputs = model.width, model.num_layers, model.mlp_inputs
    h, g, k, f = model.query_heads, model.key_heads, model.size_of_head, model.hidden_units
    everything = 8 * d + c * (2 * d + 2 * (h + g) * k + (inputs + 1) * f) + 4 * h * seq_len
    products = 4 * d + c * (d + (h + 2 * g) * k + inputs * f)
    per_token = {
        "none": layers * everything + 4 * d,
        "dots": layers * products,
        "block": layers * 4 * d + everything,
    }[model.remat]
    positions = min(model.positions_per_loss_chunk or seq_len, seq_len)
    return Memory(
        params=params,
        gradients=params * (2 if is_accumulating else 1),
        optimizer=2 * params,
        activations=rows * seq_len * per_token,
        logits=8 * model.vocab_size * rows * positions,
    )


def make_plan(config: RunConfig) -> Plan:
    """Computes the plan. Reads at most the index of a folder that `prepare` has finished."""
    sizes, unknown = known_sizes(config)
    run = resolve_run(config, sizes)
    settings, data, mixer, selection = run.settings, run.data, run.mixer, run.selection
    drawn = run.drawn()
    tokens_per_step = drawn * data.seq_len
    weights = _mean_weights(run, settings.steps * tokens_per_step)
    sources = _sources(run, weights, settings.steps * drawn)
    if run.prior is None and sizes.tokens:
        unknown.append("natural weights need the size of every source: run `jaxmix prepare`, or give `tokens:`")
    notes = _exhaustions(sources, run.on_exhaust, settings.steps)
    if data.unit == "rows":
        notes.append("rows are padded to data.seq_len: the tokens of the whole run are an upper bound")
    if mixer.schedule is not None:
        notes.append("weights, draws and epochs are means over the schedule")
    wrappers = [next(iter(entry)) for entry in run.folder.plain.get("mixer", {}).get("wrap", ())]
    if wrappers or (mixer.needs and mixer.schedule is None):
        moving = f"what wraps the mixer ({', '.join(wrappers)})" if wrappers else f"the mixer {run.mixer_name!r}"
        base = "prior" if mixer.schedule is None else "schedule alone"
        notes.append(f"{moving} moves the weights; draws and epochs are those of the {base}")
    mixer_evaluations = mixer.cadence.count_validations(settings.steps, len(sources))
    notes.extend(_mixer_notes(run, mixer_evaluations, settings.steps * tokens_per_step))
    devices = {axis: (size if (size := run.mesh.get(axis, 1)) > 0 else None) for axis in MESH_AXES}
    rows = -(-data.batch_size // settings.accumulate // _fixed(devices, "data", "fsdp"))
    if None in devices.values():
        unknown.append("the number of devices is not fixed (-1 in train.mesh): memory is given for 1 along that axis")
    memory = estimate_memory(
        run.model,
        rows=rows,
        seq_len=data.seq_len,
        parameter_shards=_fixed(devices, "fsdp", "tensor"),
        is_accumulating=settings.accumulate > 1,
    )
    compute = compute_of(run)
    cost = compute.cost(settings.steps)
    pace = known_pace((str(run.folder.path), run.reference.run))
    if not compute.is_reference_known:
        notes.append("the reference's run does not exist yet: it is counted as a model of the learner's size")
    return Plan(
        steps=settings.steps,
        tokens_per_step=tokens_per_step,
        tokens=settings.steps * tokens_per_step,
        sources=sources,
        mixer=run.mixer_name,
        num_params=count_params(run.model),
        flops=cost.flops,
        rows_trained=int(cost.trained),
        rows_scanned=int(cost.scanned),
        relative_flops=compute.flops / compute.training,
        wall_seconds=None if pace is None else cost.flops / pace[1],
        paced_by=None if pace is None else pace[0],
        selection=None if selection is None else f"{selection.method}, {selection.level} level",
        memory=memory,
        devices=devices,
        evaluations=-(-settings.steps // settings.eval_every) + 1,
        mixer_evaluations=mixer_evaluations,
        checkpoints=-(-settings.steps // settings.checkpoint_every),
        unknown=tuple(unknown),
        notes=tuple(notes),
    )


def _exhaustions(sources: Sequence[SourcePlan], policies: Mapping[str, str], steps: int) -> list[str]:
    """When sources run out, in their order, each of which makes the others run out sooner; and when the run ends."""
    active = [s for s in sources if s.epochs]
    left = {s.name: s.max_epochs / s.epochs if s.max_epochs else math.inf for s in active if s.epochs}  # in runs
    weights = {s.name: float(s.rows or 0.0) for s in active}
    notes: list[str] = []
    whole, now = sum(weights.values()), 0.0
    while active:
        pace = whole / sum(weights[s.name] for s in active)
        first = min(active, key=lambda s: left[s.name])
        taken = left[first.name] / pace
        now += taken
        if now >= 1:
            break
        active.remove(first)
        left = {s.name: left[s.name] - taken * pace for s in active}
        what = f"{first.name} would need {first.epochs:,.2f} epochs and may have {first.max_epochs:g}"
        place = f"it runs out at about step {steps * now:,.0f}"
        policy = policies[first.name]
        if policy in ("stop", "error"):
            return [*notes, f"{what}: {place}, and the run {_ENDS[policy]} there (on_exhaust: {policy})"]
        then = "the others take its share" if active else "the run ends there: every source is used up"
        notes.append(f"{what}: {place}, and {then}")
    return notes


_ENDS = {"stop": "ends", "error": "fails"}

_MUCH_PROBING = 0.3


def _mixer_notes(run: Run, evaluations: int, tokens: int) -> list[str]:
    """What the mixer's own evaluations and probes cost."""
    notes, num_domains = [], len(run.sizes.tokens)
    if evaluations:
        data = run.data
        rows = data.control_rows or data.validation_rows
        share = evaluations * rows * num_domains * data.seq_len / (3 * tokens)  # a forward pass is a third
        notes.append(
            f"the mixer's {evaluations} evaluations of at most {rows} rows per source cost about {share:.0%} of the "
            f"training's computation" + (": lower data.control_rows" if share > 0.15 else "")
        )
    cadence = run.mixer.cadence
    if cadence.round_length:
        probing = cadence.evaluations * num_domains * cadence.validate / cadence.round_length
        if probing > _MUCH_PROBING:
            notes.append(
                f"the mixer probes for {probing:.0%} of every round: lengthen mixer.round_length, or use fewer sweeps"
            )
    return notes


def _fixed(devices: Mapping[str, int | None], *axes: str) -> int:
    return int(np.prod([devices[axis] or 1 for axis in axes]))


def _mean_weights(run: Run, tokens: int) -> dict[str, float] | None:
    """Mean weights over a run of so many tokens: of its schedule, or the prior where there is none."""
    schedule, prior = run.mixer.schedule, run.prior
    if schedule is None or prior is None:
        return prior
    length = run.settings.steps if schedule.unit == "steps" else tokens
    mean = mean_schedule_weights(schedule, length, list(prior.values()))
    return dict(zip(prior, mean.tolist(), strict=True))


def _sources(run: Run, weights: Mapping[str, float] | None, rows: int) -> tuple[SourcePlan, ...]:
    drawn, seq_len = _rows_by_source(run, weights, rows), run.data.seq_len
    plans = []
    for name, size in run.sizes.tokens.items():
        weight = None if weights is None else weights[name]
        mine, count = drawn[name], run.sizes.counts[name]
        if size == 0 and weight:
            raise ConfigError(f"source {name!r} has no tokens and a weight of {weight:g}", fix="Set it to 0.")
        per_row: float | None = seq_len
        per_epoch = None if size is None else _rows_per_epoch(size, seq_len)
        if run.data.unit == "rows":  # a record is a row, however long
            per_row, per_epoch = (size / count if size is not None and count else None), count
        tokens = None if mine is None or per_row is None else mine * per_row
        epochs = None if mine is None or per_epoch is None else mine / per_epoch if per_epoch else 0.0
        limit = run.max_epochs[name] or (None if run.on_exhaust[name] == "repeat" else 1.0)
        plans.append(SourcePlan(name, weight, mine, tokens, size, epochs, limit))
    return tuple(plans)


def _rows_per_epoch(tokens: float, seq_len: int) -> float:
    """Rows that a source of packed documents is divided into; the last one may be short."""
    return -(-tokens // seq_len)


def _rows_by_source(run: Run, weights: Mapping[str, float] | None, rows: int) -> Mapping[str, float | None]:
    """Expected rows of every source, as `MixtureStream` shares them out for the unit that weights count."""
    sizes = run.sizes
    if weights is None:
        return dict.fromkeys(sizes.tokens)
    if run.data.unit != "documents":
        return {name: rows * weight for name, weight in weights.items()}
    shares = {}
    for name, weight in weights.items():
        size, count = sizes.tokens[name], sizes.counts[name]
        if size is None or count is None:
            return dict.fromkeys(sizes.tokens)
        shares[name] = weight * _rows_per_epoch(size, run.data.seq_len) / max(count, 1.0)
    total = sum(shares.values())
    return {name: rows * share / total for name, share in shares.items()}


def plan_rows(plan: Plan) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The plan's table of sources: headings and rows."""
    columns = ("source", "weight", "rows", "tokens", "available", "epochs", "limit")
    rows: list[tuple[str, ...]] = [
        (
            s.name,
            "?" if s.weight is None else f"{s.weight:.4g}",
            _count(s.rows),
            _count(s.tokens),
            _count(s.available),
            "?" if s.epochs is None else f"{s.epochs:.2f}",
            "-" if s.max_epochs is None else f"{s.max_epochs:g}",
        )
        for s in plan.sources
    ]
    return columns, rows


def plan_lines(plan: Plan) -> list[str]:
    """The plan's other numbers, one line each."""
    memory = plan.memory
    parts = ("params", "gradients", "optimizer", "activations", "logits")
    sizes = ", ".join(f"{name} {_bytes(getattr(memory, name))}" for name in parts)
    mesh = ", ".join(f"{axis} = {'all devices' if size is None else size}" for axis, size in plan.devices.items())
    return [
        f"Steps: {plan.steps:,} of {plan.tokens_per_step:,} tokens, {plan.tokens:,} tokens in all",
        f"Model: {plan.num_params:,} parameters, {plan.flops:.3g} floating-point operations",
        *_cost_lines(plan),
        f"Memory per device, roughly: {_bytes(memory.total)} ({sizes})",
        f"Mesh: {mesh}",
        f"Mixer: {plan.mixer}",
        f"Evaluations: {plan.evaluations}, {plan.mixer_evaluations} more for the mixer",
        f"Checkpoints: {plan.checkpoints}",
        *(f"Unknown: {line}" for line in plan.unknown),
        *(f"Note: {line}" for line in plan.notes),
    ]


def _cost_lines(plan: Plan) -> list[str]:
    """Every axis of the cost: one alone is misleading for a run with a selection."""
    selects = plan.selection is not None
    extra = f" ({plan.relative_flops:.2f}x those of training on its rows alone)" if plan.relative_flops > 1 else ""
    wall = "wall time unknown until a run has been timed"
    if plan.wall_seconds is not None:
        wall = f"about {plan.wall_seconds / 60:,.1f} minutes at the pace of {plan.paced_by}"
    cost = (
        f"Cost: {plan.steps:,} steps, {plan.rows_trained:,} rows trained, {plan.rows_scanned:,} rows scanned, "
        f"{plan.flops:.3g} floating-point operations{extra}, {wall}"
    )
    return [*([f"Selection: {plan.selection}"] if selects else []), cost]


def _count(value: float | None) -> str:
    return "?" if value is None else f"{value:,.0f}"


def _bytes(value: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{value / size:.1f} {unit}"
    return f"{value} B"
