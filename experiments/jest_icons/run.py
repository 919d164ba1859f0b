"""Trains two towers on icons and their names, a batch policy a cell, and writes one JSON a cell.

python experiments/jest_icons/run.py --data data/icons --out runs/jest_icons

Stopped, the same command continues with the cells that are missing. --pools, --policies, --seeds and --minutes take a
part.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from cells import POLICIES, POOLS, SEEDS, WIDTH, Pool, policy
from icons import Icons, embed_rows, load, pool_of, style_parts, tester, towers

from jaxmix.core.sharding import build_mesh
from jaxmix.models.partition import params_template
from jaxmix.train.lm.programs import optimizer_of
from jaxmix.train.lm.settings import TrainSettings
from jaxmix.train.pairs.embedding_cache import EmbeddingCache, cache_key, write_embeddings
from jaxmix.train.pairs.loop import run_pairs
from jaxmix.train.pairs.step import build_pair_programs
from jaxmix.train.pairs.stream import PairPool, PairStream, random_shift
from jaxmix.train.run.checkpoint import read_params
from jaxmix.train.run.records import latest_by_step, read_records

NEVER = 10**9
OPTIMIZER: dict[str, Any] = {"learning_rate": 2e-3, "warmup_steps": 20, "weight_decay": 0.01}
SHIFT = 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("data/icons"))
    parser.add_argument("--out", type=Path, default=Path("runs/jest_icons"))
    parser.add_argument("--pools", nargs="*", default=["shuffled", "shipped"], choices=list(POOLS))
    parser.add_argument("--policies", nargs="*", default=list(POLICIES), choices=list(POLICIES))
    parser.add_argument("--seeds", nargs="*", type=int, default=list(SEEDS))
    parser.add_argument("--minutes", type=float, default=1e9, help="start no cell after so many")
    parser.add_argument("--steps", type=int, help="of every cell and the reference, for a trial")
    options = parser.parse_args()
    use_disk_cache(options.out)
    bench = Bench(options.data, options.out, options.steps)
    started = time.monotonic()
    for seed in options.seeds:
        for name in options.policies:
            for pool in options.pools:
                path = options.out / f"{pool}-{name}-seed{seed}.json"
                if path.is_file() or time.monotonic() - started > 60 * options.minutes:
                    continue
                record = bench.cell(pool, name, seed)
                path.write_text(json.dumps(record, indent=1) + "\n")
                last = record["curve"][-1]
                print(f"{path.stem}: recall@10 {last['recall@10']:.4f}, {record['seconds']:.0f} s", flush=True)


def use_disk_cache(out: Path) -> None:
    """Cells of other seeds run the same programs: compile each once."""
    jax.config.update("jax_compilation_cache_dir", str(out.absolute() / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


class Bench:
    """What cells share: data, towers, references, compiled programs."""

    def __init__(self, data: Path, out: Path, steps: int | None):
        self.icons: Icons = load(data)
        self.icons = self.icons._replace(parts={**self.icons.parts, **style_parts(self.icons)})
        self.out, self.steps = out, steps
        out.mkdir(parents=True, exist_ok=True)
        self.mesh = build_mesh(devices=jax.devices()[:1])
        self.model = towers(width=WIDTH)

    def cell(self, pool_name: str, name: str, seed: int) -> dict[str, Any]:
        pool, started = POOLS[pool_name], time.perf_counter()
        pairs, is_shuffled = pool_of(self.icons, self.icons.parts[pool.part], shuffled=pool.shuffled, seed=seed)
        chosen = policy(name, pool)
        cache, reference = None, None
        if chosen.selector is not None:
            cache, reference = self.reference(pool_name, pairs, seed)
        steps = self.steps or chosen.steps
        folder = self.out / "work" / f"{pool_name}-{name}-seed{seed}"
        shutil.rmtree(folder, ignore_errors=True)
        result, programs, curve = self.train(folder, pairs, pool, steps, seed, chosen=chosen, cache=cache)
        noisy = None
        if cache is not None and pool.shuffled:
            noisy = self.shuffled_share(programs, result.params, pairs, pool, cache, is_shuffled)
        other = tester(self.icons, "pool_test", programs.embed)(result.params)
        shutil.rmtree(folder)
        return {
            "pool": pool_name,
            "policy": name,
            "seed": seed,
            "num_select": pool.num_select,
            "num_candidates": chosen.num_candidates,
            "curve": curve,
            "pool_test": other,
            "shuffled_share_of_selected": noisy,
            "reference": reference,
            "seconds": time.perf_counter() - started,
        }

    def train(
        self,
        folder: Path,
        pairs: PairPool,
        pool: Pool,
        steps: int,
        seed: int,
        *,
        chosen: Any = None,
        cache: EmbeddingCache | None = None,
        schedule: str = "constant",
    ) -> tuple[Any, Any, list[dict[str, float]]]:
        """A run, its programs, and recall by step with the four axes."""
        every = min(pool.eval_every, steps) if schedule == "constant" else steps
        settings = TrainSettings(
            steps=steps,
            seed=seed,
            schedule=schedule,
            log_every=every,
            eval_every=every,
            checkpoint_every=NEVER,
            keep=1,
            **{**OPTIMIZER, "warmup_steps": min(OPTIMIZER["warmup_steps"], steps - 1)},
        )
        candidates = pool.num_select if chosen is None else chosen.num_candidates
        programs = build_pair_programs(
            self.model,
            optimizer_of(settings)[0],
            num_candidates=candidates,
            selector=None if chosen is None else chosen.selector,
            reference=cache,
            settings=None if chosen is None else chosen.settings,
            augment=random_shift(SHIFT),
            mesh=self.mesh,
        )
        stream = PairStream(
            pairs, num_candidates=candidates, seed=seed, num_select=programs.num_select, reference=cache
        )
        result = run_pairs(
            folder,
            model=self.model,
            programs=programs,
            stream=stream,
            settings=settings,
            evaluate=tester(self.icons, pool.test, programs.embed),
            show_progress=False,
        )
        curve = [
            {key.removeprefix("eval/"): value for key, value in record.items() if key != "kind"}
            for record in latest_by_step(read_records(folder / "metrics.jsonl"), "eval")
        ]
        return result, programs, curve

    def reference(self, pool_name: str, pairs: PairPool, seed: int) -> tuple[EmbeddingCache, dict[str, float]]:
        """Trained once for a curated part and seed; its embeddings cached once for a pool."""
        pool = POOLS[pool_name]
        steps = self.steps or pool.reference_steps
        folder = self.out / "references" / f"{pool.reference}-seed{seed}"
        curated, _ = pool_of(self.icons, self.icons.parts[pool.reference])
        if not (folder / "recall.json").is_file():
            _, _, curve = self.train(folder, curated, pool, steps, 1000 + seed, schedule="cosine")
            (folder / "recall.json").write_text(json.dumps(curve[-1]) + "\n")
        params = read_params(folder, params_template(self.model, self.mesh))
        embed = jax.jit(
            lambda params, images, tokens: (
                self.model.embed_image(params, images),
                self.model.embed_text(params, tokens),
            )
        )

        def block(start: int, stop: int) -> Any:
            return embed_rows(embed, params, PairPool(pairs.images[start:stop], pairs.tokens[start:stop]))

        temperature, bias = (float(x) for x in self.model.scale(params))
        key = cache_key(
            model=self.model.config,
            params=params,
            images=self.icons.digest,
            captions=pairs.tokens,
            preprocessing="none",
        )
        cache = write_embeddings(
            self.out / "caches" / f"{pool_name}-seed{seed}",
            key=key,
            num_rows=len(pairs.images),
            embed=block,
            temperature=temperature,
            bias=bias,
            block=8192,
        )
        return cache, json.loads((folder / "recall.json").read_text())

    def shuffled_share(
        self, programs: Any, params: Any, pairs: PairPool, pool: Pool, cache: EmbeddingCache, is_shuffled: np.ndarray
    ) -> float:
        """Of what the trained learner would select from eight super-batches it has not met, how much is shuffled."""
        stream = PairStream(pairs, num_candidates=pool.num_candidates, seed=12345, reference=cache)
        shares = []
        for step in range(8):
            batch = stream.batch(step)
            on_device = jax.tree.map(jnp.asarray, batch)
            indices, _ = programs.select(params, jax.random.key(0), jnp.int32(step), on_device)
            shares.append(is_shuffled[batch["row"][np.asarray(indices)]].mean())
        return float(np.mean(shares))


if __name__ == "__main__":
    main()
