"""What per-domain accounting and an online mixer cost, against a plain static step of the same model.

Both steps run interleaved in one process on the same batches; the figure is the median of the paired ratios.

    python experiments/bench_train/bench_step_overhead.py [--preset lm-10m] [--rows 4] [--seq-len 256] [--pairs 20]
"""

import argparse
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from bench_model_speed import hardware

import jaxmix
from jaxmix.core.sharding import build_mesh, global_batch, replicated
from jaxmix.models import preset, transformer
from jaxmix.train.lm.programs import build_mixer_programs, build_programs
from jaxmix.train.lm.settings import TrainSettings
from jaxmix.train.lm.state import RunState, init_run_state, init_train_state

DOMAINS = 10


def plain_step(model, optimizer):
    """The step one would write without jaxmix: mean loss, AdamW, nothing else."""

    def step(params, opt_state, batch):
        def loss(params):
            result = model.apply(params, batch)
            losses = result[0] if isinstance(result, tuple) else result
            return jnp.sum(losses) / jnp.sum(batch["targets"] >= 0)

        value, grads = jax.value_and_grad(loss)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value

    return jax.jit(step, donate_argnums=(0, 1))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="lm-10m")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--pairs", type=int, default=20)
    arguments = parser.parse_args()

    model, mesh = transformer(preset(arguments.preset)), build_mesh(devices=jax.devices()[:1])
    settings = TrainSettings(steps=1000)
    programs = build_programs(model, settings, num_domains=DOMAINS, mesh=mesh)
    mixer = jaxmix.mixers.make("odm")
    mixer_programs = build_mixer_programs(mixer, programs, settings)
    train = init_train_state(jax.random.key(0), model, programs.optimizer, mesh)
    prior = jax.device_put(np.full(DOMAINS, 1 / DOMAINS, np.float32), replicated(mesh))
    state = init_run_state(jax.random.key(1), train, mixer, prior, mesh)
    params = jax.jit(model.init)(jax.random.key(0))
    opt_state = jax.jit(programs.optimizer.init)(params)
    plain = plain_step(model, programs.optimizer)

    rng = np.random.default_rng(0)
    vocab = model.config.vocab_size

    def batch():
        tokens = rng.integers(0, vocab, (arguments.rows, arguments.seq_len + 1)).astype(np.int32)
        domain = rng.integers(0, DOMAINS, arguments.rows).astype(np.int32)
        return global_batch(mesh, {"tokens": tokens[:, :-1].copy(), "targets": tokens[:, 1:].copy(), "domain": domain})

    def run_jaxmix(state, data, pair):
        train, info = programs.train_step(state.train, data)
        state = RunState(train, state.mixer, state.mixer_key, state.pending, state.validation_loss)
        mixer_state, pending, _ = mixer_programs.advance(state, info.feedback, pair)
        weights = jax.device_get(mixer_programs.weights(mixer_state))
        jax.block_until_ready(train)
        return RunState(train, mixer_state, state.mixer_key, pending, state.validation_loss), weights

    def run_plain(params, opt_state, data):
        return jax.block_until_ready(plain(params, opt_state, data))

    times = {"plain": [], "jaxmix": []}
    for pair in range(arguments.pairs + 2):
        data = batch()
        order = ("plain", "jaxmix") if pair % 2 else ("jaxmix", "plain")
        for which in order:
            started = time.perf_counter()
            if which == "plain":
                params, opt_state, _ = run_plain(params, opt_state, data)
            else:
                state, _ = run_jaxmix(state, data, pair)
            if pair >= 2:  # the first two compile and warm up
                times[which].append(time.perf_counter() - started)

    ratios = np.asarray(times["jaxmix"]) / np.asarray(times["plain"])
    low, high = np.percentile(ratios, [25, 75])
    result = {
        "preset": arguments.preset,
        "rows": arguments.rows,
        "seq_len": arguments.seq_len,
        "domains": DOMAINS,
        "pairs": arguments.pairs,
        "plain_ms": 1e3 * float(np.median(times["plain"])),
        "jaxmix_ms": 1e3 * float(np.median(times["jaxmix"])),
        "ratio_median": float(np.median(ratios)),
        "ratio_quartiles": [float(low), float(high)],
        "hardware": hardware(),
    }
    print(f"plain {result['plain_ms']:.1f} ms, with accounting and ODM {result['jaxmix_ms']:.1f} ms")
    print(f"ratio {result['ratio_median']:.4f} (quartiles {low:.4f} to {high:.4f}; goal at most 1.02)")
    path = Path(__file__).with_name("step_overhead.json")
    path.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
