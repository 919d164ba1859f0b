"""Which domain each row of a block comes from: a pure function of weights, carries and cursors.

Every process computes the same plan from the same replicated numbers, so processes agree without messages, and a
restart on another number of processes goes on exactly.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

__all__ = ["POLICIES", "UNLIMITED", "BlockPlan", "apportion", "order_rows", "plan_block"]

POLICIES = ("repeat", "stop", "drop", "error")
UNLIMITED = np.iinfo(np.int64).max

_SLACK = 1e-9  # of a row; far above float64's rounding, far below what anyone can see
_LOOKAHEAD = 64  # rows; with none, about one in 70 hard mixtures of constant weights went beyond one row


class BlockPlan(NamedTuple):
    """The rows of one block, in the order in which the realised shares follow the asked ones.

    Attributes:
        domain: i32[r], domain of each row.
        cursor: i64[r], the row's place in its source's endless sequence.
        asked: f64[r + 1, m], rows asked of each domain within the block before each row, and at the end.
        carry: f64[m], asked minus drawn rows since the beginning, after the block.
        ended: why there are fewer rows than planned: (policy, domain), or None. ("drop", −1): every source is used up.
    """

    domain: np.ndarray
    cursor: np.ndarray
    asked: np.ndarray
    carry: np.ndarray
    ended: tuple[str, int] | None


def apportion(weights: np.ndarray, carry: np.ndarray, rows: int) -> np.ndarray:
    """Whole rows per domain by largest remainder with carry.

    With the quota q_j = rows · w_j + carry_j, every domain gets ⌊q_j⌋ or ⌈q_j⌉ rows wherever that is possible, the
    largest remainders first, so that what is left, q_j − n_j, is below one row. Domains of weight 0 get none.

    Where it is not possible: an adversary who takes the served domains out of the mixture again and again leaves
    their debt to ever fewer others. No plan that does not know later weights can keep every domain within one row
    then (four domains, blocks of one row: uniform; uniform on the three not served; uniform on the two not served
    by then: the one not served is 13/12 rows short). The largest debts are then served first.

    Args:
        weights: f64[m] on the simplex.
        carry: f64[m], asked minus drawn rows so far; adds to 0.
        rows: how many to hand out, ≥ 0.

    Returns:
        i64[m], adds to `rows`.
    """
    eligible = np.flatnonzero(weights > 0)
    quota = rows * weights[eligible] + carry[eligible]
    counts = np.maximum(np.floor(quota + _SLACK), 0).astype(np.int64)
    missing = rows - int(counts.sum())
    while missing > 0:
        order = np.argsort(counts - quota, kind="stable")[:missing]
        counts[order] += 1
        missing -= len(order)
    while missing < 0:
        given = np.flatnonzero(counts > 0)
        order = given[np.argsort((quota - counts)[given], kind="stable")[:-missing]]
        counts[order] -= 1
        missing += len(order)
    result = np.zeros(len(weights), np.int64)
    result[eligible] = counts
    return result


def order_rows(weights: np.ndarray, carry: np.ndarray, rows: int) -> np.ndarray:
    """Hands out and orders a block's rows so that every domain stays within one row of what was asked, at every row.

    The rows of `apportion`, ordered by `_earliest_deadline`: its counts leave the smallest carry for the next block,
    whatever the next weights are. Where they force some domain beyond one row within this block, or would within the
    next rows by the same weights, the rows are handed out by deadlines alone, which stays within one row wherever any
    order does.

    Guaranteed: within one row after every block while all quotas are ≥ 0. Measured (tests/properties/): within one row
    at every row for constant weights, and for weights that change every block unless the mixture is so sparse that
    a few domains must carry the debt of many (largest seen 1.06; see `apportion` for why no plan avoids it).

    Args:
        weights: f64[m] on the simplex.
        carry: f64[m], asked minus drawn rows at the block's start; adds to 0.
        rows: length of the block.

    Returns:
        i32[rows], the domain of each row.
    """
    best = _earliest_deadline(weights, carry, rows, apportion(weights, carry, rows))
    worst = _worst_error(weights, carry, best)
    after = carry + rows * weights - np.bincount(best, minlength=len(weights))
    ahead = _earliest_deadline(weights, after, _LOOKAHEAD, None)
    if worst >= 1 or _worst_error(weights, after, ahead) >= 1:
        other = _earliest_deadline(weights, carry, rows, None)
        if _worst_error(weights, carry, other) < max(worst, 1.0):
            return other
    return best


def _earliest_deadline(weights: np.ndarray, carry: np.ndarray, rows: int, counts: np.ndarray | None) -> np.ndarray:
    """Row i of domain j may come once it is less than a row early, and should come before it is a row late.

    Among the rows that may come the one with the earliest deadline goes first, which meets all deadlines whenever
    that is possible (Tijdeman, "The chairman assignment problem", 1980, shows that it is for weights that stay).
    With `counts` i64[m], every domain gets just so many rows.
    """
    drawn = np.flatnonzero(weights > 0 if counts is None else counts > 0)
    if len(drawn) == 1:
        return np.full(rows, drawn[0], np.int32)
    rate, start = weights.tolist(), carry.tolist()
    left = [rows] * len(rate) if counts is None else counts.tolist()
    placed = [0] * len(rate)
    waiting = [(-start[j] / rate[j], j) for j in drawn.tolist()]  # (after this many rows the domain may come, domain)
    heapq.heapify(waiting)
    ready: list[tuple[float, int]] = []  # (deadline, domain)
    order = np.empty(rows, np.int32)
    for row in range(1, rows + 1):
        while waiting and (waiting[0][0] < row - _SLACK or not ready):
            _, j = heapq.heappop(waiting)
            heapq.heappush(ready, ((placed[j] + 1 - start[j]) / rate[j], j))
        _, j = heapq.heappop(ready)
        order[row - 1] = j
        placed[j] += 1
        if placed[j] < left[j]:
            heapq.heappush(waiting, ((placed[j] - start[j]) / rate[j], j))
    return order


def _worst_error(weights: np.ndarray, carry: np.ndarray, order: np.ndarray) -> float:
    """The largest |asked − drawn| of any domain after any row; it grows to its peaks just before and after a draw."""
    row = np.arange(1, len(order) + 1)
    after = carry[order] + row * weights[order] - (_earlier(order) + 1)
    before = after + 1 - weights[order]
    end = carry + len(order) * weights - np.bincount(order, minlength=len(weights))
    return float(max(np.abs(after).max(), np.abs(before).max(), np.abs(end).max()))


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
    asked: list[np.ndarray] = []
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
        place = cursors[order] + _earlier(order)
        beyond = np.flatnonzero(place >= limits[order])
        kept = int(beyond[0]) if len(beyond) else left
        order, place = order[:kept], place[:kept]
        domains.append(order)
        places.append(place)
        asked.append(asked_so_far + np.arange(kept)[:, None] * share)
        asked_so_far = asked_so_far + kept * share
        drawn = np.bincount(order, minlength=m)
        carry = carry + kept * share - drawn
        cursors = cursors + drawn
        left -= kept
    carry -= carry.mean()  # float64 rounding must not add up over millions of blocks
    return BlockPlan(
        np.concatenate(domains) if domains else np.zeros(0, np.int32),
        np.concatenate(places) if places else np.zeros(0, np.int64),
        np.concatenate([*asked, asked_so_far[None]]),
        carry,
        ended,
    )


def _without_used_up(
    weights: np.ndarray, carry: np.ndarray, cursors: np.ndarray, limits: np.ndarray, policies: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, tuple[str, int] | None]:
    """Shares without the sources that have nothing left, their carry handed on, or the reason to end."""
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


def _earlier(order: np.ndarray) -> np.ndarray:
    """How many rows of the same domain come before each row."""
    by_domain = np.argsort(order, kind="stable")
    counts = np.bincount(order)
    earlier = np.empty(len(order), np.int64)
    earlier[by_domain] = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    return earlier
