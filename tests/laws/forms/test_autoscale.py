"""AutoScale's law against its formula."""

import pytest
from law_forms import CONSTANT, VARYING, check_formula, check_recovered, check_safe

from jaxmix.core.errors import ConfigError
from jaxmix.laws.forms.autoscale import autoscale


@pytest.mark.parametrize("shape", [CONSTANT, VARYING])
@pytest.mark.parametrize("unit", [1e-3, 0.1])
def test_formula(shape, unit):
    def formula(p, h, n, d, i, j):
        terms = [(p["equivalent_tokens"][k] + d * h[k] / unit) ** -p["exponents"][k] for k in range(3)]
        return p["irreducible"] + sum(terms)

    assert check_formula(autoscale(unit), shape, formula).num_params == 3 * 7


@pytest.mark.parametrize("shape", [CONSTANT, VARYING])
def test_scipy_recovers_predictions(shape):
    check_recovered(autoscale(), shape, num_runs=80)


@pytest.mark.parametrize("shape", [CONSTANT, VARYING])
def test_finite_on_the_rim(shape):
    check_safe(autoscale(), shape)


def test_errors():
    with pytest.raises(ConfigError, match="unit"):
        autoscale(0.0)
