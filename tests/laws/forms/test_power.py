"""The own power law against its formula."""

import pytest
from law_forms import CONSTANT, VARYING, check_formula, check_recovered, check_safe

from jaxmix.core.errors import ConfigError
from jaxmix.laws import Shape
from jaxmix.laws.forms.power import power


@pytest.mark.parametrize(("shape", "per_metric"), [(CONSTANT, 3), (VARYING, 5)])
@pytest.mark.parametrize("floor", [1e-4, 0.02])
def test_formula(shape, per_metric, floor):
    def formula(p, h, n, d, i, j):
        loss = p["irreducible"] + p["scale"] * (max(h[j], floor) * d) ** -p["exponent"]
        return loss + (p["size_scale"] * n ** -p["size_exponent"] if "size_scale" in p else 0.0)

    assert check_formula(power(floor), shape, formula).num_params == 3 * per_metric


@pytest.mark.parametrize("shape", [CONSTANT, VARYING])
def test_scipy_recovers_predictions(shape):
    check_recovered(power(), shape)


@pytest.mark.parametrize("shape", [CONSTANT, VARYING])
def test_finite_on_the_rim(shape):
    check_safe(power(), shape)


def test_errors():
    with pytest.raises(ConfigError, match="floor"):
        power(1.0)
    with pytest.raises(ConfigError, match="metric 0 validates no domain"):
        power().build(Shape(2, (-1, 1)))
