"""The additive and the joint law against their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from law_forms import CONSTANT, VARYING, check_formula, check_recovered, check_safe, draw, on_host

from jaxmix.core.errors import ConfigError
from jaxmix.laws.forms.additive import additive, joint


def formula(p, h, n, d, i, j):
    loss = p["irreducible"] + 1.0 / sum(p["rates"][k] * h[k] ** p["exponents"][k] for k in range(3))
    if "size_scale" in p:
        loss += p["size_scale"] * n ** -p["size_exponent"] + p["token_scale"] * d ** -p["token_exponent"]
    if "size_rates" in p:
        loss += np.dot(p["size_rates"], h) ** p["size_power"] * n ** -p["size_exponent"]
        loss += np.dot(p["token_rates"], h) ** p["token_power"] * d ** -p["token_exponent"]
    return loss


@pytest.mark.parametrize(
    ("law", "shape", "per_metric"),
    [(additive(), CONSTANT, 7), (additive(), VARYING, 11), (joint(), CONSTANT, 7), (joint(), VARYING, 17)],
)
def test_formula(law, shape, per_metric):
    assert check_formula(law, shape, formula).num_params == 3 * per_metric


def test_ridge():
    assert additive(ridge=0.0).build(CONSTANT).penalty is None
    form = joint(ridge=0.5).build(VARYING)
    params = draw(form)
    with on_host():
        found = jax.jit(form.penalty)({name: jnp.asarray(value) for name, value in params.items()})
    spread = sum(np.var(np.log(params[name]), axis=1) for name in ("rates", "size_rates", "token_rates"))
    wanted = 0.5 * np.mean(spread + np.mean(np.log(params["exponents"]) ** 2, axis=1))
    np.testing.assert_allclose(found, wanted, rtol=1e-12)


@pytest.mark.parametrize(("law", "shape"), [(additive(), CONSTANT), (additive(), VARYING), (joint(), VARYING)])
def test_scipy_recovers_predictions(law, shape):
    check_recovered(law, shape, num_runs=80)


@pytest.mark.parametrize(("law", "shape"), [(additive(), CONSTANT), (additive(), VARYING), (joint(), VARYING)])
def test_finite_on_the_rim(law, shape):
    check_safe(law, shape)


def test_errors():
    for law in (additive, joint):
        with pytest.raises(ConfigError, match="ridge"):
            law(ridge=-1.0)
