"""Means over seeds with Student's confidence interval."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from typing import NamedTuple

LEVEL = 0.95
"""Confidence level of all intervals."""


class Interval(NamedTuple):
    """A mean over seeds with its confidence interval.

    Attributes:
        values: one per seed, in the order of the seeds.
        mean: nan without values.
        half_width: of Student's interval at `LEVEL`; None with fewer than two values.
    """

    values: tuple[float, ...]
    mean: float
    half_width: float | None

    @property
    def low(self) -> float:
        return self.mean - (self.half_width or 0.0)

    @property
    def high(self) -> float:
        return self.mean + (self.half_width or 0.0)

    @property
    def excludes_zero(self) -> bool:
        return self.half_width is not None and not self.low <= 0 <= self.high


def student_interval(values: Iterable[float]) -> Interval:
    """Mean and Student's t interval of independent values: `mean ± t(n − 1) · s / √n`."""
    from scipy.special import stdtrit

    known = tuple(values)
    if not known:
        return Interval((), math.nan, None)
    mean = statistics.fmean(known)
    if len(known) < 2:
        return Interval(known, mean, None)
    quantile = float(stdtrit(len(known) - 1, 0.5 + LEVEL / 2))
    return Interval(known, mean, quantile * statistics.stdev(known) / math.sqrt(len(known)))
