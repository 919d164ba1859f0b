"""The runs of the experiment: what each trains, and which other runs it needs first."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

STEPS, BATCH, LENGTH = 1000, 16, 64
SEEDS = (0, 1, 2, 3, 4)
FEW = (0, 1, 2)
ROUND, HALF = 250, STEPS // 2

LARGE = ("stratified", "natural", "best_static", "aioli_paper", "odm", "ado", "r_and_b", "foresight")
"""Methods that are run again with the larger model, over `FEW` seeds."""

Results = dict[str, dict[str, Any]]
"""Finished cells by name, see `run.summary_of`."""

Changes = Callable[[Results, int], dict[str, Any]]
"""`(results of the needed cells, seed) -> sections of the configuration`."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run.

    Attributes:
        method: runs of one method differ by their seed alone.
        seed: of data order, parameters and mixer.
        role: "table", "sweep", "search", "restricted", or "tool" for runs that others need.
        changes: see `Changes`.
        needs: cells that must be finished first.
        extra_runs: how many further runs of full length the method has to pay for, once.
    """

    method: str
    seed: int
    role: str
    changes: Changes
    needs: tuple[str, ...] = ()
    extra_runs: float = 0.0

    @property
    def name(self) -> str:
        return f"{self.method}-seed{self.seed}"


def cells(domains: Sequence[str], candidates: Sequence[Sequence[float]]) -> list[Cell]:
    """All cells for one set of domains, in the order in which they are run.

    Args:
        domains: names.
        candidates: static mixtures of the search.
    """
    searched = tuple(f"search{i:02d}-seed0" for i in range(len(candidates)))
    alone = tuple(f"only_{name}-seed0" for name in domains)
    search_cost, graph_cost = float(len(candidates)), len(domains) * ROUND / STEPS
    found: list[Cell] = []

    def add(method: str, changes: Any, *, seeds: Sequence[int] = SEEDS, role: str = "table", **options: Any) -> None:
        make = changes if callable(changes) else lambda results, seed: {"mixer": changes}
        needs = options.pop("needs", ())
        for seed in seeds:
            found.append(Cell(method, seed, role, make, tuple(n.format(seed=seed) for n in needs), **options))

    add("stratified", {"name": "static"})
    add("foresight", {"name": "foresight"})
    for i, candidate in enumerate(candidates):
        add(f"search{i:02d}", {"name": "static", "weights": list(candidate)}, seeds=(0,), role="search")
    for name in domains:
        add(f"only_{name}", _only(name, domains), seeds=(0,), role="tool")
    add("natural", _from_natural({"name": "static"}))
    add("best_static", _best(searched, candidates), needs=searched, extra_runs=search_cost)
    add("aioli_paper", _aioli(variant="paper"))
    add("aioli_released", _aioli(variant="released"))
    add("doremi", _doremi(0.1), needs=("stratified-seed{seed}",), extra_runs=1.0)
    add("doge", {"name": "doge", "every": 4, "gradients": "sketch"})
    add("skillit", _skillit(0.2, domains), needs=alone, extra_runs=graph_cost)
    add("odm", {"name": "odm"})
    add("ado", {"name": "ado"} | ADO)
    add("sheared", _sheared(0.2), needs=("stratified-seed0",), extra_runs=1.0)
    add("r_and_b", {"name": "r_and_b", "sharpness": 3.0} | R_AND_B)
    add("grape", {"name": "grape", "variant": "repository", "gradients": "sketch", "every": 20})
    add("foresight_natural", _from_natural({"name": "foresight"}))
    add("odm_repository", {"name": "odm", "variant": "repository"})
    add("prior_kept", _from_bad_prior({"name": "static"}), seeds=FEW, role="restricted")
    add("prior_foresight", _from_bad_prior({"name": "foresight"}), seeds=FEW, role="restricted")
    add("prior_uniform", _from_bad_prior(_then_uniform()), seeds=FEW, role="restricted")
    for variant in ("paper", "released"):
        changes = _from_bad_prior(_aioli(variant=variant, initial_steps=HALF)({}, 0)["mixer"])
        add(f"prior_aioli_{variant}", changes, seeds=FEW, role="restricted")
    add("foresight_transfer", {"name": "foresight", "transfer": 0.03}, seeds=FEW, role="sweep")
    # What it is that costs Aioli: the same probes without any step, and probes that disturb less.
    add("aioli_probes_only", _aioli(step_size=0.0), seeds=FEW, role="sweep")
    add("aioli_gentle", _aioli(sweeps=1, interval=2, smoothing=0.75, step_size=1.0), seeds=FEW, role="sweep")
    for size in (1.0, 5.0):
        add(f"aioli_paper_{size:g}", _aioli(variant="paper", step_size=size), seeds=FEW, role="sweep")
    add("aioli_filtered_1", _aioli(variant="paper", estimator="filtered", step_size=1.0), seeds=FEW, role="sweep")
    for size in (1.0, 0.01):
        add(f"doremi_{size:g}", _doremi(size), needs=("stratified-seed{seed}",), seeds=FEW, role="sweep")
    add("skillit_1", _skillit(1.0, domains), needs=alone, seeds=FEW, role="sweep")
    add("sheared_1", _sheared(1.0), needs=("stratified-seed0",), seeds=FEW, role="sweep")
    for sharpness in (1.0, 10.0):
        add(f"r_and_b_{sharpness:g}", {"name": "r_and_b", "sharpness": sharpness} | R_AND_B, seeds=FEW, role="sweep")
    # Whole rounds of seeds first: a table that is stopped early has all methods.
    return sorted(found, key=lambda cell: (cell.role not in ("table", "search", "tool"), cell.seed > 2))


ADO = {"refit_every": 100, "ignore": 50, "start": 200, "min_irreducible": 0.0, "subsample": 2, "window": 31}
R_AND_B = {"every": 10, "round_updates": 5}


def bad_prior(count: int) -> list[float]:
    """Halves from domain to domain."""
    weights = [0.5**i for i in range(count)]
    return [w / sum(weights) for w in weights]


def _only(name: str, domains: Sequence[str]) -> Changes:
    mixer = {"name": "static", "weights": [float(n == name) for n in domains]}
    return lambda results, seed: {"mixer": mixer, "train": {"steps": ROUND}}


def _aioli(**options: Any) -> Changes:
    mixer = {"name": "aioli", "round_length": ROUND, "sweeps": 2, "interval": 4, "smoothing": 0.5} | options
    return lambda results, seed: {"mixer": mixer}


def _doremi(step_size: float) -> Changes:
    """Weights that sample directly; the reference is the stratified run of the same seed."""
    return lambda results, seed: {
        "mixer": {"name": "doremi", "step_size": step_size},
        "reference": {"run": results[f"stratified-seed{seed}"]["folder"]},
    }


def _sheared(step_size: float) -> Changes:
    """Targets are what the stratified run ended with."""

    def changes(results: Results, seed: int) -> dict[str, Any]:
        targets = results["stratified-seed0"]["control"]
        mixer = {"name": "dynamic_batch_loading", "target_losses": targets, "every": 50, "step_size": step_size}
        return {"mixer": mixer | {"clip": False}}

    return changes


def _skillit(step_size: float, domains: Sequence[str]) -> Changes:
    """Edges: relative drop of each loss in a short run on one domain."""

    def changes(results: Results, seed: int) -> dict[str, Any]:
        graph = []
        for source in domains:
            run = results[f"only_{source}-seed0"]
            start, end = run["start"], run["validation"]
            graph.append([max(start[d] - end[d], 0.0) / start[d] for d in domains])
        mixer = {"name": "skillit", "graph": graph, "step_size": step_size, "evaluate_every": 50, "update_every": 100}
        return {"mixer": mixer}

    return changes


def _best(searched: Sequence[str], candidates: Sequence[Sequence[float]]) -> Changes:
    def changes(results: Results, seed: int) -> dict[str, Any]:
        loss = [sum(results[name]["validation"].values()) for name in searched]
        return {"mixer": {"name": "static", "weights": list(candidates[loss.index(min(loss))])}}

    return changes


def _from_bad_prior(mixer: dict[str, Any]) -> Changes:
    def changes(results: Results, seed: int) -> dict[str, Any]:
        return {"mixture": {"weights": "bad_prior"}, "mixer": mixer}

    return changes


def _from_natural(mixer: dict[str, Any]) -> Changes:
    return lambda results, seed: {"mixture": {"weights": "natural"}, "mixer": mixer}


def _then_uniform() -> dict[str, Any]:
    return {"name": "scheduled", "points": [{"at": 0, "weights": "prior"}, {"at": HALF, "weights": "uniform"}]}
