"""GEM's iteration, labeling and JEST's selection over the products that they contain; k-means of another library."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import internal
import jax
import jax.numpy as jnp
from kernels import pair_models
from measure import build_product, median_seconds

from jaxmix.clustering import assign, gem
from jaxmix.selection import jest

SIZES = [(1_000_000, 384, 256), (1_000_000, 384, 1000)]
TINY = [(2000, 64, 8)]
HIGHEST = jax.lax.Precision.HIGHEST


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def rows_of(n: int, d: int, k: int) -> jax.Array:
    """Unit rows about k directions inside a cone, Zipf sizes, noise as wide as that of text embeddings."""
    keys = jax.random.split(jax.random.key(0), 4)
    unit = lambda x: x / jnp.linalg.norm(x, axis=1, keepdims=True)
    centers = unit(jax.random.normal(keys[0], (k, d)) + jax.random.normal(keys[1], (1, d)))
    sizes = -0.8 * jnp.log(jnp.arange(1, k + 1))
    x = centers[jax.random.categorical(keys[2], sizes, shape=(n,))]
    return unit(x + 1.2 * d**-0.5 * jax.random.normal(keys[3], (n, d)))


def gem_and_assign(is_tiny: bool, save: Callable[[Any], None]) -> dict[str, Any]:
    """Seconds of an iteration with the dual solved, of labels, and of the products in each, all in float32."""
    report = {}
    for n, d, k in TINY if is_tiny else SIZES:
        report[f"{n},{d},{k}"] = _one_size(n, d, k)
        save(report)
    return report


def _one_size(n: int, d: int, k: int) -> dict[str, Any]:
    x = jax.block_until_ready(rows_of(n, d, k))
    weight, total, directions = jnp.ones(n), jnp.float32(n), x[:k]
    clusterer = gem(k, balance=5000.0)
    iterate = internal.build_iteration(internal.em_config(clusterer), None)
    penalty, _ = internal.penalty_of(clusterer, n, jnp.float32)
    state = clusterer.init(directions, 100.0)
    rows = internal.WeightedRows(x, weight, total)
    carry = [state, internal.Workspace(jnp.zeros((n, k)), jnp.zeros((k, k)), jnp.bool_(True))]
    evaluations = []

    def once() -> Any:
        done = iterate(rows, carry[0], penalty, carry[1])
        carry[:] = done.state, done.e_step.workspace
        evaluations.append(done.e_step.evaluations)
        return done.objective

    began = time.perf_counter()
    jax.block_until_ready(once())
    first_seconds = time.perf_counter() - began
    seconds = median_seconds(once, warm_up=4, repeats=9)
    carry.clear()
    first = jax.jit(lambda x, m: jnp.matmul(x, m.T, precision=HIGHEST))
    second = jax.jit(lambda p, x: jnp.matmul(p.T, x, precision=HIGHEST))
    table = first(x, directions)
    products = median_seconds(lambda: (first(x, directions), second(table, x)))
    product = median_seconds(lambda: first(x, directions))
    labels = median_seconds(lambda: assign(clusterer, state, x, with_posterior=False).labels)
    return {
        "gem 5000": {
            "seconds": seconds,
            "first_seconds": first_seconds,
            "evaluations": [int(i) for i in evaluations],
            "over_products": seconds / products,
        },
        "products_seconds": products,
        "products_tflops": 4e-12 * n * k * d / products,
        "first_product_seconds": product,
        "assign_seconds": labels,
        "assign_rows_per_second": n / labels,
        "assign_over_product": labels / product,
    }


def peers(is_tiny: bool, save: Callable[[Any], None]) -> dict[str, Any]:
    """An iteration of spherical k-means by matrix products in PyTorch, and its labels; rows of the same kind."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"

    def seconds_of(call: Any) -> float:
        wait = torch.cuda.synchronize if device == "cuda" else lambda: None
        return median_seconds(lambda: (call(), wait())[1])

    report: dict[str, Any] = {"torch": torch.__version__, "device": device}
    for n, d, k in TINY if is_tiny else SIZES:
        generator = torch.Generator(device).manual_seed(0)
        draw = lambda *shape: torch.randn(*shape, generator=generator, device=device)  # noqa: B023
        unit = lambda x: x / x.norm(dim=1, keepdim=True)
        centers = unit(draw(k, d) + draw(1, d))
        x = unit(centers[torch.randint(k, (n,), generator=generator, device=device)] + 1.2 * d**-0.5 * draw(n, d))
        start = x[:k].clone()

        def labels(directions: Any, x: Any = x) -> Any:
            return torch.cat([torch.argmax(part @ directions.T, dim=1) for part in x.split(131_072)])

        def iteration(x: Any = x, start: Any = start, labels: Any = labels) -> Any:
            sums = torch.zeros_like(start).index_add_(0, labels(start), x)
            return torch.nn.functional.normalize(sums, dim=1)

        found = {}
        for name, allowed in (("float32", False), ("tf32", True)):
            torch.backends.cuda.matmul.allow_tf32 = allowed
            found[f"iteration_seconds_{name}"] = seconds_of(iteration)
            found[f"labels_seconds_{name}"] = seconds_of(lambda: labels(start))  # noqa: B023
        report[f"{n},{d},{k}"] = found
        save(report)
    try:
        import faiss

        report["faiss"] = faiss.__version__
    except ImportError:
        report["faiss"] = "not run: not installed"
    return report


def selection(is_tiny: bool, save: Callable[[Any], None]) -> dict[str, Any]:
    """JEST at the paper's size in bfloat16 over its matrix products alone, and over the step that it serves."""
    count, select, width, chunks = (1024, 256, 64, 16) if is_tiny else (163_840, 32_768, 768, 16)
    models = jax.block_until_ready(pair_models(count, width, jnp.bfloat16))
    size = select // chunks
    product, product_flops = build_product(256 if is_tiny else 8192, 10)
    rate = product_flops / median_seconds(product)

    @jax.jit
    def products(models: Any) -> jax.Array:
        def step(total: jax.Array, start: jax.Array) -> tuple[jax.Array, None]:
            for model in models:
                for rows, others in ((model.image, model.text), (model.text, model.image)):
                    members = jax.lax.dynamic_slice_in_dim(others, start, size)
                    tile = jnp.einsum("kd,cd->kc", members, rows, preferred_element_type=jnp.float32)
                    # One row, behind a barrier that keeps the product whole.
                    total = total + jax.lax.optimization_barrier(tile)[0]
            return total, None

        return jax.lax.scan(step, jnp.zeros(count), size * jnp.arange(chunks - 1))[0]

    flops = 8 * count * select * width * (chunks - 1) / chunks
    # ViT-B/16 at 256 pixels with a short text tower, forward and backward, for each trained example.
    step_seconds = 24.5e9 * 2 * 3 * select / rate
    report: dict[str, Any] = {
        "candidates": count,
        "select": select,
        "product_tflops": rate / 1e12,
        "products_seconds": median_seconds(lambda: products(models)),
        "flop_floor_seconds": flops / rate,
    }
    for loss in ("sigmoid", "softmax"):
        selector = jest(select, num_chunks=chunks, loss=loss)
        compiled = jax.jit(lambda key, *data, s=selector: s(key, *data)).lower(jax.random.key(0), *models).compile()
        seconds = median_seconds(lambda c=compiled: c(jax.random.key(0), *models), repeats=5)
        report[loss] = {
            "seconds": seconds,
            "over_products": seconds / report["products_seconds"],
            "over_flop_floor": seconds / report["flop_floor_seconds"],
            "share_of_step": seconds / step_seconds,
            "temporaries_mib": compiled.memory_analysis().temp_size_in_bytes / 2**20,
        }
        save(report)
    return report
