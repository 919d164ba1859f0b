"""The capacity law: the golden fixture, an oracle in NumPy, its variants and what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmix.core.errors import ConfigError
from jaxmix.laws import Shape, make
from jaxmix.laws.forms.capacity import allocate_capacity

GOLDEN = {
    "exponent": [1.2931, 0.2504, 0.7759, 4.2533, 0.8209, 2.1420, 0.9245],
    "scale": [6.1217, 3.3571, 7.8612, 7.3098, 2.3083, 3.8489, 2.3059],
    "noise_scale": [0.3931, 0.4080, 0.7319, 1.2868, 0.7130, 2.0230, 0.8802],
    "noise_exponent": [0.9685, 1.6999, 0.3088, 0.0827, 1.0596, 0.0777, 0.5132],
    "irreducible": [0.9448, 0.8770, 0.5612, 0, 2.4074, 0.0001, 1.3406],
    "head": [4.877181],
}
"""Parameters printed by the authors, in their units: N = 1300, D = 30."""

OWN = Shape(num_domains=7, metric_domain=tuple(range(7)), model_size_varies=True, tokens_vary=True)


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def golden():
    return {name: jnp.asarray(value, jnp.float64) for name, value in GOLDEN.items()}


def predict(law, params, weights, size, tokens, shape=OWN):
    weights = np.atleast_2d(weights)
    rows = np.ones(len(weights))
    return np.asarray(
        law.build(shape).predict(params, jnp.asarray(weights), jnp.asarray(size * rows), jnp.asarray(tokens * rows))
    )


def test_golden_losses():
    found = predict(make("capacity", "none"), golden(), np.full(7, 1 / 7), 1300.0, 30.0)[0]
    printed = [1.058582, 1.571874, 1.123429, 1.141436, 2.601115, 1.810010, 1.787533]
    np.testing.assert_array_equal(found.round(6), printed)
    assert found.mean().round(9) == 1.584854254


def test_golden_capacities():
    params = golden()
    x = np.asarray(allocate_capacity(np.full(7, 1 / 7), params["exponent"], params["scale"], 4.877181, 1300.0))
    np.testing.assert_array_equal(x.round(3), [91.696, 660.489, 295.191, 9.326, 134.969, 27.402, 110.191])
    assert x.sum().round(6) == 1329.263086
    multiplier = params["exponent"] * params["scale"] / 7 * x ** -(1 + params["exponent"])
    np.testing.assert_allclose(multiplier, 3.57718e-5, rtol=2e-6)


@pytest.mark.parametrize(
    ("size", "tokens", "weights", "mean"),
    [
        (1300.0, 30.0, [0.12144, 0.11359, 0.15030, 0.10730, 0.15752, 0.15440, 0.19546], 1.580306503),
        (122.0, 10.0, [0.1509, 0.1653, 0.1364, 0.0643, 0.1994, 0.0989, 0.1849], 1.98594),
        (7000.0, 150.0, [0.0769, 0.0651, 0.1595, 0.1748, 0.0950, 0.2542, 0.1743], 1.37700),
        (70000.0, 1500.0, [0.0337, 0.0319, 0.1451, 0.2550, 0.0392, 0.3761, 0.1189], 1.22995),
    ],
)
def test_golden_optima(size, tokens, weights, mean):
    """The printed optimum has the printed loss, and the gradient along the simplex vanishes there."""
    weights = np.asarray(weights) / np.sum(weights)
    law = make("capacity", "none")
    # Both are rounded: the objective is flat at its minimum.
    assert abs(predict(law, golden(), weights, size, tokens).mean() - mean) < 6e-6
    form = law.build(OWN)
    objective = lambda h: jnp.mean(form.predict(golden(), h[None], jnp.full(1, size), jnp.full(1, tokens)))
    slope = np.asarray(jax.grad(objective)(jnp.asarray(weights)))
    # The weights are printed to 1e-4, the slope goes with a power of them near -2.
    assert np.ptp(slope) < 4 * 0.5e-4 / weights.min() * np.abs(slope).mean()


def test_rounded_optimum_of_the_target_scale():
    weights = np.array([0.12144, 0.11359, 0.15030, 0.10730, 0.15752, 0.15440, 0.19546])
    found = predict(make("capacity", "none"), golden(), weights / weights.sum(), 1300.0, 30.0).mean()
    assert abs(found - 1.580306503) < 1e-8


def random_params(form, rng):
    return {
        name: jnp.asarray(np.exp(rng.uniform(*np.log(parameter.start), parameter.shape)))
        for name, parameter in form.parameters.items()
    }


def slow(params, weights, size, tokens, shape, *, tied=False, competition=True):
    """Equation 3 with its extensions, cell by cell."""
    losses = np.zeros((len(weights), len(shape.metric_domain)))
    p = {name: np.asarray(value) for name, value in params.items()}
    for r, h in enumerate(weights):
        n, d = size[r] / shape.model_size, tokens[r] / shape.tokens
        if competition:
            exponent = np.broadcast_to(p["exponent"], p["scale"].shape)
            head = p["head"][0] * shape.smallest_model_size / shape.model_size
            x = np.asarray(allocate_capacity(h, exponent, p["scale"], head, n))
        for i, j in enumerate(shape.metric_domain):
            loss = p["irreducible"][i]
            at = j if competition else i
            if j >= 0 and "scale" in p:
                b = p["exponent"][at % p["exponent"].size]
                loss += p["scale"][at] * (x[j] if competition else n) ** -b
            amount = (h[j] if j >= 0 else 0.0) + (p["offset"][i % p["offset"].size] if "offset" in p else 0.0)
            if "transfer_in" in p:
                amount += sum(p["transfer_out"][i, r] * (p["transfer_in"][r] @ h) for r in range(len(p["transfer_in"])))
            a = b / (1 + b) if tied else p["noise_exponent"][i]
            losses[r, i] = loss + p["noise_scale"][i] * (d * amount) ** -a
    return losses


SHAPE = Shape(4, (2, 0, 2, 3), True, True, model_size=50.0, tokens=4.0, smallest_model_size=10.0)


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({}, 8 + 1 + 12 + 1),
        pytest.param({"offset": "per_domain"}, 8 + 1 + 12 + 4, marks=pytest.mark.slow),
        ({"exponents": "shared"}, 5 + 1 + 12 + 1),
        pytest.param({"exponents": "tied"}, 8 + 1 + 8 + 1, marks=pytest.mark.slow),
        ({"offset": "none", "rank": 2}, 8 + 1 + 12 + 16),
        ({"competition": False}, 8 + 12 + 1),
        ({"competition": False, "rank": 1, "exponents": "tied"}, 8 + 8 + 8 + 1),
    ],
)
def test_variants_equal_the_oracle(options, count):
    rng = np.random.default_rng(5)
    form = make("capacity", **options).build(SHAPE)
    assert form.num_params == count
    params = random_params(form, rng)
    weights = rng.dirichlet(np.full(4, 0.5), 20)
    size, tokens = rng.uniform(10, 200, 20), rng.uniform(1, 9, 20)
    found = form.predict(params, jnp.asarray(weights), jnp.asarray(size), jnp.asarray(tokens))
    expected = slow(
        params, weights, size, tokens, SHAPE,
        tied=options.get("exponents") == "tied", competition=options.get("competition", True),
    )  # fmt: skip
    np.testing.assert_allclose(found, expected, rtol=1e-11)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("capacity", {}),
        ("capacity", {"offset": "per_domain", "exponents": "shared"}),
        ("capacity", {"offset": "none", "rank": 2, "exponents": "tied"}),
        ("capacity", {"rank": 1}),
        ("capacity_only", {"exponents": "shared"}),
    ],
)
def test_columns_are_the_derivatives(name, options):
    """By hand against forward mode, on weights of which some leave domains at the head."""
    shape = SHAPE if options.get("rank") != 1 else SHAPE._replace(metric_domain=(2, 0, -1, 3))
    rng = np.random.default_rng(7)
    form = make(name, **options).build(shape)
    params = random_params(form, rng) | {"head": jnp.array([0.3])}
    weights = rng.dirichlet(np.full(4, 0.3), 12)
    weights[:3, 1] = 0.0
    weights /= weights.sum(axis=1, keepdims=True)
    rows = jnp.asarray(weights), jnp.asarray(rng.uniform(10, 200, 12)), jnp.asarray(rng.uniform(1, 9, 12))
    losses, columns = jax.jit(form.jacobian)(params, *rows)
    np.testing.assert_allclose(losses, form.predict(params, *rows), rtol=1e-12)
    logs = {key: jnp.log(value) for key, value in params.items()}
    whole = jax.jit(jax.jacfwd(lambda logs: form.predict(jax.tree.map(jnp.exp, logs), *rows)))(logs)
    assert set(columns) == set(whole) == set(form.parameters)
    for key, parameter in form.parameters.items():
        found, expected = np.asarray(columns[key]), np.asarray(whole[key])
        if parameter.per_metric:
            expected = np.stack([expected[:, i, i].reshape(12, -1) for i in range(4)], axis=1)
        else:
            expected = expected.reshape(12, 4, -1)
        np.testing.assert_allclose(np.transpose(found, (2, 0, 1)), expected, atol=1e-10, err_msg=key)


def test_reference_parameter_counts():
    regmix = Shape(17, tuple(range(13)))
    assert make("capacity").build(regmix).num_params == 75
    assert make("capacity", "per_domain").build(regmix).num_params == 87
    assert make("capacity_only").build(regmix).num_params == 48
    assert make("capacity", "none", rank=2, competition=False).build(regmix).num_params == 99


def test_units_cancel():
    """Measured in other units, the same law has other scales and the same losses."""
    params = golden()
    shape = OWN._replace(model_size=1300.0, tokens=30.0, smallest_model_size=100.0)
    moved = params | {
        "scale": params["scale"] * 1300.0 ** -params["exponent"],
        "noise_scale": params["noise_scale"] * 30.0 ** -params["noise_exponent"],
        "head": params["head"] / 100.0,
    }
    weights = np.random.default_rng(0).dirichlet(np.ones(7), 5)
    law = make("capacity", "none")
    np.testing.assert_allclose(
        predict(law, moved, weights, 400.0, 9.0, shape), predict(law, params, weights, 400.0, 9.0), rtol=1e-12
    )


def test_a_metric_of_no_domain_has_the_transfer_term_only():
    shape = Shape(3, (0, -1))
    form = make("capacity", rank=1).build(shape)
    params = random_params(form, np.random.default_rng(0))
    weights = np.random.default_rng(1).dirichlet(np.ones(3), 4)
    found = form.predict(params, jnp.asarray(weights), jnp.ones(4), jnp.ones(4))
    p = {name: np.asarray(value) for name, value in params.items()}
    amount = p["offset"][0] + p["transfer_out"][1, 0] * (weights @ p["transfer_in"][0])
    expected = p["irreducible"][1] + p["noise_scale"][1] * amount ** -p["noise_exponent"][1]
    np.testing.assert_allclose(found[:, 1], expected, rtol=1e-12)
    for law in (make("capacity"), make("capacity_only"), make("capacity", rank=1, exponents="tied")):
        with pytest.raises(ConfigError, match="metric 1 validates no domain"):
            law.build(shape)


def test_only_capacity_wants_the_target_itself():
    """With Equation 1 the best mixture for a target is the target (section 4 of the paper)."""
    form = make("capacity_only").build(OWN)
    params = {name: value for name, value in golden().items() if name in form.parameters}
    target = np.random.default_rng(2).dirichlet(np.full(7, 5.0))
    objective = lambda h: target @ form.predict(params, h[None], jnp.full(1, 1300.0), jnp.ones(1))[0]
    slope = np.asarray(jax.grad(objective)(jnp.asarray(target)))
    np.testing.assert_allclose(slope, 0, atol=1e-12)


@pytest.mark.parametrize("options", [{"offset": "own"}, {"exponents": "equal"}, {"rank": -1}, {"rank": True}])
def test_unknown_options(options):
    with pytest.raises(ConfigError):
        make("capacity", **options)


def test_exponents_need_a_capacity_term():
    with pytest.raises(ConfigError, match="capacity term"):
        make("capacity", exponents="tied", competition=False).build(Shape(2, (0, 1)))
