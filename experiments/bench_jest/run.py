"""JEST's selection against the ways its papers and ports write it, and against its matrix products alone.

    python experiments/bench_jest/run.py                 # B = 4,096, b = 1,024, N = 16, d = 768: about two minutes
    python experiments/bench_jest/run.py --devices       # the same on 1, 2, 4, 8 emulated devices: memory, indices
    python experiments/bench_jest/run.py --gpu-size      # B = 163,840, b = 32,768 in bfloat16, on a GPU
    python experiments/bench_jest/run.py --candidates 512 --select 128 --width 64 --out /tmp/trial.json   # a trial

Every way draws with the same key and must return the same set of examples; compilation is left out. Each part writes
its own section of the results and leaves the others.
"""

from __future__ import annotations

import argparse
import json
import sys
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
from jax.sharding import NamedSharding, PartitionSpec  # noqa: E402

from jaxmix.core.sharding import batch_sharding, build_mesh, replicated  # noqa: E402
from jaxmix.selection import Embeddings, jest, selection_objective  # noqa: E402
from jaxmix.selection.candidates import Candidates  # noqa: E402
from jaxmix.selection.sampling import sample  # noqa: E402

STEP_FLOPS = 24.5e9 * 2 * 3
"""Per trained example: ViT-B/16 at 256 pixels with a short text tower, forward and backward."""


def the_key() -> jax.Array:
    """Made when it is asked for: before that, the number of emulated devices can still be set."""
    return jax.random.key(0)


def synthetic(count: int, width: int, dtype: Any) -> tuple[Embeddings, Embeddings]:
    """Unit vectors in which text leans toward its image, less so for the learner; made on the device."""

    def model(seed: int, noise: float) -> Embeddings:
        unit = lambda x: x / jnp.linalg.norm(x, axis=1, keepdims=True)
        one, other = (unit(jax.random.normal(key, (count, width))) for key in jax.random.split(jax.random.key(seed), 2))
        cast = lambda x: x.astype(dtype)
        return Embeddings(cast(one), cast(unit(one + noise * other)), jnp.float32(10.0), jnp.float32(-5.0))

    make = jax.jit(model, static_argnums=(0, 1))
    return make(0, 2.0), make(1, 1.0)


def full_logits(model: Embeddings, scale: Any) -> jax.Array:
    """All logits, [B, B]. `scale` is 1, which the compiler cannot know: the product stays in its loop."""
    product = jnp.matmul(model.image * scale, model.text.T, precision=jax.lax.Precision.HIGHEST)
    return model.temperature * product + model.bias


def loss_matrix(model: Embeddings, scale: Any) -> jax.Array:
    """nll_ij of the sigmoid loss, [B, B]."""
    logits = full_logits(model, scale)
    sign = 1.0 - 2.0 * jnp.eye(logits.shape[0], dtype=logits.dtype)
    return jax.nn.softplus(sign * logits)


def chunk_loop(
    score: Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]], count: int, num_select: int, ones: jax.Array
) -> jax.Array:
    """The loop of all dense ways, a chunk for each of `ones`. `score(taken, scale)` returns own and shared parts."""
    num_chunks = ones.shape[0]
    size = num_select // num_chunks

    def step(taken: jax.Array, turn: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        n, scale = turn
        own, shared = score(taken, scale)
        key = jax.random.fold_in(the_key(), n)
        drawn = sample(key, own + shared, ~taken, Candidates(count), size=size, gain=jnp.float32(1.0), greedy=False)
        return taken.at[drawn].set(True), drawn

    turns = jnp.arange(num_chunks), ones
    return jax.lax.scan(step, jnp.zeros((count,), bool), turns)[1].reshape(-1)


def by_matrix(learner: Embeddings, reference: Embeddings, ones: jax.Array, num_select: int) -> jax.Array:
    """The paper's sigmoid pseudo-code: one score matrix, masked sums over it for every chunk."""
    table = loss_matrix(learner, 1.0) - loss_matrix(reference, 1.0)
    own = jnp.diagonal(table)

    def score(taken: jax.Array, scale: jax.Array) -> tuple[jax.Array, jax.Array]:
        mask = taken.astype(table.dtype)
        return own, table @ mask + mask @ table

    return chunk_loop(score, own.shape[0], num_select, ones)


def rebuilt(learner: Embeddings, reference: Embeddings, ones: jax.Array, num_select: int, loss: str) -> jax.Array:
    """As the ports do it: all logits of both models afresh for every chunk."""

    def sigmoid(taken: jax.Array, scale: jax.Array) -> tuple[jax.Array, jax.Array]:
        table = loss_matrix(learner, scale) - loss_matrix(reference, scale)
        mask = taken.astype(table.dtype)
        return jnp.diagonal(table), table @ mask + mask @ table

    def softmax(taken: jax.Array, scale: jax.Array) -> tuple[jax.Array, jax.Array]:
        def conditional(model: Embeddings) -> tuple[jax.Array, jax.Array]:
            logits = full_logits(model, scale)
            over = lambda x, axis: jax.nn.logsumexp(x, axis=axis)
            rows = over(jnp.where(taken[None, :], logits, -jnp.inf), 1)
            columns = over(jnp.where(taken[:, None], logits, -jnp.inf), 0)
            return -jnp.diagonal(logits), jnp.where(jnp.any(taken), 0.5 * (rows + columns), 0.0)

        (own, shared), (reference_own, reference_shared) = conditional(learner), conditional(reference)
        return own - reference_own, shared - reference_shared

    score = sigmoid if loss == "sigmoid" else softmax
    return chunk_loop(score, learner.image.shape[0], num_select, ones)


def products(learner: Embeddings, reference: Embeddings, num_select: int, num_chunks: int) -> jax.Array:
    """The matrix products of the incremental form and nothing else: 8 B b d (N − 1)/N operations."""
    size = num_select // num_chunks
    towers = [(m.image, m.text) for m in (learner, reference)]
    precision = jax.lax.Precision.HIGHEST if learner.image.dtype == jnp.float32 else None

    def step(total: jax.Array, start: jax.Array) -> tuple[jax.Array, None]:
        for image, text in towers:
            for rows, others in ((image, text), (text, image)):
                members = jax.lax.dynamic_slice_in_dim(others, start, size)
                tile = jnp.einsum("kd,cd->kc", members, rows, precision=precision, preferred_element_type=jnp.float32)
                # One row of the tile, behind a barrier that keeps the product whole.
                total = total + jax.lax.optimization_barrier(tile)[0]
        return total, None

    starts = size * jnp.arange(num_chunks - 1)
    return jax.lax.scan(step, jnp.zeros((learner.image.shape[0],), jnp.float32), starts)[0]


def measure(function: Callable[..., Any], data: Any, repeats: int) -> tuple[dict[str, Any], Any]:
    """Best and median seconds of a compiled call, and its temporaries."""
    compiled = jax.jit(function).lower(*data).compile()
    result = jax.block_until_ready(compiled(*data))
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(compiled(*data))
        seconds.append(time.perf_counter() - began)
    found = {
        "seconds": min(seconds),
        "median_seconds": float(np.median(seconds)),
        "repeats": repeats,
        "temporaries_mib": compiled.memory_analysis().temp_size_in_bytes / 2**20,
    }
    return found, result


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """One section: the library, its products alone, and the dense ways."""
    b, n = arguments.select, arguments.chunks
    data = jax.block_until_ready(synthetic(arguments.candidates, arguments.width, jnp.float32))
    floor, _ = measure(lambda *d: products(*d, b, n), data, arguments.repeats)
    flops = 8 * arguments.candidates * b * arguments.width * (n - 1) / n
    floor["gflops_per_second"] = flops / floor["seconds"] / 1e9
    report: dict[str, Any] = {"products": floor}
    print(f"products alone: {1e3 * floor['seconds']:.1f} ms, {floor['gflops_per_second']:.0f} GFLOP/s", flush=True)
    for loss in ("sigmoid", "softmax"):
        ways: dict[str, Callable[..., jax.Array]] = {
            "incremental": lambda *d, loss=loss: jest(b, num_chunks=n, loss=loss)(the_key(), *d[:2]).indices
        }
        if loss == "sigmoid":
            ways["matrix"] = lambda *d: by_matrix(*d, b)
        ways["rebuilt"] = lambda *d, loss=loss: rebuilt(*d, b, loss)
        found, chosen = {}, {}
        for name, way in ways.items():
            few = max(1, arguments.repeats // 5) if name == "rebuilt" else arguments.repeats
            found[name], chosen[name] = measure(way, (*data, jnp.ones(n)), few)
            if name != "incremental":
                found[name]["over_incremental"] = found[name]["seconds"] / found["incremental"]["seconds"]
                found[name]["same_set"] = set(chosen[name].tolist()) == set(chosen["incremental"].tolist())
                common = len(set(chosen[name].tolist()) & set(chosen["incremental"].tolist()))
                found[name]["overlap"] = common / b
            print(f"{loss} {name}: {found[name]}", flush=True)
        found["incremental"]["over_products"] = found["incremental"]["seconds"] / floor["seconds"]
        print(f"{loss}: {found['incremental']['over_products']:.2f} times the products alone", flush=True)
        report[loss] = found
    return report


def devices(arguments: argparse.Namespace) -> dict[str, Any]:
    """Memory of one device and the indices on 1, 2, 4 and 8 emulated devices."""
    report: dict[str, Any] = {}
    first = None
    for count in (1, 2, 4, 8):
        mesh = build_mesh(data=count, devices=jax.devices()[:count])
        data = synthetic(arguments.candidates, arguments.width, jnp.float32)
        place = lambda x, mesh=mesh: jax.device_put(x, batch_sharding(mesh) if x.ndim else replicated(mesh))
        data = jax.tree.map(place, data)
        for way in ("shard_map", "jit"):
            selector = jest(arguments.select, num_chunks=arguments.chunks, mesh=mesh if way == "shard_map" else None)
            key = jax.device_put(the_key(), NamedSharding(mesh, PartitionSpec()))
            compiled = jax.jit(selector.select).lower(key, *data).compile()
            indices = compiled(key, *data).indices.tolist()
            first = first or indices
            memory = compiled.memory_analysis()
            report.setdefault(way, {})[str(count)] = {
                "arguments_mib": memory.argument_size_in_bytes / 2**20,
                "temporaries_mib": memory.temp_size_in_bytes / 2**20,
                "same_indices_in_order": indices == first,
            }
            print(way, count, report[way][str(count)], flush=True)
    return report


def gpu_size(arguments: argparse.Namespace) -> dict[str, Any]:
    """The paper's size, in bfloat16: products alone, the selection, and its share of the step that it serves."""
    b, n = arguments.select, arguments.chunks
    data = jax.block_until_ready(synthetic(arguments.candidates, arguments.width, jnp.bfloat16))
    side = 8192
    square = jnp.ones((side, side), jnp.bfloat16)
    peak, _ = measure(lambda x: x @ x, (square,), arguments.repeats)
    rate = 2 * side**3 / peak["seconds"]
    floor, _ = measure(lambda *d: products(*d, b, n), data, arguments.repeats)
    flops = 8 * arguments.candidates * b * arguments.width * (n - 1) / n
    step = STEP_FLOPS * b / rate
    report: dict[str, Any] = {
        "products": floor,
        "square_matmul_tflops": rate / 1e12,
        "flop_floor_seconds": flops / rate,
        "step_seconds_at_that_rate": step,
    }
    for loss in ("sigmoid", "softmax"):
        found, chosen = measure(
            lambda *d, loss=loss: jest(b, num_chunks=n, loss=loss)(the_key(), *d).indices, data, arguments.repeats
        )
        found["over_products"] = found["seconds"] / floor["seconds"]
        found["over_flop_floor"] = found["seconds"] / (flops / rate)
        found["share_of_step"] = found["seconds"] / step
        found["all_different"] = len(set(chosen.tolist())) == b
        found["objective"] = float(jax.jit(selection_objective, static_argnames="loss")(*data, chosen, loss=loss).mean)
        print(f"{loss}: {found}", flush=True)
        report[loss] = found
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", type=int)
    parser.add_argument("--select", type=int)
    parser.add_argument("--chunks", type=int, default=16)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--out", type=Path, default=HERE / "results.json")
    parser.add_argument("--devices", action="store_true", help="1, 2, 4 and 8 emulated devices")
    parser.add_argument("--gpu-size", action="store_true", help="B = 163,840, b = 32,768, bfloat16")
    arguments = parser.parse_args()
    large = arguments.gpu_size
    arguments.candidates = arguments.candidates or (163_840 if large else 4096)
    arguments.select = arguments.select or (32_768 if large else 1024)
    if arguments.devices:
        jax.config.update("jax_num_cpu_devices", 8)
    section = "gpu_size" if large else "devices" if arguments.devices else "comparison"
    found = {"gpu_size": gpu_size, "devices": devices, "comparison": compare}[section](arguments)
    sizes = {name: getattr(arguments, name) for name in ("candidates", "select", "chunks", "width")}
    machine = hardware() | {"jax": jax.__version__, "device": jax.devices()[0].device_kind}
    results = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    results[section] = {"sizes": sizes, "hardware": machine, **found}
    arguments.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
