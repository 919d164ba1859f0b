"""GEM's iteration against its own two matrix products, against k-means elsewhere, and on several devices.

    python experiments/bench_gem/run.py                                    # every section; 20 minutes on two idle cores
    python experiments/bench_gem/run.py --sections iteration --sizes 100000,384,24
    python experiments/bench_gem/run.py --sections peers assign            # needs scikit-learn, faiss-cpu (see README)
    python experiments/bench_gem/run.py --tiny --out /tmp/trial.json       # a trial

Each section replaces its own part of the results. `taskset -c 0 …` times one core, for all alike.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "bench_stream"))

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from hardware import hardware  # noqa: E402

from jaxmix.clustering import assign, fit_stream, gem  # noqa: E402
from jaxmix.clustering.em.block_sums import (  # noqa: E402
    HIGHEST,
    by_blocks,
    dual_pass,
    fused_pass,
    gram_pass,
    moment_pass,
    posterior_pass,
)
from jaxmix.clustering.em.iteration import WeightedRows, Workspace, build_iteration, em_config  # noqa: E402
from jaxmix.clustering.fit import penalty_of  # noqa: E402
from jaxmix.clustering.placement import place_rows  # noqa: E402
from jaxmix.core.sharding import batch_sharding, build_mesh, replicated  # noqa: E402

SIZES = [(100_000, 384, 24), (100_000, 768, 24), (100_000, 384, 1000)]
PEER_SIZES = [(100_000, 384, 24), (100_000, 384, 256), (100_000, 384, 1000)]
WARM, TIMED = 5, 10


def documents(rows: int, d: int, k: int, seed: int = 0) -> np.ndarray:
    """Unit rows about k directions inside a cone, Zipf sizes, noise as wide as that of text embeddings."""
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(k, d)).astype(np.float32) + rng.normal(size=(1, d)).astype(np.float32)
    centers /= np.linalg.norm(centers, axis=1, keepdims=True)
    sizes = np.arange(1, k + 1) ** -0.8
    x = centers[rng.choice(k, rows, p=sizes / sizes.sum())]
    x += rng.standard_normal((rows, d), dtype=np.float32) * np.float32(1.2 / np.sqrt(d))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def best_of(call: Callable[[], Any], repeats: int) -> float:
    """Seconds, after a call that compiles."""
    jax.block_until_ready(call())
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def products_in_one_read(x: jax.Array, weight: jax.Array, slopes: jax.Array) -> jax.Array:
    """Rows times K directions, and the product back, block by block with nothing between: what a soft pass contains."""
    k, d = slopes.shape

    def block(_: jax.Array, x: jax.Array) -> tuple[jax.Array, None]:
        logits = jnp.matmul(x, slopes.T, precision=HIGHEST)
        return jnp.matmul(logits.T, x, precision=HIGHEST), None

    return by_blocks(block, (x,), weight, None, jnp.zeros((k, d)))[0]


def first_product(x: jax.Array, weight: jax.Array, slopes: jax.Array, table: jax.Array) -> jax.Array:
    """Rows times K directions, kept: the first of the two reads between which the dual is solved."""
    block = lambda _, x: ((), jnp.matmul(x, slopes.T, precision=HIGHEST))
    return by_blocks(block, (x,), weight, table, ())[1]


def second_product(x: jax.Array, weight: jax.Array, table: jax.Array) -> jax.Array:
    """The product back: the second read."""
    block = lambda _, x, part: (jnp.matmul(part.T, x, precision=HIGHEST), None)
    return by_blocks(block, (x, table), weight, None, jnp.zeros((table.shape[1], x.shape[1])))[0]


def product_alone(x: jax.Array, directions: jax.Array) -> jax.Array:
    """Rows times K directions and nothing kept: what a label costs at the least."""
    block = lambda _, x: (jnp.sum(jnp.matmul(x, directions.T, precision=HIGHEST), axis=0), None)
    return by_blocks(block, (x,), jnp.ones(x.shape[0]), None, jnp.zeros(directions.shape[0]))[0]


def floor_of_two_reads(x: jax.Array, weight: jax.Array, slopes: jax.Array, repeats: int) -> float:
    """Seconds of both products in loops of their own, 4 N K d operations and the rows read twice."""
    first, second = jax.jit(first_product, donate_argnums=3), jax.jit(second_product)
    table = jnp.zeros((x.shape[0], slopes.shape[0]))
    best = np.inf
    for _ in range(repeats + 1):
        began = time.perf_counter()
        table = first(x, weight, slopes, table)
        jax.block_until_ready(second(x, weight, table))
        best = min(best, time.perf_counter() - began)
    return best


def passes_alone(x: jax.Array, weight: jax.Array, state: Any, repeats: int) -> dict[str, float]:
    """Seconds of each pass that an iteration is made of: rows to the table, the dual and its Hessian, rows again."""
    k = state.mean_directions.shape[0]
    posterior, table = jax.jit(posterior_pass, donate_argnums=3), jnp.zeros((x.shape[0], k))
    seconds = {"posterior": np.inf}
    for _ in range(repeats + 1):
        began = time.perf_counter()
        *sums, table = posterior(state, x, weight, table)
        jax.block_until_ready((sums, table))
        seconds["posterior"] = min(seconds["posterior"], time.perf_counter() - began)
    shift = 0.1 * jax.random.normal(jax.random.key(0), (k,))
    dual, gram, moment = jax.jit(dual_pass), jax.jit(gram_pass), jax.jit(moment_pass)
    seconds["dual"] = best_of(lambda: dual(table, weight, shift), repeats)
    seconds["gram"] = best_of(lambda: gram(table, weight, shift), repeats)
    seconds["moment"] = best_of(lambda: moment(table, x, weight, shift), repeats)
    return seconds


def gem_iterations(x: Any, k: int, strength: float, mesh: Any = None) -> dict[str, Any]:
    """Seconds of iterations with the dual solved and F recorded, after some to warm up."""
    clusterer = gem(k, balance=strength)
    rows = place_rows("bench", x, None, k, mesh)
    place = (lambda tree: tree) if mesh is None else lambda tree: jax.device_put(tree, replicated(mesh))
    penalty, _ = penalty_of(clusterer, rows.number, jnp.float32)
    iterate = build_iteration(em_config(clusterer), mesh)
    state = place(clusterer.init(jnp.asarray(np.asarray(x[:k])), 100.0))
    table = jnp.zeros((rows.x.shape[0], k))
    table = table if mesh is None else jax.device_put(table, batch_sharding(mesh))
    penalty, total, factor, wants_gram = place((penalty, jnp.float32(rows.total), jnp.zeros((k, k)), jnp.bool_(True)))
    data, workspace = WeightedRows(rows.x, rows.weight, total), Workspace(table, factor, wants_gram)
    seconds, evaluations, objective = [], [], []
    for _ in range(WARM + TIMED):
        began = time.perf_counter()
        done = iterate(data, state, penalty, workspace)
        objective.append(float(done.objective))
        seconds.append(time.perf_counter() - began)
        evaluations.append(int(done.e_step.evaluations))
        state, workspace = done.state, done.e_step.workspace
    return {
        "seconds": min(seconds[WARM:]),
        "median_seconds": float(np.median(seconds[WARM:])),
        "mean_seconds": float(np.mean(seconds[WARM:])),
        "first_seconds": seconds[1:WARM],
        "evaluations": evaluations,
        "objective": objective[-1],
        "state": state,
    }


def iteration(arguments: argparse.Namespace) -> dict[str, Any]:
    """The iteration over the two products in two reads, the plain soft pass over the same in one."""
    report = {}
    for rows, d, k in arguments.sizes or SIZES:
        x = jnp.asarray(documents(rows, d, k))
        weight = jnp.ones(rows)
        state = gem(k).init(x[:k], 100.0)
        products, soft = jax.jit(products_in_one_read), jax.jit(fused_pass)
        floor = floor_of_two_reads(x, weight, state.mean_directions, arguments.repeats)
        one_read = best_of(lambda p=products, x=x, w=weight, s=state: p(x, w, s.mean_directions), arguments.repeats)
        plain = best_of(lambda p=soft, x=x, w=weight, s=state: p(s, x, w), arguments.repeats)
        found = {
            "floor_seconds": floor,
            "gflops_per_second": 4e-9 * rows * k * d / floor,
            "one_read_floor_seconds": one_read,
            "soft_over_one_read_floor": plain / one_read,
            "passes_seconds": passes_alone(x, weight, state, arguments.repeats),
        }
        for strength in (0.0, 100.0, 5000.0):
            measured = gem_iterations(x, k, strength)
            del measured["state"]
            measured["over_floor"] = measured["seconds"] / floor
            measured["median_over_floor"] = measured["median_seconds"] / floor
            measured["over_one_read_floor"] = measured["seconds"] / one_read
            found[f"gem {strength:g}"] = measured
        report[f"{rows},{d},{k}"] = found
        print(rows, d, k, json.dumps(found), flush=True)
    return report


def by_difference(run: Callable[[int], Any]) -> float:
    """Seconds of an iteration: 12 of them less 2."""
    seconds = {}
    for iterations in (2, 12):
        best = np.inf
        for _ in range(2):
            began = time.perf_counter()
            run(iterations)
            best = min(best, time.perf_counter() - began)
        seconds[iterations] = best
    return (seconds[12] - seconds[2]) / 10


def numpy_lloyd(x: np.ndarray, centers: np.ndarray, iterations: int) -> np.ndarray:
    """Spherical k-means in chunks of NumPy, for where no library is installed."""
    for _ in range(iterations):
        sums = np.zeros_like(centers)
        for start in range(0, len(x), 8192):
            block = x[start : start + 8192]
            member = np.zeros((len(block), len(centers)), np.float32)
            member[np.arange(len(block)), np.argmax(block @ centers.T, axis=1)] = 1
            sums += member.T @ block
        length = np.linalg.norm(sums, axis=1, keepdims=True)
        centers = np.where(length > 0, sums / np.maximum(length, 1e-12), centers)
    return centers


def peers(arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds of an iteration here and elsewhere, same rows, same first directions."""
    report = {}
    for rows, d, k in arguments.sizes or PEER_SIZES:
        x = documents(rows, d, k)
        found: dict[str, Any] = {"gem": gem_iterations(jnp.asarray(x), k, 5000.0)["median_seconds"]}
        found["numpy"] = by_difference(lambda n, x=x, k=k: numpy_lloyd(x, x[:k], n))
        try:
            import faiss

            options = {"spherical": True, "max_points_per_centroid": rows, "min_points_per_centroid": 1}
            train = lambda n, x=x, d=d, k=k, o=options: faiss.Kmeans(d, k, niter=n, **o).train(x, init_centroids=x[:k])
            found["faiss"] = by_difference(train)
        except ImportError:
            found["faiss"] = "not run: not installed"
        try:
            from sklearn.cluster import KMeans

            fit = lambda n, x=x, k=k: KMeans(k, init=x[:k], n_init=1, max_iter=n, tol=0.0, algorithm="lloyd").fit(x)
            found["scikit-learn"] = by_difference(fit)
        except ImportError:
            found["scikit-learn"] = "not run: not installed"
        for name in ("numpy", "faiss", "scikit-learn"):
            if not isinstance(found[name], str):
                found[f"gem_over_{name}"] = found["gem"] / found[name]
        report[f"{rows},{d},{k}"] = found
        print(rows, d, k, json.dumps(found), flush=True)
    return report


def labeling(arguments: argparse.Namespace) -> dict[str, Any]:
    """Rows a second of `assign` without its table, and of a flat search for the nearest direction."""
    report = {}
    for rows, d, k in arguments.sizes or PEER_SIZES:
        x = documents(rows, d, k)
        clusterer = gem(k)
        state = clusterer.init(jnp.asarray(x[:k]), 100.0)
        held = jnp.asarray(x)
        call = lambda c=clusterer, s=state, h=held: assign(c, s, h, with_posterior=False).labels
        found: dict[str, Any] = {"rows_per_second": rows / best_of(call, arguments.repeats)}
        product = jax.jit(product_alone)
        alone = best_of(lambda p=product, h=held, s=state: p(h, s.mean_directions), arguments.repeats)
        found["product_alone_rows_per_second"] = rows / alone
        search = lambda x=x, k=k, n=rows: [np.argmax(x[i : i + 8192] @ x[:k].T, 1) for i in range(0, n, 8192)]
        found["numpy_rows_per_second"] = rows / best_of(search, arguments.repeats)
        try:
            import faiss

            index = faiss.IndexFlatIP(d)
            index.add(x[:k])
            found["faiss_rows_per_second"] = rows / best_of(lambda x=x, i=index: i.search(x, 1)[1], arguments.repeats)
            found["over_faiss"] = found["rows_per_second"] / found["faiss_rows_per_second"]
            found["product_alone_over_faiss"] = found["product_alone_rows_per_second"] / found["faiss_rows_per_second"]
        except ImportError:
            found["faiss_rows_per_second"] = "not run: not installed"
        report[f"{rows},{d},{k}"] = found
        print("assign", rows, d, k, json.dumps(found), flush=True)
    return report


def stream_once(rows: int, d: int, k: int) -> dict[str, Any]:
    """A streamed fit of made-up blocks; what this process held at most."""
    size = 10_000
    centers = documents(k, d, k)

    def blocks() -> Any:
        for number in range(rows // size):
            rng = np.random.default_rng(number)
            x = centers[rng.integers(0, k, size)] + rng.standard_normal((size, d), dtype=np.float32) / np.float32(
                np.sqrt(d)
            )
            yield x / np.linalg.norm(x, axis=1, keepdims=True)

    began = time.perf_counter()
    result = fit_stream(gem(k), blocks, key=jax.random.key(0), init=centers, max_iters=3)
    return {
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "rows_mib": rows * d * 4 / 2**20,
        "passes": int(result.info.evaluations.sum()),
        "seconds": time.perf_counter() - began,
    }


def memory(arguments: argparse.Namespace) -> dict[str, Any]:
    """The streamed fit at growing numbers of rows, each in a process of its own."""
    report = {}
    for rows in (20_000, 40_000) if arguments.tiny else (100_000, 400_000, 1_600_000):
        command = [sys.executable, str(Path(__file__)), "--stream-once", f"{rows},384,24"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        report[str(rows)] = json.loads(done.stdout.splitlines()[-1])
        print("memory", rows, report[str(rows)], flush=True)
    return report


def devices(arguments: argparse.Namespace) -> dict[str, Any]:
    """The iteration on 1, 2, 4, 8 emulated devices: F, seconds, and what one device holds."""
    rows, d, k = (arguments.sizes or [(100_000, 384, 24)])[0]
    x = documents(rows, d, k)
    report: dict[str, Any] = {"size": f"{rows},{d},{k}"}
    for count in (1, 2, 4, 8):
        mesh = build_mesh(data=count, devices=jax.devices()[:count])
        found = gem_iterations(x, k, 5000.0, mesh)
        del found["state"]
        report[str(count)] = found | {
            "rows_per_device": -(-rows // count),
            "table_mib": -(-rows // count) * k * 4 / 2**20,
        }
        print("devices", count, json.dumps(report[str(count)]), flush=True)
    return report


SECTIONS = {"iteration": iteration, "peers": peers, "assign": labeling, "memory": memory, "devices": devices}


def main() -> None:
    size = lambda text: tuple(int(part) for part in text.split(","))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--sizes", nargs="+", type=size, help="rows,width,clusters")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--out", type=Path, default=HERE / "results.json")
    parser.add_argument("--stream-once", type=size, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.stream_once:
        print(json.dumps(stream_once(*arguments.stream_once)))
        return
    if arguments.tiny:
        arguments.sizes, arguments.repeats = [(4000, 64, 8), (4000, 64, 100)], 2
    if "devices" in arguments.sections:
        if len(arguments.sections) > 1:
            # Emulated devices change how the others are timed: a process of their own.
            rest = [section for section in arguments.sections if section != "devices"]
            again = [sys.executable, *sys.argv, "--sections", "devices"]
            arguments.sections = rest
        else:
            jax.config.update("jax_num_cpu_devices", 8)
            again = []
    else:
        again = []
    for section in arguments.sections:
        found = SECTIONS[section](arguments)
        results = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
        settings = {"jax": jax.__version__, "cores_used": len(os.sched_getaffinity(0))}
        results |= {section: found, "hardware": hardware() | settings}
        arguments.out.write_text(json.dumps(results, indent=1) + "\n")
    if again:
        subprocess.run(again, check=True)


if __name__ == "__main__":
    main()
