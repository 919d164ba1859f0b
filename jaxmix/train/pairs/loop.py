"""A small loop for image–text pairs with selection: checkpoint → evaluate → next super-batch → step → log.

A checkpoint holds the base key, the step, parameters and optimizer state (with stale scoring also the b row numbers
chosen for the next step). Super-batches, augmentations and selections are functions of these, so that an interrupted
run ends bit for bit as the uninterrupted one.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxmix.core.errors import ConfigError, RunError
from jaxmix.core.sharding import global_batch, process_shard, use_mesh
from jaxmix.train.lm.settings import TrainSettings
from jaxmix.train.pairs.step import PairInfo, PairPrograms, init_pair_state
from jaxmix.train.pairs.stream import PairStream
from jaxmix.train.run.checkpoint import Checkpointer, check_same_run
from jaxmix.train.run.interrupt import Interruption, interrupted
from jaxmix.train.run.progress import Progress
from jaxmix.train.run.records import RecordFile
from jaxmix.train.selection.cost import SelectionCost, describe_cost

Evaluate = Callable[[Any], Mapping[str, float]]


@dataclasses.dataclass(frozen=True)
class PairResult:
    """How a run on pairs ended.

    Attributes:
        steps: optimizer steps done, earlier sessions included.
        evaluation: what `evaluate` returned at the end.
        cost: of all steps; the four axes together.
        skipped_steps: updates skipped because they were not finite.
        resumed_from: step this session continued at, None for a fresh start.
        params: trained, on the mesh.
    """

    steps: int
    evaluation: dict[str, float]
    cost: SelectionCost
    skipped_steps: int
    resumed_from: int | None
    params: Any = dataclasses.field(repr=False)


def run_pairs(
    run_dir: str | Path,
    *,
    model: Any,
    programs: PairPrograms,
    stream: PairStream,
    settings: TrainSettings,
    evaluate: Evaluate | None = None,
    label: str = "pairs",
    show_progress: bool = True,
) -> PairResult:
    """Trains on the stream's pairs, continuing a run found in `run_dir`.

    Writes metrics.jsonl (deterministic values only; every record has `step`, `trained`, `scanned` and `flops`),
    timing.jsonl and checkpoints/. While a step runs on the devices, the host reads the pixels of the next one.

    Several processes (`jaxmix.core.sharding.initialize_distributed`, programs on a mesh over all devices) each read
    their share of every super-batch, into one folder that all of them see. Sums are rounded otherwise than in one.

    Args:
        run_dir: of the run.
        model: what `programs` were built from.
        programs: from `build_pair_programs`; the optimizer is in them.
        stream: with as many candidates as the programs expect.
        settings: of them are used steps, seed, log_every, eval_every, checkpoint_every, keep, resume and
            max_consecutive_skipped; the optimizer's were used by `optimizer_of`, accumulate by `build_pair_programs`.
        evaluate: `params -> {name: value}`, at step 0, every `eval_every` steps and at the end.
        label: in front of progress lines.
        show_progress: print on process 0.

    Raises:
        ConfigError: the stream and the programs do not fit, or `settings.resume` and the folder do not.
        RunError: interrupted (SIGINT, SIGTERM; saved first), or too many updates in a row were not finite.
    """
    if stream.num_candidates != programs.num_candidates:
        raise ConfigError(
            f"the stream has {stream.num_candidates} candidates a step, the programs {programs.num_candidates}",
            where="num_candidates",
        )
    run = _Run(Path(run_dir), model, programs, stream, settings, evaluate)
    return run.execute(label, show_progress and jax.process_index() == 0)


class _Run:
    """The mutable middle of `run_pairs`."""

    def __init__(
        self,
        run_dir: Path,
        model: Any,
        programs: PairPrograms,
        stream: PairStream,
        settings: TrainSettings,
        evaluate: Evaluate | None,
    ):
        self.run_dir, self.model, self.programs, self.stream = run_dir, model, programs, stream
        self.settings, self.evaluate = settings, evaluate
        self.held: tuple[int, dict[str, jax.Array]] | None = None
        self.pending: tuple[int, PairInfo] | None = None
        self.evaluation: dict[str, float] = {}
        self.evaluated_at: int | None = None

    def execute(self, label: str, show_progress: bool) -> PairResult:
        with Interruption() as interruption, use_mesh(self.programs.mesh):
            progress = Progress(self.settings.steps, first=0, names=(), label=label, is_enabled=show_progress)
            self.note = progress.note
            self.checkpointer = Checkpointer(
                self.run_dir / "checkpoints", keep=self.settings.keep, report=progress.note
            )
            is_main = jax.process_index() == 0
            self.metrics = RecordFile(self.run_dir / "metrics.jsonl") if is_main else None
            self.timing = RecordFile(self.run_dir / "timing.jsonl") if is_main else None
            self.started = time.perf_counter()
            try:
                start, resumed_from = self._begin()
                return self._train(start, resumed_from, interruption)
            finally:
                self.checkpointer.close()
                progress.close()
                for file in (self.metrics, self.timing):
                    if file is not None:
                        file.close()

    def _begin(self) -> tuple[int, int | None]:
        self.state = init_pair_state(jax.random.key(self.settings.seed), self.model, self.programs)
        if self.checkpointer.begins_afresh(self.settings.resume):
            if self.programs.is_stale:
                train = self.state.train
                pending, _ = self.programs.select(train.params, self.state.key, train.step, self._batch(0))
                self.state = dataclasses.replace(self.state, pending=pending)
            return 0, None
        restored = self.checkpointer.restore(self.state)
        assert restored is not None
        check_same_run(restored.meta, self._meta(), self.run_dir)
        self.state = restored.state
        self.note(f"resumed at step {restored.step}")
        return restored.step, restored.step

    def _meta(self) -> dict[str, Any]:
        programs = self.programs
        return {
            "num_candidates": programs.num_candidates,
            "num_select": programs.num_select,
            "seed": self.settings.seed,
            "pairs": len(self.stream.pool.images),
        }

    def _train(self, start: int, resumed_from: int | None, interruption: Interruption) -> PairResult:
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
            self._step(step)
            step += 1
        self._flush()
        if self.evaluated_at != step:
            self._evaluate(step)
        self._save(step)
        self.checkpointer.wait()
        cost = self.programs.cost(step)
        self.note(describe_cost(cost))
        skipped = int(jax.device_get(self.state.train.skipped))
        return PairResult(step, self.evaluation, cost, skipped, resumed_from, self.state.train.params)

    def _batch(self, step: int) -> dict[str, jax.Array]:
        """The super-batch on the mesh; that of the next step is read one step early."""
        if self.held is not None and self.held[0] == step:
            return self.held[1]
        host = self.stream.batch(step, shard=process_shard())
        return global_batch(self.programs.mesh, host)

    def _step(self, step: int) -> None:
        batch = self._batch(step)
        if self.programs.is_stale:
            following = self._batch(step + 1)
            self.state, info = self.programs.step(self.state, batch, following)
        else:
            self.state, info = self.programs.step(self.state, batch)
            # The devices are at work: read the next pixels before waiting for anything.
            following = self._batch(step + 1) if step + 1 < self.settings.steps else batch
        self.held = (step + 1, following)
        self._flush()
        self.pending = (step + 1, info)

    def _flush(self) -> None:
        """Waits for the numbers of the step before and logs them."""
        if self.pending is None:
            return
        done, info = self.pending
        self.pending = None
        if int(info.consecutive_skipped) >= self.settings.max_consecutive_skipped:
            raise RunError(
                f"{int(info.consecutive_skipped)} updates in a row had a loss or gradient that was not finite",
                where=f"step {done}, train.max_consecutive_skipped",
                fix="Lower the learning rate.",
            )
        if done % self.settings.log_every and done != self.settings.steps:
            return
        info = jax.device_get(info)
        record = {
            "train/loss": float(info.loss),
            "train/grad_norm": float(info.grad_norm),
            "train/temperature": float(info.temperature),
            "train/bias": float(info.bias),
            "train/skipped": int(info.skipped),
        }
        if info.selection is not None:
            scalars = {k: v for k, v in info.selection._asdict().items() if v is not None and np.ndim(v) == 0}
            record |= {f"selection/{name}": float(value) for name, value in scalars.items()}
        self._write("train", done, record)
        if self.timing is not None:
            self.timing.write({"step": done, "seconds": time.perf_counter() - self.started})

    def _evaluate(self, step: int) -> None:
        self._flush()
        self.evaluated_at = step
        if self.evaluate is None:
            return
        self.evaluation = {name: float(value) for name, value in self.evaluate(self.state.train.params).items()}
        self._write("eval", step, {f"eval/{name}": value for name, value in self.evaluation.items()})
        self.note(f"step {step}: " + ", ".join(f"{name} {value:.4f}" for name, value in self.evaluation.items()))

    def _write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        if self.metrics is None:
            return
        axes = {k: v for k, v in self.programs.cost(step)._asdict().items() if k != "steps"}
        self.metrics.write({"kind": kind, "step": step, **axes, **values})

    def _save(self, step: int) -> None:
        self._flush()
        self.checkpointer.save(step, self.state, self._meta())
