import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from jaxmix.laws.solve.mirror_descent import linear_gap, mirror_descent


def slsqp(function, caps, floors):
    """The same problem by SciPy's sequential quadratic programming."""
    m = len(caps)
    found = scipy.optimize.minimize(
        function,
        np.full(m, 1 / m),
        bounds=list(zip(floors, caps, strict=True)),
        constraints={"type": "eq", "fun": lambda h: h.sum() - 1},
        method="SLSQP",
        options={"ftol": 1e-15, "maxiter": 1000},
    )
    return found.x, found.fun


@pytest.mark.parametrize("seed", range(4))
def test_a_convex_objective_within_bounds_against_scipy(seed):
    rng = np.random.default_rng(seed)
    m = 6
    scale, target = rng.uniform(0.5, 20, m), rng.dirichlet(np.ones(m))
    caps, floors = rng.uniform(0.2, 0.6, m), rng.uniform(0.0, 0.1, m)
    function = lambda h: 2.0 + (scale * (h - target) ** 2).sum()
    with jax.enable_x64(True):
        end = jax.jit(
            lambda start: mirror_descent(
                lambda h: 2.0 + jnp.sum(jnp.asarray(scale) * (h - jnp.asarray(target)) ** 2),
                start,
                jnp.asarray(caps),
                jnp.asarray(np.maximum(floors, 1e-12)),
            )
        )(jnp.full(m, 1 / m))
        weights, value = slsqp(function, caps, floors)
        assert bool(end.is_converged)
        assert float(end.value) <= value + 1e-10
        np.testing.assert_allclose(end.weights, weights, atol=1e-5)
        assert float(end.weights.sum()) == pytest.approx(1.0, abs=1e-12)
        assert (np.asarray(end.weights) <= caps + 1e-12).all()
        assert (np.asarray(end.weights) >= floors - 1e-12).all()


def test_a_linear_objective_ends_at_the_best_corner_that_caps_leave():
    with jax.enable_x64(True):
        slope = jnp.array([3.0, 1.0, 2.0, 0.5])
        caps = jnp.array([1.0, 0.5, 1.0, 0.3])
        end = mirror_descent(lambda h: 10.0 + slope @ h, jnp.array([0.3, 0.3, 0.3, 0.1]), caps, jnp.full(4, 1e-12))
        np.testing.assert_allclose(end.weights, [0, 0.5, 0.2, 0.3], atol=1e-7)
        assert bool(end.is_converged)


def test_the_gap_is_that_of_a_linear_program():
    rng = np.random.default_rng(0)
    for _ in range(20):
        m = 5
        caps, floors = rng.uniform(0.25, 1.0, m), rng.uniform(0.0, 0.15, m)
        gradient, weights = rng.normal(size=m), rng.dirichlet(np.ones(m))
        program = scipy.optimize.linprog(
            gradient, A_eq=np.ones((1, m)), b_eq=[1.0], bounds=list(zip(floors, caps, strict=True))
        )
        wanted = max(gradient @ weights - program.fun, 0.0)
        with jax.enable_x64(True):
            found = linear_gap(*(jnp.asarray(x) for x in (weights, gradient, caps, floors)))
            assert float(found) == pytest.approx(wanted, abs=1e-12)


def test_a_closed_domain_stays_out_whatever_its_gradient():
    with jax.enable_x64(True):
        caps = jnp.array([1.0, 1.0, 0.0])
        # The derivative of the root is infinite at 0.
        end = mirror_descent(
            lambda h: 1.0 + (h[0] - 0.3) ** 2 - jnp.sqrt(h[2]), jnp.array([0.5, 0.5, 0.0]), caps, jnp.zeros(3)
        )
        np.testing.assert_allclose(end.weights, [0.3, 0.7, 0.0], atol=1e-5)


def test_an_objective_that_is_not_finite_ends_at_once():
    end = mirror_descent(lambda h: jnp.inf * h[0], jnp.full(2, 0.5), jnp.ones(2), jnp.zeros(2))
    assert int(end.steps) == 0
    assert not bool(end.is_converged)
