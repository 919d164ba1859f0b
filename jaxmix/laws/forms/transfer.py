"""The transfer power law: data of every domain counts for every metric, each at its own rate."""

from __future__ import annotations

import jax.numpy as jnp

from jaxmix.core.types import Array
from jaxmix.core.validate import NonNegative, checked
from jaxmix.laws.base import Form, Law, Parameter, Params, Shape, register_law
from jaxmix.laws.forms.terms import scale_parameters, scale_terms
from jaxmix.laws.solve.least_squares import least_squares


@register_law
@checked
def transfer(*, ridge: NonNegative = 0.0) -> Law:
    r"""Each metric's loss is a power law in the effective data it is given: all domains, each at a rate of exchange.

    For metric i at mixture h, tokens D (unit D₀) and model size N (unit N₀):

        L_i = E_i + ((D/D₀) Σ_j C_ij h_j)^{−g_i} + A_i (N/N₀)^{−α_i}

    Symbols: E `irreducible`, C `rates`, g `exponent`, A `size_scale`, α `size_exponent`. The last term is left out
    where model size does not vary.

    Args:
        ridge: ≥ 0; adds `ridge` · Σ_j (g_i ln C_ij − mean_j g_i ln C_ij)² / m, averaged over metrics, to the mean
            squared relative error: g ln C is what a domain alone would do to the logarithm of the reducible loss.
            0: none. Below about 1.5 runs for each rate, 1e-5 to 1e-3 keeps the law from fitting noise; metrics
            are then fitted together and no longer one by one.

    Returns:
        The law; K + 2 numbers a metric, K + 4 where model size varies. Metrics of no domain (−1) are like others.

    Raises:
        ConfigError: negative ridge.

    Numerics: rates are in [1e-8, 1e8], so that no mixture gives a metric nothing: finite everywhere on the simplex.

    Example:
        >>> from jaxmix.laws import Shape
        >>> transfer().build(Shape(num_domains=3, metric_domain=(0, 1, -1))).num_params
        15

    References:
        The capacity term replaced by N, and the offset of arXiv 2606.08167's noise term by a full matrix of rates.
    """

    def build(shape: Shape) -> Form:
        e, m = shape.num_metrics, shape.num_domains
        parameters = {
            "irreducible": Parameter((e,), 1e-3, 10.0, (0.2, 2.5)),
            "rates": Parameter((e, m), 1e-8, 1e8, (1e-3, 1.0)),
            "exponent": Parameter((e,), 1e-2, 3.0, (0.1, 0.6)),
        }
        parameters |= scale_parameters(shape, has_tokens=False)

        def predict(params: Params, weights: Array, model_size: Array, tokens: Array) -> Array:
            amount = (weights @ params["rates"].T) * (tokens / shape.tokens)[:, None]
            falling = amount ** -params["exponent"][None, :]
            return params["irreducible"][None, :] + falling + scale_terms(params, shape, model_size, tokens)

        def penalty(params: Params) -> Array:
            alone = params["exponent"][:, None] * jnp.log(params["rates"])
            return ridge * jnp.mean(jnp.var(alone, axis=1))

        return Form(parameters, predict, penalty if ridge > 0 else None)

    return Law("transfer", least_squares, build)
