"""GEM on planted mixtures: what balance does, and what it costs in recovery.

    python experiments/gem_synthetic/run.py                          # everything, about an hour on two cores
    python experiments/gem_synthetic/run.py --tables ascent --tiny   # a trial of one table, results not kept
    python experiments/gem_synthetic/run.py --out /tmp/trial.json

Each cell (a table, a method, a seed) is written when it is done and skipped when it is there.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "bench_stream"))

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from hardware import hardware  # noqa: E402

from jaxmix.clustering import (  # noqa: E402
    adjusted_rand_index,
    assign,
    cluster_sizes,
    fit,
    fit_kmeans,
    gem,
    kmeans,
    normalized_mutual_information,
    size_entropy,
    spherical_kmeans,
    vmf_mixture,
)
from jaxmix.clustering.quality import coverage  # noqa: E402
from jaxmix.simulate.clusters import Planted, planted_mixture  # noqa: E402

STRENGTHS = (0, 1, 10, 100, 1000, 5000)
Cell = tuple[str, Callable[[], dict[str, Any]]]


def figures(labels: Any, classes: np.ndarray, k: int) -> dict[str, float]:
    sizes = cluster_sizes(labels, k)
    return {
        "ari": adjusted_rand_index(labels, classes),
        "nmi": normalized_mutual_information(labels, classes),
        "entropy": size_entropy(sizes),
        "largest": float(sizes.max()),
        "smallest": float(sizes.min()),
        "coverage": coverage(labels, classes),
    }


def run_fit(clusterer: Any, planted: Planted, seed: int, **options: Any) -> tuple[Any, Any, dict[str, Any]]:
    x = jnp.asarray(planted.x, options.pop("dtype", jnp.float32))
    began = time.perf_counter()
    result = fit(clusterer, x, key=jax.random.key(seed), **options)
    labels = np.asarray(assign(clusterer, result.state, x, with_posterior=False).labels)
    biases = np.asarray(result.state.biases)
    report = {
        **figures(labels, planted.classes, clusterer.num_clusters),
        "objective": float(result.objective.max()),
        "iterations": result.iterations,
        "converged": result.converged,
        "least_bias": float(biases.min()),
        "largest_bias": float(biases.max()),
        "gap": float(np.nanmax(result.info.gap)) if np.isfinite(result.info.gap).any() else None,
        "evaluations": float(result.info.evaluations.mean()),
        "reseeded": int(result.info.reseeded.sum()),
        "seconds": time.perf_counter() - began,
    }
    return result, labels, report


def raw_norms(planted: Planted, seed: int, k: int) -> dict[str, Any]:
    """k-means on rows whose lengths were never normalized: log-normal with deviation 0.3."""
    rng = np.random.default_rng(seed + 1000)
    rows = planted.x * np.exp(0.3 * rng.normal(size=(len(planted.x), 1)))
    found = fit_kmeans(jax.random.key(seed), jnp.asarray(rows, jnp.float32), k, restarts=1)
    return figures(np.asarray(found.labels), planted.classes, k)


def best_possible(planted: Planted, k: int) -> dict[str, Any]:
    state = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), planted.state)
    labels = assign(gem(k), state, jnp.asarray(planted.x, jnp.float32)).labels
    return figures(np.asarray(labels), planted.classes, k)


def ascent(tiny: bool) -> Iterator[Cell]:
    """Does F ever fall? 100 iterations, both precisions, and the mirror E-step beside the dual (11.2)."""
    rows, d, iterations = (1000, 32, 10) if tiny else (10_000, 128, 100)
    planted = planted_mixture(0, rows, 12, d, concentrations=(120, 200), exponent=1.2)

    def cell(strength: float, bits: int, options: dict[str, Any]) -> dict[str, Any]:
        with jax.enable_x64(bits == 64):
            dtype = jnp.float64 if bits == 64 else jnp.float32
            # A tolerance below every rise keeps the fit going to the last iteration.
            clusterer = gem(12, balance=strength, **options)
            settings = {"init": "kmeans++", "max_iters": iterations, "tol": 0.0}
            result, _, report = run_fit(clusterer, planted, 0, dtype=dtype, **settings)
        rises = np.diff(result.objective) / np.abs(result.objective[1:])
        calm = result.info.reseeded[:-1] == 0
        return report | {"least_rise": float(rises[calm].min()) if calm.any() else None}

    for strength in STRENGTHS:
        for bits in (64, 32):
            yield f"dual/{strength}/{bits}", lambda s=strength, b=bits: cell(s, b, {})
        for steps in (1, 5) if strength else ():
            options = {"e_step": "mirror", "mirror_steps": steps}
            yield f"mirror{steps}/{strength}/64", lambda s=strength, o=options: cell(s, 64, o)


def geometry(tiny: bool) -> Iterator[Cell]:
    """The paper's concentrations: where does 5000 begin to act? (11.3)"""
    rows, d = (1500, 96) if tiny else (12_000, 768)
    planted = planted_mixture(0, rows, 24, d, concentrations=(700, 1100), exponent=0.8, cone=0.75)
    reference: list[np.ndarray] = []

    def cell(clusterer: Any) -> dict[str, Any]:
        result, labels, report = run_fit(clusterer, planted, 0, max_iters=50)
        if not reference:
            free = gem(24, balance=0.0)
            reference.append(labels if clusterer == free else run_fit(free, planted, 0, max_iters=50)[1])
        without = dataclasses.replace(result.state, biases=jnp.zeros_like(result.state.biases))
        plain = np.asarray(assign(clusterer, without, jnp.asarray(planted.x, jnp.float32)).labels)
        changed = float((labels != reference[0]).mean())
        first, last = float(result.objective[0]), float(result.objective[-1])
        return report | {
            "changed_from_0": changed,
            "kept_without_biases": float((plain == labels).mean()),
            "first_objective": first,
            "last_objective": last,
        }

    yield "per_sample/0", lambda: cell(gem(24, balance=0.0))
    yield "summed/5000", lambda: cell(gem(24, penalty="summed"))
    for strength in (50, 500, 5000):
        yield f"per_sample/{strength}", lambda s=strength: cell(gem(24, balance=s))
    for steps in (1, 5, 20):
        yield f"mirror{steps}/5000", lambda s=steps: cell(gem(24, e_step="mirror", mirror_steps=s))


def imbalanced(tiny: bool) -> Iterator[Cell]:
    """Recovery of a Zipf mixture: the start matters more than the method, and balance costs (11.4)."""
    rows, d = (1500, 64) if tiny else (10_000, 128)
    for seed in range(1 if tiny else 4):
        planted = planted_mixture(seed, rows, 12, d, concentrations=(120, 200), exponent=1.2)
        yield f"raw norms/{seed}", lambda p=planted, s=seed: raw_norms(p, s, 12)
        yield f"best possible/{seed}", lambda p=planted: best_possible(p, 12)
        methods = {"k-means": kmeans(12), "spherical k-means": spherical_kmeans(12), "vMF mixture": vmf_mixture(12)}
        methods["gem 1"] = gem(12, balance=1.0)
        plain = {f"{name}, plain start": (method, "kmeans++") for name, method in methods.items()}
        chosen = {f"{name}, over-seeded": (method, "overseed") for name, method in methods.items()}
        for strength in STRENGTHS[2:]:
            chosen[f"gem {strength}, over-seeded"] = gem(12, balance=strength), "overseed"
        for name, (method, init) in (plain | chosen).items():
            yield f"{name}/{seed}", lambda m=method, i=init, p=planted, s=seed: run_fit(m, p, s, init=i)[2]


def overlapping(tiny: bool) -> Iterator[Cell]:
    """Clusters that overlap, of equal and of Zipf sizes (11.5)."""
    rows = 1500 if tiny else 6000
    methods = {
        "k-means": kmeans(24),
        "spherical k-means": spherical_kmeans(24),
        "vMF mixture": vmf_mixture(24),
        **{f"gem {strength}": gem(24, balance=strength) for strength in (0, 100, 5000)},
    }
    for law, exponent in (("balanced", 0.0), ("zipf", 1.0)):
        for seed in range(1 if tiny else 6):
            planted = planted_mixture(seed, rows, 24, 64, concentrations=(25, 37), exponent=exponent)
            yield f"{law}/raw norms/{seed}", lambda p=planted, s=seed: raw_norms(p, s, 24)
            yield f"{law}/best possible/{seed}", lambda p=planted: best_possible(p, 24)
            for name, method in methods.items():
                cell = lambda m=method, p=planted, s=seed: run_fit(m, p, s, init="kmeans++")[2]
                yield f"{law}/{name}/{seed}", cell


def precision(tiny: bool) -> Iterator[Cell]:
    """Are float32 labels those of float64? The model of a float64 fit, and whole fits from the same directions."""
    rows, d = (1500, 96) if tiny else (12_000, 768)
    planted = planted_mixture(0, rows, 24, d, concentrations=(700, 1100), exponent=0.8, cone=0.75)

    def cell(strength: float) -> dict[str, Any]:
        found, starts = {}, planted.state.mean_directions
        with jax.enable_x64(True):
            for dtype in (jnp.float64, jnp.float32):
                clusterer = gem(24, balance=strength)
                result, labels, _ = run_fit(clusterer, planted, 0, dtype=dtype, init=starts, max_iters=30)
                found[dtype.__name__] = result, labels
            exact, labels = found["float64"]
            narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), exact.state)
            same_model = assign(gem(24), narrow, jnp.asarray(planted.x, jnp.float32)).labels
        return {
            "same_model": float((np.asarray(same_model) == labels).mean()),
            "own_fit": float((found["float32"][1] == labels).mean()),
            "objective_difference": float(abs(found["float32"][0].objective.max() / exact.objective.max() - 1)),
        }

    for strength in (1, 100, 5000):
        yield f"{strength}", lambda s=strength: cell(s)


TABLES = {
    "ascent": ascent,
    "geometry": geometry,
    "imbalanced": imbalanced,
    "overlapping": overlapping,
    "precision": precision,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE / "results.json")
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--tiny", action="store_true", help="small sizes; nothing is kept")
    arguments = parser.parse_args()
    results = json.loads(arguments.out.read_text()) if arguments.out.exists() and not arguments.tiny else {}
    for table in arguments.tables:
        cells = results.setdefault(table, {})
        for name, cell in TABLES[table](arguments.tiny):
            if name in cells:
                continue
            cells[name] = cell()
            print(table, name, json.dumps(cells[name]), flush=True)
            if not arguments.tiny:
                results["hardware"] = hardware()
                arguments.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
