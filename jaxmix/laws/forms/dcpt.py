"""The D-CPT law: scaling of a domain's loss with size, tokens and the domain's weight. Que et al., arXiv 2406.01375."""

from __future__ import annotations

from jaxmix.core.types import Array
from jaxmix.laws.base import Form, Law, Parameter, Params, Shape, register_law
from jaxmix.laws.forms.terms import own_weights, require_own_domains, safe_power, scale_parameters, scale_terms
from jaxmix.laws.solve.least_squares import least_squares


@register_law
def dcpt() -> Law:
    r"""D-CPT: a term that grows with the own weight and falls with tokens, and one that falls with the own weight.

    For metric i that validates domain j, at mixture h, model size N (unit N₀) and tokens D (unit D₀):

        L_i = E_i + A_i (N/N₀)^{−α_i} + B_i h_j^{η_i} (D/D₀)^{−β_i} + C_i (h_j + ε_i)^{−γ_i}

    Symbols: E `irreducible`, A `size_scale`, α `size_exponent`, B `token_scale`, η `weight_exponent`,
    β `token_exponent`, C `scale`, ε `offset`, γ `exponent`. The term in N and the factor in D are left out where the
    table's runs do not differ in them.

    Returns:
        The law; 9 numbers a metric, 7 at one model size, 6 at one size and one number of tokens.

    Raises:
        ConfigError: when laid out for a table with a metric of no domain.

    Numerics: ε in [1e-5, 0.5]: finite at weights of zero, where the derivative of h^η is given as 0.

    Example:
        >>> from jaxmix.laws import Shape
        >>> dcpt().build(Shape(num_domains=3, metric_domain=(0, 1, 2))).num_params
        18

    References:
        arXiv 2406.01375 (form from secondary sources).
    """

    def build(shape: Shape) -> Form:
        require_own_domains(shape, "dcpt")
        one = (shape.num_metrics,)
        parameters = {
            "irreducible": Parameter(one, 1e-3, 10.0, (0.2, 2.5)),
            "token_scale": Parameter(one, 1e-5, 1e3, (0.02, 1.0)),
            "weight_exponent": Parameter(one, 1e-2, 5.0, (0.1, 1.5)),
            "scale": Parameter(one, 1e-5, 1e3, (0.05, 1.0)),
            "offset": Parameter(one, 1e-5, 0.5, (1e-3, 0.1)),
            "exponent": Parameter(one, 1e-2, 3.0, (0.05, 0.6)),
        }
        scales = scale_parameters(shape)
        parameters |= {name: value for name, value in scales.items() if name != "token_scale"}

        def predict(params: Params, weights: Array, model_size: Array, tokens: Array) -> Array:
            own = own_weights(weights, shape, 0.0)
            growing = params["token_scale"][None, :] * safe_power(own, params["weight_exponent"][None, :])
            if shape.tokens_vary:
                growing = growing * (tokens / shape.tokens)[:, None] ** -params["token_exponent"][None, :]
            falling = params["scale"][None, :] * (own + params["offset"][None, :]) ** -params["exponent"][None, :]
            rest: Params = {name: params[name] for name in ("size_scale", "size_exponent") if name in params}
            return params["irreducible"][None, :] + growing + falling + scale_terms(rest, shape, model_size, tokens)

        return Form(parameters, predict)

    return Law("dcpt", least_squares, build)
