"""Fine-tunes a small transformer under every sampler, with paired seeds, on two suites of tasks.

    python experiments/space_rl/run.py --out runs/space_rl                           # everything, see README.md
    python experiments/space_rl/run.py --out runs/space_rl --suites digits --parts main --seeds 2

A finished cell is not run again, and one that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from cells import MODEL, START, STEPS, SUITES, Cell, cells, config_of

from jaxmix.data.files import write_whole
from jaxmix.report import load_run
from jaxmix.report.pages.finetune_metrics import solve_rates
from jaxmix.workflows.finetune.load import finetune_of
from jaxmix.workflows.finetune.run import run_finetune

PARTS = ("main", "more", "unique", "plain")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/space_rl"))
    parser.add_argument("--suites", nargs="*", default=list(SUITES), choices=SUITES)
    parser.add_argument("--parts", nargs="*", default=list(PARTS), choices=PARTS)
    parser.add_argument("--methods", nargs="*", default=None, help="only these, e.g. pool proportional kept20")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=STEPS, help="of a run; each length in its own --out")
    parser.add_argument("--start-steps", type=int, default=START["steps"])
    args = parser.parse_args()
    for suite in args.suites:
        chosen = [
            c for c in cells(args.seeds) if c.part in args.parts and (not args.methods or c.method in args.methods)
        ]
        programs: dict[Any, Any] = {}
        for number, cell in enumerate(chosen, start=1):
            folder = args.out / suite / cell.name
            if (folder / "result.json").is_file():
                continue
            start = supervised_start(args.out / suite / f"start-seed{cell.seed}", suite, cell.seed, args.start_steps)
            print(f"{suite} {cell.name} ({number}/{len(chosen)})", flush=True)
            run_cell(cell, suite, folder, start, args.steps, programs)


def supervised_start(folder: Path, suite: str, seed: int, steps: int) -> dict[str, float]:
    """Makes the start of a seed where it is not there yet; returns its solve rate by arm on held-out prompts.

    One generated batch follows, which moves no parameter: a run cannot be shorter.
    """
    path = folder / "result.json"
    if not path.is_file():
        began = time.process_time()
        mapping = {
            "tasks": {"name": suite, "per_arm": 4000, "evaluation": {"per_arm": 64}},
            "model": MODEL,
            "start": {**START, "steps": steps, "seed": seed},
            "bandit": {"name": "uniform"},
            # So many live groups never come together in one batch: no update is made.
            "train": {"steps": 1, "batch_size": 16, "groups_per_update": 64, "eval_samples": 8, "seed": seed},
            "checkpoint": {"every": 1, "keep": 1},
            "out": str(folder),
        }
        run_finetune(finetune_of(mapping, file="start"), command="experiments/space_rl/run.py", label=folder.name)
        solved = solve_rates(load_run(folder), last=2)
        write_whole(path, json.dumps({"solved": solved, "cpu_seconds": time.process_time() - began}) + "\n")
    return json.loads(path.read_text())["solved"]


def run_cell(
    cell: Cell, suite: str, folder: Path, start: dict[str, float], steps: int, programs: dict[Any, Any]
) -> None:
    """One run, and its result.json when it is finished. Runs of equal settings share compiled functions."""
    began, wall = time.process_time(), time.perf_counter()
    start_run = str(folder.parent / f"start-seed{cell.seed}" / "start")
    mapping = config_of(cell, suite, out=str(folder), start_run=start_run, start=start, steps=steps)
    outcome = run_finetune(
        finetune_of(mapping, file=cell.name),
        command="experiments/space_rl/run.py",
        programs=programs.get(cell.loop),
        label=cell.name,
        extra={"variant": cell.method, "part": cell.part},
        has_page=False,
    )
    programs[cell.loop] = outcome.programs
    result = outcome.as_json() | {
        "part": cell.part,
        "method": cell.method,
        "seed": cell.seed,
        "cpu_seconds": time.process_time() - began,
        "seconds": time.perf_counter() - wall,
    }
    write_whole(folder / "result.json", json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
