"""Tables, results.json and figure.svg from the cells that run.py and quality.py have finished.

python experiments/jest_icons/summarize.py --out runs/jest_icons
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from cells import POLICIES, POOLS

from jaxmix.report.intervals import student_interval

AXES = ("steps", "trained", "scanned", "flops")
METRICS = ("recall@1", "recall@10")
COLORS = {
    "iid": "#000000",
    "jest": "#cc3311",
    "jest_greedy": "#882255",
    "independent_top": "#0077bb",
    "independent_sampled": "#33bbee",
    "context_top": "#009988",
    "jest_sweep": "#ee7733",
    "flexi_jest": "#ee3377",
}

COMPARED = (
    ("jest", "independent_sampled"),
    ("jest_greedy", "independent_top"),
    ("context_top", "independent_top"),
    ("context_top", "jest_greedy"),
    ("jest_greedy", "jest"),
    ("independent_top", "independent_sampled"),
    ("jest_sweep", "jest"),
    ("flexi_jest", "jest"),
)
RATIOS = (
    ("jest_16", "jest_256"),
    ("jest_16_sweeps_1", "jest_16"),
    ("jest_16_greedy", "jest_16"),
    ("context_top", "jest_16"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/jest_icons"))
    parser.add_argument("--here", type=Path, default=Path(__file__).parent, help="where the summary goes")
    options = parser.parse_args()
    runs: dict[str, dict[str, dict[int, Any]]] = defaultdict(lambda: defaultdict(dict))
    for path in sorted(options.out.glob("*-seed*.json")):
        record = json.loads(path.read_text())
        if "curve" in record:
            runs[record["pool"]][record["policy"]][record["seed"]] = record
    written = {pool: summary(POOLS[pool].steps, by_policy) for pool, by_policy in runs.items()}
    for pool, result in written.items():
        result["paired"] = paired(runs[pool])
        tables = (steps_table, ratio_table, extra_table, paired_table)
        print(f"\n## {pool}\n\n" + "\n\n".join(table(result) for table in tables))
    quality = quality_summary(options.out)
    for name, table in quality.items():
        print(f"\n## quality, {name}\n\n{quality_table(table)}\n\n{quality_ratios(table)}")
    (options.here / "results.json").write_text(json.dumps({"training": written, "quality": quality}, indent=1) + "\n")
    if written:
        draw(written, options.here / "figure.svg")


def summary(steps: int, by_policy: dict[str, dict[int, Any]]) -> dict[str, Any]:
    """Mean curves over seeds with the standard deviation of a run, and what reaching iid's recall takes."""
    policies = {}
    for name in (name for name in POLICIES if name in by_policy):
        seeds = sorted(by_policy[name])
        curves = [by_policy[name][seed]["curve"] for seed in seeds]
        points = []
        for rows in zip(*curves, strict=True):
            point: dict[str, Any] = {"step": rows[0]["step"], **{axis: rows[0][axis] for axis in AXES[1:]}}
            for metric in METRICS:
                values = [row[metric] for row in rows]
                point[metric] = float(np.mean(values))
                point[f"{metric}_sd"] = float(np.std(values, ddof=1)) if len(values) > 1 else None
            points.append(point)
        shares = [by_policy[name][seed]["shuffled_share_of_selected"] for seed in seeds]
        policies[name] = {
            "seeds": seeds,
            "curve": points,
            "pool_test": {
                metric: float(np.mean([by_policy[name][seed]["pool_test"][metric] for seed in seeds]))
                for metric in METRICS
            },
            "shuffled_share_of_selected": None if None in shares else float(np.mean(shares)),
        }
    reference = [record["reference"] for runs in by_policy.values() for record in runs.values() if record["reference"]]
    result: dict[str, Any] = {"steps": steps, "policies": policies}
    if reference:
        result["reference"] = {metric: float(np.mean([r[metric] for r in reference])) for metric in METRICS}
    result["to_reach_iid"] = {
        metric: {name: reach(by_policy, name, metric) for name in policies if name != "iid"} for metric in METRICS
    }
    return result


def reach(by_policy: dict[str, dict[int, Any]], name: str, metric: str) -> dict[str, Any]:
    """By iid's number of steps: each axis of `name` at iid's recall there over iid's own, mean over common seeds.

    The recall of a policy counts from the first test at which it is as high, and on a straight line between two tests.
    None where some seed's run ended before.
    """
    found: dict[str, Any] = {}
    common = sorted(set(by_policy[name]) & set(by_policy.get("iid", {})))
    if not common:
        return found
    for place, point in enumerate(by_policy["iid"][common[0]]["curve"]):
        if point["step"] == 0:
            continue
        ratios = []
        for seed in common:
            target = by_policy["iid"][seed]["curve"][place]
            when = first_reaching(by_policy[name][seed]["curve"], metric, target[metric])
            if when is None:
                break
            ratios.append([when[axis] / target["step" if axis == "steps" else axis] for axis in AXES])
        else:
            found[str(point["step"])] = {
                "seeds": len(common),
                **{axis: float(np.mean([r[i] for r in ratios])) for i, axis in enumerate(AXES)},
                "worst_steps": float(np.max([r[0] for r in ratios])),
            }
    return found


def first_reaching(curve: list[dict[str, float]], metric: str, value: float) -> dict[str, float] | None:
    for before, after in zip([curve[0], *curve[:-1]], curve, strict=True):
        if after[metric] >= value:
            gap = after[metric] - before[metric]
            share = 1.0 if gap <= 0 else (value - before[metric]) / gap
            share = min(max(share, 0.0), 1.0)
            at = lambda axis, b=before, a=after, s=share: b[axis] + s * (a[axis] - b[axis])
            return {"steps": at("step"), **{axis: at(axis) for axis in AXES[1:]}}
    return None


def steps_table(result: dict[str, Any]) -> str:
    """Recall by steps, with the other three axes beside the last test."""
    limit = result["steps"]
    longest = max(p["curve"][-1]["step"] for p in result["policies"].values())
    marks = [limit // 5, 2 * limit // 5, limit]
    marks += [mark for mark in (2 * limit, longest) if mark <= longest and mark > limit]
    head = "| policy | seeds | " + " | ".join(f"{mark} steps" for mark in marks)
    lines = [head + " | trained | scanned | FLOP |", "|---" * (5 + len(marks)) + "|"]
    for name, policy in result["policies"].items():
        cells = []
        for mark in marks:
            at = [point for point in policy["curve"] if point["step"] == mark]
            cells.append(f"{at[0]['recall@1']:.4f} / {at[0]['recall@10']:.4f}" if at else "")
        last = policy["curve"][-1]
        axes = f"{last['trained']:,.0f} | {last['scanned']:,.0f} | {last['flops']:.2e}"
        lines.append(f"| {name} | {len(policy['seeds'])} | " + " | ".join(cells) + f" | {axes} |")
    return "\n".join(lines)


def ratio_table(result: dict[str, Any]) -> str:
    """What it takes to reach iid's recall@10 after so many of iid's steps, as a share of iid's own."""
    marks = [str(result["steps"] * k) for k in (1, 2, 3, 4, 5)]
    lines = [
        "| policy | iid's steps | its steps | trained | scanned | FLOP | worst seed's steps |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, by_mark in result["to_reach_iid"]["recall@10"].items():
        for mark in marks:
            if mark in by_mark:
                row = by_mark[mark]
                axes = " | ".join(f"{row[axis]:.2f}x" for axis in AXES)
                lines.append(f"| {name} | {mark} | {axes} | {row['worst_steps']:.2f}x |")
    return "\n".join(lines)


def extra_table(result: dict[str, Any]) -> str:
    lines = [
        "| policy | recall@10 on the pool's own test | shuffled among the selected |",
        "|---|---|---|",
    ]
    for name, policy in result["policies"].items():
        share = policy["shuffled_share_of_selected"]
        shown = "" if share is None else f"{share:.3f}"
        lines.append(f"| {name} | {policy['pool_test']['recall@10']:.4f} | {shown} |")
    return "\n".join(lines)


def paired(by_policy: dict[str, dict[int, Any]]) -> dict[str, Any]:
    """Differences of recall@10 by seed, mean of the last three tests: policies that differ in one thing."""
    at_end = {
        name: {seed: float(np.mean([point["recall@10"] for point in run["curve"][-3:]])) for seed, run in runs.items()}
        for name, runs in by_policy.items()
    }
    found = {}
    for name, other in COMPARED:
        seeds = sorted(set(at_end.get(name, {})) & set(at_end.get(other, {})))
        if seeds:
            found[f"{name} - {other}"] = student_interval(at_end[name][s] - at_end[other][s] for s in seeds)._asdict()
    return found


def paired_table(result: dict[str, Any]) -> str:
    lines = ["| difference of recall@10 | by seed | mean, 95 % interval |", "|---|---|---|"]
    for name, row in result["paired"].items():
        values = ", ".join(f"{value:+.4f}" for value in row["values"])
        half = "" if row["half_width"] is None else f" ± {row['half_width']:.4f}"
        lines.append(f"| {name} | {values} | {row['mean']:+.4f}{half} |")
    return "\n".join(lines)


def quality_ratios(table: dict[str, Any]) -> str:
    """F(S) of one selection over that of another, by seed."""
    lines = ["| F(S) over F(S) | by seed |", "|---|---|"]
    for over, under in RATIOS:
        pairs = zip(table[over]["objective_by_seed"], table[under]["objective_by_seed"], strict=True)
        lines.append(f"| {over} / {under} | {', '.join(f'{a / b:.2f}' for a, b in pairs)} |")
    return "\n".join(lines)


def quality_summary(out: Path) -> dict[str, Any]:
    found: dict[str, dict[str, list[Any]]] = defaultdict(lambda: defaultdict(list))
    for path in sorted(out.glob("quality-*.json")):
        record = json.loads(path.read_text())
        for name, row in record["selections"].items():
            found[f"{record['pool']}, {record['learner_steps']} steps"][name].append(row)
    return {
        place: {
            name: {
                "seeds": len(rows),
                **{field: float(np.mean([row[field] for row in rows])) for field in rows[0]},
                "objective_by_seed": [row["objective"] for row in rows],
                "objective_sd": float(np.std([row["objective"] for row in rows], ddof=1)) if len(rows) > 1 else None,
            }
            for name, rows in by_name.items()
        }
        for place, by_name in found.items()
    }


def quality_table(table: dict[str, Any]) -> str:
    lines = ["| selection | seeds | F(S)/b | positive | negative | shuffled |", "|---|---|---|---|---|---|"]
    for name, row in sorted(table.items(), key=lambda item: item[1]["objective"]):
        parts = " | ".join(f"{row[field]:.3f}" for field in ("objective", "positive", "negative", "shuffled_share"))
        lines.append(f"| {name} | {row['seeds']} | {parts} |")
    return "\n".join(lines)


def draw(written: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "jest_icons"
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(len(written), 4, figsize=(15, 3.6 * len(written)), squeeze=False, sharey="row")
    for row, (pool, result) in zip(panels, written.items(), strict=True):
        for axes, axis in zip(row, AXES, strict=True):
            for name, policy in result["policies"].items():
                points = policy["curve"][1:]
                x = [point["step" if axis == "steps" else axis] for point in points]
                y = np.asarray([point["recall@10"] for point in points])
                axes.plot(x, y, color=COLORS[name], label=name, linewidth=1.4)
            axes.set_xscale("log")
            axes.set_xlabel({"steps": "steps", "flops": "FLOP"}.get(axis, f"examples {axis}"))
        if "reference" in result:
            for axes in row:
                axes.axhline(result["reference"]["recall@10"], color="#bbbbbb", linestyle="--", linewidth=1)
        row[0].set_ylabel(f"{pool}: recall@10")
    panels[0][0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
