"""What holds for all weights: projections are feasible and optimal, steps stay on the simplex."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import example, given, settings, strategies as st

from jaxmix.core import simplex

M = 6
EPSILON = float(np.finfo(np.float32).eps)
SMALLEST = np.finfo(np.float32).tiny  # XLA flushes what is smaller to 0
COST_OF_NOTHING = 100.0  # more than −log of the smallest weight, 87.3
unit = st.floats(0, 1, width=32)
vector = st.lists(unit, min_size=M, max_size=M).map(lambda v: np.asarray(v, np.float32))
wide = st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=M, max_size=M).map(
    lambda v: np.asarray(v, np.float32)
)
weights = vector.filter(lambda v: v.sum() > 1e-3).map(lambda v: v / v.sum())

project = jax.jit(simplex.project_capped_simplex)
kl_project = jax.jit(simplex.kl_project_capped_simplex)
step = jax.jit(simplex.exponentiated_gradient_step)


def assert_simplex(p):
    assert np.isfinite(p).all()
    assert (p >= 0).all()
    assert abs(np.sum(p, dtype=np.float64) - 1) < 2e-6


@settings(max_examples=200)
@example(
    x=np.asarray([0, 0, -2049, -2048, 0, 0], np.float32),
    caps=np.asarray([0, 0, 1, 0, 0, 0], np.float32),
    floors=np.asarray([0, 0, 0.2618076205253601, 1, 0, 0], np.float32),
)  # free terms a thousand away from the largest: float32 is 1e-4 coarse there
@given(x=st.one_of(weights, wide), caps=vector, floors=vector)
def test_projections_land_inside_the_bounds(x, caps, floors):
    low, high = np.minimum(caps, floors), np.maximum(caps, floors)
    feasible = low.sum(dtype=np.float64) <= 1 <= high.sum(dtype=np.float64)
    for function in (project, kl_project):
        if function is kl_project and (x.min() < 0 or x.max() > 1 or x.sum() == 0):
            continue
        p = np.asarray(function(x, high, low))
        assert_simplex(p)
        if feasible:
            assert (p >= low - 1e-6).all()
            assert (p <= high + 1e-6).all()


@example(
    q=np.asarray([0, 0, 0, 0, 2.15e-31, 1], np.float32),
    caps=np.asarray([0, 0, 0, 1, 1, 0], np.float32),
    other=np.asarray([0, 0, 0, 1, 0, 0], np.float32),
    amount=0.5,
)  # no mass is not a little mass: all of it goes to the one domain that has some and may hold it
@example(
    q=np.asarray([0, 0, 0, 0, 2.15e-31, 1], np.float32),
    caps=np.asarray([0, 1, 0, 1, 0.5, 0.25], np.float32),
    other=np.asarray([0, 0, 0, 1, 0, 0], np.float32),
    amount=0.5,
)  # what has some cannot hold all
@given(q=weights, caps=vector, other=weights, amount=unit)
def test_no_feasible_neighbor_is_nearer(q, caps, other, amount):
    if caps.sum() < 1.001:
        return
    rival = np.asarray(kl_project(other, caps), np.float64)
    for function, distance, steepest in (
        (project, lambda p: np.sum((p - q.astype(np.float64)) ** 2), 2.0),
        (kl_project, lambda p: _kl(p, q), COST_OF_NOTHING),
    ):
        p = np.asarray(function(q, caps), np.float64)
        # Each of the M terms of a projection is rounded to float32; the distance turns that into `steepest` as much.
        slack = M * EPSILON * steepest
        assert distance(p) <= distance((1 - amount) * p + amount * rival) + slack


def _kl(p, q):
    """`KL(p ‖ q)` in float64, where mass on a domain that has none costs more than on any that has some."""
    log_q = np.where(q < SMALLEST, -COST_OF_NOTHING, np.log(np.maximum(q, SMALLEST, dtype=np.float64)))
    return np.sum(np.where(p > 0, p * (np.log(np.maximum(p, 1e-300)) - log_q), 0))


@example(
    q=np.asarray([0, 0, 0, 0, 2.15e-31, 1], np.float32),
    caps=np.asarray([0, 0, 0, 1, 1, 0], np.float32),
)
@given(q=weights, caps=vector)
def test_mass_goes_where_none_was_only_when_it_must(q, caps):
    had_none = q < SMALLEST
    room = caps[~had_none].sum(dtype=np.float64)
    gained = np.asarray(kl_project(q, caps), np.float64)[had_none].sum()
    if caps.sum(dtype=np.float64) >= 1:
        assert abs(gained - max(0.0, 1 - room)) <= M * EPSILON


@given(q=weights, caps=vector)
def test_projecting_twice_changes_nothing(q, caps):
    for function in (project, kl_project):
        once = function(q, caps)
        np.testing.assert_allclose(function(once, caps), once, atol=2e-6)


@settings(max_examples=200)
@given(p=weights, score=wide, step_size=st.floats(0, 100, width=32), memory=unit)
def test_a_step_stays_on_the_simplex(p, score, step_size, memory):
    assert_simplex(np.asarray(step(p, score, step_size=jnp.float32(step_size), memory=jnp.float32(memory))))


@given(p=weights, score=vector, step_size=st.floats(0, 5, width=32))
def test_a_step_never_lowers_the_expected_score(p, score, step_size):
    after = np.asarray(step(p, score, step_size=jnp.float32(step_size)), np.float64)
    assert after @ score >= p.astype(np.float64) @ score - 1e-5


@given(p=weights, q=weights)
def test_divergence_is_zero_only_at_itself(p, q):
    assert simplex.kl_divergence(jnp.asarray(p), jnp.asarray(p)) == 0
    # Pinsker: at least half the squared L1 distance.
    assert simplex.kl_divergence(jnp.asarray(p), jnp.asarray(q)) >= 0.5 * np.abs(p - q).sum() ** 2 - 1e-5
    assert -1e-6 <= float(simplex.entropy(jnp.asarray(p))) <= np.log(M) + 1e-6
