"""BiMix against its formula."""

import pytest
from law_forms import CONSTANT, VARYING, check_formula, check_recovered, check_safe

from jaxmix.core.errors import ConfigError
from jaxmix.laws import Shape
from jaxmix.laws.forms.bimix import bimix


@pytest.mark.parametrize(("shape", "per_metric"), [(CONSTANT, 2), (VARYING, 4)])
@pytest.mark.parametrize("floor", [1e-4, 0.02])
def test_formula(shape, per_metric, floor):
    def formula(p, h, n, d, i, j):
        factor = p["token_scale"] * d ** -p["token_exponent"] + 1.0 if "token_scale" in p else 1.0
        return p["scale"] * max(h[j], floor) ** -p["exponent"] * factor

    assert check_formula(bimix(floor), shape, formula).num_params == 3 * per_metric


@pytest.mark.parametrize("shape", [CONSTANT, VARYING])
def test_scipy_recovers_predictions(shape):
    check_recovered(bimix(), shape)


@pytest.mark.parametrize("shape", [CONSTANT, VARYING])
def test_finite_on_the_rim(shape):
    check_safe(bimix(), shape)


def test_errors():
    with pytest.raises(ConfigError, match="floor"):
        bimix(0.0)
    with pytest.raises(ConfigError, match="metric 1 validates no domain"):
        bimix().build(Shape(2, (0, -1)))
