"""The runs of the experiment: which sampler, on how many prompts, updated how."""

from __future__ import annotations

import dataclasses
from typing import Any

STEPS, EVAL_EVERY = 1000, 25
SUITES = ("digits", "symbols")
SEEDS = (0, 1, 2, 3, 4)
FEW = (0, 1, 2)
UNIQUE = (4, 20, 100, 500)
"""Prompts kept of every arm in the experiment with few different prompts."""

START = {"steps": 1400, "batch_size": 128, "learning_rate": 2e-3, "level_decay": 0.25}
"""The supervised start. See README.md on its length, which is the same for both suites."""

MODEL = {"preset": "lm-300k", "num_layers": 2, "width": 64, "mlp_width": 256, "num_heads": 4}
MODEL |= {"activation": "gelu", "tie_embeddings": False}
LOOP = {"batch_size": 16, "rollouts": 8, "learning_rate": 3e-4, "clip_low": 0.2, "clip_high": 0.2}
PLAIN = {"accumulate_live_groups": False}
"""One Adam step after every batch, whether its groups are live or not."""

SAMPLERS: dict[str, dict[str, Any]] = {
    "pool": {"name": "uniform", "sizes": "pool"},
    "clusters": {"name": "uniform"},
    "proportional": {"name": "space", "rule": "proportional"},
    "thompson": {"name": "space", "rule": "thompson"},
    "literal": {"name": "space", "rule": "literal"},
    "dump": {"name": "dump"},
    "sparft_v1": {"name": "sparft_v1"},
    "staged": {"name": "staged", "order": "start"},
    "adarft": {"name": "adarft", "difficulty": "start", "prompts_per_arm": 3},
    "sec": {"name": "sec", "temperature": 0.4},
    "mopps": {"name": "mopps", "kept": 0.5},
    "lilo": {"name": "lilo"},
}
"""`pool` draws levels as often as 0.4 ** level, as a pool does that nobody has balanced, and each arm of noise a fifth
as often as an easiest level. "start" stands for the solve rates of the supervised start, which two rules are told."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run.

    Attributes:
        part: "main", "more", "unique" or "plain".
        method: runs of one method differ by their seed alone.
        sampler: out of `SAMPLERS`.
        seed: of the supervised start, arms, prompts and rollouts.
        kept: prompts of every arm, None for all.
        loop: settings that differ.
    """

    part: str
    method: str
    sampler: str
    seed: int
    kept: int | None = None
    loop: tuple[tuple[str, Any], ...] = ()

    @property
    def name(self) -> str:
        return f"{self.method}-seed{self.seed}"


def cells(seeds: int = len(SEEDS)) -> list[Cell]:
    """All cells of a suite, in the order in which they are run."""
    groups: list[tuple[str, list[Cell]]] = []
    every, few = SEEDS[:seeds], FEW[: min(seeds, len(FEW))]
    for names in (("pool", "clusters", "proportional"), ("thompson", "literal", "dump")):
        groups.append(("main", [Cell("main", name, name, seed) for seed in every for name in names]))
    rest = ("sparft_v1", "staged", "adarft", "sec", "mopps", "lilo")
    groups.append(("more", [Cell("more", name, name, seed) for seed in few for name in rest]))
    groups.append(
        ("unique", [Cell("unique", f"kept{n}", "proportional", seed, kept=n) for seed in few for n in UNIQUE])
    )
    plain = tuple(PLAIN.items())
    names = ("pool", "clusters", "proportional", "thompson", "dump")
    groups.append(("plain", [Cell("plain", f"plain_{n}", n, seed, loop=plain) for seed in few for n in names]))
    return [cell for _, group in groups for cell in group]


def config_of(
    cell: Cell, suite: str, *, out: str, start_run: str, start: dict[str, float], steps: int
) -> dict[str, Any]:
    """The cell's configuration, as for `jaxmix finetune`.

    Args:
        cell: what to run.
        suite: of the tasks.
        out: run folder.
        start_run: folder of the supervised start.
        start: its solve rate by arm.
        steps: generated batches.
    """
    tables = {
        "difficulty": {arm: 100.0 * (1.0 - rate) for arm, rate in start.items()},
        "order": sorted(range(len(start)), key=lambda arm: -list(start.values())[arm]),
        "sizes": {arm: 0.2 if arm.startswith("rand") else 0.4 ** int(arm[-1]) for arm in start},
    }
    bandit = {k: tables[k] if v in ("start", "pool") else v for k, v in SAMPLERS[cell.sampler].items()}
    tasks: dict[str, Any] = {"name": suite, "per_arm": 4000, "evaluation": {"per_arm": 64}}
    return {
        "tasks": tasks | ({} if cell.kept is None else {"kept_per_arm": cell.kept}),
        "model": MODEL,
        "start": {"run": start_run},
        "bandit": bandit,
        "train": {"steps": steps, "seed": cell.seed, "eval_every": EVAL_EVERY, "log_every": EVAL_EVERY}
        | LOOP
        | dict(cell.loop),
        "checkpoint": {"every": 250, "keep": 1},
        "out": out,
    }
