"""The domain of each row of a block: a pure function of weights, carries and cursors.

Every process computes the same plan from the same replicated numbers, so processes agree without messages, and a
restart on another number of processes continues exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxmix.core.types import Float, Int
from jaxmix.data.mixture.apportion import earlier, order_rows

POLICIES = ("repeat", "stop", "drop", "error")
UNLIMITED = np.iinfo(np.int64).max


class BlockPlan(NamedTuple):
    """The rows of one block, in the order in which the realized shares follow the asked ones.

    Attributes:
        domain: i32[r], domain of each row.
        cursor: i64[r], the row's place in its source's endless sequence.
        spans: stretches of rows of equal shares, (first row, asked f64[m] before it, asked per row f64[m]).
        carry: f64[m], asked minus drawn rows since the beginning, after the block.
        ended: the reason for fewer rows than planned: (policy, domain), or None. ("drop", −1): every source is used up.
    """

    domain: Int[np.ndarray, " r"]
    cursor: Int[np.ndarray, " r"]
    spans: list[tuple[int, Float[np.ndarray, " m"], Float[np.ndarray, " m"]]]
    carry: Float[np.ndarray, " m"]
    ended: tuple[str, int] | None

    def asked(self, rows: int) -> np.ndarray:
        """f64[m], rows asked of each domain within the block's first `rows` rows."""
        start, before, share = next(span for span in reversed(self.spans) if span[0] <= rows)
        return before + (rows - start) * share


def plan_block(
    *,
    weights: np.ndarray,
    carry: np.ndarray,
    cursors: np.ndarray,
    limits: np.ndarray,
    policies: Sequence[str],
    rows: int,
) -> BlockPlan:
    """Plans one block.

    A source whose cursor reaches its limit inside the block ends the plan there (policies `stop` and `error`), or
    leaves it (`drop`, and `repeat` after its last epoch): the rest of the block is planned without it, its share and
    what was still owed to it going to the others in proportion to their weights.

    Args:
        weights: f64[m] on the simplex; asked share of rows.
        carry: f64[m], asked minus drawn rows so far.
        cursors: i64[m], rows drawn of each source so far.
        limits: i64[m], rows that may be drawn of each source in all, `UNLIMITED` for no limit.
        policies: m of `POLICIES`.
        rows: wanted length of the block.

    Returns:
        A plan of `rows` rows, or fewer if it `ended`.
    """
    m = len(weights)
    carry, cursors = carry.astype(np.float64), cursors.astype(np.int64)
    domains: list[np.ndarray] = []
    places: list[np.ndarray] = []
    spans: list[tuple[int, np.ndarray, np.ndarray]] = [(0, np.zeros(m), np.zeros(m))]
    asked_so_far = np.zeros(m)
    ended: tuple[str, int] | None = None
    left = rows
    while left:
        share, carry_moved, ended = _without_used_up(weights, carry, cursors, limits, policies)
        asked_so_far += carry_moved - carry
        carry = carry_moved
        if ended:
            break
        order = order_rows(share, carry, left)
        place = cursors[order] + earlier(order)
        beyond = np.flatnonzero(place >= limits[order])
        kept = int(beyond[0]) if len(beyond) else left
        order, place = order[:kept], place[:kept]
        domains.append(order)
        places.append(place)
        spans.append((rows - left, asked_so_far, share))
        asked_so_far = asked_so_far + kept * share
        drawn = np.bincount(order, minlength=m)
        carry = carry + kept * share - drawn
        cursors = cursors + drawn
        left -= kept
    carry -= carry.mean()  # float64 rounding must not add up over millions of blocks
    return BlockPlan(
        np.concatenate(domains) if domains else np.zeros(0, np.int32),
        np.concatenate(places) if places else np.zeros(0, np.int64),
        [*spans, (rows - left, asked_so_far, np.zeros(m))],
        carry,
        ended,
    )


def _without_used_up(
    weights: np.ndarray, carry: np.ndarray, cursors: np.ndarray, limits: np.ndarray, policies: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, tuple[str, int] | None]:
    """Shares without the exhausted sources, whose carry is passed on, or the reason to end."""
    used_up = np.flatnonzero((cursors >= limits) & (weights > 0))
    for j in used_up.tolist():
        if policies[j] in ("stop", "error"):
            return weights, carry, (policies[j], j)
    if not len(used_up):
        return weights, carry, None
    share = weights.copy()
    share[used_up] = 0.0
    if share.sum() <= 0:
        return weights, carry, ("drop", -1)
    share /= share.sum()
    handed_on = carry.copy()
    handed_on[used_up] = 0.0
    return share, handed_on + share * carry[used_up].sum(), None
