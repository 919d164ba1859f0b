"""Rollouts against their matrix products alone and against encoding the prefix again; what the bandit costs.

    python experiments/bench_grpo/run.py               # rollouts: lm-3m, 16 prompts x 8; about a minute
    python experiments/bench_grpo/run.py --steps       # one step of fine-tuning by its parts, two sizes; traces counted
    python experiments/bench_grpo/run.py --gpu-size    # rollouts of lm-1b in bfloat16, on a GPU
    python experiments/bench_grpo/run.py --preset lm-300k --prompts 2 --repeats 1 --out /tmp/trial.json    # a trial

Compilation is left out, seconds are the best of `--repeats`. Each part writes its own section of the results and leaves
the others.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "bench_stream"))

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from hardware import hardware  # noqa: E402

from jaxmix.core.sharding import build_mesh, use_mesh  # noqa: E402
from jaxmix.curricula import prompt_cursors, space  # noqa: E402
from jaxmix.data import tasks  # noqa: E402
from jaxmix.models import TransformerConfig, generate, preset, transformer  # noqa: E402
from jaxmix.models.precision import compute_dtype  # noqa: E402
from jaxmix.train import FinetuneSettings, build_policy_programs, run_finetuning  # noqa: E402
from jaxmix.train.rl.step import build_curriculum_programs, init_policy  # noqa: E402

PAD, NEVER = 0, -1


def best(call: Callable[[], Any], repeats: int) -> float:
    """Seconds of the fastest call, after one that compiles."""
    jax.block_until_ready(call())
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def products(config: TransformerConfig, rows: int, tokens: int) -> Callable[[Any], jax.Array]:
    """The forward pass's products with parameters, one token of every row at a time, and nothing else."""
    dtype, width, heads = compute_dtype(config.compute_dtype), config.width, config.query_heads
    inner = (heads + 2 * config.key_heads) * config.size_of_head
    shapes = [(width, inner), (heads * config.size_of_head, width)]
    shapes += [(width, config.mlp_inputs * config.hidden_units), (config.hidden_units, width)]
    layers = [[jnp.full(shape, 1e-3, dtype) for shape in shapes] for _ in range(config.num_layers)]
    readout = jnp.full((width, config.vocab_size), 1e-3, dtype)

    def run(weights: Any) -> jax.Array:
        layers, readout = weights

        def token(_: jax.Array, x: jax.Array) -> jax.Array:
            for joint, out, up, down in layers:
                x = x + (x @ joint)[:, : out.shape[0]] @ out
                x = x + (x @ up)[:, : down.shape[0]] @ down
            logits = jnp.matmul(x, readout, preferred_element_type=jnp.float32)
            # All logits are asked for: otherwise the compiler would drop those that nobody reads.
            return jnp.tanh(x) + jnp.max(logits, axis=1, keepdims=True).astype(dtype) * jnp.asarray(1e-3, dtype)

        return jax.lax.fori_loop(0, tokens, token, jnp.ones((rows, width), dtype))

    compiled = jax.jit(run)
    return lambda _: compiled((layers, readout))


def rollouts(arguments: argparse.Namespace) -> dict[str, Any]:
    """Completions that never end, so that every row has all its tokens."""
    config = preset(arguments.preset)
    model = transformer(config)
    params = jax.jit(model.init)(jax.random.key(0))
    rows, length = arguments.prompts * arguments.group, arguments.length - arguments.prompt_length
    shape = (arguments.prompts, arguments.prompt_length)
    prompts = jax.random.randint(jax.random.key(1), shape, 1, config.vocab_size)
    assert model.decoding is not None
    decoding = model.decoding

    @jax.jit
    def cached(params: Any, key: jax.Array, prompts: jax.Array) -> jax.Array:
        return generate(
            model, params, key, prompts, num_rollouts=arguments.group, length=length, eos_id=NEVER, pad_id=PAD
        ).tokens

    @jax.jit
    def encoded_again(params: Any, tokens: jax.Array) -> jax.Array:
        return decoding.prefill(params, tokens, tokens >= 0, 1, 1)[0]

    whole = jnp.ones((rows, arguments.length), jnp.int32)
    floor = products(config, rows, length)
    keys = iter(jax.random.split(jax.random.key(2), arguments.repeats + 1))
    seconds = {
        "cached": best(lambda: cached(params, next(keys), prompts), arguments.repeats),
        "products": best(lambda: floor(None), arguments.repeats),
        "encoded_again": best(lambda: encoded_again(params, whole), arguments.repeats) * length,
    }
    found: dict[str, Any] = {
        name: {"seconds": value, "tokens_per_second": rows * length / value} for name, value in seconds.items()
    }
    found["over_products"] = seconds["cached"] / seconds["products"]
    found["encoded_again_over_cached"] = seconds["encoded_again"] / seconds["cached"]
    return found


def steps(arguments: argparse.Namespace) -> dict[str, Any]:
    """The parts of a step at the size of the small suite and with a larger model, and the traces of a run."""
    prompts, held_out = (tasks.make("digits", part=part, per_arm=200, seed=0) for part in ("train", "held_out"))
    sizes = {
        "suite": TransformerConfig(
            num_layers=2, width=64, num_heads=4, vocab_size=prompts.vocab_size, tie_embeddings=False
        ),
        arguments.preset: preset(arguments.preset, vocab_size=prompts.vocab_size),
    }
    mesh, bandit, settings = build_mesh(), space(prompts.num_arms), FinetuneSettings(steps=20, eval_every=10)
    cursors = prompt_cursors(prompts.rows_by_arm())
    report: dict[str, Any] = {}
    for name, config in sizes.items():
        model = transformer(config)
        programs = build_policy_programs(
            model,
            settings,
            completion_length=prompts.completion_length,
            eos_id=prompts.eos_id,
            pad_id=prompts.pad_id,
            mesh=mesh,
        )
        curriculum = build_curriculum_programs(bandit, cursors, batch_size=settings.prompts, mesh=mesh)
        with use_mesh(mesh):
            found = time_parts(model, programs, curriculum, bandit, cursors, prompts, arguments.repeats)
        found["bandit_share"] = found["bandit"] / found["step"]
        with tempfile.TemporaryDirectory() as folder:
            run_finetuning(
                folder,
                model=model,
                prompts=prompts,
                bandit=bandit,
                evaluation=held_out,
                settings=settings,
                programs=programs,
                show_progress=False,
            )
        compiled = ("rollout", "collect", "update", "evaluate")
        found["traces"] = {part: getattr(programs, part)._cache_size() for part in compiled}
        report[name] = found
        print(name, found, flush=True)
    return report


def time_parts(
    model: Any, programs: Any, curriculum: Any, bandit: Any, cursors: Any, prompts: Any, repeats: int
) -> dict[str, float]:
    """Seconds of each phase by itself. A step is one of each; `bandit` is its sampling and its update alone."""
    settings = programs.settings
    train = init_policy(jax.random.key(0), model, programs)
    key, step, table = jax.random.key(1), jnp.int32(0), jnp.asarray(prompts.tokens)
    state, places = bandit.init(), cursors.init(key)
    draw = lambda: curriculum.draw(state, places, key, step, table)
    drawn = draw()
    made = programs.rollout(train.params, drawn.key, drawn.prompts)
    half = np.tile(np.arange(settings.rollouts) % 2, (settings.prompts, 1)).astype(np.float32)
    rewards, kept = jnp.asarray(half), jnp.ones(settings.prompts, bool)
    sample = jax.jit(bandit.sample, static_argnums=2)
    empty = jax.jit(lambda state: state)
    found = {
        "draw": best(draw, repeats),
        "sample": best(lambda: sample(key, state, settings.prompts), repeats),
        "absorb": best(lambda: curriculum.absorb(state, drawn.arms, rewards), repeats),
        "empty_program": best(lambda: empty(state), repeats),
        "rollout": best(lambda: programs.rollout(train.params, drawn.key, drawn.prompts), repeats),
    }
    # These two donate what they are given.
    carry = [train, programs.buffer(prompts.prompt_length)]

    def collect() -> Any:
        carry[1] = programs.collect(carry[1], drawn.prompts, made, rewards, kept)
        return carry[1]

    def update() -> Any:
        carry[0], carry[1], info = programs.update(carry[0], None, carry[1])
        return info

    found["collect"] = best(collect, repeats)
    found["update"] = best(update, repeats)
    found["bandit"] = found["sample"] + found["absorb"]
    found["step"] = sum(found[part] for part in ("draw", "rollout", "absorb", "collect", "update"))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--prompt-length", type=int, default=16)
    parser.add_argument("--length", type=int, default=64, help="prompt and completion together")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--out", type=Path, default=HERE / "results.json")
    parser.add_argument("--steps", action="store_true", help="one step of fine-tuning by its parts")
    parser.add_argument("--gpu-size", action="store_true", help="lm-1b in bfloat16")
    arguments = parser.parse_args()
    arguments.preset = arguments.preset or ("lm-1b" if arguments.gpu_size else "lm-3m")
    section = "gpu_size" if arguments.gpu_size else "steps" if arguments.steps else "rollouts"
    found = steps(arguments) if arguments.steps else rollouts(arguments)
    if not arguments.steps:
        print(json.dumps(found, indent=1), flush=True)
    sizes = {name: getattr(arguments, name) for name in ("preset", "prompts", "group", "prompt_length", "length")}
    machine = hardware() | {"jax": jax.__version__, "device": jax.devices()[0].device_kind}
    results = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    results[section] = {"sizes": sizes, "hardware": machine, **found}
    arguments.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
