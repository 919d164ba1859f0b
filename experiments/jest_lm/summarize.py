"""Tables, results.json and figure.svg out of the cells that `run.py` left.

python experiments/jest_lm/summarize.py --out runs/jest_lm
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from run import ARMS, STEPS
from texts import NOISE, WEIGHTS

from jaxmix.report.intervals import student_interval

HERE = Path(__file__).parent
COMPARED = ("iid", "clean_only")
"""Whose clean loss is taken from that of every arm."""
AXES = ("steps", "rows trained", "rows scanned", "operations", "seconds")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="runs/jest_lm")
    folder = Path(parser.parse_args().out)
    cells = {path.stem: json.loads(path.read_text()) for path in sorted((folder / "cells").glob("*.json"))}
    arms = {arm: _cells(cells, arm) for arm in ARMS}
    arms = {arm: found for arm, found in arms.items() if found}
    iid = arms["iid"]
    middle, last = min(STEPS, iid[min(iid)]["steps"][-1]), iid[min(iid)]["steps"][-1]
    bases = {base: arms[base] for base in COMPARED if base in arms}
    result = {
        "at": {"middle": middle, "last": last},
        "arms": {arm: _summary(found, bases, middle) for arm, found in arms.items()},
        "cells": cells,
    }
    (HERE / "results.json").write_text(json.dumps(result, indent=1))
    for line in _tables(result):
        print(line)
    _figure(arms, HERE / "figure.svg")


def _cells(cells: dict[str, Any], arm: str) -> dict[int, Any]:
    prefix = f"{arm}-seed"
    return {int(name[len(prefix) :]): cell for name, cell in cells.items() if name.startswith(prefix)}


def axes_at(cell: dict[str, Any], step: float) -> list[float]:
    compute = cell["compute"]
    per_step = [1.0, compute["rows_trained_per_step"], compute["rows_scanned_per_step"], compute["flops_per_step"]]
    return [step * x for x in (*per_step, cell["step_seconds"] or float("nan"))]


def steps_to(cell: dict[str, Any], loss: float) -> float | None:
    """Steps until the clean loss is first at or below `loss`, between evaluations in a straight line."""
    for i, value in enumerate(cell["clean"]):
        if value <= loss:
            if i == 0:
                return float(cell["steps"][0])
            before, step, start = cell["clean"][i - 1], cell["steps"][i], cell["steps"][i - 1]
            return start + (step - start) * (before - loss) / (before - value)
    return None


def _less(found: dict[int, Any], base: dict[int, Any], step: int) -> dict[str, Any]:
    """The clean loss less that of another arm, by seed."""
    seeds = sorted(set(found) & set(base))
    return student_interval(_loss_at(found[seed], step) - _loss_at(base[seed], step) for seed in seeds)._asdict()


def _summary(found: dict[int, Any], bases: dict[str, dict[int, Any]], middle: int) -> dict[str, Any]:
    iid = bases["iid"]
    seeds = sorted(set(found) & set(iid))
    at_middle = [_loss_at(cell, middle) for cell in found.values()]
    summary: dict[str, Any] = {
        "seeds": len(found),
        "clean_at_middle": _spread(at_middle),
        "less": {base: _less(found, of_base, middle) for base, of_base in bases.items()},
        "clean_at_end": _spread([cell["clean"][-1] for cell in found.values()]),
        "noise_share": statistics.fmean(sum(c["trained_share"][n] for n in NOISE) for c in found.values()),
        "shares": {n: statistics.fmean(c["trained_share"][n] for c in found.values()) for n in WEIGHTS},
        "step_cost": found[min(found)]["compute"]["flops_per_step"] / iid[min(iid)]["compute"]["flops_per_step"],
    }  # fmt: skip
    targets = {
        "to_iid": {seed: _loss_at(iid[seed], middle) for seed in seeds},
        "to_own": {seed: _loss_at(found[seed], middle) for seed in seeds},
    }
    for key, target in targets.items():
        ratios = [r for seed in seeds if (r := _ratios(found[seed], iid[seed], target[seed])) is not None]
        summary[key] = {
            "reached": len(ratios),
            "of": len(seeds),
            "ratios": {axis: _spread([r[i] for r in ratios]) for i, axis in enumerate(AXES)} if ratios else None,
        }
    return summary


def _loss_at(cell: dict[str, Any], step: int) -> float:
    return float(np.interp(step, cell["steps"], cell["clean"]))


def _ratios(cell: dict[str, Any], iid: dict[str, Any], loss: float) -> list[float] | None:
    """What the cell took to a clean loss over what iid took, axis by axis; None where one of them never has it."""
    step, of_iid = steps_to(cell, loss), steps_to(iid, loss)
    if step is None or not of_iid:
        return None
    return [x / y for x, y in zip(axes_at(cell, step), axes_at(iid, of_iid), strict=True)]


def _spread(values: list[float]) -> dict[str, float | None]:
    """Mean and standard deviation over seeds; no deviation of one seed."""
    half = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "deviation": half}


def _tables(result: dict[str, Any]) -> list[str]:
    middle, last = result["at"]["middle"], result["at"]["last"]
    bases = next(iter(result["arms"].values()))["less"]
    heads = ("arm", "seeds", f"clean loss at {middle} steps", *(f"less {base}'s" for base in bases))
    heads += ("noise in the trained tokens", "operations of a step")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for arm, s in result["arms"].items():
        paired = [
            "" if arm == base or less["half_width"] is None else f"{less['mean']:+.3f} ± {less['half_width']:.3f}"
            for base, less in s["less"].items()
        ]
        cells = (arm, s["seeds"], f"{s['clean_at_middle']['mean']:.4f}", *paired, f"{s['noise_share']:.3f}")
        lines.append("| " + " | ".join(map(str, cells)) + f" | {s['step_cost']:.2f}x |")
    titles = {
        "to_iid": f"To the clean loss that iid has after {middle} steps, over what iid took:",
        "to_own": f"To the clean loss that the arm has after {middle} steps, over what iid takes to it:",
    }
    for key, title in titles.items():
        lines += ["", title, "", "| arm | reached | " + " | ".join(AXES) + " |", "|---|---|" + "---|" * len(AXES)]
        for arm, s in result["arms"].items():
            to = s[key]
            ratios = to["ratios"]
            cells = ["-"] * len(AXES) if ratios is None else [f"{ratios[a]['mean']:.2f}" for a in AXES]
            lines.append(f"| {arm} | {to['reached']} of {to['of']} | " + " | ".join(cells) + " |")
    scanned = next(iter(result["arms"].values()))["clean_at_end"]
    lines += ["", f"iid after {last} steps, which scan as many rows as {middle} steps of the arms that draw five times "
              f"theirs: {scanned['mean']:.4f}", "", "Shares of the trained tokens:", ""]  # fmt: skip
    names = list(next(iter(result["arms"].values()))["shares"])
    lines += ["| arm | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    for arm, s in result["arms"].items():
        lines.append(f"| {arm} | " + " | ".join(f"{s['shares'][n]:.3f}" for n in names) + " |")
    return lines


def _figure(arms: dict[str, dict[int, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [a for a in ("iid", "clean_only", "learnability", "learnability_greedy", "token_learnability",
                         "easy_reference", "hard_learner") if a in arms]  # fmt: skip
    figure, axes = pyplot.subplots(1, len(AXES), figsize=(3.2 * len(AXES), 3.2), sharey=True, layout="constrained")
    for index, (title, panel) in enumerate(zip(AXES, axes, strict=True)):
        for color, arm in enumerate(shown):
            for number, cell in enumerate(arms[arm].values()):
                x = [axes_at(cell, step)[index] for step in cell["steps"]][2:]
                panel.plot(x, cell["clean"][2:], color=f"C{color}", linewidth=0.9, label=arm if number == 0 else None)
        panel.set_xscale("log")
        panel.set_xlabel(title)
        panel.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("clean validation loss, nats per byte")
    axes[-1].legend(fontsize=7, frameon=False)
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
