"""Which documents should teach the student? Every rule, on the same discovered domains, with several draws.

    python experiments/student_rules/run.py --out runs/student_rules          # 15 minutes on one core
    python experiments/student_rules/run.py --out runs/student_rules --summary

A finished cell is not run again; the discovery is made once per clusterer.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from jaxmix.data.files import write_whole
from jaxmix.models.student.sampling import RULES
from jaxmix.report.intervals import student_interval
from jaxmix.workflows.discover.config import discovery_from
from jaxmix.workflows.discover.run import run_discovery

HERE = Path(__file__).parent
CLUSTERERS: dict[str, dict[str, Any]] = {
    "gem": {"name": "gem", "num_clusters": 24, "balance": 1000},
    "spherical_kmeans": {"name": "spherical_kmeans", "num_clusters": 24},
    "kmeans": {"name": "kmeans", "num_clusters": 24},
}
MEASURES = ("accuracy", "macro_recall", "mass_drift")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/student_rules"))
    parser.add_argument("--per-cluster", type=int, nargs="*", default=[60, 200])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--summary", action="store_true", help="only tables, and results.json, out of what is finished")
    args = parser.parse_args()
    cells = [
        (name, size, rule, seed)
        for name in CLUSTERERS
        for size in args.per_cluster
        for seed in range(args.seeds)
        for rule in RULES
    ]
    found = {}
    for number, (name, size, rule, seed) in enumerate(cells, start=1):
        path = args.out / "cells" / f"{name}-{size}-{rule}-seed{seed}.json"
        if not path.is_file() and not args.summary:
            path.parent.mkdir(parents=True, exist_ok=True)
            result = train_student(args.out / f"discovery-{name}", CLUSTERERS[name], size, rule, seed)
            write_whole(path, json.dumps(result) + "\n")
            print(f"{number}/{len(cells)} {path.stem}: {result['accuracy']:.4f} right", flush=True)
        if path.is_file():
            found[name, size, rule, seed] = json.loads(path.read_text())
    summarize(found)


def train_student(folder: Path, clusterer: dict[str, Any], size: int, rule: str, seed: int) -> dict[str, float]:
    """What a student taught by the documents of one rule says of documents nobody chose from."""
    # The student and what follows from it are made anew, embeddings and clusters stay.
    for part in ("student", "sources"):
        shutil.rmtree(folder / part, ignore_errors=True)
    mapping = {
        "sources": "bundled",
        "documents": {"held_out": 0.3},
        "fit": {"weigh_by": "documents"},
        "encoder": {"name": "builtin", "dim": 128},
        "clusterer": clusterer,
        "student": {"rule": rule, "per_cluster": size, "seed": seed, "buckets": 1 << 18},
    }
    config = discovery_from(mapping, file="experiments/student_rules", out=str(folder))
    return dict(run_discovery(config, command="experiments/student_rules/run.py", say=lambda line: None)["student"])


def summarize(found: dict[tuple[str, int, str, int], dict[str, float]]) -> None:
    """Prints the table and writes results.json: means over draws, 95 % intervals, paired differences to "random"."""
    table: dict[str, Any] = {}
    lines = ["| clusters by | taught per cluster | rule | seeds | right | less random | macro recall | mass drift |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for name, size in sorted({key[:2] for key in found}):
        for rule in RULES:
            runs = {seed: run for (*cell, seed), run in found.items() if cell == [name, size, rule]}
            if not runs:
                continue
            baseline = {seed: found.get((name, size, "random", seed), {}).get("accuracy") for seed in runs}
            gains = [run["accuracy"] - baseline[seed] for seed, run in runs.items() if baseline[seed] is not None]
            entry = {key: student_interval(run[key] for run in runs.values())._asdict() for key in MEASURES}
            entry |= {"seeds": len(runs), "less_random": student_interval(gains)._asdict()}
            entry |= {key: next(iter(runs.values()))[key] for key in ("documents", "trained_on")}
            table[f"{name}, {size}, {rule}"] = entry
            cells = [in_per_cent(entry[key]) for key in ("accuracy", "less_random", "macro_recall", "mass_drift")]
            lines.append(f"| {name} | {size} | {rule} | {len(runs)} | " + " | ".join(cells) + " |")
    print("\n".join(lines))
    write_whole(HERE / "results.json", json.dumps(table, indent=1) + "\n")


def in_per_cent(found: dict[str, Any]) -> str:
    half = found["half_width"]
    return f"{100 * found['mean']:.1f}" + ("" if half is None else f" ± {100 * half:.1f}")


if __name__ == "__main__":
    main()
