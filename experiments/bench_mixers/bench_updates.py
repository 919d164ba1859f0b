"""What one update of every loss-driven mixer costs at 64 domains, as a share of a training step of the 10M preset.

python experiments/bench_mixers/bench_updates.py [--rows 16] [--repeats 200]
"""

import argparse
import json
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "bench_stream"))
from hardware import hardware

from jaxmix import mixers
from jaxmix.core.sharding import build_mesh, global_batch
from jaxmix.mixers import Feedback
from jaxmix.models import preset, transformer
from jaxmix.train.lm.programs import build_programs
from jaxmix.train.lm.settings import TrainSettings
from jaxmix.train.lm.state import init_train_state

M = 64
CASES = {
    "odm": {},
    "doremi": {},
    "learnability": {},
    "foresight": {"total_steps": 10_000, "every": 1},
    "skillit": {"graph": 0.5, "evaluate_every": 1, "update_every": 1},
    "dynamic_batch_loading": {"target_losses": 2.0, "every": 1},
    "velocitune": {"target_losses": 1.0, "every": 1},
    "loss_proportional": {"every": 1},
    "aioli": {"round_length": 4000, "sweeps": 2, "interval": 4},
    "ado": {"refit_every": 1000, "ignore": 10, "start": 1000},
}


def median_seconds(call, repeats):
    """Median time of `call()`, which must wait for its result."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return float(np.median(times))


def step_seconds(arguments):
    model, mesh = transformer(preset("lm-10m")), build_mesh(devices=jax.devices()[:1])
    programs = build_programs(model, TrainSettings(steps=1000), num_domains=M, mesh=mesh)
    state = init_train_state(jax.random.key(0), model, programs.optimizer, mesh)
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 256, (arguments.rows, arguments.seq_len + 1)).astype(np.int32)
    domain = rng.integers(0, M, arguments.rows).astype(np.int32)
    batch = {"tokens": tokens[:, :-1].copy(), "targets": tokens[:, 1:].copy(), "domain": domain}
    batch = global_batch(mesh, batch)

    def one():
        nonlocal state
        state, info = programs.train_step(state, batch)
        jax.block_until_ready(info.loss)

    one()
    return median_seconds(one, 7)


def feedback(rng):
    counts = rng.integers(1, 2000, M).astype(np.float32)
    losses = rng.uniform(1, 3, M).astype(np.float32)
    return Feedback(
        token_count=jnp.asarray(counts),
        loss_sum=jnp.asarray(counts * losses),
        reference_loss_sum=jnp.asarray(counts * losses * 0.9),
        clipped_excess_sum=jnp.asarray(counts * losses * 0.1),
        validation_loss=jnp.asarray(losses),
    )


def update_seconds(name, options, repeats):
    """Median time of an update, and of the one in `refit_every` that refits for ADO."""
    mixer = mixers.make(name, **options)
    update, state = jax.jit(mixer.update), mixer.init(jax.random.key(0), M)
    rng, key = np.random.default_rng(0), jax.random.key(1)
    signals = [feedback(rng) for _ in range(8)]
    times = []
    for i in range(repeats if name != "ado" else 2100):
        began = time.perf_counter()
        state, info = update(key, state, signals[i % 8])
        jax.block_until_ready(info.score)
        times.append(time.perf_counter() - began)
    times = np.asarray(times[1:])
    return float(np.median(times)), float(times[1000:].max()) if name == "ado" else None


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=300)
    arguments = parser.parse_args()
    step = step_seconds(arguments)
    print(f"step of lm-10m, {arguments.rows} x {arguments.seq_len} tokens: {step * 1e3:.0f} ms")
    results = {}
    for name, options in CASES.items():
        seconds, refit = update_seconds(name, options, arguments.repeats)
        results[name] = {"milliseconds": seconds * 1e3, "share_of_step": seconds / step}
        line = f"{name:24} {seconds * 1e3:7.3f} ms  {100 * seconds / step:6.2f} % of a step"
        if refit is not None:
            amortised = (seconds + refit / options["refit_every"]) / step
            results[name] |= {"refit_milliseconds": refit * 1e3, "share_with_refit": amortised}
            line += f", refit {refit * 1e3:.0f} ms: {100 * amortised:.2f} % amortised"
        print(line, flush=True)
    written = {"hardware": hardware(), "arguments": vars(arguments), "step_seconds": step, "updates": results}
    path = Path(__file__).parent / "results_updates.json"
    path.write_text(json.dumps(written, indent=1) + "\n")


if __name__ == "__main__":
    main()
