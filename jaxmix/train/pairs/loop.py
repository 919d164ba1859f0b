"""The loop of training on image–text pairs with selection.

A checkpoint holds the base key, the step, parameters and optimizer state (with stale scoring also the b row numbers
chosen for the next step). Super-batches, augmentations and selections are functions of these, so that an interrupted
run ends bit for bit as the uninterrupted one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxmix.core.errors import ConfigError
from jaxmix.core.sharding import global_batch, process_shard
from jaxmix.train.lm.settings import TrainSettings
from jaxmix.train.pairs.step import PairInfo, PairPrograms, PairState, init_pair_state
from jaxmix.train.pairs.stream import PairStream
from jaxmix.train.run.driver import Driver, End, Hook, Loop, Record, View
from jaxmix.train.run.trackers import Tracker
from jaxmix.train.selection.cost import SelectionCost, describe_cost

Evaluate = Callable[[Any], Mapping[str, float]]


@dataclasses.dataclass(frozen=True)
class PairResult:
    """The result of a run on pairs.

    Attributes:
        steps: optimizer steps done, earlier sessions included.
        evaluation: the values that `evaluate` returned at the end.
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
    hooks: Sequence[Hook] = (),
    trackers: Sequence[Tracker] = (),
    label: str = "pairs",
    show_progress: bool = True,
) -> PairResult:
    """Trains on the stream's pairs, continuing a run found in `run_dir`.

    Writes metrics.jsonl (deterministic values only; every record has `step`, `trained`, `scanned` and `flops`),
    timing.jsonl and checkpoints/. While a step runs on the devices, the host reads the pixels of the next one.

    Several processes (`jaxmix.core.sharding.initialize_distributed`, programs on a mesh over all devices) each read
    their share of every super-batch and use one shared folder. Sums round differently than in a single process.

    Args:
        run_dir: of the run.
        model: that `programs` were built from.
        programs: from `build_pair_programs`; the optimizer is in them.
        stream: with as many candidates as the programs expect.
        settings: only steps, seed, log_every, eval_every, checkpoint_every, keep, resume and max_consecutive_skipped
            are read here; `optimizer_of` reads those of the optimizer, `build_pair_programs` accumulate.
        evaluate: `params -> {name: value}`, at step 0, every `eval_every` steps and at the end.
        hooks: evaluations at other steps, see `Hook`.
        trackers: in addition to the files.
        label: in front of progress lines.
        show_progress: print on process 0.

    Raises:
        ConfigError: the stream and the programs do not fit, or `settings.resume` and the folder do not.
        RunError: interrupted (SIGINT, SIGTERM; saved first), a hook failed, or too many updates in a row were not
            finite.
    """
    if stream.num_candidates != programs.num_candidates:
        raise ConfigError(
            f"the stream has {stream.num_candidates} candidates a step, the programs {programs.num_candidates}",
            where="num_candidates",
        )
    loop = _PairLoop(model, programs, stream, settings, evaluate)
    return Driver(loop, run_dir, hooks=hooks, trackers=trackers, label=label, show_progress=show_progress).run()


@dataclasses.dataclass(eq=False)
class _PairLoop(Loop[PairResult]):
    model: Any
    programs: PairPrograms
    stream: PairStream
    settings: TrainSettings
    evaluate: Evaluate | None

    def __post_init__(self) -> None:
        super().__init__(self.settings, self.programs.mesh)
        self.unit = "pairs"
        self.read: tuple[int, dict[str, jax.Array]] | None = None
        self.evaluation: dict[str, float] = {}

    def init(self) -> PairState:
        return init_pair_state(jax.random.key(self.settings.seed), self.model, self.programs)

    def begin(self) -> None:
        if self.programs.is_stale:
            train = self.state.train
            rows, _ = self.programs.select(train.params, self.state.key, train.step, self.batch(0))
            self.state = dataclasses.replace(self.state, next_rows=rows)

    def identity(self) -> dict[str, Any]:
        return {
            "num_candidates": self.programs.num_candidates,
            "num_select": self.programs.num_select,
            "seed": self.settings.seed,
            "pairs": len(self.stream.pool.images),
        }

    def batch(self, step: int) -> dict[str, jax.Array]:
        """The super-batch on the mesh; that of the next step is read one step early."""
        if self.read is None or self.read[0] != step:
            self.read = (step, global_batch(self.mesh, self.stream.batch(step, shard=process_shard())))
        return self.read[1]

    def step(self, step: int, batch: dict[str, jax.Array]) -> PairInfo:
        if self.programs.is_stale:
            self.state, info = self.programs.step(self.state, batch, self.batch(step + 1))
        else:
            self.state, info = self.programs.step(self.state, batch)
            # The devices are at work: read the next pixels before waiting for anything.
            if step + 1 < self.settings.steps:
                self.batch(step + 1)
        return info

    def evaluations(self) -> Sequence[Hook]:
        return () if self.evaluate is None else [Hook(self.settings.eval_every, self._evaluate, "eval")]

    def _evaluate(self, view: View) -> dict[str, float]:
        assert self.evaluate is not None
        self.evaluation = {name: float(value) for name, value in self.evaluate(view.params).items()}
        view.note(f"step {view.step}: " + ", ".join(f"{name} {value:.4f}" for name, value in self.evaluation.items()))
        return self.evaluation

    def update(self, step: int, info: PairInfo) -> tuple[PairInfo, None]:
        return info, None

    def record(self, step: int, info: PairInfo, extras: None) -> Record:
        fields = self.position(step)
        fields |= {f"train/{name}": float(getattr(info, name)) for name in ("loss", "grad_norm", "temperature", "bias")}
        fields["train/skipped"] = int(info.skipped)
        if info.selection is not None:
            scalars = {k: v for k, v in info.selection._asdict().items() if v is not None and np.ndim(v) == 0}
            fields |= {f"selection/{name}": float(value) for name, value in scalars.items()}
        return Record(fields, self.amount(step))

    def position(self, step: int) -> dict[str, Any]:
        return {name: value for name, value in self.programs.cost(step)._asdict().items() if name != "steps"}

    def amount(self, step: int) -> int:
        return step * self.programs.num_select

    def result(self, end: End) -> PairResult:
        cost = self.programs.cost(end.steps)
        end.note(describe_cost(cost))
        return PairResult(
            steps=end.steps,
            evaluation=self.evaluation,
            cost=cost,
            skipped_steps=int(jax.device_get(self.state.train.skipped)),
            resumed_from=end.resumed_from,
            params=self.state.train.params,
        )
