"""The driver of every loop: checkpoint → next batch → step → evaluate → update → log, in this order.
A loop whose updates need no evaluation is evaluated after its log.

A `Loop` defines each of these for one kind of training. Their timing, and the files of the run folder, are decided
here alone. While a step runs on the devices, the host reads the values of the step before.
"""

from __future__ import annotations

import dataclasses
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from jaxmix.core.errors import ConfigError, RunError
from jaxmix.core.sharding import use_mesh
from jaxmix.train.run.checkpoint import Checkpointer, check_same_run
from jaxmix.train.run.files import RunFiles
from jaxmix.train.run.interrupt import Interruption, interrupted
from jaxmix.train.run.metrics import Metrics
from jaxmix.train.run.settings import LoopSettings
from jaxmix.train.run.trackers import Tracker

Result = TypeVar("Result")
_KINDS = ("train", "eval", "control", "test", "used_up")


@dataclasses.dataclass(frozen=True)
class View:
    """A run as a hook sees it.

    Attributes:
        step: steps done so far.
        state: arrays of the run after them, as a checkpoint holds them (a mixer's update of the last step is still to
            come). The next step overwrites them: copy what you keep.
        record: writes values as one more record of the hook.
        note: prints a line beside the progress.
    """

    step: int
    state: Any
    record: Callable[[Mapping[str, Any]], None]
    note: Callable[[str], None]

    @property
    def params(self) -> Any:
        """The model's parameters, on the mesh."""
        return self.state.train.params


@dataclasses.dataclass(frozen=True)
class Hook:
    """A function called every few steps of a run, for example your own evaluation.

    It is called before step 0, whenever the number of steps done is a multiple of `every`, and after the last step; not
    at the step that a run is resumed from, where it was called already. What it returns is written to metrics.jsonl and
    the trackers as a record of the kind `name`, under `<name>/<key>`. Every process calls it.

    Attributes:
        every: steps between calls, ≥ 1, or a function from a number of steps to whether a call is due.
        run: takes a `View`, returns scalars by name, or None.
        name: of its records; that of the function if left out.
        at_end: whether it is also called after the last step.

    Example:
        >>> import numpy as np
        >>> def norm(view):
        ...     return {"l2": float(np.linalg.norm(view.params["kernel"]))}
        >>> hook = Hook(every=100, run=norm)  # jaxmix.train.run_training(..., hooks=[hook]) writes "norm/l2"
        >>> hook.name
        'norm'
    """

    every: int | Callable[[int], bool]
    run: Callable[[View], Mapping[str, Any] | None]
    name: str = ""
    at_end: bool = True

    def __post_init__(self) -> None:
        if not callable(self.every) and self.every < 1:
            raise ConfigError(f"a hook's every must be at least 1, got {self.every}", where="hooks")
        name = self.name or getattr(self.run, "__name__", "")
        if not name.isidentifier():
            raise ConfigError(
                f"a hook needs a name that is an identifier, got {name!r}",
                where="hooks",
                fix="Pass name=..., or a function with a name.",
            )
        object.__setattr__(self, "name", name)

    def is_due(self, step: int) -> bool:
        """Whether to call it after `step` steps."""
        return self.every(step) if callable(self.every) else step % self.every == 0


class Record(NamedTuple):
    """The record of the steps since the last one.

    Attributes:
        fields: of the record, by name.
        amount: processed since the start, in the loop's `unit`.
        weights: of the loop's `names`, for the progress line.
    """

    fields: dict[str, Any]
    amount: int
    weights: Float[np.ndarray, " m"] | tuple[()] = ()


class End(NamedTuple):
    """The end of a session.

    Attributes:
        steps: done, earlier sessions included.
        resumed_from: step this session continued at, None for a fresh start.
        ended_early: why it ended before `settings.steps`, None if it did not.
        rate: median pace of this session, in `unit` per second; nan without a record.
        note: prints a line.
    """

    steps: int
    resumed_from: int | None
    ended_early: str | None
    rate: float
    note: Callable[[str], None]


class Loop(ABC, Generic[Result]):
    """One kind of training, as the `Driver` runs it.

    Attributes:
        settings: length, cadence and checkpoints; the optimizer's are not read here.
        mesh: where it runs.
        names: of the domains or arms.
        unit: in which `amount` counts.
        updates_by_evaluations: whether `update` needs the evaluations after its step; otherwise they follow its record.
        state: all arrays of a checkpoint; `state.train` is a `TrainState`.
        metrics: all values since the last record, part of every checkpoint.
        seconds: of host time by activity, for timing.jsonl.
    """

    settings: LoopSettings
    mesh: Mesh
    names: tuple[str, ...] = ()
    unit = "tokens"
    updates_by_evaluations = False
    state: Any
    metrics: Metrics
    seconds: dict[str, float]

    def __init__(self, settings: LoopSettings, mesh: Mesh):
        self.settings, self.mesh = settings, mesh
        self.metrics, self.seconds = Metrics(), {}

    # A new run, or a checkpoint.

    @abstractmethod
    def init(self) -> Any:
        """The state of a new run, and the template of a restored one."""

    def begin(self) -> None:
        """Called before step 0 of a new run."""

    def identity(self) -> dict[str, Any]:
        """Plain values kept in every checkpoint; one with others belongs to another run and is refused."""
        return {}

    def is_model_alone(self, meta: Mapping[str, Any], run_dir: Path) -> bool:
        """Whether only the model's part of the checkpoint with these plain values can be continued."""
        return False

    def meta(self) -> dict[str, Any]:
        """Further plain values for a checkpoint."""
        return {}

    def restore(self, step: int, meta: Mapping[str, Any], *, is_model_alone: bool) -> list[str]:
        """Restores a checkpoint's plain values, after `state` and `metrics`; returns notes to print."""
        return []

    # A step.

    def batch(self, step: int) -> Any:
        """The batch of step `step`. `StopIteration` ends the run; its value says why."""
        return None

    @abstractmethod
    def step(self, step: int, batch: Any) -> Any:
        """Dispatches step `step`."""

    def evaluations(self) -> Sequence[Hook]:
        """Hooks that run after a step and before `update`."""
        return ()

    def update(self, step: int, output: Any) -> tuple[Any, Any]:
        """Dispatches what follows a step and its evaluation.

        Args:
            step: number of the step.
            output: of `self.step`.

        Returns:
            The step's report, to be fetched from the devices: an object with `loss`, `grad_norm`, `skipped` and
            `consecutive_skipped` (None: no update was tried), and what else `measure` and `record` take.
        """
        return output

    # Its values, on the host.

    def measure(self, info: Any, extras: Any) -> None:
        """Adds what `update` returned for a step to the metrics."""

    @abstractmethod
    def record(self, step: int, info: Any, extras: Any) -> Record:
        """The record after `step` steps; the last one was just measured."""

    def position(self, step: int) -> dict[str, Any]:
        """Fields of every evaluation record after `step` steps: the progress of the run."""
        return {}

    def amount(self, step: int) -> int:
        """The amount processed in `step` steps, in `unit`."""
        return 0

    @abstractmethod
    def result(self, end: End) -> Result:
        """The value that the run returns."""

    def is_logged(self, done: int) -> bool:
        """Whether a record follows `done` steps."""
        return done % self.settings.log_every == 0 or done == self.settings.steps


class Driver(Generic[Result]):
    """Runs a loop in `run_dir`, from its start or its newest complete checkpoint.

    Args:
        loop: a new one; a loop runs once.
        run_dir: receives metrics.jsonl, timing.jsonl and checkpoints/.
        hooks: in addition to the loop's own evaluations.
        trackers: in addition to the files.
        label: in front of progress lines.
        show_progress: print on process 0.

    Raises:
        ConfigError: two hooks have one name.
    """

    def __init__(
        self,
        loop: Loop[Result],
        run_dir: str | Path,
        *,
        hooks: Sequence[Hook] = (),
        trackers: Sequence[Tracker] = (),
        label: str,
        show_progress: bool,
    ):
        names = [*_KINDS, *(hook.name for hook in hooks)]
        if twice := [hook.name for hook in hooks if names.count(hook.name) > 1]:
            raise ConfigError(
                f"the name {twice[0]!r} of a hook is taken", where="hooks", fix="Give every hook its own name."
            )
        self.loop, self.run_dir, self.settings = loop, Path(run_dir), loop.settings
        self.hooks = [*loop.evaluations(), *(dataclasses.replace(hook, run=_guarded(hook)) for hook in hooks)]
        self.trackers, self.label, self.show_progress = trackers, label, show_progress
        self.called_at: dict[str, int] = {}
        self.unread: tuple[int, Any] | None = None
        self.skipped = 0
        loop.seconds |= {"save_blocked": 0.0, "data_wait": 0.0}

    def run(self, on_start: Callable[[], None] = lambda: None) -> Result:
        """Trains to the end.

        Args:
            on_start: called before the first step, when a checkpoint that is there has been accepted.

        Raises:
            ConfigError: `settings.resume` and the folder do not fit, or it holds another run.
            RunError: interrupted (SIGINT, SIGTERM; saved first), too many updates in a row were not finite, a hook
                failed, or no checkpoint can be read. The newest checkpoint is complete in each case.
        """
        loop = self.loop
        notes: list[str] = []
        with Interruption() as interruption, use_mesh(loop.mesh):
            checkpointer = Checkpointer(self.run_dir / "checkpoints", keep=self.settings.keep, report=notes.append)
            with closing(checkpointer) as self.checkpointer:
                resumed_from = self._begin(notes)
                on_start()
                first = resumed_from or 0
                files = RunFiles(
                    self.run_dir,
                    steps=self.settings.steps,
                    first=first,
                    amount=loop.amount(first),
                    unit=loop.unit,
                    names=loop.names,
                    trackers=self.trackers,
                    label=self.label,
                    show_progress=self.show_progress,
                )
                with closing(files) as self.files:
                    for note in notes:
                        files.note(note)
                    return self._train(resumed_from, interruption)

    def _begin(self, notes: list[str]) -> int | None:
        """Starts the loop afresh (returns None) or from the newest complete checkpoint (returns its step)."""
        loop = self.loop
        loop.state = loop.init()
        if self.checkpointer.begins_afresh(self.settings.resume):
            loop.begin()
            return None
        is_model_alone = False
        if (meta := self.checkpointer.peek()) is not None:
            if "metrics" not in meta:
                raise RunError(
                    "the checkpoints were written by an earlier version of jaxmix, whose runs this one cannot continue",
                    where=str(self.run_dir),
                    fix="Finish the run with that version, or use another run folder.",
                )
            check_same_run(meta, loop.identity(), self.run_dir)
            is_model_alone = loop.is_model_alone(meta, self.run_dir)
        restored = self.checkpointer.restore(loop.state, only_train=is_model_alone)
        assert restored is not None
        loop.state = restored.state
        if not is_model_alone:
            loop.metrics = Metrics.from_json(restored.meta["metrics"])
        notes.append(f"resumed at step {restored.step}")
        notes += loop.restore(restored.step, restored.meta, is_model_alone=is_model_alone)
        return restored.step

    # ── the order ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _train(self, resumed_from: int | None, interruption: Interruption) -> Result:
        step, ended_early = resumed_from or 0, None
        # Of a finished run that is called again the evaluation at its end is there already.
        self.is_recording = step < self.settings.steps
        if resumed_from is None:  # a checkpoint is written after the evaluations at its step
            self._evaluate(step)
        while step < self.settings.steps:
            if step > 0 and step % self.settings.checkpoint_every == 0:
                self._save(step)
            if interruption.is_requested(step):
                self._save(step)
                self.checkpointer.wait()
                raise interrupted(step, self.run_dir)
            try:
                batch = self._next_batch(step)
            except StopIteration as end:
                ended_early = f"the stream ended after step {step}" + (f": {end.value}" if end.value else "")
                self.files.note(ended_early)
                break
            self._advance(step, batch)
            step += 1
        self._log_unread(step)
        self._evaluate(step, is_end=True)
        self._save(step)
        self.checkpointer.wait()
        rates = self.files.rates
        rate = float(np.median(rates)) if rates else float("nan")
        return self.loop.result(End(step, resumed_from, ended_early, rate, self.files.note))

    def _next_batch(self, step: int) -> Any:
        started = time.perf_counter()
        batch = self.loop.batch(step)
        self.loop.seconds["data_wait"] += time.perf_counter() - started
        return batch

    def _advance(self, step: int, batch: Any) -> None:
        output = self.loop.step(step, batch)
        if self.loop.updates_by_evaluations:
            self._evaluate(step + 1)
        shown = self.loop.update(step, output)
        self._log_unread(step + 1)
        self.unread = (step + 1, shown)
        self._evaluate(step + 1)

    def _evaluate(self, step: int, *, is_end: bool = False) -> None:
        for hook in self.hooks:
            if self.called_at.get(hook.name) == step or not (hook.at_end if is_end else hook.is_due(step)):
                continue
            self._log_unread(step)
            self.called_at[hook.name] = step
            # A longer run would not have made it.
            mark = {"at_end": True} if is_end and not hook.is_due(step) else {}

            def record(values: Mapping[str, Any], name: str = hook.name, mark: Mapping[str, Any] = mark) -> None:
                fields = {f"{name}/{key}": float(value) for key, value in values.items()}
                if self.is_recording:
                    self.files.write({"kind": name, "step": step, **mark, **self.loop.position(step), **fields})

            if (values := hook.run(View(step, self.loop.state, record, self.files.note))) is not None:
                record(values)

    def _save(self, step: int) -> None:
        """A checkpoint after `step` steps, unless there is one."""
        self._log_unread(step)
        if step not in self.checkpointer.steps():
            loop = self.loop
            meta = {"metrics": loop.metrics.to_json(), **loop.identity(), **loop.meta()}
            loop.seconds["save_blocked"] += self.checkpointer.save(step, loop.state, meta)

    # ── the values of the step before ───────────────────────────────────────────────────────────────────────────────

    def _log_unread(self, done: int) -> None:
        """Waits for the values of the last unlogged step and logs them; `done` steps were dispatched."""
        if self.unread is None:
            return
        (step, shown), self.unread = self.unread, None
        info, extras = jax.device_get(shown)
        self.loop.measure(info, extras)
        if info is not None:
            self._check_skipped(step, info, done)
        if self.loop.is_logged(step):
            record = self.loop.record(step, info, extras)
            self.files.write({"kind": "train", "step": step, **record.fields})
            loss = record.fields.get("train/loss", float("nan"))
            self.files.pace(step, record.amount, loss=loss, weights=record.weights, seconds=self.loop.seconds)

    def _check_skipped(self, step: int, info: Any, done: int) -> None:
        in_a_row = int(info.consecutive_skipped)
        if int(info.skipped) > self.skipped and in_a_row > 0:
            self.files.note(
                f"step {step}: loss {float(info.loss)}, gradient norm {float(info.grad_norm)}: "
                f"update skipped ({in_a_row} in a row)"
            )
        self.skipped = int(info.skipped)
        if in_a_row < self.settings.max_consecutive_skipped:
            return
        if not self.checkpointer.steps():
            self._save(done)
        self.checkpointer.wait()
        raise RunError(
            f"{in_a_row} updates in a row had a loss or gradient that was not finite",
            where=f"step {step}, train.max_consecutive_skipped",
            fix=f"Lower the learning rate. Checkpoint {self.checkpointer.steps()[-1]} is intact.",
        )


def _guarded(hook: Hook) -> Callable[[View], None]:
    """Calls the hook and records its values; errors name the hook."""

    def run(view: View) -> None:
        try:
            if (values := hook.run(view)) is not None:
                if not isinstance(values, Mapping):
                    raise TypeError(f"it must return a mapping of numbers by name, or None, and returned {values!r}")
                view.record(values)
        except Exception as error:
            raise RunError(
                f"the hook {hook.name!r} failed: {type(error).__name__}: {error}",
                where=f"step {view.step}",
                fix="Fix the hook and start the run again: it continues from the newest checkpoint.",
            ) from error

    return run
