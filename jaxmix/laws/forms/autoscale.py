"""AutoScale's law: a power law in each domain's amount of data, added up. Kang et al., arXiv 2407.20177."""

from __future__ import annotations

import jax.numpy as jnp

from jaxmix.core.types import Array
from jaxmix.core.validate import Positive, checked
from jaxmix.laws.base import Form, Law, Parameter, Params, Shape, register_law
from jaxmix.laws.solve.least_squares import least_squares


@register_law
@checked
def autoscale(unit: Positive = 1e-3) -> Law:
    r"""AutoScale: every domain lowers every loss by a power law in its own tokens, beside what others are worth.

    For metric i at mixture h and tokens D (unit u D₀, with D₀ the table's mean tokens):

        L_i = l_i + Σ_j (n_ij + h_j D / (u D₀))^{−γ_ij}

    Symbols: l `irreducible`, n `equivalent_tokens`, γ `exponents`, u `unit`. The law has no factor before a term, so
    that, unlike the other laws here, it is another law in another unit of tokens.

    Args:
        unit: u > 0; at the default a domain of all tokens counts 1000. The terms of 20 domains must add up to a loss
            of a few nats, which needs amounts well above 1.

    Returns:
        The law; 2 K + 1 numbers a metric. Tokens add none, and it has no term in model size: use one size. Metrics of
        no domain (−1) are like others.

    Raises:
        ConfigError: a unit that is not > 0.

    Numerics: n in [1e-3, 1e6]: finite everywhere on the simplex.

    Example:
        >>> from jaxmix.laws import Shape
        >>> autoscale().build(Shape(num_domains=3, metric_domain=(0, 1, -1))).num_params
        21

    References:
        arXiv 2407.20177; github.com/feiyang-k/AutoScale.
    """

    def build(shape: Shape) -> Form:
        e, m = shape.num_metrics, shape.num_domains
        parameters = {
            "irreducible": Parameter((e,), 1e-3, 10.0, (0.2, 2.5)),
            "equivalent_tokens": Parameter((e, m), 1e-3, 1e6, (1.0, 1e3)),
            "exponents": Parameter((e, m), 1e-2, 5.0, (0.2, 1.0)),
        }

        def predict(params: Params, weights: Array, model_size: Array, tokens: Array) -> Array:
            del model_size
            amount = (weights * (tokens / (unit * shape.tokens))[:, None])[:, None, :]
            terms = (params["equivalent_tokens"][None] + amount) ** -params["exponents"][None]
            return params["irreducible"][None, :] + jnp.sum(terms, axis=-1)

        return Form(parameters, predict)

    return Law("autoscale", least_squares, build)
