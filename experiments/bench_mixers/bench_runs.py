"""Whole runs at equal tokens: what mixers add to the time of a static mixture, and an eager Aioli beside ours.

The runs of all variants are interleaved and repeated; a figure is the median of the ratios within one repeat.

    python experiments/bench_mixers/bench_runs.py [--repeats 3] [--steps 250] [--preset lm-300k]
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
from eager import run_eager_aioli
from hardware import hardware

from jaxmix import mixers
from jaxmix.core.sharding import build_mesh
from jaxmix.data import MixtureStream
from jaxmix.models import preset, transformer
from jaxmix.train import TrainSettings, build_programs, run_training, validation_set
from jaxmix.train.lm.evaluate import subset
from jaxmix.train.lm.signals import reference_table
from jaxmix.workflows.config.load import from_mapping
from jaxmix.workflows.train.data import prepare_and_open

DOMAINS, ROWS, LENGTH = 7, 16, 128
AIOLI = {"sweeps": 4, "interval": 4}  # the library's defaults; 7 domains x 4 x 4 = 112 of a round of 250 steps

VARIANTS = {
    "static": ("static", {}),
    "odm": ("odm", {}),
    "foresight": ("foresight", {}),
    "doremi": ("doremi", {}),
    "dynamic_batch_loading": ("dynamic_batch_loading", {"target_losses": 2.0, "every": 50}),
    "aioli": ("aioli", AIOLI),
    "aioli_gentle": ("aioli", {"sweeps": 2, "interval": 4}),
    "r_and_b": ("r_and_b", {"every": 20, "round_updates": 5}),
    "doge_sketch_every_4": ("doge", {"gradients": "sketch", "every": 4}),
    "doge_sketch_every_2": ("doge", {"gradients": "sketch", "every": 2}),
    "doge_last_layer": ("doge", {"gradients": "last_layer"}),
    "doge_sketch": ("doge", {"gradients": "sketch"}),
    "doge_exact": ("doge", {"gradients": "exact"}),
}


class Bench:
    def __init__(self, arguments):
        self.arguments, self.folder = arguments, Path(tempfile.mkdtemp(prefix="bench_runs"))
        plain = {"sources": "bundled", "train": {"steps": 1}, "out": str(self.folder / "none")}
        plain["data"] = {"prepared": arguments.prepared or str(self.folder / "prepared")}
        data = prepare_and_open(from_mapping(plain, file="bench"))
        self.names = list(data.train)[:DOMAINS]
        self.train = {n: data.train[n] for n in self.names}
        self.mesh = build_mesh(devices=jax.devices()[:1])
        held_out = {n: data.validation[n] for n in self.names}
        self.validation = validation_set(held_out, seq_len=LENGTH, rows_per_domain=32)
        self.control = subset(self.validation, arguments.control_rows)
        self.model = transformer(preset(arguments.preset, seq_len=LENGTH))
        self.settings = TrainSettings(
            steps=arguments.steps, log_every=50, eval_every=10**6, checkpoint_every=10**6, gradient_rows=1
        )
        self.programs = build_programs(self.model, self.settings, num_domains=DOMAINS, mesh=self.mesh)

    def seconds(self, name, repeat):
        """(wall, CPU) seconds of `steps` steps, compilation left out: from the first log record on, extrapolated."""
        kind, options = VARIANTS[name]
        if kind == "foresight":
            options = {"total_steps": self.arguments.steps}
        run_dir = self.folder / f"{name}-{repeat}"
        with MixtureStream(self.train, batch_size=ROWS, seq_len=LENGTH, seed=repeat, block=1) as stream:
            ticks = []
            run_training(
                run_dir,
                model=self.model,
                mixer=mixers.make(kind, **options),
                stream=stream,
                validation=self.validation,
                control=self.control,
                reference=reference_table(np.full(DOMAINS, 2.0), self.mesh) if kind == "doremi" else None,
                settings=self.settings,
                programs=self.programs,
                trackers=[_Clock(ticks)],
                show_progress=False,
            )
        shutil.rmtree(run_dir)
        # The first record comes after step 50: what came before holds the compilations.
        (first, *start), (last, *end) = ticks[0], ticks[-1]
        return [(b - a) / (last - first) * self.arguments.steps for a, b in zip(start, end, strict=True)]


KINDS = ("wall", "cpu")


class _Clock:
    """Notes when every train record was written."""

    def __init__(self, ticks):
        self.ticks = ticks

    def log(self, step, record):
        if record["kind"] == "train":
            self.ticks.append((step, time.perf_counter(), time.process_time()))

    def close(self):
        pass


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--preset", default="lm-300k")
    parser.add_argument("--control-rows", type=int, default=4)
    parser.add_argument("--prepared", default="", help="folder of prepared bundled texts, to save the preparation")
    parser.add_argument("--only", nargs="*", default=list(VARIANTS))
    arguments = parser.parse_args()
    bench = Bench(arguments)
    seconds = {name: [] for name in ["static", *(n for n in arguments.only if n != "static"), "eager_aioli"]}
    for repeat in range(arguments.repeats):
        for name in seconds:
            took = run_eager_aioli(bench, repeat, **AIOLI) if name == "eager_aioli" else bench.seconds(name, repeat)
            seconds[name].append(took)
            wall, cpu = (a / b for a, b in zip(took, seconds["static"][repeat], strict=True))
            print(f"repeat {repeat}  {name:24} {took[0]:6.2f} s  {wall:.3f} x, CPU {cpu:.3f} x", flush=True)
    table = {}
    for name, taken in seconds.items():
        ratios = (np.asarray(taken) / np.asarray(seconds["static"])).T
        table[name] = {
            kind: {"median": float(np.median(r)), "all": r.tolist()} for kind, r in zip(KINDS, ratios, strict=True)
        }
        medians = ", ".join(
            f"{kind} {row['median']:.3f} ({min(row['all']):.3f} to {max(row['all']):.3f})"
            for kind, row in table[name].items()
        )
        print(f"{name:24} {medians} x static")
    settings = {k: v for k, v in vars(arguments).items() if k != "prepared"}
    written = {"hardware": hardware(), "arguments": settings, "seconds": seconds, "ratio_to_static": table}
    (Path(__file__).parent / "results_runs.json").write_text(json.dumps(written, indent=1) + "\n")
    shutil.rmtree(bench.folder)


if __name__ == "__main__":
    main()
