"""Numbers as the tables show them, and means of values of which some are missing."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable


def number(value: float | None, digits: int, *, sign: bool = False, missing: str = "-") -> str:
    """A number with `digits` decimals; `missing` where there is none or it is not finite."""
    if value is None or not math.isfinite(value):
        return missing
    return f"{value:{'+' if sign else ''},.{digits}f}"


def percent(value: float | None) -> str:
    """A share in per cent; small ones keep two significant digits, and only a true zero reads 0."""
    if value is None:
        return "-"
    if value == 0:
        return "0 %"
    return f"{100 * value:.1f} %" if value >= 0.01 else f"{100 * value:.2g} %"


def mean_of_known(values: Iterable[float | None]) -> float | None:
    """The mean of those that are known; None if none is."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def mean_of_all(values: Iterable[float | None]) -> float | None:
    """The mean; None unless all are known, and there is one."""
    found = list(values)
    return None if None in found else mean_of_known(found)


def perplexity(loss: float) -> float:
    """exp of the loss that stands beside it, in nats per token; beyond float64 it counts as its limit."""
    return math.exp(min(loss, 700.0))


DEFINITIONS = (
    "Loss: mean over the held-out tokens of a domain, nats per token; over several domains, seeds or both the plain "
    "mean of their losses, unless it says how it is weighted. Perplexity: exp of the loss beside it."
)

FEW_TOKENS = 1000
"""Held-out tokens below which a loss is marked: its standard error is then at least 2 / sqrt(1000) = 0.06 nats, as much
as mixtures usually differ by."""


def standard_error(tokens: int) -> float:
    """Rough standard error of a loss over so many tokens, nats: the losses of single tokens spread by about 2 nats."""
    return 2 / math.sqrt(max(tokens, 1))
