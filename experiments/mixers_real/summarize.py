"""Tables and figure of the experiment, out of the finished cells.

python experiments/mixers_real/summarize.py --out runs/mixers_real
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from cells import STEPS, cells
from scipy.stats import t as student

SETS = ("bundled", "collected", "bundled_large")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="runs/mixers_real")
    arguments = parser.parse_args()
    here = Path(__file__).parent
    written = {}
    for name in SETS:
        folder = Path(arguments.out) / name
        if (folder / "stratified-seed0" / "result.json").is_file():
            written[name] = summary(folder)
            print(f"\n{name}: {written[name]['domains']}")
            print(text_table(written[name]))
    (here / "results.json").write_text(json.dumps(written, indent=1) + "\n")
    draw(written, here / "figure.svg")


def summary(folder: Path) -> dict[str, Any]:
    """Mean test loss and perplexity over domains and seeds, and paired differences to stratified sampling."""
    runs: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
    for path in sorted(folder.glob("*-seed*/result.json")):
        method, seed = path.parent.name.rsplit("-seed", 1)
        runs[method][int(seed)] = json.loads(path.read_text())
    domains = list(runs["stratified"][0]["test"])
    about = {cell.method: cell for cell in cells(domains, [[1.0 / len(domains)] * len(domains)] * 12)}
    own_method = {s: np.mean(list(run["test"].values())) for s, run in runs["foresight"].items()}
    rows = {}
    for method, by_seed in runs.items():
        if about[method].role == "tool":
            continue
        seeds = sorted(set(by_seed) & set(runs["stratified"]))
        losses = {s: np.asarray(list(by_seed[s]["test"].values())) for s in seeds}
        base = {s: np.asarray(list(runs["stratified"][s]["test"].values())) for s in seeds}
        difference = np.asarray([losses[s].mean() - base[s].mean() for s in seeds])
        perplexity = np.asarray([np.exp(losses[s]).mean() - np.exp(base[s]).mean() for s in seeds])
        to_foresight = [losses[s].mean() - own_method[s] for s in seeds if s in own_method]
        rows[method] = {
            "role": about[method].role,
            "seeds": len(seeds),
            "loss": float(np.mean([losses[s].mean() for s in seeds])),
            "perplexity": float(np.mean([np.exp(losses[s]).mean() for s in seeds])),
            "loss_difference": interval(difference),
            "perplexity_difference": interval(perplexity),
            "loss_against_foresight": interval(to_foresight) if to_foresight else None,
            "per_domain": dict(zip(domains, np.mean([losses[s] - base[s] for s in seeds], 0).tolist(), strict=True)),
            "extra_runs": about[method].extra_runs,
            "evaluations": float(np.mean([by_seed[s]["evaluations"] for s in seeds])),
            "realized": dict(
                zip(domains, np.mean([list(by_seed[s]["realized"].values()) for s in seeds], 0).tolist(), strict=True)
            ),
        }
    seeds = sorted(runs["stratified"])
    own = [np.mean(list(runs["stratified"][s]["test"].values())) for s in seeds]
    # The noise floor: stratified against stratified with the seeds rotated.
    floor = interval(np.roll(own, 1) - np.asarray(own))
    tokens = runs["stratified"][0]["tokens"]
    law = folder / "linear_law" / "result.json"
    return {
        "domains": domains,
        "steps": STEPS,
        "tokens": tokens,
        "noise_sd_of_a_run": float(np.std(own, ddof=1)),
        "noise_floor": floor,
        "methods": dict(sorted(rows.items(), key=lambda row: row[1]["loss_difference"]["mean"])),
        "linear_law": json.loads(law.read_text()) if law.is_file() else None,
    }


def interval(differences: Any) -> dict[str, float | None]:
    """Mean with Student's 95 % half width over paired seeds."""
    n = len(differences)
    half = None
    if n > 1:
        half = float(student.ppf(0.975, n - 1) * np.std(differences, ddof=1) / np.sqrt(n))
    return {"mean": float(np.mean(differences)), "half_width": half}


def text_table(result: dict[str, Any]) -> str:
    lines = [
        f"noise: sd of one run {result['noise_sd_of_a_run']:.4f} nats",
        f"{'method':22} {'role':10} {'n':>2} {'loss':>7} {'difference':>20} {'perplexity':>20} {'to foresight':>17} "
        f"{'runs':>5} {'evals':>5}",
    ]
    for method, row in result["methods"].items():
        figures = ("loss_difference", "perplexity_difference", "loss_against_foresight")
        shown = [_signed(row[figure]) for figure in figures]
        lines.append(
            f"{method:22} {row['role']:10} {row['seeds']:2} {row['loss']:7.4f} {shown[0]:>20} "
            f"{shown[1]:>20} {shown[2]:>17} {row['extra_runs']:5.2f} {row['evaluations']:5.0f}"
        )
    return "\n".join(lines)


def _signed(difference: dict[str, Any] | None) -> str:
    if difference is None:
        return "-"
    half = difference["half_width"]
    return f"{difference['mean']:+.4f}" + ("" if half is None else f" ± {half:.4f}")


def draw(written: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(written), figsize=(5.5 * len(written), 6), squeeze=False)
    for axes, (name, result) in zip(panels[0], written.items(), strict=True):
        shown = [(m, r) for m, r in result["methods"].items() if r["role"] in ("table", "sweep") and r["seeds"] > 1]
        for place, (_, row) in enumerate(reversed(shown)):
            difference = row["loss_difference"]
            color = "#4477aa" if row["role"] == "table" else "#bbbbbb"
            axes.errorbar(difference["mean"], place, xerr=difference["half_width"], fmt="o", color=color, capsize=2)
        axes.set_yticks(range(len(shown)), [m for m, _ in reversed(shown)], fontsize=8)
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_xlabel("test loss against stratified, nats per byte (95 %)")
        axes.set_title(f"{name}: {len(result['domains'])} domains")
    figure.tight_layout()
    figure.savefig(path)


if __name__ == "__main__":
    main()
