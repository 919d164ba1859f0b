"""Timing on a device, and what it was measured on."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def median_seconds(call: Callable[[], Any], *, warm_up: int = 2, repeats: int = 7) -> float:
    """Median seconds of a call until its result is on the device, after calls that compile and warm up."""
    for _ in range(warm_up):
        jax.block_until_ready(call())
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - began)
    return float(np.median(seconds))


def build_product(side: int, chain: int, dtype: Any = jnp.bfloat16) -> tuple[Callable[[], jax.Array], float]:
    """A chain of square products of random matrices: the call, and its floating-point operations."""
    make = jax.jit(lambda key: (jax.random.normal(key, (side, side)) / side**0.5).astype(dtype))
    a, b = make(jax.random.key(0)), make(jax.random.key(1))
    run = jax.jit(lambda a, b: jax.lax.fori_loop(0, chain, lambda _, x: x @ b, a))
    return lambda: run(a, b), 2.0 * side**3 * chain


def hardware() -> dict[str, Any]:
    """The device, the processor and the versions that matter, in words."""
    device = jax.devices()[0]
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if "model name" in line]
    found: dict[str, Any] = {
        "backend": jax.default_backend(),
        "device": device.device_kind,
        "platform_version": device.client.platform_version.replace("\n", " "),
        "cpu": models[0] if models else platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }
    for package in (
        "jax",
        "jaxlib",
        "flax",
        "optax",
        "orbax-checkpoint",
        "numpy",
        "grain",
        "nvidia-cudnn-cu13",
        "torch",
    ):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def gpu_state() -> str | None:
    """Name, memory, driver and clocks as nvidia-smi prints them; None without it."""
    query = "name,memory.total,driver_version,clocks.sm,clocks.mem,power.limit,temperature.gpu"
    try:
        done = subprocess.run(
            ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"], capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
