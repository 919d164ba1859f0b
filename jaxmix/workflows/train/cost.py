"""How much a run computes in a step, and at what pace similar runs went."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxmix.mixers.base import REFERENCE_SIGNALS
from jaxmix.models.lm.accounting import flops_per_token
from jaxmix.train.run.records import read_records
from jaxmix.train.selection.cost import SelectionCost, training_cost
from jaxmix.train.selection.settings import ForwardPasses, chooses_in_step, forward_passes_of
from jaxmix.workflows.config.load import model_of_run
from jaxmix.workflows.config.resolve import Run


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


def compute_of(run: Run) -> Compute:
    """What a step of the run computes. Reads at most the configuration of the reference's run.

    A forward pass is a third of `flops_per_token`; evaluations, gradients that mixers measure, and the selection
    itself are left out, and so is the training of the reference.
    """
    selection, reference = run.selection, run.reference
    seq_len, trained, scanned = run.data.seq_len, run.data.batch_size, run.drawn()
    forward = flops_per_token(run.model) * seq_len / 3.0
    forward_passes, scores = ForwardPasses(False, False, bool(run.mixer.needs & set(REFERENCE_SIGNALS))), False
    if selection is not None:
        forward_passes = forward_passes_of(selection, run.mixer.needs)
        scores = forward_passes.learner and not chooses_in_step(
            selection, forward_passes, accumulate=run.settings.accumulate
        )
    rows = scanned if forward_passes.reference else trained if forward_passes.trained_reference else 0
    of_reference, is_known = 0.0, True
    if rows and reference.kind == "model":
        is_known = (Path(reference.run or "") / "config.yaml").is_file()
        model = run.model
        if is_known:
            model = dataclasses.replace(model_of_run(reference.run or ""), seq_len=seq_len)
        of_reference = rows * flops_per_token(model) * seq_len / 3.0
    return Compute(
        trained=trained,
        scanned=scanned,
        training=3.0 * trained * forward,
        scoring=scanned * forward if scores else 0.0,
        reference=of_reference,
        is_reference_known=is_known,
        selects=selection is not None,
    )


def known_pace(folders: Sequence[str | None]) -> tuple[str, float] | None:
    """The first run folder with timings, and the floating-point operations per second of its run.

    Only steps after a run's first record count, which holds compilation.

    Args:
        folders: the run's own and that of its reference; None is passed over.
    """
    for folder in filter(None, folders):
        try:
            about = json.loads((Path(folder) / "provenance.json").read_text(encoding="utf-8"))
            flops = about["compute"]["flops_per_step"]
            seconds = [r["step_seconds"] for r in read_records(Path(folder) / "timing.jsonl")[1:]]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if seconds:
            return folder, float(flops) / statistics.median(seconds)
    return None
