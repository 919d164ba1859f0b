"""Tables, results.json and figure.svg from the cells that run.py has finished.

python experiments/gem_real_text/summarize.py --out runs/gem_real_text
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from map import tsne
from run import METHODS, load

FIGURES = ("nmi", "purity", "ari", "entropy", "largest", "smallest", "concentration", "largest_bias", "iterations")
FIGURES += ("seconds", "cpu_seconds")
SHOWN = ("spherical_kmeans", "vmf_mixture", "gem 0", "gem 100", "gem 1000", "gem 5000")
PER_DOMAIN_ON_MAP = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/gem_real_text"))
    parser.add_argument("--here", type=Path, default=Path(__file__).parent, help="where the summary goes")
    options = parser.parse_args()
    groups: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for path in sorted((options.out / "cells").glob("*.json")):
        record = json.loads(path.read_text())
        groups[f"{record['encoder']}, {record['set']}, {record['start']}"][record["method"]].append(record)
    written = {}
    for name, methods in sorted(groups.items(), key=lambda item: (item[0].split(", ")[::-1], item[0])):
        one = next(iter(methods.values()))[0]
        written[name] = {
            "rows": one["rows"],
            "domains": dict(zip(one["domains"], one["domain_sizes"], strict=True)),
            "methods": {method: _summary(methods[method]) for method in METHODS if method in methods},
        }
        print(f"\n### {name}: {one['rows']:,} rows\n\n{_table(written[name]['methods'])}")
    (options.here / "results.json").write_text(json.dumps(written, indent=1) + "\n")
    for name in ("checkpoint, even, overseed", "builtin, even, overseed"):
        if name in groups and set(SHOWN) <= set(groups[name]):
            _draw(options, name, groups[name])
            break


def _summary(records: list[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {"seeds": sorted(record["seed"] for record in records)}
    for figure in FIGURES:
        values = [record[figure] for record in records]
        found[figure] = float(np.mean(values))
        found[f"{figure}_spread"] = float(np.max(values) - np.min(values))
    return found


def _table(methods: dict[str, Any]) -> str:
    lines = [
        "| method | seeds | NMI | purity | ARI | size entropy | largest | smallest | median κ | largest \\|b\\| | "
        "iterations | CPU s |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for method, row in methods.items():
        agreement = " | ".join(f"{row[f]:.3f} ± {row[f'{f}_spread'] / 2:.3f}" for f in ("nmi", "purity", "ari"))
        sizes = f"{row['entropy']:.3f} | {row['largest']:.3f} | {row['smallest']:.3f}"
        inner = f"{row['concentration']:.0f} | {row['largest_bias']:.1f} | {row['iterations']:.0f}"
        lines.append(f"| {method} | {len(row['seeds'])} | {agreement} | {sizes} | {inner} | {row['cpu_seconds']:.1f} |")
    return "\n".join(lines)


def _draw(options: Any, name: str, methods: dict[str, list[dict[str, Any]]]) -> None:
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    encoder, which, _ = name.split(", ")
    rows, domain, names = load(options.out / encoder, which)
    rng = np.random.default_rng(0)
    places = [np.flatnonzero(domain == d) for d in range(len(names))]
    chosen = np.concatenate([rng.choice(p, min(PER_DOMAIN_ON_MAP, len(p)), replace=False) for p in places])
    cache = options.out / f"map-{encoder}-{which}.npy"
    if not cache.is_file():
        np.save(cache, tsne(rows[chosen]))
    points = np.load(cache)
    figure, axes = plt.subplots(2, 2, figsize=(12, 10.5), layout="constrained")
    for method in SHOWN:
        sizes = np.mean([record["sizes"] for record in methods[method]], axis=0)
        axes[0, 0].plot(np.arange(1, len(sizes) + 1), sizes, marker=".", label=method)
    axes[0, 0].axhline(1 / len(sizes), color="gray", linewidth=0.7)
    axes[0, 0].set(xlabel="cluster, by size", ylabel="share of passages", title=f"Sizes ({name})", ylim=(0, None))
    axes[0, 0].legend()
    balances = [m for m in METHODS if m.startswith("gem") and m in methods]
    for metric, color in (("nmi", "#0077bb"), ("purity", "#009988"), ("entropy", "#cc3311")):
        mean = [np.mean([r[metric] for r in methods[m]]) for m in balances]
        axes[0, 1].plot([m.split()[1] for m in balances], mean, marker="o", color=color, label=f"GEM, {metric}")
        base = np.mean([r[metric] for r in methods["spherical_kmeans"]])
        axes[0, 1].axhline(base, color=color, linestyle=":", linewidth=1)
    axes[0, 1].set(xlabel="balance λ", title="Agreement and balance (dotted: spherical k-means)")
    axes[0, 1].legend()
    palette = plt.get_cmap("tab20")
    for d, label in enumerate(names):
        mine = domain[chosen] == d
        axes[1, 0].scatter(*points[mine].T, s=5, color=palette(d % 20), label=label, rasterized=True)
    axes[1, 0].set_title("t-SNE of 100 passages of each domain, by domain")
    axes[1, 0].legend(fontsize=6, markerscale=2, ncols=2)
    labels = np.array(next(r for r in methods["gem 5000"] if r["labels"])["labels"])[chosen]
    colors = plt.get_cmap("gist_ncar")(0.05 + 0.9 * (labels * 7 % 24) / 24)
    axes[1, 1].scatter(*points.T, s=5, color=colors, rasterized=True)
    axes[1, 1].set_title("The same, by cluster of GEM at λ = 5000")
    for axis in axes[1]:
        axis.set(xticks=[], yticks=[])
    figure.savefig(options.here / "figure.svg", dpi=110, metadata={"Date": None})


if __name__ == "__main__":
    main()
