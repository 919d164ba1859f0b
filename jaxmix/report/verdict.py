"""The best mixture, its margin, and whether the seeds support it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from jaxmix.report.intervals import LEVEL, student_interval

Losses = Mapping[str, Mapping[int, float]]
"""variant → seed → loss (nats per token)."""


@dataclasses.dataclass(frozen=True)
class Standing:
    """One variant against the best.

    Attributes:
        variant: its name.
        by_seed: loss by seed.
        differences: loss minus the best variant's loss of the same seed; empty for the best itself.
        is_separated: Student's interval of the differences excludes 0.
    """

    variant: str
    by_seed: dict[int, float]
    differences: dict[int, float]
    is_separated: bool

    @property
    def mean(self) -> float:
        return sum(self.by_seed.values()) / len(self.by_seed)

    @property
    def range(self) -> tuple[float, float]:
        return min(self.by_seed.values()), max(self.by_seed.values())


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Variants in the order of their mean loss, the best first."""

    standings: tuple[Standing, ...]

    @property
    def best(self) -> Standing:
        return self.standings[0]

    def sentence(self, metric: str = "mean validation loss") -> str:
        """The result in words that claim no more than the seeds show."""
        best, others = self.standings[0], self.standings[1:]
        seeds = len(best.by_seed)
        value = f"{best.mean:.4f} nats per token"
        shown = _listed(best.by_seed)
        if not others:
            return f"{best.variant}: {metric} {value}" + (f" (seeds: {shown})." if seeds > 1 else ".")
        beaten = [s for s in others if s.is_separated]
        tied = [s for s in others if not s.is_separated]
        each = f" (seeds: {shown})" if seeds > 1 else ""
        if not tied:
            head = f"{best.variant} won: its {metric} of {value}{each} is the lowest."
        else:
            names = " and ".join(s.variant for s in tied)
            head = (
                f"{best.variant} has the lowest {metric}, {value}{each}, but is not separated from {names}, "
                "so there is no clear winner."
            )
        parts = [_against(s) for s in (*beaten, *tied)]
        spread = (
            f"Separated means that Student's interval of the differences over paired seeds, at {LEVEL:.0%}, excludes 0."
            if seeds > 1
            else "With one seed the spread is unknown, so no difference counts as separated."
        )
        return " ".join([head, *parts, spread])


def _listed(by_seed: Mapping[int, float], *, form: str = ".4f") -> str:
    return ", ".join(format(by_seed[seed], form) for seed in sorted(by_seed))


def _against(s: Standing) -> str:
    kind = "separated" if s.is_separated else "not separated"
    if not s.differences:
        return f"{s.variant}: {s.mean:.4f} ({kind}; no seed in common)."
    mean = sum(s.differences.values()) / len(s.differences)
    by_seed = f"; by seed {_listed(s.differences, form='+.4f')}" if len(s.differences) > 1 else ""
    return f"{s.variant}: {s.mean:.4f}, {mean:+.4f}{by_seed} ({kind})."


def compare(losses: Losses) -> Comparison:
    """Ranks variants by their mean loss over seeds.

    Two variants are separated when the interval of their differences over paired seeds excludes 0, as in
    `jaxmix.report.paired`; that takes at least two seeds in common.

    Args:
        losses: at least one variant, each with at least one seed.
    """
    if not losses or not all(losses.values()):
        raise ValueError("compare needs at least one variant, each with at least one seed")
    order: Sequence[str] = sorted(losses, key=lambda v: sum(losses[v].values()) / len(losses[v]))
    best = losses[order[0]]
    standings = []
    for variant in order:
        mine = dict(losses[variant])
        is_best = variant == order[0]
        differences = {} if is_best else {seed: mine[seed] - best[seed] for seed in sorted(mine) if seed in best}
        standings.append(Standing(variant, mine, differences, student_interval(differences.values()).excludes_zero))
    return Comparison(tuple(standings))
