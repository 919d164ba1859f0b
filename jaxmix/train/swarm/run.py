"""A swarm: many small models trained at once on mixtures of the same sources, for mixing laws.

Every proxy sees exactly the rows, in exactly the order, that a lone run (`run_training`) with its mixture and seed
would have seen, starts from the same parameters and takes the same steps; its losses equal the lone run's up to the
rounding of float32 sums in another order.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxmix.core.errors import ConfigError
from jaxmix.data.mixture.arguments import checked_weights
from jaxmix.models.base import Model
from jaxmix.train.lm.evaluate import ValidationSet, held_out_batches
from jaxmix.train.lm.settings import TrainSettings
from jaxmix.train.run.checkpoint import Checkpointer
from jaxmix.train.run.interrupt import Interruption, interrupted
from jaxmix.train.run.progress import Progress
from jaxmix.train.run.records import RecordFile
from jaxmix.train.swarm.files import (
    ChunkResult,
    ProxyResult,
    chunk_folder,
    finished_chunks,
    pinned_chunks,
    plain,
    read_chunk,
    write_chunk,
)
from jaxmix.train.swarm.plan import Proxy, SwarmPlan
from jaxmix.train.swarm.step import (
    SwarmPrograms,
    SwarmState,
    build_swarm_programs,
    padded,
    trimmed,
)

_LONGEST_STRETCH = 64
_STRETCH_SECONDS = 10.0


@dataclasses.dataclass(frozen=True)
class SwarmResult:
    """The result of a swarm, proxies in the order they were given.

    Attributes:
        names: of the domains.
        proxies: the result of each.
        curve_steps: steps of the evaluations.
        seconds: spent on steps and evaluations over all sessions, compilation included.
        tokens: trained on, over all proxies.
        flops: floating-point operations of the training steps, model operations alone.
    """

    names: tuple[str, ...]
    proxies: tuple[ProxyResult, ...]
    curve_steps: tuple[int, ...]
    seconds: float
    tokens: int
    flops: float

    @property
    def losses(self) -> np.ndarray:
        """f64[r, m]: held-out losses at the end, nats per token; a row of nan for a proxy that diverged."""
        return np.asarray([proxy.losses for proxy in self.proxies], np.float64)


def run_swarm(
    run_dir: str | Path,
    *,
    model: Model,
    proxies: Sequence[Proxy],
    sources: Mapping[str, Any],
    validation: ValidationSet,
    settings: TrainSettings,
    batch_size: int,
    seq_len: int,
    vocab_size: int,
    unit: str = "tokens",
    block: int = 8,
    on_exhaust: Any = "repeat",
    max_epochs: Any = None,
    chunk: int | None = None,
    table_bytes: int = 2**30,
    mesh: Mesh | None = None,
    width: int | None = None,
    programs: SwarmPrograms | None = None,
    label: str = "swarm",
    show_progress: bool = True,
) -> SwarmResult:
    """Trains all proxies, a chunk of them at a time, continuing what `run_dir` holds.

    A chunk is one program: parameters, optimizer states and losses of its proxies are batched, the rows of all
    sources lie on the devices, and a stretch of steps runs without the host (`swarm_step`). After every chunk its
    result is written; inside one, a checkpoint every `settings.checkpoint_every` steps. Killed at any moment, the
    same call continues from the last of these and ends with the same bits.

    A proxy whose loss or gradient is not finite skips that update, as a lone run does. Where a lone run would have
    stopped (`settings.max_consecutive_skipped`), or where a held-out loss is not finite, the proxy's losses are nan
    and `reason` says why; the other proxies are not affected.

    Args:
        run_dir: receives plan.json, progress.jsonl and a folder per chunk.
        model: of every proxy.
        proxies: mixtures and seeds; names must differ.
        sources: token sources by name, as for `MixtureStream`.
        validation: held-out rows of the same domains in the same order.
        settings: as for a lone run; neither `seed` nor `log_every` is used.
        batch_size, seq_len, unit, block, max_epochs: as for `MixtureStream`, for every proxy.
        vocab_size: token ids are below it.
        on_exhaust: "repeat" or "drop", for all or by name: proxies have equally many steps.
        chunk: proxies trained at once; all by default. A swarm that was begun keeps its chunks.
        table_bytes: the rows of all sources are kept on every device if they need no more than this; else those of a
            stretch are sent before it.
        mesh: with one axis `proxy`; all devices of this process by default.
        width: see `build_swarm_programs`.
        programs: from `build_swarm_programs` with the same model, settings, sources and mesh, to share compiled code.
        label: in front of progress lines.
        show_progress: print.

    Raises:
        ConfigError: before any file or device is touched; also when `run_dir` holds another swarm.
        RunError: interrupted, or the sources of a proxy are used up. Checkpoints are complete.
    """
    _check(proxies, sources, validation, settings, on_exhaust)
    run_dir = Path(run_dir)
    stream = {
        "batch_size": batch_size,
        "seq_len": seq_len,
        "unit": unit,
        "block": block,
        "on_exhaust": on_exhaust,
        "max_epochs": max_epochs,
        "vocab_size": vocab_size,
    }
    fingerprint = _fingerprint(model, proxies, sources, settings, stream)
    chunks = pinned_chunks(run_dir, [p.name for p in proxies], fingerprint, chunk or len(proxies), settings.resume)
    waiting = [number for number in range(len(chunks)) if read_chunk(chunk_folder(run_dir, number)) is None]
    if waiting:
        swarm = _Swarm(model, sources, validation, settings, stream, table_bytes, mesh, width, programs)
        for number in waiting:
            chunk_label = f"{label}, chunk {number + 1}/{len(chunks)}" if len(chunks) > 1 else label
            steps_after = (len(chunks) - number - 1) * settings.steps
            chunk_proxies = [proxies[i] for i in chunks[number]]
            _Chunk(swarm, run_dir, number, chunk_proxies, steps_after).train(chunk_label, show_progress=show_progress)
    results = finished_chunks(run_dir)
    tokens = sum(proxy.tokens for result in results for proxy in result.proxies)
    return SwarmResult(
        names=tuple(sources),
        proxies=tuple(proxy for result in results for proxy in result.proxies),
        curve_steps=results[0].curve_steps,
        seconds=sum(result.seconds for result in results),
        tokens=tokens,
        flops=tokens * model.flops_per_token,
    )


class _Swarm:
    """Everything that the chunks of a swarm share: programs, held-out rows, the table of rows."""

    def __init__(
        self,
        model: Model,
        sources: Mapping[str, Any],
        validation: ValidationSet,
        settings: TrainSettings,
        stream: dict[str, Any],
        table_bytes: int,
        mesh: Mesh | None,
        width: int | None,
        programs: SwarmPrograms | None,
    ):
        self.model, self.sources, self.settings, self.stream = model, sources, settings, stream
        probe = SwarmPlan([], sources, **stream)
        is_small = probe.num_rows * probe.bytes_per_row <= table_bytes
        self.programs = programs or build_swarm_programs(
            model,
            settings,
            num_domains=len(sources),
            batch_size=stream["batch_size"],
            seq_len=stream["seq_len"],
            is_table_shared=is_small,
            mesh=mesh,
            width=width,
        )
        is_resident = self.programs.is_table_shared
        self.table = self.programs.place(tuple(probe.table()), is_shared=True) if is_resident else None
        batches = held_out_batches(validation, batch_size=stream["batch_size"])
        self.held_out = self.programs.place(batches, is_shared=True)


class _Chunk:
    """The proxies of one chunk while they train.

    Attributes:
        state: of the proxies after `step` steps, filled up to a multiple of the devices.
        curve: held-out losses f32[r, m] by step.
        clock: seconds spent.
    """

    state: SwarmState
    step: int
    curve: dict[int, np.ndarray]
    clock: _Clock

    def __init__(self, swarm: _Swarm, run_dir: Path, number: int, proxies: Sequence[Proxy], steps_after: int):
        self.swarm, self.settings, self.programs = swarm, swarm.settings, swarm.programs
        self.run_dir, self.folder, self.number = run_dir, chunk_folder(run_dir, number), number
        self.proxies, self.steps_after = proxies, steps_after
        self.plan = SwarmPlan(proxies, swarm.sources, **swarm.stream)
        devices = self.programs.mesh.devices.size
        self.size = -(-len(proxies) // devices) * devices

    def train(self, label: str, *, show_progress: bool) -> None:
        """Trains the chunk to its end and writes its result."""
        settings = self.settings
        notes: list[str] = []
        checkpointer = Checkpointer(self.folder / "checkpoints", keep=1, report=notes.append)
        with closing(checkpointer), closing(RecordFile(self.run_dir / "progress.jsonl")) as progress:
            self._begin(checkpointer)
            bar = Progress(settings.steps, first=self.step, label=label, is_enabled=show_progress)
            for note in [*notes, *([f"resumed at step {self.step}"] if self.step else [])]:
                bar.note(note)
            length = 1
            batches = self._next_batches(length)
            with closing(bar), Interruption() as interruption:
                if not self.curve:
                    self._evaluate()
                while self.step < settings.steps:
                    domain, row, table, taken = batches
                    self.state, losses = self.programs.advance(self.state, table, domain, row, np.int32(taken))
                    self.step += taken
                    streams = self.plan.get_state()
                    if self.step < settings.steps:  # planned while the devices work
                        batches = self._next_batches(length)
                    mean = _mean_of_finite(np.asarray(jax.device_get(losses))[: len(self.proxies), :taken])
                    per_step, cpu = self.clock.lap(taken)
                    length = int(np.clip(_STRETCH_SECONDS / per_step, 1, _LONGEST_STRETCH))
                    self._report(progress, bar, mean, per_step, cpu)
                    if self.step % settings.eval_every == 0 or self.step == settings.steps:
                        self._evaluate()
                    is_interrupted = interruption.is_requested(self.step) and self.step < settings.steps
                    if is_interrupted or (self.step % settings.checkpoint_every == 0 and self.step < settings.steps):
                        self._save(checkpointer, streams)
                    if is_interrupted:
                        checkpointer.wait()
                        raise interrupted(self.step, self.folder)
        write_chunk(self.folder, self._result())

    def _begin(self, checkpointer: Checkpointer) -> None:
        """Starts afresh, or from the newest complete checkpoint."""
        keys = [jax.random.split(jax.random.key(proxy.seed))[0] for proxy in self.proxies]
        keys += keys[-1:] * (self.size - len(keys))
        self.state = self.programs.init(self.programs.place(jax.numpy.stack(keys)))
        self.step, self.curve, seconds = 0, {}, 0.0
        if checkpointer.steps():
            restored = checkpointer.restore(trimmed(self.state, len(self.proxies)))
            assert restored is not None
            self.plan.set_state(restored.meta["streams"])
            self.state = self.programs.place(padded(restored.state, self.size))
            self.step, seconds = restored.step, float(restored.meta["seconds"])
            curve = restored.meta["curve"]
            self.curve = {int(step): np.asarray(losses, np.float64).astype(np.float32) for step, losses in curve}
        self.clock = _Clock(seconds)

    def _next_batches(self, length: int) -> tuple[Any, Any, Any, int]:
        """The next stretch on the devices: domains, rows, the table they are in, and its steps."""
        settings, place = self.settings, self.programs.place
        # A stretch ends where an evaluation or a checkpoint is due.
        ends = [(self.step // every + 1) * every for every in (settings.eval_every, settings.checkpoint_every)]
        taken = min(length, *(end - self.step for end in (settings.steps, *ends)))
        domain, row = self.plan.next(taken)
        steps, table = min(_LONGEST_STRETCH, settings.steps), self.swarm.table
        if table is None:
            read = self.plan.read(row.reshape(-1))
            row = np.broadcast_to(np.arange(row[0].size).reshape(row.shape[1:]), row.shape)
            pad = steps * row.shape[2] - row[0].size
            tokens = np.pad(read.tokens.reshape(len(row), -1, read.tokens.shape[1]), ((0, 0), (0, pad), (0, 0)))
            targets = np.pad(read.targets.reshape(len(row), -1), ((0, 0), (0, pad)))
            table = place(padded((tokens, targets), self.size))
        fill = ((0, 0), (0, steps - taken), (0, 0))
        domain, row = (padded(np.pad(x.astype(np.int32), fill), self.size) for x in (domain, row))
        return place(domain), place(row), table, taken

    def _evaluate(self) -> None:
        losses = jax.device_get(self.programs.evaluate(self.state, self.swarm.held_out))
        self.curve[self.step] = np.asarray(losses)[: len(self.proxies)]

    def _report(self, progress: RecordFile, bar: Progress, loss: float, per_step: float, cpu: float) -> None:
        stream = self.swarm.stream
        rate = len(self.proxies) * stream["batch_size"] * stream["seq_len"] / per_step
        left = (self.settings.steps - self.step + self.steps_after) * per_step
        record = {"chunk": self.number, "step": self.step, "loss": loss, "step_seconds": per_step}
        record |= {"tokens_per_second": rate, "step_cpu_seconds": cpu}
        record |= {"flops_per_second": rate * self.swarm.model.flops_per_token, "seconds_left": left}
        progress.write(record)
        bar.update(self.step, loss=loss, rate=rate, seconds_left=left, weights=())

    def _save(self, checkpointer: Checkpointer, streams: list[dict[str, Any]]) -> None:
        if self.step not in checkpointer.steps():
            curve = [[step, plain(losses)] for step, losses in self.curve.items()]
            meta = {"streams": streams, "curve": curve, "seconds": self.clock.seconds}
            checkpointer.save(self.step, trimmed(self.state, len(self.proxies)), meta)

    def _result(self) -> ChunkResult:
        stopped, skipped = jax.device_get((self.state.stopped, self.state.train.skipped))
        steps = sorted(self.curve)
        curves = np.stack([self.curve[step] for step in steps], axis=1).astype(np.float64)
        outcomes = []
        for i, (proxy, tokens) in enumerate(zip(self.proxies, self.plan.tokens(), strict=True)):
            losses, reason = curves[i, -1], None
            if stopped[i] >= 0:
                reason = (
                    f"{self.settings.max_consecutive_skipped} updates in a row had a loss or gradient that was not "
                    f"finite, at step {stopped[i]}"
                )
            elif not np.isfinite(losses).all():
                bad = [name for name, loss in zip(self.plan.names, losses, strict=True) if not math.isfinite(loss)]
                reason = f"the held-out loss of {', '.join(bad)} is not finite"
            outcomes.append(
                ProxyResult(
                    name=proxy.name,
                    weights=np.asarray(proxy.weights, np.float64) / np.sum(proxy.weights),
                    seed=proxy.seed,
                    losses=losses if reason is None else np.full_like(losses, np.nan),
                    curve=curves[i],
                    skipped=int(skipped[i]),
                    tokens=tokens,
                    reason=reason,
                )
            )
        return ChunkResult(self.plan.names, tuple(outcomes), tuple(steps), self.clock.seconds)


class _Clock:
    """Seconds since the swarm began, earlier sessions included, and per step of the last stretch."""

    def __init__(self, before: float):
        self._before, self._start = before, time.perf_counter()
        self._last = (self._start, time.process_time())

    @property
    def seconds(self) -> float:
        return self._before + time.perf_counter() - self._start

    def lap(self, steps: int) -> tuple[float, float]:
        """Wall and CPU seconds per step since the last call."""
        now = (time.perf_counter(), time.process_time())
        wall, cpu = ((a - b) / steps for a, b in zip(now, self._last, strict=True))
        self._last = now
        return wall, cpu


def _mean_of_finite(losses: np.ndarray) -> float:
    finite = losses[np.isfinite(losses)]
    return float(finite.mean()) if len(finite) else math.nan


def _check(
    proxies: Sequence[Proxy],
    sources: Mapping[str, Any],
    validation: ValidationSet,
    settings: TrainSettings,
    on_exhaust: Any,
) -> None:
    if jax.process_count() > 1:
        raise ConfigError(
            f"a swarm runs in one process, there are {jax.process_count()}",
            where="run_swarm",
            fix="Give each process its own part of the proxies and its own folder.",
        )
    if not proxies:
        raise ConfigError("there are no proxies", where="run_swarm(proxies)")
    names = [proxy.name for proxy in proxies]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ConfigError(f"two proxies are called {twice!r}", where="run_swarm(proxies)", fix="Name them apart.")
    for proxy in proxies:
        weights = np.asarray(proxy.weights)
        if weights.shape != (len(sources),):
            raise ConfigError(
                f"proxy {proxy.name!r} has weights of shape {list(weights.shape)}, there are {len(sources)} sources",
                where="run_swarm(proxies)",
            )
        checked_weights(weights, tuple(sources), [len(source) for source in sources.values()])
    if tuple(validation.names) != tuple(sources):
        raise ConfigError(
            f"the validation set has domains {list(validation.names)}, the sources are {list(sources)}",
            where="validation",
            fix="Build it from sources of the same names in the same order.",
        )
    policies = list(on_exhaust.values()) if isinstance(on_exhaust, Mapping) else [on_exhaust]
    for policy in policies:
        if policy in ("stop", "error"):
            raise ConfigError(
                f"on_exhaust {policy!r} would end some proxies before others",
                where="on_exhaust",
                fix="Use repeat or drop.",
            )


def _fingerprint(
    model: Model,
    proxies: Sequence[Proxy],
    sources: Mapping[str, Any],
    settings: TrainSettings,
    stream: Mapping[str, Any],
) -> str:
    """A hash of everything that decides a swarm's results and so must not change between its sessions."""
    free = ("seed", "log_every", "checkpoint_every", "keep", "resume")
    fixed = {k: v for k, v in dataclasses.asdict(settings).items() if k not in free}
    about = {
        "model": repr(model.config),
        "num_params": model.num_params,
        "proxies": [[p.name, np.asarray(p.weights, np.float64).tolist(), p.seed] for p in proxies],
        "sources": {name: len(source) for name, source in sources.items()},
        "settings": fixed,
        "stream": dict(stream),
    }
    return hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()
