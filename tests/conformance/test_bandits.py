"""What every bandit must do, one table for all. A bandit is tested by being registered."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from strict_types import assert_fields_hold

import jaxmix.curricula as curricula
from jaxmix.core.errors import ConfigError
from jaxmix.core.pytree import from_nested, state_versions, to_nested

K, B, G = 6, 8, 4  # arms, slots, rollouts
KEY = jax.random.key(0)

VARIANTS = {
    "space_literal": ("space", {"rule": "literal"}),
    "space_progress": ("space", {"progress_weight": 0.2, "floor": 0.0, "memory": 2.0}),
    "space_thompson": ("space", {"rule": "thompson"}),
    "uniform_pool": ("uniform", {"sizes": [5, 4, 3, 2, 1, 0]}),
    "dapo_band": ("dapo", {"low": 0.3, "high": 0.8}),
    "staged_schedule": ("staged", {"order": [3, 1, 0, 2, 5, 4], "updates_per_stage": 4}),
    "adarft_clusters": ("adarft", {"difficulty": [90, 70, 50, 30, 10, 0], "prompts_per_arm": 3, "initial_target": 40}),
    "bots_kernel": ("bots", {"difficulty": [0, 0.1, 0.3, 0.5, 0.8, 1.0], "bandwidth": 0.2}),
    "dots_clusters": ("dots", {"temperature": 0.1, "distinct": False, "difficulty": [0.1, 0.2, 0.4, 0.5, 0.7, 0.9]}),
    "dump_short": ("dump", {"window": 5}),
    "mopps_forgetting": ("mopps", {"kept": 0.5}),
    "sec_change": ("sec", {"objective": "reward_change", "temperature": 1.0}),
    "sec_repository": ("sec", {"variant": "repository"}),
}
"""Further settings of registered bandits."""

CASES = {**{name: (name, {}) for name in curricula.registry}, **VARIANTS}
PER_ARM = ("sizes", "order", "difficulty")
TREAT_ARMS_ALIKE = sorted(
    name
    for name, (bandit, arguments) in CASES.items()
    if bandit not in ("staged", "adarft") and not any(argument in arguments for argument in PER_ARM)
)


class Jitted(NamedTuple):
    """A bandit with its functions compiled: every test of a case shares them."""

    bandit: Any
    sample: Any
    update: Any
    probabilities: Any
    traces: list


@functools.cache
def jitted(case):
    name, arguments = CASES[case]
    bandit, traces = curricula.make(name, K, **arguments), []

    def update(state, arms, rewards, valid):
        traces.append(1)
        return bandit.update(state, arms, rewards, valid)

    return Jitted(
        bandit,
        jax.jit(bandit.sample, static_argnums=2),
        jax.jit(update),
        jax.jit(bandit.probabilities),
        traces,
    )


QUICK = {*curricula.registry, "space_thompson", "space_literal"} - {"bots", "lilo"}
"""The others share their code with one of these, and run with the slow tests."""


def few(cases):
    """What compiles a program of its own per case: in the fast run for two cases only."""
    return [name if name in ("space", "dump") else pytest.param(name, marks=pytest.mark.slow) for name in sorted(cases)]


@pytest.fixture(
    params=[name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in sorted(CASES)]
)
def case(request):
    return request.param


@pytest.fixture
def made(case):
    return jitted(case)


ALL = jnp.ones(B, bool)
SOLVE = np.array([1.0, 0.8, 0.6, 0.4, 0.1, 0.0])


def batch(seed):
    """Arms of every kind, several times each or not at all, with 0/1 rewards."""
    rng = np.random.default_rng(seed)
    arms = rng.integers(0, K, B)
    rewards = (rng.random((B, G)) < SOLVE[arms][:, None]).astype(np.float32)
    return jnp.asarray(arms, jnp.int32), jnp.asarray(rewards)


def run(made, steps, state=None, start=0):
    state = made.bandit.init() if state is None else state
    for step in range(start, start + steps):
        state = made.update(state, *batch(step), ALL)
    return state


def assert_simplex(probabilities):
    assert probabilities.dtype == jnp.float32
    values = np.asarray(probabilities, np.float64)
    assert np.isfinite(values).all()
    assert (values >= 0).all()
    np.testing.assert_allclose(values.sum(), 1.0, atol=2e-6)


assert_close = functools.partial(chex.assert_trees_all_close, rtol=2e-5, atol=2e-6)


def test_bundle(case, made):
    assert made.bandit.num_arms == K
    assert made.bandit.name.startswith(CASES[case][0])
    state = run(made, 3)
    assert int(state.step) == 3
    assert int(state.pulls.sum()) == 3 * B
    scores = made.bandit.scores(state)
    chex.assert_tree_shape_prefix(scores, (K,))
    chex.assert_tree_all_finite(scores)


def test_probabilities_lie_on_the_simplex(made):
    state = made.bandit.init()
    for step in range(30):
        assert_simplex(made.probabilities(state))
        state = made.update(state, *batch(step), ALL)


def test_samples_follow_the_probabilities(made):
    draws = jax.jit(jax.vmap(lambda key, state: made.bandit.sample(key, state, 1)[0], (0, None)))
    for state in (made.bandit.init(), run(made, 5)):
        arms = np.asarray(draws(jax.random.split(KEY, 4000), state))
        share = np.bincount(arms, minlength=K) / len(arms)
        # Five standard errors, and what the quadrature of the argmax rules leaves.
        tolerance = 5 * np.sqrt(share * (1 - share) / len(arms)) + 4e-3
        assert (np.abs(share - np.asarray(made.probabilities(state))) <= tolerance).all()


def test_samples_are_arms_and_depend_on_the_key_alone(case, made):
    state = run(made, 4)
    arms = made.sample(KEY, state, B)
    assert arms.shape == (B,)
    assert arms.dtype == jnp.int32
    assert ((arms >= 0) & (arms < K)).all()
    np.testing.assert_array_equal(arms, made.sample(KEY, state, B))
    if CASES[case][0] not in ("staged", "adarft"):
        others = [made.sample(jax.random.key(seed), state, B) for seed in range(1, 6)]
        assert any((np.asarray(other) != np.asarray(arms)).any() for other in others)


@pytest.mark.parametrize("case", few(CASES))
def test_jit_equals_eager(case):
    made = jitted(case)
    state = run(made, 2)
    assert_close(made.update(state, *batch(9), ALL), made.bandit.update(state, *batch(9)))
    np.testing.assert_allclose(made.probabilities(state), made.bandit.probabilities(state), rtol=1e-5, atol=1e-6)
    if CASES[case][0] not in ("mopps", "bots"):  # a Beta draw is a loop, which compiles even when it is called eagerly
        np.testing.assert_array_equal(made.sample(KEY, state, B), made.bandit.sample(KEY, state, B))


def test_many_updates_trace_once(made):
    run(made, 20)
    assert len(made.traces) == 1


def test_state_keeps_structure_shapes_and_dtypes(made):
    before = made.bandit.init()
    after = jax.eval_shape(made.bandit.update, before, *batch(0))
    chex.assert_trees_all_equal_shapes_and_dtypes(before, after)
    assert_fields_hold(before)
    assert not any(leaf.weak_type for leaf in (*jax.tree.leaves(before), *jax.tree.leaves(after)))


@pytest.mark.parametrize("case", few(CASES))
def test_scan_and_vmap_over_seeds(case):
    made = jitted(case)
    arms, rewards = (jnp.stack(parts) for parts in zip(*(batch(step) for step in range(5)), strict=True))

    def whole(order):
        step = lambda state, i: (made.bandit.update(state, arms[i], rewards[i]), None)
        return jax.lax.scan(step, made.bandit.init(), order)[0]

    orders = jnp.asarray([[0, 1, 2, 3, 4], [4, 3, 2, 1, 0]])
    states = jax.jit(jax.vmap(whole))(orders)
    for i, order in enumerate(orders.tolist()):
        state = made.bandit.init()
        for step in order:
            state = made.update(state, *batch(step), ALL)
        assert_close(jax.tree.map(lambda leaf, i=i: leaf[i], states), state)


def test_the_order_of_the_slots_does_not_matter(case, made):
    if case == "dump_short":
        pytest.skip("one batch fills more than its window: see tests/curricula/test_rules.py")
    state, (arms, rewards) = run(made, 3), batch(7)
    order = np.random.default_rng(0).permutation(B)
    one, other = made.update(state, arms, rewards, ALL), made.update(state, arms[order], rewards[order], ALL)
    np.testing.assert_allclose(made.probabilities(one), made.probabilities(other), rtol=1e-4, atol=1e-6)


def test_slots_that_do_not_count_leave_no_trace(made):
    state, (arms, rewards) = run(made, 3), batch(8)
    counts = np.arange(B) % 2 == 0
    # Half the batch is padding; then evaluation prompts, unknown arms, failed verifiers.
    padded = made.update(state, arms, jnp.where(counts[:, None], rewards, jnp.inf), jnp.asarray(counts))
    bad_arms = arms.at[1].set(-1).at[3].set(K)
    bad_rewards = rewards.at[5, 2].set(jnp.nan).at[7, 0].set(jnp.inf)
    chex.assert_trees_all_equal(padded, made.update(state, bad_arms, bad_rewards, ALL))
    # Twice the other half in its place: the slots that count alone decide.
    again = made.update(state, jnp.where(counts, arms, arms[::-1]), jnp.where(counts[:, None], rewards, 1.0), counts)
    chex.assert_trees_all_equal(padded, again)


def test_a_batch_without_a_slot_changes_nothing_but_the_step(made):
    state = run(made, 3)
    after = made.update(state, *batch(3), jnp.zeros(B, bool))
    assert int(after.step) == 4
    assert_close(after.__class__(**{**after.__dict__, "step": state.step}), state)


@pytest.mark.parametrize("kind", ["solved", "failed", "alternating", "halves"])
def test_extreme_rewards_stay_finite(made, kind):
    state = made.bandit.init()
    for step in range(60):
        arms, _ = batch(step)
        value = {"solved": 1.0, "failed": 0.0, "alternating": step % 2, "halves": 0.5}[kind]
        state = made.update(state, arms, jnp.full((B, G), value, jnp.float32), ALL)
    chex.assert_tree_all_finite(state)
    assert_simplex(made.probabilities(state))
    arms = made.sample(KEY, state, B)
    assert ((arms >= 0) & (arms < K)).all()


@pytest.mark.parametrize(
    "case", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in TREAT_ARMS_ALIKE]
)
def test_permuting_the_arms_permutes_the_probabilities(case):
    made = jitted(case)
    order = np.random.default_rng(3).permutation(K)  # arm `order[i]` is called i
    names = jnp.asarray(np.argsort(order), jnp.int32)
    plain = permuted = made.bandit.init()
    for step in range(8):
        arms, rewards = batch(step)
        plain, permuted = made.update(plain, arms, rewards, ALL), made.update(permuted, names[arms], rewards, ALL)
        np.testing.assert_allclose(made.probabilities(plain)[order], made.probabilities(permuted), rtol=1e-3, atol=1e-6)


def test_stopped_and_restored_at_any_update(made):
    straight = resumed = made.bandit.init()
    template = jax.eval_shape(made.bandit.init)
    for step in range(10):
        stored = jax.tree.map(np.asarray, to_nested(resumed))
        resumed = jax.tree.map(jnp.asarray, from_nested(template, stored, state_versions(resumed)))
        straight, resumed = made.update(straight, *batch(step), ALL), made.update(resumed, *batch(step), ALL)
        chex.assert_trees_all_equal(straight, resumed)
        np.testing.assert_array_equal(made.sample(KEY, straight, B), made.sample(KEY, resumed, B))


@pytest.mark.parametrize("name", few(curricula.registry))
def test_one_arm(name):
    bandit = curricula.make(name, 1)

    @jax.jit
    def whole(rewards):
        state = bandit.update(bandit.init(), jnp.zeros(2, jnp.int32), rewards)
        return bandit.probabilities(state), bandit.sample(KEY, state, 3)

    probabilities, arms = whole(jnp.asarray([[0.0, 1.0], [1.0, 1.0]]))
    np.testing.assert_allclose(probabilities, [1.0], atol=1e-6)
    assert arms.tolist() == [0, 0, 0]


@pytest.mark.parametrize("name", sorted(curricula.registry))
def test_wrong_arguments_are_named(name):
    with pytest.raises(ConfigError, match=f"bandit '{name}' has no argument 'no_such'"):
        curricula.make(name, K, no_such=1)
    with pytest.raises(ConfigError, match="num_arms must be a whole number ≥ 1, got 0"):
        curricula.make(name, 0)
    bandit = curricula.make(name, K)
    with pytest.raises(ConfigError, match=r"rewards of shape \(3, 2\) do not fit arms of shape \(4,\)"):
        bandit.update(bandit.init(), jnp.zeros(4, jnp.int32), jnp.zeros((3, 2)))
