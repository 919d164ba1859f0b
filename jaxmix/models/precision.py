"""Precision of matrix products, sums, norms, softmax and losses."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxmix.core.errors import ConfigError


def wide_dtype(dtype: Any) -> Any:
    """float32, or float64 beside float64. (`jnp.promote_types` refuses bfloat16 under strict promotion.)"""
    return jnp.dtype(jnp.float64) if dtype == jnp.float64 else jnp.dtype(jnp.float32)


def compute_dtype(name: str) -> Any:
    """The dtype called `name`; "auto": bfloat16 on GPU and TPU, float32 on CPU.

    "auto" is looked up when a step is traced, so that building a model touches no device.
    """
    if name == "auto":
        name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return jnp.dtype(name)


def check_compute_dtype(name: str) -> None:
    """Raises ConfigError if `name` is "float64" and JAX has no 64-bit mode on."""
    if name == "float64" and jax.dtypes.canonicalize_dtype("float64") != jnp.float64:
        raise ConfigError(
            "compute dtype 'float64' needs JAX's 64-bit mode",
            where="model.compute_dtype",
            fix="Set jax_enable_x64, or choose 'float32'.",
        )
