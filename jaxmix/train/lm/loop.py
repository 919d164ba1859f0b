"""The loop of training a language model on a mixture, as `jaxmix.train.run.driver` runs it. It contains no algorithm.

The loop measures the signals that the mixer asks for and no others; it does not know which method it runs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from jaxmix.core.errors import ConfigError
from jaxmix.core.sharding import build_mesh, global_batch, replicated
from jaxmix.core.types import Bool, Weights
from jaxmix.mixers.base import REFERENCE_SIGNALS, Mixer, MixerInfo
from jaxmix.models.base import Model
from jaxmix.train.lm.domain_sums import SuperBatchSums
from jaxmix.train.lm.evaluate import ValidationSet, place
from jaxmix.train.lm.fields import (
    held_out_fields,
    loss_fields,
    mixer_fields,
    stream_fields,
    weight_fields,
    weights_in_force,
)
from jaxmix.train.lm.programs import Programs, build_mixer_programs, build_programs, with_selection
from jaxmix.train.lm.settings import TrainSettings
from jaxmix.train.lm.signals import Reference, check_gradients, check_mixer, held_out_rows
from jaxmix.train.lm.state import RunState, init_run_state, init_train_state
from jaxmix.train.lm.step import StepInfo
from jaxmix.train.run.driver import Driver, End, Hook, Loop, Record, View
from jaxmix.train.run.trackers import Tracker
from jaxmix.train.selection.fields import add_selection, selection_fields
from jaxmix.train.selection.program import BatchSelection
from jaxmix.train.selection.settings import SelectionSettings, check_rows, check_selection


@dataclasses.dataclass(frozen=True)
class RunResult:
    """The result of a run.

    Attributes:
        steps: optimizer steps done, earlier sessions included.
        final_eval: validation loss (nats per token) by domain at the end.
        final_test: loss (nats per token) by domain on the test rows at the end; None without such rows.
        final_weights: the mixer's weights by domain at the end.
        recommended: the mixture that the mixer recommends for another run (for many methods the average of their
            weights), by domain.
        realized: rows and tokens drawn by domain, see `MixtureStream.realized`.
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
    hooks: Sequence[Hook] = (),
    trackers: Sequence[Tracker] = (),
    on_start: Callable[[], None] = lambda: None,
    config_hash: str = "",
    label: str = "train",
    show_progress: bool = True,
) -> RunResult:
    """Trains `model` on `stream` under `mixer`, continuing a run found in `run_dir`.

    While step s runs on the devices, the host reads the values of step s−1 and gives the stream the weights that
    followed from them. Weights are therefore always one step old when they are set, whatever the timing, so that a
    resumed run draws the same data. They reach the data at the stream's next block. Weights of a mixer that needs no
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
            `select/…` holds what was trained on, see `selection_fields`.
        batch_size: rows trained on in a step with `selection`; the stream then draws `selection.candidates(batch_size)`
            rows. Without: those that the stream draws.
        mesh: all devices along "data" by default.
        programs: from `build_programs` with the same model, settings, number of domains and mesh, to share compiled
            code between runs.
        hooks: your own evaluations, see `Hook`.
        trackers: in addition to the files.
        on_start: see `Driver.run`.
        config_hash: stored in checkpoints; a changed one is reported on resume.
        label: in front of progress lines.
        show_progress: print on process 0.

    Raises:
        ConfigError: before any file or device is touched.
        RunError: too many updates in a row were not finite, the run was interrupted, a hook failed, or no checkpoint
            can be read. The newest checkpoint is complete in each case.
    """
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
    programs = with_selection(programs, selection, mixer=mixer, batch_size=batch_size)
    prior = np.full(len(names), 1.0 / len(names)) if prior is None else np.asarray(prior, np.float64)
    prior = (prior / prior.sum()).astype(np.float32)
    held_out = (validation, control, test)
    loop = _TrainLoop(mixer, stream, *held_out, reference, settings, prior, programs, config_hash)
    driver = Driver(loop, run_dir, hooks=hooks, trackers=trackers, label=label, show_progress=show_progress)
    return driver.run(on_start)


class _Dispatched(NamedTuple):
    """A dispatched step: its report, and the inputs of the mixer's update.

    Attributes:
        info: of the train step.
        drawn: sums over the super-batch, with a selection.
        signals: that the mixer needs, by name.
        weight_lag: steps by which the batch's weights are older than the step.
    """

    info: StepInfo
    drawn: SuperBatchSums | None
    signals: dict[str, jax.Array]
    weight_lag: int


class _Extras(NamedTuple):
    """Values that are logged of a step in addition to `StepInfo`.

    Attributes:
        drawn, weight_lag: see `_Dispatched`.
        mixer_info: of the mixer's update, None without one.
        before, weights: the mixer's weights before and after the update.
        was_used_up, is_used_up: the sources that were used up before the step's batch, and after it.
        realized: of the stream after the step, where a record follows.
    """

    drawn: SuperBatchSums | None
    weight_lag: int
    mixer_info: MixerInfo | None
    before: Weights
    weights: Weights
    was_used_up: Bool[np.ndarray, " m"]
    is_used_up: Bool[np.ndarray, " m"]
    realized: dict[str, dict[str, Any]] | None


@dataclasses.dataclass(eq=False)
class _TrainLoop(Loop[RunResult]):
    mixer: Mixer
    stream: Any
    validation: ValidationSet
    control: ValidationSet | None
    test: ValidationSet | None
    reference: Reference | None
    settings: TrainSettings
    prior: np.ndarray
    programs: Programs
    config_hash: str
    updates_by_evaluations = True

    def __post_init__(self) -> None:
        mixer, stream, settings, programs = self.mixer, self.stream, self.settings, self.programs
        super().__init__(settings, programs.mesh)
        self.names = tuple(stream.names)
        self.mixer_programs = build_mixer_programs(mixer, programs, settings)
        self.batch_size: int = stream.batch_size
        self.selection: BatchSelection | None = None
        self.train_step = programs.train_step
        if programs.selection is not None:
            self.batch_size = programs.selection.batch_size
            self.train_step = programs.selection.train_step or self.train_step
            self.selection = BatchSelection(
                programs.selection, reference=self.reference, seed=settings.seed, mesh=self.mesh
            )
        if not mixer.needs & set(REFERENCE_SIGNALS):
            self.reference = None
        self.losses = np.full(len(self.names), np.nan, np.float32)
        self.test_losses: np.ndarray | None = None
        # Which step's mixer state each version of the stream's weights came from, for the weight lag.
        self.computed_at: dict[int, int] = {}
        self.is_used_up = self.is_said = np.zeros(len(self.names), bool)

    # ── a new run, or a checkpoint ──────────────────────────────────────────────────────────────────────────────────

    def init(self) -> RunState:
        self.validation_batches = self._placed(self.validation)
        self.control_batches = None if self.control is None else self._placed(self.control)
        init_key, mixer_key = jax.random.split(jax.random.key(self.settings.seed))
        train = init_train_state(init_key, self.programs.model, self.programs.optimizer, self.mesh)
        prior = jax.device_put(self.prior, replicated(self.mesh))
        return init_run_state(mixer_key, train, self.mixer, prior, self.mesh)

    def begin(self) -> None:
        self.weights = self.mixer_programs.weights(self.state.mixer)
        self._set_weights(self.weights, step=0)
        self.is_used_up = self._used_up()  # a limit may be less than one row

    def meta(self) -> dict[str, Any]:
        return {
            "domain_names": list(self.names),
            "config_hash": self.config_hash,
            "stream": self.stream.get_state(),
            "computed_at": sorted(self.computed_at.items()),
        }

    def is_model_alone(self, meta: Mapping[str, Any], run_dir: Path) -> bool:
        stored, names = meta["domain_names"], list(self.names)
        if stored != names and not self.settings.allow_changed_domains:
            raise ConfigError(
                f"the checkpoint's domains are {stored}, this run's are {names}",
                where=str(run_dir),
                fix="Set train.allow_changed_domains to continue: the mixer then starts again from the prior.",
            )
        return bool(stored != names)

    def restore(self, step: int, meta: Mapping[str, Any], *, is_model_alone: bool) -> list[str]:
        allowed = {"allow_changed_sources": is_model_alone, "allow_changed_rows": self.settings.allow_changed_data}
        is_same_stream = self.stream.set_state(meta["stream"], **allowed)
        self.is_used_up = self.is_said = self._used_up()
        self.losses = np.asarray(jax.device_get(self.state.validation_loss))
        self.weights = self.mixer_programs.weights(self.state.mixer)
        notes = []
        if meta["config_hash"] != self.config_hash:
            notes.append("the configuration has changed since the checkpoint was written")
        if is_model_alone:
            notes.append("the domains have changed: the mixer starts again from the prior")
        if not is_same_stream:
            self._set_weights(self.weights, step=step)
        else:
            self.computed_at = {int(version): step for version, step in meta["computed_at"]}
        return notes

    # ── a step ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def batch(self, step: int) -> dict[str, np.ndarray]:
        return next(self.stream)

    def step(self, step: int, batch: dict[str, np.ndarray]) -> _Dispatched:
        lag = step - self.computed_at.get(int(batch["weights_version"].max()), step)
        on_mesh = global_batch(self.mesh, {name: batch[name] for name in ("tokens", "targets", "domain")})
        on_mesh, drawn = self._selected(step, on_mesh)
        signals = self._signals(step, on_mesh)
        loss_weights = self.mixer_programs.loss_weights
        weighting = () if loss_weights is None else (loss_weights(self.state.mixer),)
        train, info = self.train_step(self.state.train, on_mesh, *weighting)
        self.state = dataclasses.replace(self.state, train=train)
        return _Dispatched(info, info.drawn if drawn is None else drawn, signals, lag)

    def _selected(self, step: int, batch: dict[str, jax.Array]) -> tuple[dict[str, jax.Array], SuperBatchSums | None]:
        """The rows to train on, with the reference's losses where a method needs them."""
        if self.selection is not None:
            number = jax.device_put(np.uint32(step), replicated(self.mesh))
            return self.selection(self.state.train.params, batch, number)
        if self.reference is not None:
            batch = {**batch, "reference_loss": self.reference(batch)}
        return batch, None

    def _signals(self, step: int, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """The signals of this step that the mixer needs besides the train step's sums, measured before it."""
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

    def update(self, step: int, output: _Dispatched) -> tuple[StepInfo, _Extras]:
        """The mixer's update, and the stream's next weights."""
        info, drawn, signals, weight_lag = output
        if "validation_loss" in self.mixer.needs:
            signals["validation_loss"] = self.state.validation_loss
        learned = info.feedback if self.selection is None else self.selection.feedback(info, drawn)
        feedback = dataclasses.replace(learned, **signals)
        mixer_state, pending, mixer_info = self.mixer_programs.advance(self.state, feedback, step)
        self.state = dataclasses.replace(self.state, mixer=mixer_state, pending=pending)
        realized = self.stream.realized() if self.is_logged(step + 1) else None
        was_used_up, self.is_used_up = self.is_used_up, self._used_up()
        before, self.weights = self.weights, self.mixer_programs.weights(mixer_state)
        if self.mixer.needs:
            self._set_weights(before, step=step)
        else:  # known before the step that they are meant for has run
            self._set_weights(self.weights, step=step + 1)
        used_up = (was_used_up, self.is_used_up)
        return info, _Extras(drawn, weight_lag, mixer_info, before, self.weights, *used_up, realized)

    def _used_up(self) -> np.ndarray:
        return np.isin(self.names, self.stream.used_up())

    def _set_weights(self, weights: jax.Array, *, step: int) -> None:
        version = self.stream.set_weights(np.asarray(jax.device_get(weights)))
        self.computed_at[version] = step
        # Rows in flight may be a block old; older versions can no longer be drawn.
        self.computed_at = {v: s for v, s in self.computed_at.items() if v >= self.stream.oldest_version}

    # ── evaluation ──────────────────────────────────────────────────────────────────────────────────────────────────

    def evaluations(self) -> Sequence[Hook]:
        """The report's evaluations and the mixer's; one serves both where they use the same rows."""
        hooks = [Hook(self._is_evaluated, self._evaluate, "eval")]
        if self.control is not None:
            hooks.append(Hook(self._is_controlled, self._measure_control, "control", at_end=False))
        if self.test is not None:
            hooks.append(Hook(lambda step: False, self._measure_test, "test"))
        hooks.append(Hook(self._is_newly_used_up, self._say_used_up, "used_up", at_end=False))
        return hooks

    def _is_newly_used_up(self, step: int) -> bool:
        return bool((self.is_used_up & ~self.is_said).any())

    def _say_used_up(self, view: View) -> dict[str, float]:
        """The epochs that each source has given which is used up since the last call."""
        new, self.is_said = self.is_used_up & ~self.is_said, self.is_used_up
        realized = self.stream.realized()
        epochs = {n: realized[n]["epochs"] for n, is_new in zip(self.names, new.tolist(), strict=True) if is_new}
        for name, value in epochs.items():
            view.note(f"step {view.step}: source {name!r} ran out after {value:.3g} epochs, the others take its share")
        return epochs

    def _is_evaluated(self, step: int) -> bool:
        is_shared = self.control is None and self.mixer.cadence.is_validation_due(step, len(self.names))
        return step % self.settings.eval_every == 0 or is_shared

    def _is_controlled(self, step: int) -> bool:
        cadence = self.mixer.cadence
        # Without its own evaluations the mixer uses the report's, at the report's times.
        is_shared = cadence.validate == 0 and step % self.settings.eval_every == 0
        return cadence.is_validation_due(step, len(self.names)) or is_shared

    def _evaluate(self, view: View) -> dict[str, float]:
        # One made only because the run ends is for the report alone: a longer run would not have made it.
        is_for_mixer = self.control is None and self._is_evaluated(view.step)
        self.losses = self._held_out_losses(view, self.validation_batches, is_for_mixer=is_for_mixer)
        return held_out_fields(self.losses, self.names, self.prior)

    def _measure_control(self, view: View) -> dict[str, float]:
        losses = self._held_out_losses(view, self.control_batches, is_for_mixer=True)
        return held_out_fields(losses, self.names, self.prior)

    def _measure_test(self, view: View) -> dict[str, float]:
        assert self.test is not None
        self.test_losses = self._held_out_losses(view, self._placed(self.test), is_for_mixer=False)
        return held_out_fields(self.test_losses, self.names, self.prior)

    def _held_out_losses(self, view: View, batches: Any, *, is_for_mixer: bool) -> np.ndarray:
        losses = self.programs.evaluate(view.params, batches)
        if is_for_mixer:
            self.state = dataclasses.replace(self.state, validation_loss=losses)
        return np.asarray(jax.device_get(losses))

    def _placed(self, rows: ValidationSet) -> list[dict[str, jax.Array]]:
        return place(rows, batch_size=self.batch_size, mesh=self.mesh)

    # ── records ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def measure(self, info: StepInfo, extras: _Extras) -> None:
        self.metrics.add({"loss_sum": info.feedback.loss_sum, "token_count": info.feedback.token_count})
        self.metrics.add({"weights": weights_in_force(extras.before, extras.was_used_up), "steps": 1})
        if (mixer_info := extras.mixer_info) is not None:
            self.metrics.keep({"score": mixer_info.score, **mixer_info.extra})
        if extras.drawn is not None:
            add_selection(self.metrics, extras.drawn)

    def record(self, step: int, info: StepInfo, extras: _Extras) -> Record:
        assert extras.realized is not None
        tokens, sums = _tokens(extras.realized), self.metrics.take()
        weights = weights_in_force(extras.weights, extras.is_used_up)
        number = jax.device_put(np.int32(step - 1), replicated(self.mesh))
        fields = {
            "tokens": tokens,
            **loss_fields(sums, self.names),
            **mixer_fields(self.metrics, self.names),
            "train/grad_norm": float(info.grad_norm),
            "train/learning_rate": float(jax.device_get(self.programs.learning_rate(number))),
            "train/skipped": int(info.skipped),
            **weight_fields(weights, sums, self.names),
            **stream_fields(extras.realized),
            "data/weight_lag": extras.weight_lag,
        }
        if extras.drawn is not None:
            fields |= selection_fields(self.metrics, sums, self.names)
        return Record(fields, tokens, weights)

    def position(self, step: int) -> dict[str, int]:
        return {"tokens": self.amount(step)}

    def amount(self, step: int) -> int:
        return _tokens(self.stream.realized())

    def result(self, end: End) -> RunResult:
        final = self.mixer.final or self.mixer.weights
        recommended = jax.jit(final, out_shardings=replicated(self.mesh))(self.state.mixer)
        return RunResult(
            steps=end.steps,
            final_eval=self._by_name(self.losses),
            final_test=None if self.test_losses is None else self._by_name(self.test_losses),
            final_weights=self._by_name(self.weights),
            recommended=self._by_name(recommended),
            realized=self.stream.realized(),
            skipped_steps=int(jax.device_get(self.state.train.skipped)),
            resumed_from=end.resumed_from,
            ended_early=end.ended_early,
            tokens_per_second=end.rate,
            params=self.state.train.params,
        )

    def _by_name(self, values: Any) -> dict[str, float]:
        return {n: float(x) for n, x in zip(self.names, np.asarray(jax.device_get(values)), strict=True)}


def _tokens(realized: Mapping[str, Mapping[str, Any]]) -> int:
    return int(sum(drawn["tokens"] for drawn in realized.values()))
