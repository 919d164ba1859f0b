"""The transfer power law against its formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from law_forms import CONSTANT, VARYING, check_formula, check_recovered, check_safe, draw, on_host

from jaxmix.core.errors import ConfigError
from jaxmix.laws.forms.transfer import transfer


@pytest.mark.parametrize(("shape", "per_metric"), [(CONSTANT, 5), (VARYING, 7)])
def test_formula(shape, per_metric):
    def formula(p, h, n, d, i, j):
        loss = p["irreducible"] + (d * sum(p["rates"][k] * h[k] for k in range(3))) ** -p["exponent"]
        return loss + (p["size_scale"] * n ** -p["size_exponent"] if "size_scale" in p else 0.0)

    assert check_formula(transfer(), shape, formula).num_params == 3 * per_metric


def test_ridge():
    assert transfer(ridge=0.0).build(CONSTANT).penalty is None
    form = transfer(ridge=0.5).build(CONSTANT)
    params = draw(form)
    with on_host():
        found = jax.jit(form.penalty)({name: jnp.asarray(value) for name, value in params.items()})
    alone = params["exponent"][:, None] * np.log(params["rates"])
    np.testing.assert_allclose(found, 0.5 * np.mean(np.var(alone, axis=1)), rtol=1e-12)


@pytest.mark.parametrize("shape", [CONSTANT, VARYING])
def test_scipy_recovers_predictions(shape):
    check_recovered(transfer(), shape)


@pytest.mark.parametrize("shape", [CONSTANT, VARYING])
def test_finite_on_the_rim(shape):
    check_safe(transfer(), shape)


def test_errors():
    with pytest.raises(ConfigError, match="ridge"):
        transfer(ridge=-1.0)
