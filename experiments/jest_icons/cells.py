"""The table of experiments: pools, policies, sizes."""

from __future__ import annotations

import dataclasses
from typing import Any

from icons import LOW_PATCH, PATCH

from jaxmix.selection import independent, jest
from jaxmix.train.pairs.step import PairSettings

SEEDS = (0, 1, 2)
WIDTH = 64


@dataclasses.dataclass(frozen=True)
class Pool:
    """Where a cell's pairs are from and how it is trained.

    Attributes:
        part: of the data; the reference learns from `reference`, recall is on `test`.
        shuffled: share of the captions dealt anew.
        num_select: b.
        num_candidates: B.
        steps: of every policy but `iid`, which takes B/b times as many: it scans as much as the others.
        eval_every: steps between tests.
    """

    part: str
    reference: str
    test: str
    shuffled: float
    num_select: int
    num_candidates: int
    steps: int
    eval_every: int
    reference_steps: int = 600


POOLS = {
    "shuffled": Pool("pool", "reference", "curated_test", 0.5, 256, 1280, 300, 20),
    "shipped": Pool("pool", "reference", "curated_test", 0.0, 256, 1280, 300, 20),
    "styles": Pool("styles_pool", "styles_reference", "styles_test", 0.0, 64, 320, 400, 40),
}

POLICIES = (
    "iid",
    "jest",
    "jest_greedy",
    "independent_top",
    "flexi_jest",
    "jest_sweep",
    "context_top",
    "independent_sampled",
)


@dataclasses.dataclass(frozen=True)
class Policy:
    """A selector and its settings; a policy without a selector trains on what comes."""

    selector: Any
    settings: PairSettings
    num_candidates: int
    steps: int


def policy(name: str, pool: Pool) -> Policy:
    chosen, candidates = pool.num_select, pool.num_candidates
    if name == "iid":
        return Policy(None, PairSettings(), chosen, pool.steps * (candidates // chosen))
    selector = {
        "independent_sampled": independent(chosen),
        "independent_top": independent(chosen, greedy=True),
        "context_top": independent(chosen, context=True, greedy=True),
        "jest": jest(chosen, num_chunks=16),
        "jest_greedy": jest(chosen, num_chunks=16, greedy=True),
        "flexi_jest": jest(chosen, num_chunks=16),
        "jest_sweep": jest(chosen, num_chunks=16, sweeps=1),
    }[name]
    is_flexi = name == "flexi_jest"
    settings = PairSettings(
        score_patch_size=LOW_PATCH if is_flexi else None, train_patch_sizes=(PATCH, LOW_PATCH) if is_flexi else ()
    )
    return Policy(selector, settings, candidates, pool.steps)
