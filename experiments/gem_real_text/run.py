"""Clusters the embedded passages, one JSON file per cell. Stopped, the same command continues.

python experiments/gem_real_text/run.py --out runs/gem_real_text
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np

CLUSTERS = 24
BALANCES = (0.0, 1.0, 10.0, 100.0, 300.0, 1000.0, 5000.0, math.inf)
METHODS = (
    *(f"gem {balance:g}" for balance in BALANCES),
    "vmf_mixture",
    "spherical_kmeans",
    "kmeans",
)
ENCODERS = ("checkpoint", "builtin")
SETS = ("even", "skewed")
STARTS = ("overseed", "kmeans++")
SEEDS = (0, 1, 2)


def load(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Rows, domain of each row, names of the domains.

    "even" is everything; "skewed" keeps 1/1, 1/2, 1/3, … of the domains in a shuffled order: Zipf's law.
    """
    from jaxmix.data.embeddings import open_embedding_store

    store = open_embedding_store(folder)
    rows, (domain, _) = store.read(0, len(store)), store.documents()
    names = [shard.source for shard in store.shards]
    if name == "skewed":
        rng = np.random.default_rng(0)
        kept = [
            rng.choice(places := np.flatnonzero(domain == d), len(places) // rank, replace=False)
            for rank, d in enumerate(rng.permutation(len(names)), start=1)
        ]
        chosen = np.sort(np.concatenate(kept))
        rows, domain = rows[chosen], domain[chosen]
    return rows, domain, names


def build(method: str) -> Any:
    from jaxmix import clustering

    kind, _, balance = method.partition(" ")
    return clustering.make(kind, CLUSTERS, **({"balance": float(balance)} if balance else {}))


def run_cell(rows: np.ndarray, domain: np.ndarray, method: str, start: str, seed: int) -> dict[str, Any]:
    import jax

    from jaxmix import clustering

    clusterer = build(method)
    clustering.fit(clusterer, rows, key=jax.random.key(99), max_iters=2, init=start)  # compiles
    began, used = time.perf_counter(), time.process_time()
    result = clustering.fit(clusterer, rows, key=jax.random.key(seed), max_iters=200, init=start)
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - used
    labels = np.asarray(clustering.assign(clusterer, result.state, rows).labels)
    sizes = clustering.cluster_sizes(labels, CLUSTERS)
    return {
        "purity": clustering.purity(labels, domain),
        "nmi": clustering.normalized_mutual_information(labels, domain),
        "ari": clustering.adjusted_rand_index(labels, domain),
        "entropy": clustering.size_entropy(sizes),
        "largest": float(sizes.max()),
        "smallest": float(sizes.min()),
        "sizes": np.sort(sizes)[::-1].tolist(),
        "concentration": float(np.median(np.asarray(result.state.concentrations))),
        "largest_bias": float(np.abs(np.asarray(result.state.biases)).max()),
        "objective": float(np.max(np.asarray(result.objective))),
        "iterations": int(result.iterations),
        "converged": bool(result.converged),
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "rows": len(rows),
        "labels": labels.tolist() if seed == 0 else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/gem_real_text"))
    parser.add_argument("--encoders", default=",".join(ENCODERS))
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--starts", default=",".join(STARTS))
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)))
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no cell after so long")
    options = parser.parse_args()
    began = time.time()
    for start in options.starts.split(","):
        for encoder in options.encoders.split(","):
            if not (options.out / encoder / "index.json").is_file():
                print(f"{encoder}: not embedded", flush=True)
                continue
            for name in options.sets.split(","):
                rows, domain, names = load(options.out / encoder, name)
                for method in options.methods.split(","):
                    for seed in map(int, options.seeds.split(",")):
                        cell = f"{encoder}-{name}-{start}-{method.replace(' ', '_')}-seed{seed}"
                        path = options.out / "cells" / f"{cell}.json"
                        if path.is_file():
                            continue
                        if time.time() - began > 60 * options.minutes:
                            print("out of time", flush=True)
                            return
                        record = run_cell(rows, domain, method, start, seed)
                        record |= {"encoder": encoder, "set": name, "start": start, "method": method, "seed": seed}
                        record |= {"domains": names, "domain_sizes": np.bincount(domain).tolist()}
                        path.parent.mkdir(parents=True, exist_ok=True)
                        partial = path.with_suffix(".partial")
                        partial.write_text(json.dumps(record))
                        partial.replace(path)
                        print(f"{time.time() - began:6.0f} s  {cell:55s} nmi {record['nmi']:.4f} purity "
                              f"{record['purity']:.4f} entropy {record['entropy']:.4f} largest {record['largest']:.3f} "
                              f"{record['cpu_seconds']:.1f} s", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
