"""Which precision sums, norms, softmax and losses use beside a compute dtype."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

__all__ = ["wide_dtype"]


def wide_dtype(dtype: Any) -> Any:
    """float32, or float64 beside float64. (`jnp.promote_types` refuses bfloat16 under strict promotion.)"""
    return jnp.dtype(jnp.float64) if dtype == jnp.float64 else jnp.dtype(jnp.float32)
