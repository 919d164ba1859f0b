"""Training steps, resuming, swarms, rollouts and the stream that feeds them, as `run.py` calls them."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import internal
import jax
import jax.numpy as jnp
import numpy as np
from measure import build_product, median_seconds

from jaxmix import mixers
from jaxmix.core.errors import RunError
from jaxmix.data import MixtureStream
from jaxmix.models import generate, preset, transformer
from jaxmix.train import TrainSettings, build_programs, read_records, run_training, validation_set

HERE = Path(__file__).parent
GIB = 2**30
NEVER = 10**6


def documents(vocab_size: int, *, domains: int = 8, tokens: int = 2**20, length: int = 2048) -> dict[str, np.ndarray]:
    """Random tokens by domain, each with a favorite half of the vocabulary."""
    found = {}
    for j in range(domains):
        rng = np.random.default_rng(j)
        drawn = rng.integers(0, vocab_size, (tokens // length, length))
        half = rng.permutation(vocab_size)[: max(vocab_size // 2, 1)]
        found[f"d{j}"] = np.where(rng.random(drawn.shape) < 0.5, half[drawn % len(half)], drawn).astype(np.int32)
    return found


# ── model FLOPs of a train step ──────────────────────────────────────────────────────────────────

ROWS = {
    ("lm-125m", 1024): 64,
    ("lm-125m", 4096): 16,
    ("lm-350m", 1024): 32,
    ("lm-350m", 4096): 8,
    ("lm-1b", 1024): 16,
    ("lm-1b", 4096): 4,
}
"""Rows to try first without remat, then with "dots", then with half as many."""


def model_flops(is_tiny: bool, name: str, length: int, *, is_unrolled: bool = False) -> dict[str, Any]:
    """The library's train step (AdamW, accounting by domain) at one size, over a bfloat16 product in turns."""
    rows, domains = ROWS.get((name, length), 8), 8
    if is_tiny:
        name, length, rows = "lm-1m", length // 32, 4
    mesh = internal.build_mesh(devices=jax.devices()[:1])
    failures = []
    for count, remat in (
        (rows, "none"),
        (rows, "dots"),
        (rows // 2, "none"),
        (rows // 2, "dots"),
        (rows // 2, "block"),
    ):
        config = preset(name, seq_len=length, remat=remat, scan_layers=False if is_unrolled else None)
        try:
            return _timed_step(config, name, count, domains, mesh, is_tiny) | {"failed_before": failures}
        except Exception as error:
            if "RESOURCE_EXHAUSTED" not in str(error) and "out of memory" not in str(error).lower():
                raise
            failures.append(f"{count} rows, remat {remat}: {str(error).splitlines()[0][:200]}")
    raise RuntimeError("; ".join(failures))


def _timed_step(config: Any, name: str, rows: int, domains: int, mesh: Any, is_tiny: bool) -> dict[str, Any]:
    length = config.seq_len
    model = transformer(config)
    programs = build_programs(model, TrainSettings(steps=1000), num_domains=domains, mesh=mesh)
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, config.vocab_size, (rows, length + 1)).astype(np.int32)
    host = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "domain": (np.arange(rows) % domains).astype(np.int32)}
    with internal.use_mesh(mesh):
        state = internal.init_train_state(jax.random.key(0), model, programs.optimizer, mesh)
        batch = internal.global_batch(mesh, {k: np.ascontiguousarray(v) for k, v in host.items()})
        began = time.perf_counter()
        compiled = programs.train_step.lower(state, batch).compile()
        compile_seconds = time.perf_counter() - began
        carry = [state]
        del state

        def step() -> Any:
            carry[0], info = compiled(carry[0], batch)
            return info.loss

        side, chain = (256, 2) if is_tiny else (8192, 10)
        product, product_flops = build_product(side, chain)
        for _ in range(3):
            jax.block_until_ready((step(), product()))
        steps, products = [], []
        for _ in range(2 if is_tiny else 8):
            for call, seconds in ((step, steps), (product, products)):
                began = time.perf_counter()
                jax.block_until_ready(call())
                seconds.append(time.perf_counter() - began)
        loss = float(step())
        profile = _profile(step)
    if not np.isfinite(loss):
        raise RuntimeError(f"the loss is {loss}")
    achieved = model.flops_per_token * rows * length / float(np.median(steps))
    rate = product_flops / float(np.median(products))
    memory = compiled.memory_analysis()
    needed = memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.output_size_in_bytes
    needed -= memory.alias_size_in_bytes
    plan = lambda config: (
        internal.estimate_memory(config, rows=rows, seq_len=length, parameter_shards=1, is_accumulating=False).total
    )
    planned, planned_half = plan(config), plan(dataclasses.replace(config, compute_dtype="bfloat16"))
    stats = jax.devices()[0].memory_stats() or {}
    return {
        "preset": name,
        "length": length,
        "rows": rows,
        "remat": config.remat,
        "scan_layers": config.is_scanned,
        "parameters": model.num_params,
        "compile_seconds": compile_seconds,
        "step_seconds": float(np.median(steps)),
        "step_seconds_all": steps,
        "tokens_per_second": rows * length / float(np.median(steps)),
        "model_tflops": achieved / 1e12,
        "product_tflops": rate / 1e12,
        "mfu": achieved / rate,
        "loss": loss,
        "memory_gib": {
            "compiled": needed / GIB,
            "temporaries": memory.temp_size_in_bytes / GIB,
            "peak_in_use": stats.get("peak_bytes_in_use", 0) / GIB,
            "plan": planned / GIB,
            "plan_bfloat16": planned_half / GIB,
            "plan_over_compiled": planned / needed,
        },
        "attention": attention_calls(compiled.as_text()),
        "profile": profile,
    }


def attention_calls(text: str) -> dict[str, Any]:
    """What a compiled program calls outside XLA's own code, and the largest product's result among float32 ones."""
    targets = collections.Counter(re.findall(r'custom_call_target="([^"]+)"', text))
    flash = {name: count for name, count in targets.items() if "fmha" in name.lower() or "flash" in name.lower()}
    return {"is_flash": bool(flash), "flash_calls": flash, "custom_calls": dict(targets.most_common(12))}


def _profile(step: Callable[[], Any], most: int = 25) -> Any:
    """Milliseconds of a step's longest kernels by name; a sentence where the profiler gives none."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            with jax.profiler.trace(folder):
                jax.block_until_ready(step())
            (path,) = Path(folder).rglob("*.xplane.pb")
            data = jax.profiler.ProfileData.from_file(str(path))
            seconds: collections.Counter[str] = collections.Counter()
            for plane in data.planes:
                if "GPU" not in plane.name:
                    continue
                for line in plane.lines:
                    if "Stream" in line.name:
                        for event in line.events:
                            seconds[event.name] += event.duration_ns
            return {name[:120]: round(ns / 1e6, 3) for name, ns in seconds.most_common(most)}
    except Exception as error:
        return f"no profile: {type(error).__name__}: {error}"


# ── resuming ─────────────────────────────────────────────────────────────────────────────────────

FLAGS = {
    "none": "",
    "exclude_nondeterministic_ops": "--xla_gpu_exclude_nondeterministic_ops=true",
    "deterministic_ops": "--xla_gpu_deterministic_ops=true",
    "deterministic_ops, no expander": "--xla_gpu_deterministic_ops=true "
    "--xla_gpu_enable_scatter_determinism_expander=false",
}
STEPS, CUT = 12, 6


def resume(is_tiny: bool, save: Callable[[Any], None]) -> dict[str, Any]:
    """Runs in processes of their own: two straight ones, and one that is stopped halfway and continued."""
    names = ["none"] if is_tiny else list(FLAGS)
    with tempfile.TemporaryDirectory() as folder:
        started = {
            (name, run): _start(Path(folder, name, run), FLAGS[name], run == "cut", is_tiny)
            for name in names
            for run in ("straight", "again", "cut")
            if run != "again" or name == "none"
        }
        found: dict[str, Any] = {name: {} for name in names}
        for (name, run), process in started.items():
            found[name][run] = _finish(process)
        for name, process in [(n, _start(Path(folder, n, "cut"), FLAGS[n], False, is_tiny)) for n in names]:
            found[name]["resumed"] = _finish(process)
    for runs in found.values():
        same = lambda a, b, runs=runs: runs[a].get("digest") is not None and runs[a]["digest"] == runs[b].get("digest")
        runs["cut_at"] = runs["cut"].get("stopped_at")
        runs["straight_again_is_exact"] = same("straight", "again") if "again" in runs else None
        runs["resume_is_exact"] = same("straight", "resumed") and runs["resumed"].get("resumed_from") == CUT
    return {"steps": STEPS, "flags": FLAGS, "runs": found}


def _start(folder: Path, flags: str, is_cut: bool, is_tiny: bool) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip(),
        "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.015",
    }
    command = [sys.executable, str(HERE / "training.py"), str(folder), str(int(is_cut)), str(int(is_tiny))]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, complaint = process.communicate()
    if process.returncode:
        return {"error": complaint.strip()[-600:]}
    return json.loads(out.splitlines()[-1])


class _Stop:
    """A tracker that asks for a stop as a shutdown notice does."""

    def log(self, step: int, record: dict[str, Any]) -> None:
        if record["kind"] == "train" and step >= CUT - 1:
            os.kill(os.getpid(), signal.SIGTERM)

    def close(self) -> None:
        pass


def resumed_run(folder: Path, is_cut: bool, is_tiny: bool) -> dict[str, Any]:
    """One process's part: trains, continuing what is there, and prints a digest of the parameters."""
    name, length, rows = ("lm-300k", 32, 4) if is_tiny else ("lm-3m", 256, 16)
    model = transformer(preset(name, seq_len=length))
    sources = documents(model.config.vocab_size, domains=3, tokens=2**16, length=512)
    settings = TrainSettings(steps=STEPS, warmup_steps=2, log_every=1, eval_every=NEVER, checkpoint_every=NEVER)
    try:
        with MixtureStream(sources, batch_size=rows, seq_len=length, seed=0, block=2) as stream:
            result = run_training(
                folder,
                model=model,
                mixer=mixers.make("odm"),
                stream=stream,
                validation=validation_set(sources, seq_len=length, rows_per_domain=2),
                settings=settings,
                trackers=[_Stop()] if is_cut else [],
                show_progress=False,
            )
    except RunError as error:
        found = re.search(r"saved at step (\d+)", str(error))
        return {"stopped_at": None if found is None else int(found[1]), "said": str(error)[:200]}
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(result.params):
        digest.update(np.asarray(leaf).tobytes())
    train = [r for r in read_records(folder / "metrics.jsonl") if r["kind"] == "train"]
    return {"digest": digest.hexdigest(), "resumed_from": result.resumed_from, "records": len(train)}


# ── swarm ────────────────────────────────────────────────────────────────────────────────────────


class _Clock:
    """A tracker that notes when every train record was written."""

    def __init__(self) -> None:
        self.ticks: list[tuple[int, float]] = []

    def log(self, step: int, record: dict[str, Any]) -> None:
        if record["kind"] == "train":
            self.ticks.append((step, time.perf_counter()))

    def close(self) -> None:
        pass

    def per_step(self) -> float:
        (first, began), (last, ended) = self.ticks[len(self.ticks) // 4], self.ticks[-1]
        return (ended - began) / (last - first)


def swarm(is_tiny: bool, save: Callable[[Any], None]) -> dict[str, Any]:
    """Seconds of a step of one of the proxies of a swarm over those of the same model trained alone."""
    proxies, steps, repeats = (4, 20, 1) if is_tiny else (64, 256, 3)
    length, rows = (32, 4) if is_tiny else (128, 16)
    report: dict[str, Any] = {"proxies": proxies, "steps": steps, "rows": rows, "length": length}
    model = transformer(preset("lm-300k", seq_len=length))
    sources = documents(256, domains=8, tokens=2**18)
    validation = validation_set(sources, seq_len=length, rows_per_domain=1)
    settings = TrainSettings(steps=steps, learning_rate=4e-3, log_every=5, eval_every=NEVER, checkpoint_every=NEVER)
    draws = np.random.default_rng(0).dirichlet(np.ones(8), proxies)
    mesh = internal.build_mesh(devices=jax.devices()[:1])
    programs = build_programs(model, settings, num_domains=8, mesh=mesh)
    stream_options = {"batch_size": rows, "seq_len": length, "block": 4}
    lone = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(repeats):
            clock = _Clock()
            with MixtureStream(sources, seed=number, **stream_options) as stream:
                run_training(
                    Path(folder, f"lone{number}"),
                    model=model,
                    mixer=mixers.make("static"),
                    stream=stream,
                    validation=validation,
                    settings=settings,
                    prior=draws[number],
                    programs=programs,
                    trackers=[clock],
                    show_progress=False,
                )
            lone.append(clock.per_step())
        began = time.perf_counter()
        internal.run_swarm(
            Path(folder, "swarm"),
            model=model,
            proxies=[internal.Proxy(f"p{i}", weights, i) for i, weights in enumerate(draws)],
            sources=sources,
            validation=validation,
            settings=settings,
            vocab_size=256,
            show_progress=False,
            **stream_options,
        )
        whole = time.perf_counter() - began
        records = read_records(Path(folder, "swarm", "progress.jsonl"))
    taken = np.diff([0] + [record["step"] for record in records])
    # The first stretch compiles.
    pairs = list(zip(taken, records, strict=True))[1 if len(records) > 1 else 0 :]
    per_step = sum(n * r["step_seconds"] for n, r in pairs) / sum(n for n, _ in pairs)
    flops = model.flops_per_token * rows * length
    report["lm-300k"] = {
        "lone_seconds_per_step": float(np.median(lone)),
        "lone_all": lone,
        "swarm_seconds_per_step": float(per_step),
        "swarm_seconds_with_compilation": whole,
        "stretches": [int(n) for n in taken],
        "ratio": float(per_step / proxies / np.median(lone)),
        "swarm_model_tflops": float(proxies * flops / per_step / 1e12),
    }
    save(report)
    return report


# ── rollouts ─────────────────────────────────────────────────────────────────────────────────────


def rollouts(is_tiny: bool, save: Callable[[Any], None]) -> dict[str, Any]:
    """Tokens a second of completions that never end, over the products and over reading the weights once a token."""
    name, prompts, group, prompt_length, length = ("lm-1m", 2, 2, 8, 8) if is_tiny else ("lm-1b", 32, 8, 128, 128)
    config = preset(name)
    model = transformer(config)
    params = jax.jit(model.init)(jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (prompts, prompt_length), 1, config.vocab_size)

    @jax.jit
    def run(params: Any, key: jax.Array, tokens: jax.Array) -> jax.Array:
        return generate(model, params, key, tokens, num_rollouts=group, length=length, eos_id=-1, pad_id=0).tokens

    keys = iter(jax.random.split(jax.random.key(2), 32))
    repeats = 1 if is_tiny else 5
    seconds = median_seconds(lambda: run(params, next(keys), tokens), repeats=repeats)
    half = jax.jit(lambda params: jax.tree.map(lambda x: x.astype(jnp.bfloat16), params))(params)

    # The same products and nothing else: what any decoding has to do for each token.
    width, hidden, inputs = config.width, config.hidden_units, config.mlp_inputs
    inner = (config.query_heads + 2 * config.key_heads) * config.size_of_head
    outer = config.query_heads * config.size_of_head
    shapes = [(width, inner), (outer, width), (width, inputs * hidden), (hidden, width)]
    make = jax.jit(lambda key, shape: (0.01 * jax.random.normal(key, shape)).astype(jnp.bfloat16), static_argnums=1)
    stacks = [make(jax.random.key(i), (config.num_layers, *shape)) for i, shape in enumerate(shapes)]
    readout = make(jax.random.key(9), (width, config.vocab_size))

    @jax.jit
    def products(stacks: Any, readout: jax.Array) -> jax.Array:
        def layer(x: jax.Array, weights: Any) -> tuple[jax.Array, None]:
            joint, out, up, down = weights
            x = x + (x @ joint)[:, :outer] @ out
            return x + (x @ up)[:, :hidden] @ down, None

        def token(_: jax.Array, x: jax.Array) -> jax.Array:
            x, _ = jax.lax.scan(layer, x, stacks)
            logits = x @ readout
            return jnp.tanh(x) + jnp.max(logits, axis=1, keepdims=True) * jnp.asarray(1e-3, x.dtype)

        return jax.lax.fori_loop(0, length, token, jnp.ones((prompts * group, width), jnp.bfloat16))

    floor = median_seconds(lambda: products(stacks, readout), repeats=repeats)
    read = jax.jit(lambda tree, by: jax.tree.map(lambda x: x * by, tree))
    copy = median_seconds(lambda: read(half, jnp.bfloat16(1.5)), repeats=repeats)
    moved = 2 * 2 * model.num_params
    count = prompts * group * length
    return {
        "preset": name,
        "rows": prompts * group,
        "prompt_length": prompt_length,
        "length": length,
        "seconds": seconds,
        "tokens_per_second": count / seconds,
        "products_seconds": floor,
        "over_products": seconds / floor,
        "copy_tb_per_second": moved / copy / 1e12,
        "over_reading_the_weights": seconds / (length * copy / 2),
        "profile": _profile(lambda: run(params, next(keys), tokens)),
    }


# ── stream ───────────────────────────────────────────────────────────────────────────────────────


def stream(is_tiny: bool, save: Callable[[Any], None]) -> dict[str, Any]:
    """Batches a second that the stream yields: from memory, and from the bundled texts as `prepare` leaves them."""
    length, rows, count = (64, 4, 10) if is_tiny else (1024, 64, 100)
    report: dict[str, Any] = {"rows": rows, "length": length}

    def rate(sources: Any) -> dict[str, Any]:
        with MixtureStream(sources, batch_size=rows, seq_len=length, seed=0, unit="tokens") as batches:
            for _ in range(10):
                next(batches)
            times = []
            for _ in range(3):
                began = time.perf_counter()
                for _ in range(count // 3):
                    next(batches)
                times.append((time.perf_counter() - began) / (count // 3))
        seconds = float(np.median(times))
        return {"batches_per_second": 1 / seconds, "tokens_per_second": rows * length / seconds}

    report["in_memory"] = rate(documents(32_768, tokens=2**16 if is_tiny else 2**23))
    with tempfile.TemporaryDirectory() as folder:
        plain = {"sources": "bundled", "train": {"steps": 1}, "out": str(Path(folder, "none"))}
        plain["data"] = {"prepared": str(Path(folder, "prepared"))}
        report["prepared"] = rate(internal.prepare_and_open(internal.from_mapping(plain, file="gpu")).train)
    return report


if __name__ == "__main__":
    print(json.dumps(resumed_run(Path(sys.argv[1]), sys.argv[2] == "1", sys.argv[3] == "1")))
