"""Tables and figure of the experiment, out of the finished cells.

python experiments/space_rl/summarize.py --out runs/space_rl
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from cells import SUITES, UNIQUE, cells

from jaxmix.report.intervals import Interval, student_interval
from jaxmix.report.pages.finetune_metrics import (
    accuracy,
    area,
    arms_of,
    final_accuracy,
    learnable_arms,
    mastered_change,
    prompts_to,
    share_of,
)
from jaxmix.report.run_folder import RunRecord, load_run

BASELINES = ("pool", "clusters")
COMPARED = ("pool", "proportional")
"""Whose final accuracy is taken from that of every method."""

RESAMPLES, LEVEL = 10_000, 0.95


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/space_rl"))
    parser.add_argument("--to", type=Path, default=Path(__file__).parent, help="folder of results.json and figure.svg")
    args = parser.parse_args()
    written: dict[str, Any] = {}
    for suite in SUITES:
        runs = finished(args.out / suite)
        if runs:
            written[suite] = {"start": starts(args.out / suite), "methods": table(runs)}
            print(f"\n{suite}\n{text_table(written[suite])}")
    (args.to / "results.json").write_text(json.dumps(written, indent=1) + "\n")
    if written:
        draw(args.out, written, args.to / "figure.svg")


def finished(folder: Path) -> dict[str, dict[int, RunRecord]]:
    """Finished runs by method and seed, methods in the order in which they are run."""
    runs: dict[str, dict[int, RunRecord]] = {cell.method: {} for cell in cells()}
    for path in sorted(folder.glob("*-seed*/result.json")):
        method, seed = path.parent.name.rsplit("-seed", 1)
        if method != "start":
            runs[method][int(seed)] = load_run(path.parent)
    return {method: by_seed for method, by_seed in runs.items() if by_seed}


def starts(folder: Path) -> dict[str, Any]:
    """Of every supervised start: mean over arms that can be learned, by level, and how many are mastered or near 0."""
    found = {}
    for path in sorted(folder.glob("start-seed*/result.json")):
        run, solved = load_run(path.parent), json.loads(path.read_text())["solved"]
        level = {arm["name"]: arm["level"] for arm in run.provenance["arms"] if arm["is_learnable"]}
        by_level = defaultdict(list)
        for name, at in level.items():
            by_level[at].append(solved[name])
        rates = [solved[name] for name in level]
        found[path.parent.name.rsplit("-seed", 1)[1]] = {
            "mean": statistics.fmean(rates),
            "by_level": [round(statistics.fmean(by_level[i]), 4) for i in sorted(by_level)],
            "mastered": sum(rate > 0.9 for rate in rates),
            "near_zero": sum(rate < 0.06 for rate in rates),
        }
    return found


def table(runs: dict[str, dict[int, RunRecord]]) -> dict[str, dict[str, Any]]:
    """Every figure of every method, means over seeds, and gains over the baselines by paired seed."""
    rows = {}
    for method, by_seed in runs.items():
        group = list(by_seed.values())
        live = [statistics.fmean(run.series("train", "reward/live_share")[1]) for run in group]
        noise = [share_of(run, [n for n in arms_of(run) if n not in learnable_arms(run)]) for run in group]
        moved = [change[1] for run in group if (change := mastered_change(run)) is not None]
        largest = [
            max(max(run.series("train", f"bandit/probability/{name}")[1]) for name in arms_of(run)) for run in group
        ]
        rows[method] = {
            "seeds": sorted(by_seed),
            "start": mean(accuracy(run).value[0] for run in group),
            "final": mean(final_accuracy(run) for run in group),
            "final_by_seed": [final_accuracy(run) for run in group],
            "area": mean(area(run) for run in group),
            "live_share": mean(live),
            "noise_share": mean(noise),
            "largest_probability": mean(largest),
            "mastered_change": student_interval(moved)._asdict() if moved else None,
            "unique_prompts": mean(accuracy(run).unique_prompts[-1] for run in group),
            "prompts": mean(accuracy(run).prompts[-1] for run in group),
            "gains": {base: gain(by_seed, runs[base]) for base in BASELINES if base in runs},
            "final_less": {base: less(by_seed, runs.get(base, {}))._asdict() for base in COMPARED},
        }
    return rows


def less(runs: dict[int, RunRecord], base: dict[int, RunRecord]) -> Interval:
    """Final accuracy less the baseline's, by paired seed."""
    return student_interval(
        final_accuracy(runs[seed]) - final_accuracy(base[seed]) for seed in sorted(set(runs) & set(base))
    )


def gain(runs: dict[int, RunRecord], base: dict[int, RunRecord]) -> dict[str, Any]:
    """budget / N_X by paired seed, X the baseline's final accuracy; geometric mean with a bootstrap interval.

    A run that never gets to X counts as 1 in the bound: it needed more than the budget.
    """
    factors = {}
    for seed in sorted(set(runs) & set(base)):
        budget, level = accuracy(base[seed]).prompts[-1], final_accuracy(base[seed])
        assert level is not None
        taken = prompts_to(runs[seed], level)
        factors[seed] = None if taken is None else budget / max(taken, 1.0)
    values = [1.0 if factor is None else factor for factor in factors.values()]
    low, high = bootstrap(values)
    return {
        "by_seed": factors,
        "never": sum(factor is None for factor in factors.values()),
        "geometric_mean": geometric(values) if values else None,
        "low": low,
        "high": high,
    }


def geometric(values: Sequence[float]) -> float:
    return math.exp(statistics.fmean(math.log(value) for value in values))


def bootstrap(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Percentile interval of the geometric mean, seeds drawn with replacement; None with fewer than two seeds."""
    if len(values) < 2:
        return None, None
    rng = np.random.default_rng(0)
    logs = np.log(np.asarray(values))[rng.integers(0, len(values), (RESAMPLES, len(values)))].mean(axis=1)
    low, high = np.exp(np.quantile(logs, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]))
    return float(low), float(high)


def mean(values: Any) -> float:
    return statistics.fmean(list(values))


def text_table(result: dict[str, Any]) -> str:
    """The main figures as a Markdown table."""
    heads = ("method", "seeds", "final", *(f"less {base}'s" for base in COMPARED), "area")
    heads += ("gain over pool", "gain over clusters", "different", "live", "noise", "largest", "mastered")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for method, row in result["methods"].items():
        gains = []
        for base in BASELINES:
            found = row["gains"].get(base)
            if found is None or found["geometric_mean"] is None:
                gains.append("not run")
            else:
                span = "" if found["low"] is None else f" ({found['low']:.2f} to {found['high']:.2f})"
                never = f", {found['never']} never" if found["never"] else ""
                gains.append(f"{found['geometric_mean']:.2f}{span}{never}")
        paired = [
            "" if method == base or ahead["half_width"] is None else f"{ahead['mean']:+.3f} ± {ahead['half_width']:.3f}"
            for base, ahead in row["final_less"].items()
        ]
        change = row["mastered_change"]
        half = "" if change is None or change["half_width"] is None else f" ± {change['half_width']:.3f}"
        moved = "-" if change is None else f"{change['mean']:+.3f}{half}"
        shown_row = [method, str(len(row["seeds"])), f"{row['final']:.3f}", *paired, f"{row['area']:.3f}", *gains]
        shown_row += [f"{row['unique_prompts']:,.0f}", f"{row['live_share']:.2f}", f"{row['noise_share']:.3f}"]
        shown_row += [f"{row['largest_probability']:.2f}", moved]
        lines.append(f"| {' | '.join(shown_row)} |")
    for seed, about in result["start"].items():
        lines.append(
            f"start {seed}: mean {about['mean']:.3f}, by level {about['by_level']}, {about['mastered']} mastered, "
            f"{about['near_zero']} near zero"
        )
    return "\n".join(lines)


def draw(out: Path, written: dict[str, Any], target: Path) -> None:
    """Accuracy against prompts for the main methods, and final accuracy against different prompts."""
    from matplotlib.figure import Figure

    main_methods = ("pool", "clusters", "proportional", "thompson", "literal", "dump")
    figure = Figure(figsize=(9.0, 3.4 * len(written)), layout="constrained")
    grid = figure.subplots(len(written), 2, squeeze=False)
    for (suite, result), (left, right) in zip(written.items(), grid, strict=True):
        runs = finished(out / suite)
        for index, method in enumerate(name for name in main_methods if name in runs):
            curves = [accuracy(run) for run in runs[method].values()]
            values = np.mean([curve.value for curve in curves], axis=0)
            left.plot(curves[0].prompts, values, color=f"C{index}", label=method, linewidth=1.4)
        left.set(title=f"{suite}: held-out accuracy", xlabel="prompts", ylabel="mean over arms that can be learned")
        left.legend(fontsize=8, frameon=False)
        few = [f"kept{n}" for n in UNIQUE if f"kept{n}" in runs] + [m for m in ("proportional",) if m in runs]
        points = [(result["methods"][m]["unique_prompts"], result["methods"][m]["final"]) for m in few]
        right.plot(*zip(*points, strict=True), "o-", label="proportional") if points else None
        for index, method in enumerate(BASELINES):
            if method in runs:
                right.axhline(result["methods"][method]["final"], color=f"C{index}", linestyle=":", label=method)
        right.set(title=f"{suite}: few different prompts", xlabel="different prompts seen", xscale="log")
        right.legend(fontsize=8, frameon=False)
    figure.savefig(target, metadata={"Date": None})


if __name__ == "__main__":
    main()
