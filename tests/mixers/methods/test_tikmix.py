"""TiKMiX-D against SciPy's sequential quadratic programming, which the paper uses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize
from tolerance import WEIGHTS

from jaxmix.core.errors import ConfigError
from jaxmix.mixers import tikmix_weights
from jaxmix.mixers.methods.tikmix import tikmix_objective


def objective(w, influence, balance=1.0, gain=1.0, diversity=1.0):
    effect = influence @ w / (influence.max(1) + 1e-8)
    entropy = -sum(x * np.log(x) for x in w if x > 0)
    return balance * effect.std() - gain * effect.sum() - diversity * entropy


def slsqp(influence, prior, start, factors):
    return minimize(
        objective,
        start,
        (influence, *factors),
        method="SLSQP",
        bounds=[(1e-12, 1)] * len(prior),
        constraints=[
            {"type": "eq", "fun": lambda w: w.sum() - 1},
            {"type": "ineq", "fun": lambda w: influence @ w - influence @ prior},
        ],
        options={"maxiter": 1000, "ftol": 1e-11},
    )


def problem(seed, n, m):
    rng = np.random.default_rng(seed)
    influence = rng.normal(0.5, 1.0, (n, m))
    influence[:, 0] = np.abs(influence[:, 0])
    return influence, rng.dirichlet(np.ones(m) * 3)


def solve(influence, prior, *factors):
    with jax.enable_x64(True):
        names = ("balance", "gain", "diversity")
        return np.asarray(tikmix_weights(influence, prior, **dict(zip(names, factors, strict=False))))


def assert_keeps_constraints(w, influence, prior):
    assert (w >= 0).all()
    assert w.sum() == pytest.approx(1, abs=1e-12)
    margin = influence - (influence @ prior)[:, None]
    assert (margin @ w >= -1.01e-7 * np.abs(margin).max(1)).all()


@pytest.mark.parametrize("shape", [(4, 5), (6, 4), (1, 3), (3, 8)], ids=str)
@pytest.mark.parametrize("factors", [(1, 1, 1), (2, 1, 0.3), (1, 1, 0)], ids=str)
def test_same_optimum_as_sequential_quadratic_programming(shape, factors):
    influence, prior = problem(sum(shape), *shape)
    w = solve(influence, prior, *factors)
    assert_keeps_constraints(w, influence, prior)
    value, converged = objective(w, influence, *factors), 0
    for start in (prior, np.full(shape[1], 1 / shape[1])):
        other = slsqp(influence, prior, start, factors)
        if other.success:
            converged += 1
            # Below the other's value only by what the constraints' tolerance gives.
            assert value == pytest.approx(other.fun, rel=1e-5, abs=2e-5)
            np.testing.assert_allclose(w, other.x, atol=1e-3)
    assert converged > 0


def test_improves_on_the_prior():
    influence, prior = problem(3, 4, 8)
    assert objective(solve(influence, prior), influence) < objective(prior, influence)


def test_objective_equals_numpy():
    influence, prior = problem(4, 5, 6)
    got = tikmix_objective(
        jnp.asarray(prior, jnp.float32), jnp.asarray(influence, jnp.float32), balance=2.0, gain=0.5, diversity=3.0
    )
    assert float(got) == pytest.approx(objective(prior, influence, 2.0, 0.5, 3.0), rel=1e-5)


def test_without_influence_only_diversity_counts():
    np.testing.assert_allclose(solve(np.zeros((2, 4)), [0.7, 0.1, 0.1, 0.1]), np.full(4, 0.25), atol=1e-6)


def test_a_prior_that_cannot_be_bettered_stays():
    # Each group is helped by one domain alone: nothing may be taken from any.
    np.testing.assert_allclose(solve(np.eye(3), [0.2, 0.3, 0.5]), [0.2, 0.3, 0.5], atol=1e-6)


def test_kink_of_the_spread():
    # All groups are served alike at the optimum, where the standard deviation has no gradient. Known otherwise: the
    # most varied mixture among those that serve them alike.
    influence, prior = problem(15, 3, 12)
    w = solve(influence, prior, 5, 0, 0.1)
    rows = influence / (influence.max(1) + 1e-8)[:, None]
    assert (rows @ w).std() < 1e-9
    alike = {"type": "eq", "fun": lambda w: np.append(rows[1:] @ w - rows[0] @ w, w.sum() - 1)}
    kept = {"type": "ineq", "fun": lambda w: influence @ w - influence @ prior}
    entropy = lambda w: np.sum(w * np.log(np.maximum(w, 1e-300)))
    other = minimize(entropy, np.full(12, 1 / 12), method="SLSQP", bounds=[(1e-12, 1)] * 12, constraints=[alike, kept])
    assert other.success
    np.testing.assert_allclose(w, other.x, atol=1e-3)


def test_one_domain_and_single_precision():
    w = tikmix_weights([[1.0]], [1.0])
    assert w.dtype == jnp.float32
    np.testing.assert_array_equal(w, [1.0])


def test_permuting_domains_and_groups():
    influence, prior = problem(6, 4, 5)
    order = [3, 1, 4, 0, 2]
    w = solve(influence, prior)
    np.testing.assert_allclose(w[order], solve(influence[[2, 0, 3, 1]][:, order], prior[order]), rtol=0, atol=WEIGHTS)


def test_many_domains():
    influence, prior = problem(7, 15, 30)
    w = solve(influence, prior)
    assert_keeps_constraints(w, influence, prior)
    assert objective(w, influence) <= slsqp(influence, prior, prior, (1, 1, 1)).fun + 1e-6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"balance": -1.0}, "balance"),
        ({"gain": -1.0}, "gain"),
        ({"diversity": np.inf}, "diversity"),
        ({"prior": [0.5, 0.6]}, "add to 1"),
        ({"influence": np.ones((2, 3))}, r"shape \(2, 3\)"),
        ({"influence": np.array([[1.0, np.nan]])}, "finite"),
        ({"influence": np.array([[1.0, 1.0], [-1.0, -2.0]])}, "harms evaluation group 1"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ConfigError, match=message):
        tikmix_weights(**{"influence": np.eye(2), "prior": [0.5, 0.5], **arguments})
