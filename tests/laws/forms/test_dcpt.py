"""The D-CPT law against its formula."""

import pytest
from law_forms import CONSTANT, VARYING, check_formula, check_recovered, check_safe

from jaxmix.core.errors import ConfigError
from jaxmix.laws import Shape
from jaxmix.laws.forms.dcpt import dcpt


@pytest.mark.parametrize(("shape", "per_metric"), [(CONSTANT, 6), (VARYING, 9)])
def test_formula(shape, per_metric):
    def formula(p, h, n, d, i, j):
        growing = p["token_scale"] * h[j] ** p["weight_exponent"]
        loss = p["irreducible"] + p["scale"] * (h[j] + p["offset"]) ** -p["exponent"]
        if "size_scale" in p:
            loss += p["size_scale"] * n ** -p["size_exponent"]
            growing *= d ** -p["token_exponent"]
        return loss + growing

    assert check_formula(dcpt(), shape, formula).num_params == 3 * per_metric


@pytest.mark.parametrize("shape", [CONSTANT, VARYING])
def test_scipy_recovers_predictions(shape):
    check_recovered(dcpt(), shape, num_runs=80)


@pytest.mark.parametrize("shape", [CONSTANT, VARYING])
def test_finite_on_the_rim(shape):
    check_safe(dcpt(), shape)


def test_errors():
    with pytest.raises(ConfigError, match="own weight alone"):
        dcpt().build(Shape(2, (0, -1)))
