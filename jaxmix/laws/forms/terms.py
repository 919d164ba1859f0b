"""Terms that several laws share: the own weight of a metric, and losses that fall with size and with tokens."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float64

from jaxmix.core.errors import ConfigError
from jaxmix.core.types import Array
from jaxmix.laws.base import Parameter, Params, Shape


def require_own_domains(shape: Shape, law: str, others: str = "loglinear, transfer or additive") -> None:
    """Raises `ConfigError` if a metric validates no domain, for laws that know nothing but the own weight."""
    if -1 in shape.metric_domain:
        raise ConfigError(
            f"metric {shape.metric_domain.index(-1)} validates no domain, and {law} depends on a metric's own weight "
            "alone",
            where=law,
            fix=f"Name the domain it validates, leave the metric out, or use {others}.",
        )


def own_weights(weights: Array, shape: Shape, floor: float) -> Array:
    """[r, e], the weight of each metric's domain, smaller ones raised to `floor`."""
    return jnp.maximum(weights[:, np.asarray(shape.metric_domain)], floor)


def safe_power(base: Array, exponent: Array) -> Array:
    """`base ** exponent` for base ≥ 0 and exponent > 0; 0 at base 0, with derivatives of 0 there instead of nan."""
    is_positive = base > 0
    return jnp.where(is_positive, jnp.where(is_positive, base, 1.0) ** exponent, 0.0)


def with_log_scales(
    weights: np.ndarray, model_size: np.ndarray, tokens: np.ndarray, shape: Shape
) -> Float64[np.ndarray, "r f"]:
    """Features of regressors: the weights, with ln(N/N₀) and ln(D/D₀) where they vary."""
    columns = [weights]
    if shape.model_size_varies:
        columns.append(np.log(model_size / shape.model_size)[:, None])
    if shape.tokens_vary:
        columns.append(np.log(tokens / shape.tokens)[:, None])
    return np.concatenate(columns, axis=1)


def scale_parameters(shape: Shape, *, has_tokens: bool = True) -> dict[str, Parameter]:
    """Those of `scale_terms`: only what varies in the table can be told from the irreducible loss."""
    found: dict[str, Parameter] = {}
    for name, varies in (("size", shape.model_size_varies), ("token", shape.tokens_vary and has_tokens)):
        if varies:
            found[f"{name}_scale"] = Parameter((shape.num_metrics,), 1e-5, 1e3, (0.05, 1.0))
            found[f"{name}_exponent"] = Parameter((shape.num_metrics,), 1e-2, 3.0, (0.1, 0.6))
    return found


def scale_terms(params: Params, shape: Shape, model_size: Array, tokens: Array) -> Array:
    """`A_i (N / N₀)^{−α_i} + B_i (D / D₀)^{−β_i}` [r, e], without the terms the law was laid out without."""
    total = jnp.zeros((model_size.shape[0], shape.num_metrics), model_size.dtype)
    for name, value in (("size", model_size / shape.model_size), ("token", tokens / shape.tokens)):
        if f"{name}_scale" in params:
            exponent = params[f"{name}_exponent"][None, :]
            total = total + params[f"{name}_scale"][None, :] * value[:, None] ** -exponent
    return total
