"""The power law in a domain's own data: the capacity-and-noise law without competition or transfer."""

from __future__ import annotations

from jaxmix.core.types import Array
from jaxmix.core.validate import Fraction, checked
from jaxmix.laws.base import Form, Law, Parameter, Params, Shape, register_law
from jaxmix.laws.forms.terms import own_weights, require_own_domains, scale_parameters, scale_terms
from jaxmix.laws.solve.least_squares import least_squares


@register_law
@checked
def power(floor: Fraction = 1e-4) -> Law:
    r"""Each domain's loss is a power law in the tokens of its own that were trained on, and one in model size.

    For metric i that validates domain j, at mixture h, tokens D (unit D₀) and model size N (unit N₀):

        L_i = E_i + B_i (h_j D/D₀)^{−β_i} + A_i (N/N₀)^{−α_i}

    Symbols: E `irreducible`, B `scale`, β `exponent`, A `size_scale`, α `size_exponent`. The last term is left out
    where model size does not vary.

    Args:
        floor: > 0 and < 1, weights below it count as it, since the law is infinite at 0. `capacity` with
            `competition=False` has a fitted offset instead.

    Returns:
        The law; 3 numbers a metric, 5 where model size varies.

    Raises:
        ConfigError: a floor outside (0, 1); when laid out for a table with a metric of no domain.

    Example:
        >>> from jaxmix.laws import Shape
        >>> power().build(Shape(num_domains=3, metric_domain=(0, 1, 2))).num_params
        9

    References:
        arXiv 2606.08167, Equation 3 with x = N.
    """

    def build(shape: Shape) -> Form:
        require_own_domains(shape, "power")
        one = (shape.num_metrics,)
        parameters = {
            "irreducible": Parameter(one, 1e-3, 10.0, (0.2, 2.5)),
            "scale": Parameter(one, 1e-5, 1e3, (0.05, 1.0)),
            "exponent": Parameter(one, 1e-2, 3.0, (0.05, 0.6)),
        }
        parameters |= scale_parameters(shape, has_tokens=False)

        def predict(params: Params, weights: Array, model_size: Array, tokens: Array) -> Array:
            amount = own_weights(weights, shape, floor) * (tokens / shape.tokens)[:, None]
            falling = params["scale"][None, :] * amount ** -params["exponent"][None, :]
            return params["irreducible"][None, :] + falling + scale_terms(params, shape, model_size, tokens)

        return Form(parameters, predict)

    return Law("power", least_squares, build)
