"""Model FLOP/s of a training step over the matrix-product FLOP/s of the same machine, measured in one run.

    python experiments/bench_train/bench_model_flops.py                  # CPU: lm-10m, 8 rows of 256, float32
    python experiments/bench_train/bench_model_flops.py --rows 32        # GPU: lm-350m, rows of 1,024, bfloat16

Model FLOPs are those of `jaxmix.models.flops_per_token`: forward and backward products and the causal half of
attention; nothing recomputed counts. The yardstick is the best of several square products in the compute dtype,
timed in turns with the steps.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import time

import jax
import jax.numpy as jnp
from bench_model_speed import Runner, hardware

from jaxmix.models import preset, transformer


def build_product(size, dtype, repeats):
    """A chain of square products, long enough that starting it does not count; returns (function, FLOPs)."""
    keys = jax.random.split(jax.random.key(0))
    a, b = (jax.random.normal(key, (size, size)).astype(dtype) for key in keys)
    scale = jnp.asarray(size**-0.5, dtype)

    @jax.jit
    def chain(a, b):
        return jax.lax.fori_loop(0, repeats, lambda _, x: (x @ b) * scale, a)

    jax.block_until_ready(chain(a, b))
    return lambda: jax.block_until_ready(chain(a, b)), 2 * size**3 * repeats


def seconds(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main():
    on_cpu = jax.default_backend() == "cpu"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="lm-10m" if on_cpu else "lm-350m")
    parser.add_argument("--rows", type=int, default=8 if on_cpu else 32)
    parser.add_argument("--length", type=int, default=256 if on_cpu else 1024)
    parser.add_argument("--remat", default="none", choices=["none", "dots", "block"])
    parser.add_argument("--no-scan", action="store_true", help="unroll the blocks: slower to compile")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--output", default=None)
    args = parser.parse_args()

    overrides = {"scan_layers": False} if args.no_scan else {}
    config = preset(args.preset, seq_len=args.length, remat=args.remat, **overrides)
    model = transformer(config)
    dtype = jnp.float32 if on_cpu else jnp.bfloat16
    tokens = jax.random.randint(jax.random.key(1), (args.rows, args.length + 1), 0, config.vocab_size)
    runner = Runner(model.init, model.apply, {"tokens": tokens[:, :-1], "targets": tokens[:, 1:]})
    sizes = (1024, 2048) if on_cpu else (4096, 8192, 16384)
    products = {size: build_product(size, dtype, 4 if on_cpu else 20) for size in sizes}

    step_times, product_rates = [], {size: [] for size in sizes}
    for _ in range(args.repeats):
        step_times.append(runner.seconds())
        for size, (function, flops) in products.items():
            product_rates[size].append(flops / seconds(function))

    step = statistics.median(step_times)
    achieved = model.flops_per_token * args.rows * args.length / step
    rates = {size: statistics.median(values) for size, values in product_rates.items()}
    best = max(rates.values())
    print(f"{args.preset}, {args.rows} rows of {args.length} tokens, {dtype.__name__}, {hardware()}")
    print(f"{'step':<34}{1e3 * step:>12.1f} ms   {args.rows * args.length / step:,.0f} tokens/s")
    print(f"{'model FLOP/s':<34}{achieved / 1e9:>12.1f} GFLOP/s")
    for size, rate in rates.items():
        print(f"{f'product of {size} x {size}':<34}{rate / 1e9:>12.1f} GFLOP/s")
    print(f"{'model FLOP/s over best product':<34}{achieved / best:>12.3f}")
    record = {
        "preset": args.preset,
        "rows": args.rows,
        "length": args.length,
        "remat": args.remat,
        "scan_layers": config.is_scanned,
        "dtype": dtype.__name__,
        "repeats": args.repeats,
        "jax": jax.__version__,
        "hardware": hardware(),
        "parameters": model.num_params,
        "compile_seconds": round(runner.compile_seconds, 2),
        "step_ms_median": round(1e3 * step, 2),
        "tokens_per_second": round(args.rows * args.length / step),
        "model_gflops": round(achieved / 1e9, 2),
        "product_gflops": {str(size): round(rate / 1e9, 2) for size, rate in rates.items()},
        "ratio": round(achieved / best, 4),
    }
    output = args.output or pathlib.Path(__file__).with_name(f"results_model_flops_{jax.default_backend()}.json")
    pathlib.Path(output).write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
