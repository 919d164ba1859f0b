"""The additive mixing law and its joint variant.

Shukor et al.: "Scaling Laws for Optimal Data Mixtures", arXiv 2507.09404.
"""

from __future__ import annotations

import jax.numpy as jnp

from jaxmix.core.types import Array
from jaxmix.core.validate import NonNegative, checked
from jaxmix.laws.base import Form, Law, Parameter, Params, Shape, register_law
from jaxmix.laws.forms.terms import safe_power, scale_parameters, scale_terms
from jaxmix.laws.solve.least_squares import least_squares


@register_law
@checked
def additive(*, ridge: NonNegative = 1e-5) -> Law:
    r"""The additive law: one over a sum of powers of the weights, beside terms in size and tokens.

    For metric i at mixture h, model size N (unit N₀) and tokens D (unit D₀):

        L_i = E_i + 1 / Σ_j C_ij h_j^{γ_ij} + A_i (N/N₀)^{−α_i} + B_i (D/D₀)^{−β_i}

    Symbols: E `irreducible`, C `rates`, γ `exponents`, A `size_scale`, α `size_exponent`, B `token_scale`,
    β `token_exponent`. Terms in N and D are left out where the table's runs do not differ in them. The best mixture
    does not depend on N or D.

    Args:
        ridge: ≥ 0; adds `ridge` · (Σ_j (ln C_ij − mean_j ln C_ij)² + (ln γ_ij)²) / m, averaged over metrics, to the
            mean squared relative error. 0: none, the law of the paper, whose metrics are fitted one by one; it fits
            noise where there are fewer runs than about three a domain.

    Returns:
        The law; 2 K + 1 numbers a metric, two more for each of N and D that varies. Metrics of no domain (−1) are
        like others.

    Raises:
        ConfigError: negative ridge.

    Numerics: rates in [1e-8, 1e3] and exponents in [0.05, 5]. A domain of weight 0 adds nothing, and its derivative
    with respect to the weight is given as 0 there (it is infinite for γ < 1).

    Example:
        >>> from jaxmix.laws import Shape
        >>> additive().build(Shape(num_domains=3, metric_domain=(0, 1, -1))).num_params
        21

    References:
        arXiv 2507.09404, additive law.
    """
    return Law("additive", least_squares, lambda shape: _build(shape, ridge, is_joint=False))


@register_law
@checked
def joint(*, ridge: NonNegative = 1e-5) -> Law:
    r"""The joint law: the additive law whose terms in size and tokens depend on the mixture too.

        L_i = E_i + 1 / Σ_j C_ij h_j^{γ_ij} + (Σ_j P_ij h_j)^{p_i} (N/N₀)^{−α_i} + (Σ_j Q_ij h_j)^{q_i} (D/D₀)^{−β_i}

    Symbols beside those of `additive`: P `size_rates`, p `size_power`, Q `token_rates`, q `token_power`. The best
    mixture depends on N and D. Where neither varies this is `additive`.

    Args:
        ridge: see `additive`; the spread of ln P and of ln Q is added to it likewise.

    Returns:
        The law; 2 K + 1 numbers a metric, K + 2 more for each of N and D that varies.

    Raises:
        ConfigError: negative ridge.

    Example:
        >>> from jaxmix.laws import Shape
        >>> shape = Shape(num_domains=3, metric_domain=(0,), model_size_varies=True, tokens_vary=True)
        >>> joint().build(shape).num_params
        17

    References:
        arXiv 2507.09404, joint law (form and count from secondary sources).
    """
    return Law("joint", least_squares, lambda shape: _build(shape, ridge, is_joint=True))


def _build(shape: Shape, ridge: float, *, is_joint: bool) -> Form:
    e, m = shape.num_metrics, shape.num_domains
    parameters = {
        "irreducible": Parameter((e,), 1e-3, 10.0, (0.2, 2.5)),
        "rates": Parameter((e, m), 1e-8, 1e3, (1e-2, 2.0)),
        "exponents": Parameter((e, m), 0.05, 5.0, (0.2, 1.0)),
    }
    scales = scale_parameters(shape)
    for name in ("size", "token"):
        if is_joint and f"{name}_scale" in scales:
            del scales[f"{name}_scale"]
            parameters[f"{name}_rates"] = Parameter((e, m), 1e-6, 1e3, (0.05, 1.0))
            parameters[f"{name}_power"] = Parameter((e,), 1e-2, 3.0, (0.3, 1.0))
    parameters |= scales

    def predict(params: Params, weights: Array, model_size: Array, tokens: Array) -> Array:
        powers = safe_power(weights[:, None, :], params["exponents"][None, :, :])
        loss = params["irreducible"][None, :] + 1.0 / jnp.sum(params["rates"][None, :, :] * powers, axis=-1)
        if not is_joint:
            return loss + scale_terms(params, shape, model_size, tokens)
        for name, value in (("size", model_size / shape.model_size), ("token", tokens / shape.tokens)):
            if f"{name}_rates" in params:
                level = (weights @ params[f"{name}_rates"].T) ** params[f"{name}_power"][None, :]
                loss = loss + level * value[:, None] ** -params[f"{name}_exponent"][None, :]
        return loss

    def penalty(params: Params) -> Array:
        spread = sum(jnp.var(jnp.log(value), axis=1) for name, value in params.items() if name.endswith("rates"))
        return ridge * jnp.mean(spread + jnp.mean(jnp.log(params["exponents"]) ** 2, axis=1))

    return Form(parameters, predict, penalty if ridge > 0 else None)
