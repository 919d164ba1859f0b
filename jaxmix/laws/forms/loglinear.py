"""The exponential (log-linear) mixing law.

Ye et al.: "Data Mixing Laws", arXiv 2403.16952; Chen et al.: "Aioli", arXiv 2411.05735; Olmix, arXiv 2602.12237.
"""

from __future__ import annotations

from typing import Literal

import jax.numpy as jnp

from jaxmix.core.types import Array
from jaxmix.core.validate import NonNegative, checked
from jaxmix.laws.base import Form, Law, Parameter, Params, Shape, register_law
from jaxmix.laws.forms.terms import scale_parameters, scale_terms
from jaxmix.laws.solve.least_squares import least_squares


@register_law
@checked
def loglinear(variant: Literal["olmix", "ye", "aioli"] = "olmix", *, ridge: NonNegative = 0.0) -> Law:
    r"""The exponential law: losses fall log-linearly in the mixture down to an irreducible part.

    For metric i at mixture h, model size N (unit N₀) and tokens D (unit D₀):

        L_i = c_i + exp(Σ_j t_ij h_j)         + A_i (N/N₀)^{−α_i} + B_i (D/D₀)^{−β_i}      "olmix"
        L_i = c_i + k_i exp(Σ_j t_ij h_j)     + …                                           "ye"
        L_i = c_i + k_i exp(−Σ_j t_ij h_j)    + …                                           "aioli"

    Symbols: c `irreducible`, k `scale`, t `coefficients`, A `size_scale`, α `size_exponent`, B `token_scale`,
    β `token_exponent`. The terms in N and D are left out where the table's runs do not differ in them.

    Args:
        variant: which of the three. They are one family: since Σ h = 1, k_i is the same as adding ln k_i to every
            t_ij, so that "olmix" has all that can be identified, K + 1 numbers a metric, and the others one more.
        ridge: ≥ 0; adds `ridge` · Σ_j (t_ij − mean_j t_ij)² / m, averaged over metrics, to the mean squared relative
            error. 0: none. Below about 1.5 runs for each coefficient a ridge of 1e-5 to 1e-3 keeps the law from
            fitting noise; metrics are then fitted together and no longer one by one.

    Returns:
        The law. Parameters, per metric: `irreducible` [e], `coefficients` [e, m], `scale` [e] ("ye", "aioli"), and
        two for each of N and D that varies. Metrics of no domain (−1) are like others.

    Raises:
        ConfigError: unknown variant, negative ridge.

    Numerics: finite everywhere on the simplex; coefficients are held in [−30, 10].

    Differs from the papers: N and D enter as terms of one fit and not as nested fits on each run's curve.

    Example:
        >>> from jaxmix.laws import Shape
        >>> loglinear().build(Shape(num_domains=3, metric_domain=(0, 1, -1))).num_params
        12

    References:
        arXiv 2403.16952 and github.com/yegcjs/mixinglaws; arXiv 2411.05735 and github.com/HazyResearch/aioli (static
        law); arXiv 2602.12237 and github.com/allenai/olmix.
    """
    sign = -1.0 if variant == "aioli" else 1.0

    def build(shape: Shape) -> Form:
        e, m = shape.num_metrics, shape.num_domains
        ends = sorted((-4.0 * sign, 1.5 * sign))
        limits = sorted((-30.0 * sign, 10.0 * sign))
        parameters = {
            "irreducible": Parameter((e,), 1e-3, 10.0, (0.2, 2.5)),
            "coefficients": Parameter((e, m), limits[0], limits[1], (ends[0], ends[1]), is_log=False),
        }
        if variant != "olmix":
            parameters["scale"] = Parameter((e,), 1e-4, 1e2, (0.3, 3.0))
        parameters |= scale_parameters(shape)

        def predict(params: Params, weights: Array, model_size: Array, tokens: Array) -> Array:
            falling = jnp.exp(sign * (weights @ params["coefficients"].T))
            if variant != "olmix":
                falling = params["scale"][None, :] * falling
            return params["irreducible"][None, :] + falling + scale_terms(params, shape, model_size, tokens)

        def penalty(params: Params) -> Array:
            return ridge * jnp.mean(jnp.var(params["coefficients"], axis=1))

        return Form(parameters, predict, penalty if ridge > 0 else None)

    return Law("loglinear", least_squares, build)
