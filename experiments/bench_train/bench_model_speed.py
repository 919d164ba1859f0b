"""Tokens per second of a small preset's training step against a plain GPT step of equal size, in one run.

    python experiments/bench_train/bench_model_speed.py

The plain step is what one writes first: pre-LayerNorm blocks with biases, learned positions, GELU,
`jax.nn.dot_product_attention`, float32, the same depth, width, heads, rows and AdamW. Both steps are compiled, then
timed in turns, so that a disturbance hits both; the ratio is the median of the ratios of neighboring repeats.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import platform
import statistics
import time

import jax
import jax.numpy as jnp
import optax

from jaxmix.models import preset, transformer


def plain_gpt(vocab_size, num_layers, width, num_heads, length):
    """(init, apply) of a GPT-2-like model in plain JAX."""

    def init(key):
        keys = iter(jax.random.split(key, 4 * num_layers + 2))
        normal = lambda *shape: 0.02 * jax.random.normal(next(keys), shape)
        norm = lambda: {"scale": jnp.ones(width), "bias": jnp.zeros(width)}
        block = lambda: {
            "norm1": norm(),
            "qkv": {"w": normal(width, 3 * width), "b": jnp.zeros(3 * width)},
            "out": {"w": normal(width, width), "b": jnp.zeros(width)},
            "norm2": norm(),
            "up": {"w": normal(width, 4 * width), "b": jnp.zeros(4 * width)},
            "down": {"w": normal(4 * width, width), "b": jnp.zeros(width)},
        }
        return {
            "table": normal(vocab_size, width),
            "positions": normal(length, width),
            "blocks": [block() for _ in range(num_layers)],
            "norm": norm(),
        }

    def layer_norm(p, x):
        mean = x.mean(-1, keepdims=True)
        return (x - mean) * jax.lax.rsqrt(x.var(-1, keepdims=True) + 1e-5) * p["scale"] + p["bias"]

    def dense(p, x):
        return x @ p["w"] + p["b"]

    def apply(params, batch):
        tokens, targets = batch["tokens"], batch["targets"]
        rows, t = tokens.shape
        x = params["table"][tokens] + params["positions"][:t]
        for p in params["blocks"]:
            q, k, v = jnp.split(dense(p["qkv"], layer_norm(p["norm1"], x)), 3, axis=-1)
            heads = lambda a: a.reshape(rows, t, num_heads, -1)
            mixed = jax.nn.dot_product_attention(heads(q), heads(k), heads(v), is_causal=True)
            x = x + dense(p["out"], mixed.reshape(rows, t, width))
            x = x + dense(p["down"], jax.nn.gelu(dense(p["up"], layer_norm(p["norm2"], x))))
        logits = layer_norm(params["norm"], x) @ params["table"].T
        return optax.softmax_cross_entropy_with_integer_labels(logits, targets)

    return init, apply


def build_step(apply):
    """A plain AdamW step on the mean loss, with its optimizer."""
    optimizer = optax.adamw(1e-3, b2=0.95, weight_decay=0.1)

    def objective(params, batch):
        return jnp.mean(apply(params, batch))

    @jax.jit
    def step(params, opt_state, batch):
        loss, grads = jax.value_and_grad(objective)(params, batch)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    return optimizer, step


class Runner:
    """A compiled step with its state; `seconds()` times one step."""

    def __init__(self, init, apply, batch):
        self.optimizer, step = build_step(apply)
        self.params = jax.jit(init)(jax.random.key(0))
        self.opt_state = self.optimizer.init(self.params)
        self.batch = batch
        self.num_params = sum(x.size for x in jax.tree.leaves(self.params))
        start = time.perf_counter()
        self.step = jax.jit(step, donate_argnums=(0, 1)).lower(self.params, self.opt_state, batch).compile()
        self.compile_seconds = time.perf_counter() - start
        self.seconds()

    def seconds(self):
        start = time.perf_counter()
        self.params, self.opt_state, self.loss = self.step(self.params, self.opt_state, self.batch)
        self.loss.block_until_ready()
        return time.perf_counter() - start


def hardware():
    """The devices and the processor, in words."""
    device = jax.devices()[0]
    name = platform.processor() or platform.machine()
    cpu_info = pathlib.Path("/proc/cpuinfo")
    if cpu_info.exists():
        models = [line.split(":", 1)[1].strip() for line in cpu_info.read_text().splitlines() if "model name" in line]
        name = f"{len(models)} x {models[0]}" if models else name
    return {"backend": jax.default_backend(), "device": device.device_kind, "devices": jax.device_count(), "cpu": name}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="lm-1m")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--output", default=str(pathlib.Path(__file__).with_name("results_model_speed.json")))
    args = parser.parse_args()

    config = preset(args.preset, seq_len=args.length)
    model = transformer(config)
    tokens = jax.random.randint(jax.random.key(1), (args.rows, args.length + 1), 0, config.vocab_size)
    batch = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:]}
    shape = (config.vocab_size, config.num_layers, config.width)
    runners = {
        f"jaxmix {args.preset}": Runner(model.init, model.apply, batch),
        "plain GPT, same heads": Runner(*plain_gpt(*shape, config.query_heads, args.length), batch),
        "plain GPT, heads of 32": Runner(*plain_gpt(*shape, config.width // 32, args.length), batch),
    }
    times = {name: [] for name in runners}
    for _ in range(args.repeats):
        for name, runner in runners.items():
            times[name].append(runner.seconds())

    ours = times[f"jaxmix {args.preset}"]
    results = []
    for name, runner in runners.items():
        ratios = sorted(theirs / mine for theirs, mine in zip(times[name], ours, strict=True))
        results.append(
            {
                "step": name,
                "parameters": runner.num_params,
                "compile_seconds": round(runner.compile_seconds, 2),
                "median_ms": round(1e3 * statistics.median(times[name]), 1),
                "min_ms": round(1e3 * min(times[name]), 1),
                "tokens_per_second": round(args.rows * args.length / statistics.median(times[name])),
                "jaxmix_is_faster_by": round(statistics.median(ratios), 3),
                "ratio_quartiles": [round(ratios[len(ratios) // 4], 3), round(ratios[3 * len(ratios) // 4], 3)],
            }
        )
    print(f"{args.rows} rows of {args.length} tokens, {args.repeats} repeats in turns, {hardware()}")
    print(f"{'step':<24}{'parameters':>12}{'median ms':>11}{'tokens/s':>10}{'jaxmix faster by':>18}")
    for row in results:
        print(
            f"{row['step']:<24}{row['parameters']:>12,}{row['median_ms']:>11}{row['tokens_per_second']:>10,}"
            f"{row['jaxmix_is_faster_by']:>17}x"
        )
    record = {
        "rows": args.rows,
        "length": args.length,
        "repeats": args.repeats,
        "jax": jax.__version__,
        "hardware": hardware(),
        "results": results,
    }
    pathlib.Path(args.output).write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
