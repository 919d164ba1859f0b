"""The section `selection` of a configuration: checked settings, and what a run with them costs."""

from __future__ import annotations

import dataclasses
import json
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxmix.core.errors import ConfigError, nearest
from jaxmix.workflows.config.sections import RunConfig
from jaxmix.workflows.config.strict import Origin, build

if TYPE_CHECKING:
    from jaxmix.mixers.base import Mixer
    from jaxmix.models.lm.config import TransformerConfig
    from jaxmix.train.selection.cost import SelectionCost
    from jaxmix.train.selection.settings import SelectionSettings


def resolve_selection(config: RunConfig, origin: Origin | None = None) -> SelectionSettings | None:
    """What the section says, None where it selects nothing.

    Raises:
        ConfigError: an unknown setting, one of the other level, or a value out of range.
    """
    from jaxmix.train.selection.settings import SelectionSettings

    origin, section = origin or Origin(), config.selection
    if section.method is None:
        if section.settings:
            key = next(iter(section.settings))
            raise ConfigError(
                f"selection.{key} is set, and no method", where=origin("selection"), fix="Set selection.method."
            )
        return None
    known = [f.name for f in dataclasses.fields(SelectionSettings)]
    for key in section.settings:
        if key not in known:
            raise ConfigError(f"unknown key {key!r}", where=origin(f"selection.{key}"), fix=nearest(key, known))
    try:
        settings = build(
            SelectionSettings, {"method": section.method, **section.settings}, origin=origin, path="selection"
        )
    except ConfigError as error:
        raise origin.explain(error) from None
    for key in SelectionSettings.foreign(settings.level):
        if key in section.settings:
            raise ConfigError(
                f"selection.{key} means nothing at the level of a {settings.level}",
                where=origin(f"selection.{key}"),
                fix="Leave it out, or change selection.level.",
            )
    return settings


def check_selection_config(config: RunConfig, mixer: Mixer, origin: Origin) -> None:
    """Checks all that can be checked without opening a file. Raises `ConfigError`."""
    from jaxmix.train.selection.settings import check_selection

    selection = resolve_selection(config, origin)
    if selection is not None:
        check_selection(
            selection, mixer, reference=reference_kind(config), batch_size=config.data.batch_size, origin=origin
        )


def reference_kind(config: RunConfig) -> str | None:
    """ "model", "table", or None for a run without reference."""
    if config.reference.run is not None:
        return "model"
    return None if config.reference.losses is None else "table"


def drawn_rows(config: RunConfig, *, multiple: int = 1) -> int:
    """Rows that the stream draws in a step: the super-batch, or batch_size without one."""
    selection = resolve_selection(config)
    if selection is None:
        return config.data.batch_size
    return selection.candidates(config.data.batch_size, multiple=multiple)


class Compute(NamedTuple):
    """Floating-point operations of a step by what they are for; `SelectionCost` puts them beside the other axes.

    Attributes:
        trained, scanned: rows of a step.
        training, scoring, reference: operations of a step: forward and backward passes over the trained rows; the
            learner's over those that are scored; the reference's.
        is_reference_known: False where the reference's size was taken to be the learner's.
        selects: whether the run selects at all.
    """

    trained: int
    scanned: int
    training: float
    scoring: float
    reference: float
    is_reference_known: bool
    selects: bool

    @property
    def flops(self) -> float:
        """Of a step."""
        return self.training + self.scoring + self.reference

    def cost(self, steps: int) -> SelectionCost:
        """The four axes of `steps` steps."""
        from jaxmix.train.selection.cost import training_cost

        per_row = self.training / self.trained / 3.0
        beside = (self.scoring + self.reference) / self.scanned
        if self.scanned > self.trained:
            return training_cost(
                steps,
                num_select=self.trained,
                num_candidates=self.scanned,
                forward_flops=per_row,
                scoring_flops=self.scoring / self.scanned,
                reference_flops=self.reference / self.scanned,
            )
        return training_cost(
            steps, num_select=self.trained, forward_flops=per_row, training_flops=3.0 * per_row + beside
        )

    def as_json(self) -> dict[str, Any]:
        return {
            "rows_trained_per_step": self.trained,
            "rows_scanned_per_step": self.scanned,
            "flops_per_step": self.flops,
            "flops_per_step_training": self.training,
            "flops_per_step_scoring": self.scoring,
            "flops_per_step_reference": self.reference,
        }


def compute_of(config: RunConfig, mixer: Mixer, model: TransformerConfig) -> Compute:
    """What a step of the run computes. Reads at most the configuration of the reference's run.

    A forward pass is a third of `flops_per_token`; evaluations, gradients that mixers measure, and the selection
    itself are left out, and so is the training of the reference.

    Args:
        config: the run.
        mixer: with its wrappers: may measure against the reference where nothing is selected by it.
        model: of the learner.
    """
    from jaxmix.mixers.base import REFERENCE_SIGNALS
    from jaxmix.models.lm.accounting import flops_per_token
    from jaxmix.train.selection.settings import Scan, chooses_in_step, scan_of

    selection = resolve_selection(config)
    trained, scanned = config.data.batch_size, drawn_rows(config)
    forward = flops_per_token(model) * config.data.seq_len / 3.0
    scan = Scan(False, False, bool(mixer.needs & set(REFERENCE_SIGNALS)))
    scores = False
    if selection is not None:
        scan = scan_of(selection, mixer.needs)
        scores = scan.learner and not chooses_in_step(
            selection, scan, accumulate=config.train.settings.get("accumulate", 1)
        )
    rows = scanned if scan.reference else trained if scan.trained_reference else 0
    of_reference, is_known = 0.0, True
    if rows and reference_kind(config) == "model":
        settings = reference_settings(config)
        is_known = settings is not None
        of_reference = rows * flops_per_token(settings or model) * config.data.seq_len / 3.0
    return Compute(
        trained=trained,
        scanned=scanned,
        training=3.0 * trained * forward,
        scoring=scanned * forward if scores else 0.0,
        reference=of_reference,
        is_reference_known=is_known,
        selects=selection is not None,
    )


def known_pace(config: RunConfig) -> tuple[str, float] | None:
    """A run folder that tells how fast this configuration may go, and its operations per second.

    The run's own folder where it has begun, else that of the reference; only steps after a run's first record count,
    which holds compilation.
    """
    from jaxmix.train.run.records import read_records

    for folder in (config.out, config.reference.run):
        path = Path(folder or "")
        try:
            flops = json.loads((path / "provenance.json").read_text(encoding="utf-8"))["compute"]["flops_per_step"]
            seconds = [r["step_seconds"] for r in read_records(path / "timing.jsonl")[1:]]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if folder and seconds:
            return folder, float(flops) / statistics.median(seconds)
    return None


def reference_settings(config: RunConfig) -> TransformerConfig | None:
    """The model of the run that the reference is taken from; None where its folder cannot say yet."""
    from jaxmix.workflows.config.resolve import resolve_model_config
    from jaxmix.workflows.config.sections import load_config

    path = Path(config.reference.run or "") / "config.yaml"
    if not path.is_file():
        return None
    settings = resolve_model_config(load_config(str(path)))
    return dataclasses.replace(settings, seq_len=config.data.seq_len)
