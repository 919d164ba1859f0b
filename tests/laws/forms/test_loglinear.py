"""The exponential law against its formula, and its three variants against each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from law_forms import (
    CONSTANT,
    VARYING,
    check_formula,
    check_recovered,
    check_safe,
    draw,
    mixtures,
    on_host,
    predict,
    scales,
)

from jaxmix.core.errors import ConfigError
from jaxmix.laws import Shape
from jaxmix.laws.forms.loglinear import loglinear


def formula(sign, has_scale):
    def one(p, h, n, d, i, j):
        loss = p["irreducible"] + (p["scale"] if has_scale else 1.0) * np.exp(sign * np.dot(p["coefficients"], h))
        if "size_scale" in p:
            loss += p["size_scale"] * n ** -p["size_exponent"] + p["token_scale"] * d ** -p["token_exponent"]
        return loss

    return one


@pytest.mark.parametrize(("variant", "sign", "per_metric"), [("olmix", 1, 4), ("ye", 1, 5), ("aioli", -1, 5)])
@pytest.mark.parametrize("shape", [CONSTANT, VARYING])
def test_formula(variant, sign, per_metric, shape):
    form = check_formula(loglinear(variant), shape, formula(sign, variant != "olmix"))
    assert form.num_params == 3 * (per_metric + 4 * shape.tokens_vary)


def test_variants_are_one_family():
    olmix, aioli = loglinear("olmix").build(CONSTANT), loglinear("aioli").build(CONSTANT)
    params = draw(olmix)
    moved = {
        "irreducible": params["irreducible"],
        "scale": np.full(3, 2.0),
        "coefficients": np.log(2.0) - params["coefficients"],
    }
    rows = (mixtures(9, 3), *scales(9, CONSTANT))
    np.testing.assert_allclose(predict(aioli, moved, *rows), predict(olmix, params, *rows), rtol=1e-12)


def test_terms_appear_one_by_one():
    size_only = Shape(2, (0,), model_size_varies=True)
    assert set(loglinear().build(size_only).parameters) == {
        "irreducible", "coefficients", "size_scale", "size_exponent",
    }  # fmt: skip


def test_ridge():
    assert loglinear(ridge=0).build(CONSTANT).penalty is None
    form = loglinear(ridge=0.5).build(CONSTANT)
    params = draw(form)
    with on_host():
        found = jax.jit(form.penalty)({name: jnp.asarray(value) for name, value in params.items()})
        alike = jax.jit(form.penalty)({"coefficients": jnp.ones((3, 3))})
    np.testing.assert_allclose(found, 0.5 * np.mean(np.var(params["coefficients"], axis=1)), rtol=1e-12)
    assert float(alike) == 0


@pytest.mark.parametrize("shape", [CONSTANT, VARYING])
def test_scipy_recovers_predictions(shape):
    check_recovered(loglinear(), shape)


@pytest.mark.parametrize("shape", [CONSTANT, VARYING])
def test_finite_on_the_rim(shape):
    check_safe(loglinear(), shape)


def test_errors():
    with pytest.raises(ConfigError, match="Did you mean 'olmix'"):
        loglinear("olmx")
    with pytest.raises(ConfigError, match="ridge"):
        loglinear(ridge=-1.0)
