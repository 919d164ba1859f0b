"""Fitting against SciPy's L-BFGS-B from the same starts, recovery of known parameters, masks, weights, bounds."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from jaxmix.core.errors import ConfigError, RunError
from jaxmix.laws import Form, Law, Parameter, RunTable, Shape, fit, least_squares, make, regressor
from jaxmix.laws.fit import compiled, on_host
from jaxmix.laws.solve.layout import Point
from jaxmix.laws.solve.least_squares import cells_of
from jaxmix.laws.solve.levenberg_marquardt import build_objective

KEY = jax.random.key(0)


def power_law(penalized=False):
    """E_i + A_i (h_i + 0.05)^{−a_i}: separable, three numbers a metric."""

    def build(shape: Shape) -> Form:
        e = shape.num_metrics
        parameters = {
            "irreducible": Parameter((e,), 1e-3, 10.0, (0.1, 2.0)),
            "noise_scale": Parameter((e,), 1e-5, 1e3, (0.05, 1.0)),
            "noise_exponent": Parameter((e,), 1e-2, 3.0, (0.1, 0.6)),
        }
        predict = lambda p, h, n, d: (
            p["irreducible"][None] + p["noise_scale"][None] * (h[:, :e] + 0.05) ** -p["noise_exponent"][None]
        )
        tie = lambda p: 1e-3 * jnp.var(jnp.log(p["noise_exponent"]))
        return Form(parameters, predict, tie if penalized else None)

    return Law("test", least_squares, build)


def table_of(losses, weights, size=None, tokens=None):
    rows, domains = weights.shape
    names = [f"d{i}" for i in range(domains)]
    ones = np.ones(rows)
    return RunTable(
        weights, losses, ones if size is None else size, ones if tokens is None else tokens, names,
        names[: losses.shape[1]],
    )  # fmt: skip


def noisy_table(law, rows=60, domains=3, seed=0, noise=0.01):
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet(np.full(domains, 0.7), rows)
    weights[rng.random(rows) < 0.3, 0] = 0
    weights /= weights.sum(axis=1, keepdims=True)
    form = law.build(Shape(domains, tuple(range(domains))))
    params = {
        name: np.exp(rng.uniform(*np.log(parameter.start), parameter.shape))
        for name, parameter in form.parameters.items()
    }
    with on_host():
        clean = np.asarray(
            form.predict(jax.tree.map(jnp.asarray, params), jnp.asarray(weights), jnp.ones(rows), jnp.ones(rows))
        )
    return table_of(clean * np.exp(noise * rng.standard_normal(clean.shape)), weights), params


def scipy_best(law, table, starts, huber_delta=None):
    """The best of L-BFGS-B with the exact gradient from random starts."""
    layout = compiled(law, table.shape).layout
    ps, shape = layout.low.shared.size, layout.low.local.shape
    flat = lambda point: np.concatenate([np.ravel(point.shared), np.ravel(point.local)])
    objective = build_objective(layout, huber_delta)
    with on_host():
        cells, row_weights = cells_of(table, np.ones(len(table)))

        def cost(vector):
            point = Point(vector[:ps], vector[ps:].reshape(shape))
            total = jnp.sum(objective.costs(point, cells, jnp.asarray(row_weights)))
            return total if objective.penalty is None else total + objective.penalty(point)

        both = jax.jit(jax.value_and_grad(cost))
        numbers = lambda vector: tuple(np.asarray(v, np.float64) for v in both(jnp.asarray(vector)))
        drawn = jax.device_get(layout.random_points(KEY, starts))
        found = [
            scipy.optimize.minimize(
                numbers, flat(Point(s, c)), jac=True, method="L-BFGS-B",
                bounds=list(zip(flat(layout.low), flat(layout.high), strict=True)),
                options={"maxiter": 5000, "maxfun": 20000, "ftol": 1e-15, "gtol": 1e-10},
            ).fun
            for s, c in zip(*drawn, strict=True)
        ]  # fmt: skip
    return min(found)


# One object each: what is compiled for one test serves the others.
POWER, CAPACITY = power_law(), make("capacity")

CASES = {
    "separable": (POWER, None),
    "penalized": (power_law(penalized=True), None),
    "huber": (POWER, 0.01),
    "capacity_only": (make("capacity_only"), None),
    "capacity": (CAPACITY, None),
    "tied": (make("capacity", exponents="tied"), None),
    "transfer": (make("capacity", "none", rank=1, competition=False), None),
}


LONG = ("separable", "huber", "capacity_only", "capacity", "tied", "transfer")


@pytest.mark.parametrize("case", [pytest.param(c, marks=pytest.mark.slow if c in LONG else ()) for c in CASES])
def test_no_worse_than_scipy(case):
    law, delta = CASES[case]
    table, _ = noisy_table(law)
    options = {"loss": "huber", "huber_delta": delta} if delta else {}
    found = fit(law, table, key=KEY, num_starts=16, **options)
    expected = scipy_best(law, table, 6, delta)
    assert found.objective <= expected * (1 + 1e-6)
    # The value is the objective of the parameters returned.
    error = found.predict(table.weights, 1.0, 1.0) / table.losses - 1
    if case not in ("huber", "penalized"):
        np.testing.assert_allclose(found.objective, np.mean(error**2), rtol=1e-10)


@functools.cache
def recovery():
    """Five domains, 40 runs over two sizes and two budgets, no noise."""
    rng = np.random.default_rng(1)
    law = CAPACITY
    weights = rng.dirichlet(np.ones(5), 60)
    size, tokens = np.tile([1.0, 4.0], 30), np.repeat([1.0, 5.0], 30)
    shape = Shape(5, tuple(range(5)), True, True, 2.0, float(np.sqrt(5)), 1.0)
    truth = {
        "exponent": rng.uniform(0.3, 0.9, 5),
        "scale": rng.uniform(0.2, 1.0, 5),
        "head": np.array([0.02]),
        "irreducible": rng.uniform(0.5, 1.5, 5),
        "noise_scale": rng.uniform(0.1, 0.6, 5),
        "noise_exponent": rng.uniform(0.3, 0.8, 5),
        "offset": np.array([0.02]),
    }
    with on_host():
        form = law.build(shape)
        losses = np.asarray(form.predict(jax.tree.map(jnp.asarray, truth), *map(jnp.asarray, (weights, size, tokens))))
    table = table_of(losses, weights, size, tokens)
    train = table.take(np.r_[0:20, 30:50])
    np.testing.assert_allclose((train.shape.model_size, train.shape.tokens), (2.0, np.sqrt(5)))
    return truth, table, fit(law, train, key=KEY, num_starts=16, tolerance=1e-13, max_steps=1500)


def test_recovers_the_parameters():
    truth, table, found = recovery()
    for name, value in truth.items():
        np.testing.assert_allclose(found.params[name], value, rtol=0.01, err_msg=name)
    rest = table.take(np.r_[20:30, 50:60])
    error = np.abs(found.predict(rest.weights, rest.model_size, rest.tokens) / rest.losses - 1)
    assert error.mean() < 5e-5
    assert found.at_bounds == ()


def test_cells_of_nan_and_runs_of_weight_zero_count_for_nothing():
    law = POWER
    table, _ = noisy_table(law)
    spoilt = table.losses.copy()
    spoilt[:10, 1] = np.nan
    spoilt[40:] = 100.0
    weighted = fit(law, table_of(spoilt, table.weights), key=KEY, num_starts=16, row_weights=np.arange(60) < 40)
    kept = table_of(spoilt, table.weights).take(np.arange(40))
    np.testing.assert_allclose(weighted.objective, fit(law, kept, key=KEY, num_starts=16).objective, rtol=1e-7)


def test_the_callers_settings_stay():
    table, _ = noisy_table(POWER)
    found = fit(POWER, table, key=KEY, num_starts=4)
    assert found.predict(table.weights, 1, 1).dtype == np.float64
    assert jnp.ones(1).dtype == jnp.float32
    assert found.objectives.shape == (4,)
    assert found.num_params == 9


def test_many_rows_are_predicted_in_blocks():
    law = CAPACITY
    table, _ = noisy_table(law)
    found = fit(law, table, key=KEY, num_starts=4, max_steps=20, restarts=0)
    weights = np.random.default_rng(0).dirichlet(np.ones(3), 5000)
    whole = found.predict(weights, 1.0, 1.0)
    assert whole.shape == (5000, 3)
    np.testing.assert_allclose(whole[4990:], found.predict(weights[4990:], 1.0, 1.0), rtol=1e-12)
    np.testing.assert_allclose(whole[0], found.predict(weights[0], 1.0, 1.0)[0], rtol=1e-12)


def test_starts_from_an_earlier_fit():
    law = CAPACITY
    table, _ = noisy_table(law)
    first = fit(law, table, key=KEY, num_starts=16)
    again = fit(law, table, key=jax.random.key(5), num_starts=1, restarts=0, start=first)
    assert again.objective <= first.objective * (1 + 1e-9)
    with pytest.raises(ConfigError, match="the start is a fit of"):
        fit(POWER, table, key=KEY, start=first)


def test_bounds_are_kept_and_named():
    rng = np.random.default_rng(0)
    weights = rng.dirichlet(np.ones(2), 40)
    # Below any irreducible loss the bounds allow.
    table = table_of(np.exp(-8 - weights), weights)
    found = fit(POWER, table, key=KEY, num_starts=8)
    assert (found.params["irreducible"] >= 1e-3 * (1 - 1e-12)).all()
    assert "irreducible[0]" in found.at_bounds


def test_regressors_are_called():
    def regress(table):
        mean = table.losses.mean(axis=0)
        return (lambda weights, size, tokens: np.tile(mean, (len(weights), 1))), len(mean)

    table, _ = noisy_table(POWER)
    found = fit(regressor("mean", regress), table, key=KEY)
    np.testing.assert_allclose(found.predict(table.weights[:2], 1, 1), np.tile(table.losses.mean(axis=0), (2, 1)))
    assert found.num_params == 3


def test_an_infinite_law_is_refused():
    table, _ = noisy_table(POWER)
    assert (table.weights[:, 0] == 0).any()
    with pytest.raises(RunError, match="no finite error"):
        fit(make("capacity", "none"), table, key=KEY, num_starts=4)


@pytest.mark.parametrize(
    "options",
    [
        {"num_starts": 0}, {"loss": "absolute"}, {"huber_delta": 0.0}, {"restarts": -1},
        {"max_steps": 0}, {"tolerance": 0.0}, {"row_weights": [1.0]}, {"row_weights": np.zeros(60)},
    ],
)  # fmt: skip
def test_arguments_are_checked(options):
    table, _ = noisy_table(POWER)
    with pytest.raises(ConfigError):
        fit(POWER, table, key=KEY, **options)


def test_predict_checks_the_number_of_domains():
    table, _ = noisy_table(POWER)
    found = fit(POWER, table, key=KEY, num_starts=1, restarts=0, max_steps=1)
    with pytest.raises(ConfigError, match="3 domains"):
        found.predict(np.full(4, 0.25), 1.0, 1.0)
