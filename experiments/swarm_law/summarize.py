"""Tables and figure of the experiment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student


def interval(values: np.ndarray) -> dict[str, float]:
    """Mean with Student's 95 % half width."""
    half = student.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return {"mean": float(np.mean(values)), "half_width": float(half)}


def text_tables(results: dict[str, Any]) -> str:
    lines = [f"{'law':14} {'chosen':14} {'numbers':>8} {'out of fold %':>14} {'larger: MRE %':>14} {'Spearman':>9}"]
    for name, row in results["at_the_larger_size"].items():
        own = results["out_of_fold"].get(name)
        own_error = "" if own is None else f"{100 * own['error']:.2f}"
        lines.append(
            f"{name:14} {row['law']:14} {row['parameters']:8} {own_error:>14} {100 * row['error']:14.2f} "
            f"{row['spearman_of_mean']:9.3f}"
        )
    lines.append(f"\n{'arm':10} {'predicted':>10} {'observed':>18} {'to uniform':>20}")
    for name, arm in results["arms"].items():
        loss, other = arm["loss"], arm["to_uniform"]
        lines.append(
            f"{name:10} {arm['predicted']:10.4f} {loss['mean']:9.4f} ± {loss['half_width']:.4f} "
            f"{other['mean']:+11.4f} ± {other['half_width']:.4f}"
        )
    return "\n".join(lines)


def draw(results: dict[str, Any], predicted: np.ndarray, observed: np.ndarray, path: Path) -> None:
    """Predicted beside observed at the larger size, and what the arms came to."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2))
    for index, domain in enumerate(results["domains"]):
        left.scatter(observed[:, index], predicted[:, index], s=12, label=domain)
    ends = [min(observed.min(), predicted.min()), max(observed.max(), predicted.max())]
    left.plot(ends, ends, color="black", linewidth=0.8)
    left.set_xlabel("loss at the larger size, nats per byte")
    left.set_ylabel(f"predicted from proxies ({results['chosen']})")
    left.legend(fontsize=6)
    for place, (name, arm) in enumerate(results["arms"].items()):
        right.errorbar(place, arm["loss"]["mean"], yerr=arm["loss"]["half_width"], fmt="o", color="#4477aa", capsize=3)
        right.scatter(place, arm["predicted"], marker="x", color="#cc6677")
        right.annotate(name, (place, arm["loss"]["mean"]), textcoords="offset points", xytext=(6, 4), fontsize=8)
    right.set_xticks([])
    right.set_ylabel("mean held-out loss; x: predicted")
    figure.tight_layout()
    figure.savefig(path)
