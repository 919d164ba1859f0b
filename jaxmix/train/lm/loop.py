"""The training loop. It contains no algorithm: checkpoint → next batch → step → evaluate → update → log, in this order.

What a mixer needs is measured, and nothing else; which method it is the loop does not know.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from jaxmix.core.errors import ConfigError, RunError
from jaxmix.core.sharding import build_mesh, global_batch, replicated, use_mesh
from jaxmix.mixers.base import REFERENCE_SIGNALS, Mixer
from jaxmix.models.base import Model
from jaxmix.train.lm.domain_sums import Scanned
from jaxmix.train.lm.evaluate import ValidationSet, place
from jaxmix.train.lm.log import RunLog
from jaxmix.train.lm.programs import Programs, build_mixer_programs, build_programs, with_selecting
from jaxmix.train.lm.settings import TrainSettings
from jaxmix.train.lm.signals import Reference, check_gradients, check_mixer, held_out_rows
from jaxmix.train.lm.state import RunState, init_run_state, init_train_state
from jaxmix.train.lm.step import StepInfo
from jaxmix.train.run.checkpoint import Checkpointer
from jaxmix.train.run.interrupt import Interruption, interrupted
from jaxmix.train.run.metrics import LogWindow
from jaxmix.train.run.trackers import Tracker
from jaxmix.train.selection.log import SelectionLog
from jaxmix.train.selection.program import Selecting
from jaxmix.train.selection.settings import SelectionSettings, check_rows, check_selection


@dataclasses.dataclass(frozen=True)
class RunResult:
    """How a run ended.

    Attributes:
        steps: optimizer steps done, earlier sessions included.
        final_eval: validation loss (nats per token) by domain at the end.
        final_test: loss (nats per token) by domain on the test rows at the end; None without such rows.
        final_weights: the mixer's weights by domain at the end.
        recommended: the mixture that the mixer recommends for another run (for many methods the average of their
            weights), by domain.
        realized: what was drawn by domain, see `MixtureStream.realized`.
        skipped_steps: updates skipped because they were not finite.
        resumed_from: step this session continued at, None for a fresh start.
        ended_early: why the stream ended before `settings.steps`, None if it did not.
        tokens_per_second: median over this session's log intervals, nan without any.
        params: the trained parameters, on the mesh.
    """

    steps: int
    final_eval: dict[str, float]
    final_test: dict[str, float] | None
    final_weights: dict[str, float]
    recommended: dict[str, float]
    realized: dict[str, dict[str, Any]]
    skipped_steps: int
    resumed_from: int | None
    ended_early: str | None
    tokens_per_second: float
    params: Any = dataclasses.field(repr=False)


class _Pending(NamedTuple):
    """A step that has been dispatched and not yet logged: its arrays may still be on their way."""

    step: int
    info: StepInfo
    mixer_info: Any
    weights: jax.Array
    weight_lag: int
    realized: dict[str, dict[str, Any]] | None
    scanned: Scanned | None


def run_training(
    run_dir: str | Path,
    *,
    model: Model,
    mixer: Mixer,
    stream: Any,
    validation: ValidationSet,
    settings: TrainSettings,
    prior: np.ndarray | None = None,
    control: ValidationSet | None = None,
    test: ValidationSet | None = None,
    reference: Reference | None = None,
    selection: SelectionSettings | None = None,
    batch_size: int | None = None,
    mesh: Mesh | None = None,
    programs: Programs | None = None,
    trackers: Sequence[Tracker] = (),
    config_hash: str = "",
    label: str = "train",
    show_progress: bool = True,
) -> RunResult:
    """Trains `model` on `stream` under `mixer`, continuing a run found in `run_dir`.

    While step s runs on the devices, the host reads the numbers of step s−1 and hands the weights they led to to the
    stream. Weights are therefore one step old when they are set, always, whatever the timing: that is what makes a
    resumed run draw the same data. They reach the data at the stream's next block. Weights of a mixer that needs no
    signal (a schedule in steps) are set before the step they are meant for, so that its boundaries are exact.

    Args:
        run_dir: receives metrics.jsonl, timing.jsonl and checkpoints/.
        model: any `Model` bundle; only `init`, `apply` and `partition` are used.
        mixer: decides the sampling weights.
        stream: a `MixtureStream` over all processes (`shard=process_shard()`); its position is set on resume.
        validation: held-out rows of the stream's domains, in the same order.
        settings: see `TrainSettings`.
        prior: simplex vector f32[m] that the mixer starts from and the `prior` aggregate weighs by; uniform if None.
        control: held-out rows that the mixer's own evaluations use; `validation` if None. A smaller set makes frequent
            evaluations cheap.
        test: held-out rows that nothing is decided by, evaluated once, at the end.
        reference: a frozen model's losses, for mixers and selections that measure the excess over it.
        selection: trains on part of what the stream draws; `metrics.jsonl` then counts as `tokens` what was drawn, and
            `select/…` holds what was trained on, see `SelectionLog`.
        batch_size: rows trained on in a step with `selection`; the stream then draws `selection.candidates(batch_size)`
            rows. Without: those that the stream draws.
        mesh: all devices along "data" by default.
        programs: from `build_programs` with the same model, settings, number of domains and mesh, to share compiled
            code between runs.
        trackers: besides the files.
        config_hash: stored in checkpoints; a changed one is reported on resume.
        label: in front of progress lines.
        show_progress: print on process 0.

    Raises:
        ConfigError: before any file or device is touched.
        RunError: too many updates in a row were not finite, the run was interrupted, or no checkpoint can be read.
            The newest checkpoint is whole in each case.
    """
    run_dir = Path(run_dir)
    names = tuple(stream.names)
    check_mixer(mixer, has_reference=reference is not None, loss_normalization=settings.loss_normalization)
    check_gradients(mixer, model)
    batch_size = check_rows(selection, drawn=stream.batch_size, batch_size=batch_size)
    if selection is not None:
        kind = None if reference is None else "model"
        check_selection(selection, mixer, reference=kind, batch_size=batch_size)
    for where, rows in (("validation", validation), ("control", control), ("test", test)):
        if rows is not None and tuple(rows.names) != names:
            raise ConfigError(
                f"the {where} set has domains {list(rows.names)}, the stream {list(names)}",
                where=where,
                fix="Build it from sources of the same names in the same order.",
            )
    mesh = programs.mesh if programs is not None else mesh if mesh is not None else build_mesh()
    programs = programs or build_programs(model, settings, num_domains=len(names), mesh=mesh)
    programs = with_selecting(
        programs, model, settings, selection, mixer=mixer, batch_size=batch_size, num_domains=len(names)
    )
    prior = np.full(len(names), 1.0 / len(names)) if prior is None else np.asarray(prior, np.float64)
    prior = (prior / prior.sum()).astype(np.float32)
    held_out = (validation, control, test)
    run = _Run(run_dir, model, mixer, stream, held_out, reference, settings, prior, programs, trackers, config_hash)
    return run.execute(label, show_progress and jax.process_index() == 0)


class _Run:
    """The mutable middle of `run_training`; every method is one line of the order the loop is written in."""

    def __init__(
        self,
        run_dir: Path,
        model: Model,
        mixer: Mixer,
        stream: Any,
        held_out: tuple[ValidationSet, ValidationSet | None, ValidationSet | None],
        reference: Reference | None,
        settings: TrainSettings,
        prior: np.ndarray,
        programs: Programs,
        trackers: Sequence[Tracker],
        config_hash: str,
    ):
        self.run_dir, self.mixer, self.stream, self.settings = run_dir, mixer, stream, settings
        self.model, self.prior, self.programs, self.trackers = model, prior, programs, trackers
        self.config_hash, self.names = config_hash, tuple(stream.names)
        self.mesh = programs.mesh
        self.mixer_programs = build_mixer_programs(
            mixer,
            self.mesh,
            model=model,
            num_domains=len(self.names),
            rows_per_domain=settings.gradient_rows,
            sketch_size=settings.sketch_size,
        )
        self.validation, self.control, self.test = held_out
        self.reference = reference if mixer.needs & set(REFERENCE_SIGNALS) else None
        self.evaluated_at: int | None = None
        self.window = LogWindow(len(self.names))
        self.pending: _Pending | None = None
        self.batch_size: int = stream.batch_size
        self.selecting: Selecting | None = None
        self.train_step = programs.train_step
        if programs.selecting is not None:
            self.batch_size = programs.selecting.batch_size
            self.train_step = programs.selecting.train_step or self.train_step
            self.selecting = Selecting(programs.selecting, reference=reference, seed=settings.seed, mesh=self.mesh)
        self.selection_log = SelectionLog(len(self.names))
        self.losses = np.full(len(self.names), np.nan, np.float32)
        self.skipped = 0
        # Which step's mixer state each version of the stream's weights came from, for the weight lag.
        self.computed_at: dict[int, int] = {}

    def execute(self, label: str, show_progress: bool) -> RunResult:
        with Interruption() as interruption, use_mesh(self.mesh):
            notes: list[str] = []
            self.checkpointer = Checkpointer(self.run_dir / "checkpoints", keep=self.settings.keep, report=notes.append)
            try:
                self.state, start, resumed_from = self._begin(notes)
                self.weights = self.mixer_programs.weights(self.state.mixer)
                self.log = RunLog(
                    self.run_dir,
                    self.names,
                    prior=self.prior,
                    settings=self.settings,
                    window=self.window,
                    trackers=self.trackers,
                    first=start,
                    tokens=self._tokens(),
                    label=label,
                    show_progress=show_progress,
                )
                for note in notes:
                    self.log.note(note)
                try:
                    return self._train(start, resumed_from, interruption)
                finally:
                    self.log.close()
            finally:
                self.checkpointer.close()

    def _begin(self, notes: list[str]) -> tuple[RunState, int, int | None]:
        """A fresh state, or the newest whole checkpoint with the stream set to where it was."""
        settings = self.settings
        init_key, mixer_key = jax.random.split(jax.random.key(settings.seed))
        train = init_train_state(init_key, self.model, self.programs.optimizer, self.mesh)
        prior = jax.device_put(self.prior, replicated(self.mesh))
        state = init_run_state(mixer_key, train, self.mixer, prior, self.mesh)

        if self.checkpointer.begins_afresh(settings.resume):
            self._set_weights(self.mixer_programs.weights(state.mixer), step=0)
            return state, 0, None
        meta = self.checkpointer.peek()
        stored_names = list(self.names) if meta is None else meta["domain_names"]
        has_changed = stored_names != list(self.names)
        if has_changed and not settings.allow_changed_domains:
            raise ConfigError(
                f"the checkpoint's domains are {stored_names}, this run's are {list(self.names)}",
                where=str(self.run_dir),
                fix="Set train.allow_changed_domains to continue: the mixer then starts again from the prior.",
            )
        restored = self.checkpointer.restore(state, only_train=has_changed)
        assert restored is not None
        meta, state = restored.meta, restored.state
        self.stream.set_state(meta["stream"], allow_changed_sources=has_changed)
        notes.append(f"resumed at step {restored.step}")
        if meta["config_hash"] != self.config_hash:
            notes.append("the configuration has changed since the checkpoint was written")
        if has_changed:
            notes.append("the domains have changed: the mixer starts again from the prior")
            self._set_weights(self.mixer_programs.weights(state.mixer), step=restored.step)
        else:
            self.window = LogWindow.from_json(meta["window"])
            if meta.get("selection") is not None:
                self.selection_log = SelectionLog.from_json(meta["selection"])
            self.computed_at = {int(version): step for version, step in meta["computed_at"]}
        self.losses = np.asarray(jax.device_get(state.validation_loss))
        return state, restored.step, restored.step

    def _train(self, start: int, resumed_from: int | None, interruption: Interruption) -> RunResult:
        settings = self.settings
        self._place_rows()
        ended_early = None
        step = start
        if resumed_from is None:  # a checkpoint holds the evaluations at its step
            self._evaluate_if_due(step)
        while step < settings.steps:
            if step % settings.checkpoint_every == 0 and step not in (0, resumed_from):
                self._save(step)
            if interruption.is_requested(step):
                self._save(step)
                self.checkpointer.wait()
                raise interrupted(step, self.run_dir)
            if self.mixer_programs.is_blind:
                self._set_weights(self.weights, step=step)
            try:
                batch = self._next_batch()
            except StopIteration:
                ended_early = f"the stream ended after step {step}"
                break
            self._step(step, batch)
            step += 1
        if ended_early:
            self.log.note(ended_early)
        self._flush()
        if self.evaluated_at != step:
            self._evaluate(step, is_extra=True)
        test = self._test(step)
        self._save(step)
        self.checkpointer.wait()
        return self._result(step, resumed_from, ended_early, test)

    def _place_rows(self) -> None:
        place_rows = partial(place, batch_size=self.batch_size, mesh=self.mesh)
        self.validation_batches = place_rows(self.validation)
        self.control_batches = None if self.control is None else place_rows(self.control)

    def _evaluate_if_due(self, step: int) -> None:
        """The run's evaluations and the mixer's; one serves both where they use the same rows."""
        is_report = step % self.settings.eval_every == 0
        is_control = self.mixer.cadence.is_validation_due(step, len(self.names))
        if self.control_batches is None:
            if is_report or is_control:
                self._evaluate(step)
            return
        if is_report:
            self._evaluate(step)
        # Without evaluations of its own the mixer takes what the report measures, at the report's times.
        if is_control or (is_report and self.mixer.cadence.validate == 0):
            self.log.losses("control", step, self._tokens(), self._measure_control())

    def _measure_control(self) -> np.ndarray:
        assert self.control_batches is not None
        losses = self.programs.evaluate(self.state.train.params, self.control_batches)
        self.state = dataclasses.replace(self.state, validation_loss=losses)
        return np.asarray(jax.device_get(losses))

    def _evaluate(self, step: int, *, is_extra: bool = False) -> None:
        """`is_extra`: at the end of a run, for the report alone; a longer run would not have made it."""
        self._flush()
        losses = self.programs.evaluate(self.state.train.params, self.validation_batches)
        if self.control_batches is None and not is_extra:
            self.state = dataclasses.replace(self.state, validation_loss=losses)
        self.losses, self.evaluated_at = np.asarray(jax.device_get(losses)), step
        self.log.losses("eval", step, self._tokens(), self.losses)

    def _test(self, step: int) -> np.ndarray | None:
        if self.test is None:
            return None
        batches = place(self.test, batch_size=self.batch_size, mesh=self.mesh)
        losses = np.asarray(jax.device_get(self.programs.evaluate(self.state.train.params, batches)))
        self.log.losses("test", step, self._tokens(), losses)
        return losses

    def _save(self, step: int) -> None:
        self._flush()
        if step in self.checkpointer.steps():
            return
        meta = {
            "domain_names": list(self.names),
            "config_hash": self.config_hash,
            "stream": self.stream.get_state(),
            "window": self.window.to_json(),
            "selection": None if self.selecting is None else self.selection_log.to_json(),
            "computed_at": sorted(self.computed_at.items()),
        }
        self.log.save_blocked += self.checkpointer.save(step, self.state, meta)

    def _next_batch(self) -> dict[str, np.ndarray]:
        started = time.perf_counter()
        batch = next(self.stream)
        self.log.data_wait += time.perf_counter() - started
        return batch

    def _step(self, step: int, batch: dict[str, np.ndarray]) -> None:
        """Dispatches step `step`, then logs the one before and hands on the weights known before this step."""
        lag = step - self.computed_at.get(int(batch["weights_version"].max()), step)
        on_mesh = global_batch(self.mesh, {name: batch[name] for name in ("tokens", "targets", "domain")})
        known = self.weights
        on_mesh, scanned = self._chosen(step, on_mesh)
        signals = self._signals(step, on_mesh)
        loss_weights = self.mixer_programs.loss_weights
        weighting = () if loss_weights is None else (loss_weights(self.state.mixer),)
        train, info = self.train_step(self.state.train, on_mesh, *weighting)
        self.state = dataclasses.replace(self.state, train=train)
        scanned = info.scanned if scanned is None else scanned
        done = step + 1
        self._evaluate_if_due(done)
        if "validation_loss" in self.mixer.needs:
            signals["validation_loss"] = self.state.validation_loss
        learned = info.feedback if self.selecting is None else self.selecting.feedback(info, scanned)
        feedback = dataclasses.replace(learned, **signals)
        mixer_state, pending, mixer_info = self.mixer_programs.advance(self.state, feedback, step)
        self.state = dataclasses.replace(self.state, mixer=mixer_state, pending=pending)
        realized = self.stream.realized() if self._is_logged(done) else None
        self._flush()
        self.weights = self.mixer_programs.weights(mixer_state)
        self.pending = _Pending(done, info, mixer_info, self.weights, lag, realized, scanned)
        if not self.mixer_programs.is_blind:
            self._set_weights(known, step=step)

    def _chosen(self, step: int, batch: dict[str, jax.Array]) -> tuple[dict[str, jax.Array], Scanned | None]:
        """What to train on out of what was drawn, with the reference's losses where something measures against it."""
        if self.selecting is not None:
            number = jax.device_put(np.uint32(step), replicated(self.mesh))
            return self.selecting(self.state.train.params, batch, number)
        if self.reference is not None:
            batch = {**batch, "reference_loss": self.reference(batch)}
        return batch, None

    def _signals(self, step: int, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """What the mixer needs of this step besides the sums of the train step, measured before it."""
        needs, update = self.mixer.needs, self.mixer.cadence.update
        if (step + 1) % update != 0:
            return {}
        signals: dict[str, jax.Array] = {}
        number = jax.device_put(np.uint32(step), replicated(self.mesh))
        if self.mixer_programs.gradients is not None:
            held_out = None
            if "validation_alignment" in needs:
                rows = held_out_rows(
                    self.validation if self.control is None else self.control,
                    rows_per_domain=self.settings.gradient_rows,
                    turn=step // update,
                )
                held_out = jax.device_put(rows, replicated(self.mesh))
            params = self.state.train.params
            signals |= self.mixer_programs.gradients(params, batch, held_out, self.state.mixer_key, number)
        if "learning_rate" in needs:
            signals["learning_rate"] = self.programs.learning_rate(number.astype(np.int32))
        return signals

    def _set_weights(self, weights: jax.Array, *, step: int) -> None:
        version = self.stream.set_weights(np.asarray(jax.device_get(weights)))
        self.computed_at[version] = step
        # Rows in flight may be a block old; older versions can no longer be drawn.
        self.computed_at = {v: s for v, s in self.computed_at.items() if v >= self.stream.oldest_version}

    def _is_logged(self, done: int) -> bool:
        return done % self.settings.log_every == 0 or done == self.settings.steps

    def _flush(self) -> None:
        """Waits for the pending step's numbers and logs them."""
        if self.pending is None:
            return
        pending, self.pending = self.pending, None
        info, mixer_info, scanned = jax.device_get((pending.info, pending.mixer_info, pending.scanned))
        extras = {} if mixer_info is None else {"score": mixer_info.score, **mixer_info.extra}
        self.window.add(info.feedback.loss_sum, info.feedback.token_count, extras)
        if scanned is not None:
            self.selection_log.add(scanned)
        self._report_skipped(pending.step, info)
        if pending.realized is not None:
            self._log(pending, info)

    def _report_skipped(self, step: int, info: StepInfo) -> None:
        if int(info.skipped) > self.skipped and int(info.consecutive_skipped) > 0:
            self.log.note(
                f"step {step}: loss {float(info.loss)}, gradient norm {float(info.grad_norm)}: "
                f"update skipped ({int(info.consecutive_skipped)} in a row)"
            )
        self.skipped = int(info.skipped)
        if int(info.consecutive_skipped) >= self.settings.max_consecutive_skipped:
            if not self.checkpointer.steps():
                self._save(step)
            self.checkpointer.wait()
            raise RunError(
                f"{int(info.consecutive_skipped)} updates in a row had a loss or gradient that was not finite",
                where=f"step {step}, train.max_consecutive_skipped",
                fix=f"Lower the learning rate. Checkpoint {self.checkpointer.steps()[-1]} is intact.",
            )

    def _log(self, pending: _Pending, info: StepInfo) -> None:
        assert pending.realized is not None
        step = jax.device_put(np.int32(pending.step - 1), replicated(self.mesh))
        self.log.step(
            pending.step,
            info,
            learning_rate=float(jax.device_get(self.programs.learning_rate(step))),
            weights=np.asarray(jax.device_get(pending.weights), np.float64),
            realized=pending.realized,
            weight_lag=pending.weight_lag,
            selection={} if pending.scanned is None else self.selection_log.take(self.names),
        )

    def _tokens(self) -> int:
        return int(sum(r["tokens"] for r in self.stream.realized().values()))

    def _result(
        self, step: int, resumed_from: int | None, ended_early: str | None, test: np.ndarray | None
    ) -> RunResult:
        final = self.mixer.final or self.mixer.weights
        recommended = jax.jit(final, out_shardings=replicated(self.mesh))(self.state.mixer)
        return RunResult(
            steps=step,
            final_eval=self._by_name(self.losses),
            final_test=None if test is None else self._by_name(test),
            final_weights=self._by_name(self.weights),
            recommended=self._by_name(recommended),
            realized=self.stream.realized(),
            skipped_steps=int(jax.device_get(self.state.train.skipped)),
            resumed_from=resumed_from,
            ended_early=ended_early,
            tokens_per_second=float(np.median(self.log.rates)) if self.log.rates else float("nan"),
            params=self.state.train.params,
        )

    def _by_name(self, values: Any) -> dict[str, float]:
        return {n: float(x) for n, x in zip(self.names, np.asarray(jax.device_get(values)), strict=True)}
