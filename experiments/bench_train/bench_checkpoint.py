"""The share of a run's wall time that saving checkpoints every 100 steps blocks the loop.

python experiments/bench_train/bench_checkpoint.py [--preset lm-10m] [--rows 2] [--steps 300]
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from bench_model_speed import hardware

import jaxmix
from jaxmix.core.sharding import build_mesh
from jaxmix.data.mixture.stream import MixtureStream
from jaxmix.models import preset, transformer
from jaxmix.train import TrainSettings, read_records, run_training, validation_set


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="lm-10m")
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--seq-len", type=int, default=128)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--every", type=int, default=100)
    arguments = parser.parse_args()

    model = transformer(preset(arguments.preset))
    rng = np.random.default_rng(0)
    sources = {name: rng.integers(0, model.config.vocab_size, (64, 512)).astype(np.int32) for name in ("a", "b")}
    settings = TrainSettings(
        steps=arguments.steps, log_every=20, eval_every=10**9, checkpoint_every=arguments.every, keep=2
    )
    with (
        tempfile.TemporaryDirectory() as folder,
        MixtureStream(sources, batch_size=arguments.rows, seq_len=arguments.seq_len, seed=0) as stream,
    ):
        started = time.perf_counter()
        run_training(
            folder,
            model=model,
            mixer=jaxmix.mixers.make("odm"),
            stream=stream,
            validation=validation_set(sources, seq_len=arguments.seq_len, rows_per_domain=2),
            settings=settings,
            mesh=build_mesh(devices=jax.devices()[:1]),
        )
        wall = time.perf_counter() - started
        timing = read_records(Path(folder) / "timing.jsonl")
    # The last save comes after the last record and is not counted; the others are.
    blocked, last = timing[-1]["save_blocked_seconds"], timing[-1]["step"]
    saves = (last - 1) // arguments.every
    loop = sum(r["step_seconds"] * 20 for r in timing[1:])
    result = {
        "preset": arguments.preset,
        "parameters": model.num_params,
        "rows": arguments.rows,
        "seq_len": arguments.seq_len,
        "steps": arguments.steps,
        "every": arguments.every,
        "saves": saves,
        "blocked_seconds": blocked,
        "blocked_seconds_per_save": blocked / max(saves, 1),
        "loop_seconds": loop,
        "wall_seconds": wall,
        "share": blocked / loop,
        "hardware": hardware(),
    }
    print(f"{saves} saves blocked {blocked:.2f} s of {loop:.1f} s: {100 * result['share']:.2f} % (goal at most 5 %)")
    Path(__file__).with_name("checkpoint.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
