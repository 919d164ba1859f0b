"""The cost of a method beyond the tokens it trains on: evaluations, gradient measurements, time."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

from jaxmix.report.numbers import mean_of_known
from jaxmix.report.run_folder import RunRecord

GRADIENT_SIGNALS = ("gradient_alignment", "validation_alignment", "gradient_noise")
_FORWARD_SHARE = 1 / 3
"""Share of a token's training cost, forward and backward, that its forward pass takes."""


class Cost(NamedTuple):
    """The cost of one run, or the mean cost of a variant's runs.

    Attributes:
        tokens: trained on: with selection, those in the loss.
        seconds: of all steps, evaluations included, at the pace after the first log interval (which holds
            compilation); None without timing records.
        evaluations: number of evaluations on held-out rows during the run.
        extra_evaluations: those of them that the mixer asked for beyond the run's own schedule; None where the
            schedule is not known.
        evaluation_tokens: upper bound of the tokens in one of the mixer's evaluations; None where the configuration
            is not known.
        gradient_measurements: how often the mixer's gradient signals were measured; None where its needs are not
            known.
    """

    tokens: float
    seconds: float | None
    evaluations: float
    extra_evaluations: float | None
    evaluation_tokens: float | None
    gradient_measurements: float | None

    @property
    def extra_share(self) -> float | None:
        """Computation of the extra evaluations over that of training; a token's forward pass counts as one third."""
        if not self.extra_evaluations or self.evaluation_tokens is None or not self.tokens:
            return None
        return self.extra_evaluations * self.evaluation_tokens * _FORWARD_SHARE / self.tokens

    @staticmethod
    def mean(costs: Sequence[Cost]) -> Cost:
        """Each field is the mean over the costs that know it."""
        return Cost(*map(mean_of_known, zip(*costs, strict=True)))  # type: ignore[arg-type]


def cost_of(run: RunRecord) -> Cost:
    """Counts a run's records."""
    data, every = run.config.get("data", {}), run.config.get("train", {}).get("eval_every")
    extra = None
    if run.control:
        extra = float(len(run.control))
    elif every:
        # One made because a session ended is the run's own; earlier versions did not mark those.
        own = [r["step"] % every == 0 or r.get("at_end", False) or r["step"] == run.steps for r in run.eval]
        extra = float(len(own) - sum(own))
    rows = (data.get("control_rows") if run.control else None) or data.get("validation_rows")
    per_evaluation = float(rows * data["seq_len"] * len(run.domains)) if rows and data.get("seq_len") else None
    evaluations = float(len(run.eval) + len(run.control))
    tokens = run.final("train", "select/tokens") or float(run.tokens)
    return Cost(tokens, _seconds(run), evaluations, extra, per_evaluation, _gradient_measurements(run))


def cost_sentence(run: RunRecord) -> str:
    """The cost of a run's mixer in words; empty where nothing is known."""
    cost = cost_of(run)
    parts = []
    if cost.extra_evaluations is not None:
        own = cost.evaluations - cost.extra_evaluations
        if cost.extra_evaluations:
            each = "" if cost.evaluation_tokens is None else f" of at most {cost.evaluation_tokens:,.0f} tokens each"
            share = cost.extra_share
            among = "" if share is None else f" ({100 * share:.2g} % of the training's computation)"
            parts.append(
                f"{_count(cost.extra_evaluations, 'evaluation')}{each}{among} besides the run's own {own:,.0f}"
            )
        else:
            parts.append(f"no evaluation besides the run's own {own:,.0f}")
    if cost.gradient_measurements is not None:
        count = cost.gradient_measurements
        parts.append(f"{_count(count, 'measurement')} of gradients" if count else "no measurement of gradients")
    return f"Cost of the mixer: {', '.join(parts)}." if parts else ""


def _count(number: float, what: str) -> str:
    return f"{number:,.0f} {what}" + ("" if number == 1 else "s")


def _seconds(run: RunRecord) -> float | None:
    """Seconds of all steps at the pace after the first record."""
    records = [(int(r["step"]), r.get("step_seconds")) for r in run.timing]
    known = [(step, float(seconds)) for step, seconds in records if seconds is not None]
    if not known:
        return None
    if len(known) == 1:
        return known[0][1] * run.steps
    spent = sum(seconds * (step - before) for (before, _), (step, seconds) in itertools.pairwise(known))
    return spent * run.steps / (known[-1][0] - known[0][0])


def _gradient_measurements(run: RunRecord) -> float | None:
    """Gradients are measured on the last step of each update interval, see `jaxmix.mixers.Cadence`."""
    mixer = run.provenance.get("mixer")
    if not isinstance(mixer, dict) or "needs" not in mixer:
        return None
    if not set(mixer["needs"]) & set(GRADIENT_SIGNALS):
        return 0.0
    return float(run.steps // max(int(mixer.get("update_every", 1)), 1))
