"""BiMix: a power of the own weight times a power of the tokens. Ge et al., arXiv 2405.14908."""

from __future__ import annotations

from jaxmix.core.types import Array
from jaxmix.core.validate import Fraction, checked
from jaxmix.laws.base import Form, Law, Parameter, Params, Shape, register_law
from jaxmix.laws.forms.terms import own_weights, require_own_domains
from jaxmix.laws.solve.least_squares import least_squares


@register_law
@checked
def bimix(floor: Fraction = 1e-4) -> Law:
    r"""BiMix: each domain's loss is a power law in its own weight, with a factor that falls with the tokens.

    For metric i that validates domain j, at mixture h and tokens D (unit D₀, the table's mean):

        L_i = A_i h_j^{−α_i} (B_i (D/D₀)^{−β_i} + 1)

    Symbols: A `scale`, α `exponent`, B `token_scale`, β `token_exponent`. The paper's (A/h^α)(B/D^β + C) has one
    number too many (A, B and C can be traded); C = 1 here. Where tokens do not vary, the bracket is a constant and
    is left out: L_i = A_i h_j^{−α_i}.

    Args:
        floor: > 0 and < 1, weights below it count as it, since the law is infinite at 0. It matters to cells below it
            only, and much there: a fitted offset, as in `capacity`, is the other way out.

    Returns:
        The law; 2 numbers a metric, 4 where tokens vary. It has no term in model size: use one size.

    Raises:
        ConfigError: a floor outside (0, 1); when laid out for a table with a metric of no domain.

    Differs from the paper: fitted by relative squared error and not by least squares of the logarithms.

    Example:
        >>> from jaxmix.laws import Shape
        >>> bimix().build(Shape(num_domains=3, metric_domain=(0, 1, 2))).num_params
        6

    References:
        arXiv 2405.14908 (form from secondary sources).
    """

    def build(shape: Shape) -> Form:
        require_own_domains(shape, "bimix")
        one = (shape.num_metrics,)
        parameters = {
            "scale": Parameter(one, 1e-3, 1e2, (0.5, 4.0)),
            "exponent": Parameter(one, 1e-4, 2.0, (0.01, 0.3)),
        }
        if shape.tokens_vary:
            parameters["token_scale"] = Parameter(one, 1e-5, 1e3, (0.02, 1.0))
            parameters["token_exponent"] = Parameter(one, 1e-2, 3.0, (0.1, 0.6))

        def predict(params: Params, weights: Array, model_size: Array, tokens: Array) -> Array:
            del model_size
            loss = params["scale"][None, :] * own_weights(weights, shape, floor) ** -params["exponent"][None, :]
            if not shape.tokens_vary:
                return loss
            falling = (tokens / shape.tokens)[:, None] ** -params["token_exponent"][None, :]
            return loss * (params["token_scale"][None, :] * falling + 1.0)

        return Form(parameters, predict)

    return Law("bimix", least_squares, build)
