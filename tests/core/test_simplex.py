"""Simplex mathematics against float64 oracles."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import brentq
from tolerance import WEIGHTS, float32_tolerance

from jaxmix.core import simplex


def euclidean_oracle(x, caps, floors):
    """Bisection on the multiplier of the sum."""
    total = lambda u: np.clip(x + u, floors, caps).sum() - 1
    reach = np.abs(x).max() + 2
    return np.clip(x + brentq(total, -reach, reach, xtol=1e-15, rtol=1e-15), floors, caps)


def kl_oracle(q, caps, floors):
    """Bisection on the logarithm of the multiplier."""
    total = lambda u: np.clip(q * np.exp(u), floors, caps).sum() - 1
    return np.clip(q * np.exp(brentq(total, -80, 80, xtol=1e-15, rtol=1e-15)), floors, caps)


def random_problem(seed, with_floors):
    rng = np.random.default_rng(seed)
    m = int(rng.integers(1, 12))
    q = rng.dirichlet(np.full(m, rng.choice([0.05, 0.3, 2.0])))
    q = np.maximum(q, 1e-12)
    caps = rng.uniform(0, 1, m)
    caps *= max(1, rng.uniform(1.0001, 3) / caps.sum())  # feasible
    floors = rng.uniform(0, 1, m) * np.minimum(caps, rng.uniform(0, 1) / m) if with_floors else np.zeros(m)
    return tuple(np.asarray(v, np.float32).astype(np.float64) for v in (q / q.sum(), caps, floors))


as32 = functools.partial(jnp.asarray, dtype=jnp.float32)
project = jax.jit(simplex.project_capped_simplex)
kl_project = jax.jit(simplex.kl_project_capped_simplex)


@pytest.mark.parametrize("with_floors", [False, True])
@pytest.mark.parametrize("seed", range(25))
def test_projections_equal_bisection(seed, with_floors):
    q, caps, floors = random_problem(seed, with_floors)
    x = np.asarray(np.random.default_rng(seed).normal(size=q.shape), np.float32).astype(np.float64)
    got = project(as32(x), as32(caps), as32(floors))
    np.testing.assert_allclose(got, euclidean_oracle(x, np.minimum(caps, 1), floors), atol=1e-6)
    got = kl_project(as32(q), as32(caps), as32(floors))
    np.testing.assert_allclose(got, kl_oracle(q, np.minimum(caps, 1), floors), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("project", [project, kl_project])
def test_a_point_that_keeps_the_bounds_stays(project):
    p = as32([0.2, 0.5, 0.3])
    np.testing.assert_allclose(project(p, as32([0.4, 0.5, 0.9]), 0.1), p, rtol=0, atol=WEIGHTS)
    np.testing.assert_allclose(project(p, jnp.inf, 0.0), p, rtol=0, atol=WEIGHTS)


@pytest.mark.parametrize("project", [project, kl_project])
class TestInfeasibleBounds:
    def test_caps_below_one_are_raised_alike(self, project):
        np.testing.assert_allclose(project(as32([0.9, 0.1, 0.0]), as32([0.1, 0.3, 0.1])), [0.2, 0.6, 0.2], atol=1e-6)

    def test_caps_of_exactly_one_are_met(self, project):
        np.testing.assert_allclose(project(as32([0.9, 0.1]), as32([0.25, 0.75])), [0.25, 0.75], rtol=0, atol=WEIGHTS)

    def test_zero_caps_give_uniform(self, project):
        np.testing.assert_allclose(project(as32([0.9, 0.1]), 0.0), [0.5, 0.5], rtol=0, atol=WEIGHTS)

    def test_floors_above_one_are_lowered_alike(self, project):
        np.testing.assert_allclose(project(as32([0.9, 0.1]), 2.0, as32([0.5, 1.5])), [0.25, 0.75], rtol=0, atol=WEIGHTS)


def test_kl_projection_keeps_zeros_unless_it_cannot():
    q = as32([0.7, 0.3, 0.0, 0.0])
    np.testing.assert_array_equal(kl_project(q, 0.6)[2:], [0.0, 0.0])
    np.testing.assert_allclose(kl_project(q, 0.4), [0.4, 0.4, 0.1, 0.1], atol=1e-6)
    np.testing.assert_allclose(kl_project(q, 1.0, as32([0.0, 0.0, 0.0, 0.2])), [0.56, 0.24, 0.0, 0.2], atol=1e-6)
    np.testing.assert_allclose(kl_project(as32([1.0, 0, 0]), as32([0.2, 0.1, 1.0])), [0.2, 0.1, 0.7], atol=1e-6)


def test_projection_of_extreme_points():
    np.testing.assert_allclose(project(as32([1e30, -1e30, 0]), 0.6), [0.6, 0.0, 0.4], atol=1e-6)
    np.testing.assert_allclose(project(as32([1e30, 0, 0]), 0.6), [0.6, 0.2, 0.2], atol=1e-6)
    np.testing.assert_allclose(project(as32([1e4, 1e4 + 0.25]), 1.0), [0.375, 0.625], atol=1e-6)
    np.testing.assert_allclose(kl_project(as32([1 - 2e-25, 1e-25, 1e-25]), 0.5), [0.5, 0.25, 0.25], atol=1e-6)


@pytest.mark.parametrize("project", [simplex.project_capped_simplex, simplex.kl_project_capped_simplex])
def test_projection_gradients_equal_differences(project):
    x, caps = as32([0.45, 0.25, 0.2, 0.1]), as32([0.3, 0.9, 0.9, 0.9])
    direction, weight = as32([0.3, -0.5, 0.1, 0.2]), as32([1.0, 2.0, -1.0, 0.5])
    value = lambda s: jnp.sum(weight * project(x + s * direction, caps))
    step = 1e-2
    numeric = (value(step) - value(-step)) / (2 * step)
    assert abs(jax.grad(value)(0.0) - numeric) < 2e-3
    by_cap = jax.grad(lambda c: jnp.sum(weight * project(x, c)))(caps)
    assert np.isfinite(by_cap).all()
    assert by_cap[0] != 0
    np.testing.assert_array_equal(by_cap[1:], 0)


def test_projections_under_vmap():
    rng = np.random.default_rng(1)
    q = as32(rng.dirichlet(np.ones(5), 7))
    caps = as32(rng.uniform(0.2, 0.6, (7, 5)))
    for function in (simplex.project_capped_simplex, simplex.kl_project_capped_simplex):
        together = jax.vmap(function)(q, caps)
        np.testing.assert_allclose(
            together, jnp.stack([function(a, b) for a, b in zip(q, caps, strict=True)]), rtol=0, atol=WEIGHTS
        )


class TestExponentiatedGradient:
    def oracle(self, p, score, step_size, memory):
        logits = memory * np.log(np.asarray(p, np.float64)) + step_size * np.asarray(score, np.float64)
        grown = np.exp(logits - logits.max())
        return grown / grown.sum()

    @pytest.mark.parametrize("memory", [0.0, 0.3, 1.0])
    def test_equals_the_formula(self, memory):
        rng = np.random.default_rng(0)
        p, score = rng.dirichlet(np.ones(6)).astype(np.float32), rng.normal(size=6).astype(np.float32) * 5
        got = simplex.exponentiated_gradient_step(as32(p), as32(score), step_size=0.7, memory=memory)
        # An exponential's relative error is its argument's absolute one: two products and two sums, then six terms.
        largest = 0.7 * np.ptp(score) + memory * np.abs(np.log(p)).max()
        rounding = float32_tolerance(largest, 4) + float32_tolerance(1.0, 6)
        np.testing.assert_allclose(got, self.oracle(p, score, 0.7, memory), rtol=rounding)

    def test_published_update(self):
        # Aioli's fitted matrix for three groups: specification 4.5, one update with step size 0.1.
        matrix = np.array([[0.595, 0.130, 0.228], [0.005, 0.459, 0.033], [0.161, 0.113, 0.800]])
        score = (matrix / matrix.sum()).sum(0)
        got = simplex.exponentiated_gradient_step(as32([1 / 3] * 3), as32(score), step_size=0.1)
        np.testing.assert_allclose(got, [0.3323, 0.3315, 0.3362], atol=5e-5)

    @pytest.mark.parametrize("score", [[1e30, -1e30, 0.0], [-1e30, -1e30, -1e30], [1e30, 1e30, 0.0]])
    @pytest.mark.parametrize("p", [[0.2, 0.3, 0.5], [0.0, 1.0, 0.0]])
    @pytest.mark.parametrize("memory", [0.0, 0.5, 1.0])
    @pytest.mark.parametrize("min_weight", [0.0, simplex.TINY])
    def test_stays_finite(self, score, p, memory, min_weight):
        got = simplex.exponentiated_gradient_step(
            as32(p), as32(score), step_size=2.0, memory=memory, min_weight=min_weight
        )
        assert np.isfinite(got).all()
        assert abs(float(got.sum()) - 1) < 1e-6

    def test_stays_finite_where_the_product_overflows(self):
        got = simplex.exponentiated_gradient_step(as32([0.5, 0.25, 0.25]), as32([1e30, 1e30, -1e30]), step_size=1e9)
        np.testing.assert_allclose(got, [2 / 3, 1 / 3, 0], atol=1e-6)

    def test_a_dead_group_returns_only_with_a_minimum(self):
        p, score = as32([0.0, 1.0]), as32([100.0, 0.0])
        assert simplex.exponentiated_gradient_step(p, score, step_size=1.0)[0] > 0.99
        assert simplex.exponentiated_gradient_step(p, score, step_size=1.0, min_weight=0.0)[0] == 0

    def test_equal_scores_change_nothing(self):
        p = as32([0.1, 0.2, 0.7])
        got = simplex.exponentiated_gradient_step(p, as32([3.0] * 3), step_size=5.0)
        np.testing.assert_allclose(got, p, rtol=0, atol=WEIGHTS)

    def test_gradients_are_finite(self):
        p = as32([0.0, 0.4, 0.6])
        loss = lambda p, s: simplex.exponentiated_gradient_step(p, s, step_size=1.0, min_weight=0.0)[1]
        assert all(np.isfinite(g).all() for g in jax.grad(loss, argnums=(0, 1))(p, as32([1.0, 2.0, 3.0])))


def test_divergence_and_entropy():
    p, q = as32([0.5, 0.5, 0.0]), as32([0.25, 0.25, 0.5])
    np.testing.assert_allclose(simplex.kl_divergence(p, q), np.log(2), rtol=1e-6)
    assert simplex.kl_divergence(q, p) == np.inf
    assert simplex.kl_divergence(p, p) == 0
    np.testing.assert_allclose(simplex.entropy(p), np.log(2), rtol=1e-6)
    np.testing.assert_allclose(simplex.entropy(as32([[0.25] * 4, [1, 0, 0, 0]])), [np.log(4), 0], atol=1e-6)
    for gradient in (*jax.grad(simplex.kl_divergence, argnums=(0, 1))(p, q), jax.grad(simplex.entropy)(p)):
        assert np.isfinite(gradient).all()


def test_normalize():
    np.testing.assert_allclose(simplex.normalize(as32([[1, 3], [0, 0]])), [[0.25, 0.75], [0.5, 0.5]])
    assert np.isfinite(jax.grad(lambda w: simplex.normalize(w)[0])(jnp.zeros(3))).all()


def test_mix_with():
    np.testing.assert_allclose(simplex.mix_with(as32([1, 0]), as32([0, 1]), 0.25), [0.75, 0.25])
