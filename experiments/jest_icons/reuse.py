"""Does reuse of the scoring forward pay? Processor time of a step with and without, on random pixels and words.

python experiments/jest_icons/reuse.py

The towers of run.py, b = 256, cached reference. Prints the least of several steps; read the ratios within one run.
"""

from __future__ import annotations

import time

import jax
import numpy as np
import optax
from cells import WIDTH
from icons import SIZE, TRIGRAMS, VOCABULARY, towers

from jaxmix.core.sharding import build_mesh, global_batch, use_mesh
from jaxmix.selection import jest
from jaxmix.train.pairs.embedding_cache import EmbeddingCache
from jaxmix.train.pairs.step import PairSettings, build_pair_programs, init_pair_state
from jaxmix.train.pairs.stream import PairPool, PairStream

CHOSEN, STEPS = 256, 8
CASES = [(5 / 4, 1, "none"), (5 / 4, 1, "activations"), (2, 1, "none"), (2, 1, "activations")]
CASES += [(5, 4, "none"), (5, 4, "embeddings")]


def main() -> None:
    mesh = build_mesh(devices=jax.devices()[:1])
    model = towers(width=WIDTH)
    rng = np.random.default_rng(0)
    rows = 5 * CHOSEN
    pool = PairPool(
        rng.integers(0, 256, (rows, SIZE, SIZE, 3), dtype=np.uint8),
        rng.integers(1, VOCABULARY, (rows, TRIGRAMS)).astype(np.int32),
    )
    unit = rng.standard_normal((2, rows, WIDTH)).astype(np.float32)
    unit /= np.linalg.norm(unit, axis=-1, keepdims=True)
    cache = EmbeddingCache(unit[0], unit[1], 10.0, -5.0)
    for ratio, accumulate, reuse in CASES:
        candidates = int(ratio * CHOSEN)
        programs = build_pair_programs(
            model,
            optax.adamw(1e-3),
            num_candidates=candidates,
            selector=jest(CHOSEN, num_chunks=16),
            reference=cache,
            settings=PairSettings(reuse=reuse),
            accumulate=accumulate,
            mesh=mesh,
        )
        stream = PairStream(pool, num_candidates=candidates, seed=0, reference=cache)
        with use_mesh(mesh):
            state = init_pair_state(jax.random.key(0), model, programs)
            batch = global_batch(mesh, stream.batch(0))
            seconds = []
            for _ in range(STEPS):
                started = time.process_time()
                state, info = programs.step(state, batch)
                jax.block_until_ready((state.train.params, info.loss))
                seconds.append(time.process_time() - started)
        cost = programs.cost(1).flops
        print(f"B/b {ratio}, accumulate {accumulate}, reuse {reuse}: {1000 * min(seconds[1:]):.0f} ms, {cost:.3g} FLOP")


if __name__ == "__main__":
    main()
