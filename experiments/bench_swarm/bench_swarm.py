"""A swarm of small models beside the same models trained one by one by our own loop, at equal steps.

    python experiments/bench_swarm/bench_swarm.py [--proxies 64] [--lone 6] [--steps 30] [--repeats 2]

Within a repeat: half of the lone runs, the swarm, the other half. Compilation, the evaluations before and after, and
the last checkpoint are left out of both. The lone runs' mean time stands for that of each of the swarm's proxies.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "bench_stream"))
from hardware import hardware

from jaxmix import mixers
from jaxmix.core.sharding import build_mesh, one_device_per_core
from jaxmix.data import MixtureStream
from jaxmix.models import preset, transformer
from jaxmix.train import TrainSettings, build_programs, read_records, run_training, validation_set
from jaxmix.train.swarm.run import Proxy, run_swarm
from jaxmix.workflows.config.load import from_mapping
from jaxmix.workflows.train.data import prepare_and_open

LOG = 5


class Bench:
    def __init__(self, arguments):
        self.arguments, self.folder = arguments, Path(tempfile.mkdtemp(prefix="bench_swarm"))
        plain = {"sources": "bundled", "train": {"steps": 1}, "out": str(self.folder / "none")}
        plain["data"] = {"prepared": arguments.prepared or str(self.folder / "prepared")}
        data = prepare_and_open(from_mapping(plain, file="bench"))
        self.sources = data.train
        self.stream = {"batch_size": arguments.rows, "seq_len": arguments.length, "block": 4}
        self.validation = validation_set(data.validation, seq_len=arguments.length, rows_per_domain=1)
        self.model = transformer(preset(arguments.preset, seq_len=arguments.length))
        never = 10**6
        self.settings = TrainSettings(
            steps=arguments.steps, learning_rate=4e-3, log_every=LOG, eval_every=never, checkpoint_every=never
        )
        # One device that computes with all cores: what `jaxmix train` has by default.
        self.mesh = build_mesh(devices=jax.devices()[:1])
        self.programs = build_programs(self.model, self.settings, num_domains=len(data.train), mesh=self.mesh)
        draws = np.random.default_rng(0).dirichlet(np.ones(len(data.train)), arguments.proxies)
        self.proxies = [Proxy(f"p{i}", weights, i) for i, weights in enumerate(draws)]
        self.tokens_per_step = arguments.rows * arguments.length

    def lone(self, number):
        """(wall, CPU) seconds of one step of one lone run, from its first log record on."""
        proxy, run_dir, clock = self.proxies[number], self.folder / "lone", Clock()
        with MixtureStream(self.sources, seed=proxy.seed, **self.stream) as stream:
            run_training(
                run_dir,
                model=self.model,
                mixer=mixers.make("static"),
                stream=stream,
                validation=self.validation,
                settings=self.settings,
                prior=proxy.weights,
                programs=self.programs,
                trackers=[clock],
                show_progress=False,
            )
        shutil.rmtree(run_dir)
        return clock.per_step()

    def swarm(self):
        """(wall, CPU) seconds of one step of one proxy, from the second stretch on."""
        run_dir = self.folder / "swarm"
        run_swarm(
            run_dir,
            model=self.model,
            proxies=self.proxies,
            sources=self.sources,
            validation=self.validation,
            settings=self.settings,
            vocab_size=256,
            show_progress=False,
            **self.stream,
        )
        records = read_records(run_dir / "progress.jsonl")
        shutil.rmtree(run_dir)
        steps = np.diff([record["step"] for record in records])
        totals = [sum(s * r[key] for s, r in zip(steps, records[1:], strict=True)) for key in KEYS]
        return [total / sum(steps) / len(self.proxies) for total in totals]


KEYS = ("step_seconds", "step_cpu_seconds")


class Clock:
    """Notes when every train record was written."""

    def __init__(self):
        self.ticks = []

    def log(self, step, record):
        if record["kind"] == "train":
            self.ticks.append((step, time.perf_counter(), time.process_time()))

    def close(self):
        pass

    def per_step(self):
        first, last = self.ticks[0], self.ticks[-1]
        return [(b - a) / (last[0] - first[0]) for a, b in zip(first[1:], last[1:], strict=True)]


def best_product(repeats=5, size=1024):
    """FLOP/s of a square float32 product on all cores of one device."""
    x = jax.random.normal(jax.random.key(0), (size, size))
    product = jax.jit(lambda a: a @ a)
    product(x).block_until_ready()
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        product(x).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--proxies", type=int, default=64)
    parser.add_argument("--lone", type=int, default=6, help="lone runs per repeat")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--preset", default="lm-300k")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--prepared", default="", help="folder of prepared bundled texts, to save the preparation")
    parser.add_argument("--out", default=str(Path(__file__).parent / "results.json"))
    arguments = parser.parse_args()
    one_device_per_core()
    bench = Bench(arguments)
    bench.lone(0)  # compiles
    lone, swarm = [], []
    for repeat in range(arguments.repeats):
        half = arguments.lone // 2
        lone += [bench.lone(i) for i in range(half)]
        swarm.append(bench.swarm())
        lone += [bench.lone(i) for i in range(half, arguments.lone)]
        print(
            f"repeat {repeat}: lone {1e3 * lone[-1][0]:.1f} ms, swarm {1e3 * swarm[-1][0]:.1f} ms per step", flush=True
        )
    lone, swarm = np.asarray(lone), np.asarray(swarm)
    ratio = np.median(swarm, axis=0) / np.median(lone, axis=0)
    flops = bench.model.flops_per_token * bench.tokens_per_step
    product = best_product()
    result = {
        "hardware": hardware(),
        "arguments": {k: v for k, v in vars(arguments).items() if k not in ("out", "prepared")},
        "lone_seconds_per_step": lone.tolist(),
        "swarm_seconds_per_proxy_and_step": swarm.tolist(),
        "ratio_of_wall_seconds": ratio[0],
        "ratio_of_cpu_seconds": ratio[1],
        "seconds_of_all_lone_runs": float(np.median(lone[:, 0]) * arguments.proxies * arguments.steps),
        "seconds_of_the_swarm": float(np.median(swarm[:, 0]) * arguments.proxies * arguments.steps),
        "flops_per_second": {
            "lone": flops / float(np.median(lone[:, 0])),
            "swarm": flops / float(np.median(swarm[:, 0])),
            "square_product": product,
        },
    }
    Path(arguments.out).write_text(json.dumps(result, indent=1) + "\n")
    print(
        f"{arguments.proxies} proxies, {arguments.steps} steps: swarm / lone = {ratio[0]:.3f} (wall), "
        f"{ratio[1]:.3f} (CPU seconds); swarm {result['flops_per_second']['swarm'] / 1e9:.1f} GFLOP/s, "
        f"lone {result['flops_per_second']['lone'] / 1e9:.1f}, square product {product / 1e9:.0f}"
    )
    shutil.rmtree(bench.folder)


if __name__ == "__main__":
    main()
