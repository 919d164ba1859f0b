"""What a selected batch is worth on real embeddings: F(S)/b of each way to select, from trained towers on icons.

python experiments/jest_icons/quality.py --data data/icons --out runs/jest_icons

The reference is run.py's; the learner is the same towers trained for a while on what comes. One JSON per pool, seed and
stage, `quality-*.json`; stopped, the same command continues.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from cells import POOLS, SEEDS
from icons import embed_rows, pool_of
from run import Bench, use_disk_cache

from jaxmix.selection import Embeddings, independent, jest, selection_objective
from jaxmix.train.pairs.stream import PairPool, PairStream

CANDIDATES, CHOSEN = 4096, 1024
SUPER_BATCHES = 2
STAGES = (50, 200)
"""Steps that the learner has been trained for."""


def selectors() -> dict[str, Any]:
    chosen = CHOSEN
    found: dict[str, Any] = {
        "independent_sampled": independent(chosen),
        "independent_top": independent(chosen, greedy=True),
        "context_sampled": independent(chosen, context=True),
        "context_top": independent(chosen, context=True, greedy=True),
    }
    found |= {f"jest_{chunks}": jest(chosen, num_chunks=chunks) for chunks in (1, 4, 16, 64, 256)}
    found |= {f"jest_16_sweeps_{sweeps}": jest(chosen, num_chunks=16, sweeps=sweeps) for sweeps in (1, 2, 4)}
    found["jest_16_greedy"] = jest(chosen, num_chunks=16, greedy=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("data/icons"))
    parser.add_argument("--out", type=Path, default=Path("runs/jest_icons"))
    parser.add_argument("--pools", nargs="*", default=["shuffled", "shipped"], choices=list(POOLS))
    parser.add_argument("--seeds", nargs="*", type=int, default=list(SEEDS))
    parser.add_argument("--stages", nargs="*", type=int, default=list(STAGES))
    options = parser.parse_args()
    use_disk_cache(options.out)
    bench = Bench(options.data, options.out, None)
    compiled = {name: jax.jit(selector.select) for name, selector in selectors().items()}
    objective = jax.jit(selection_objective)
    for seed in options.seeds:
        for stage in options.stages:
            for pool in options.pools:
                path = options.out / f"quality-{pool}-{stage}-seed{seed}.json"
                if not path.is_file():
                    record = measure(bench, pool, stage, seed, compiled, objective)
                    path.write_text(json.dumps(record, indent=1) + "\n")
                    shown = {name: round(row["objective"], 3) for name, row in record["selections"].items()}
                    print(path.stem, shown, flush=True)


def measure(bench: Bench, pool_name: str, stage: int, seed: int, compiled: Any, objective: Any) -> dict[str, Any]:
    pool, started = POOLS[pool_name], time.perf_counter()
    pairs, is_shuffled = pool_of(bench.icons, bench.icons.parts[pool.part], shuffled=pool.shuffled, seed=seed)
    cache, _ = bench.reference(pool_name, pairs, seed)
    folder = bench.out / "learners" / f"{pool_name}-{stage}-seed{seed}"
    result, programs, _ = bench.train(folder, pairs, pool, stage, seed)
    scale = bench.model.scale(result.params)
    stream = PairStream(pairs, num_candidates=CANDIDATES, seed=777 + seed)
    rows: dict[str, list[dict[str, float]]] = {}
    for number in range(SUPER_BATCHES):
        batch = stream.batch(number)
        image, text = embed_rows(programs.embed, result.params, PairPool(batch["images"], batch["tokens"]))
        learner = Embeddings(jnp.asarray(image), jnp.asarray(text), *scale)
        frozen = [jnp.asarray(x) for x in cache.read(batch["row"])]
        reference = Embeddings(*frozen, jnp.float32(cache.temperature), jnp.float32(cache.bias))
        key = jax.random.key(1000 * seed + number)
        chosen = {name: select(key, learner, reference).indices for name, select in compiled.items()}
        chosen["random"] = jax.random.permutation(key, CANDIDATES)[:CHOSEN]
        for name, indices in chosen.items():
            value = objective(learner, reference, indices)
            rows.setdefault(name, []).append(
                {
                    "objective": float(value.mean),
                    "positive": float(value.positive),
                    "negative": float(value.negative),
                    "shuffled_share": float(is_shuffled[batch["row"][np.asarray(indices)]].mean()),
                }
            )
    selections = {
        name: {field: float(np.mean([row[field] for row in found])) for field in found[0]}
        for name, found in rows.items()
    }
    return {
        "pool": pool_name,
        "learner_steps": stage,
        "seed": seed,
        "candidates": CANDIDATES,
        "chosen": CHOSEN,
        "selections": selections,
        "seconds": time.perf_counter() - started,
    }


if __name__ == "__main__":
    main()
