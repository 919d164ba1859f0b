"""Simulated skills against a second simulator in NumPy float64, and what each rule gains there."""

import functools

import jax
import numpy as np
import pytest

from jaxmix import curricula
from jaxmix.simulate.learners import chains, prompts_to_target, skill_worlds

SEEDS = 8


@functools.cache
def compiled(name, rule):
    bandit = curricula.make(name, 10, **dict(rule))
    return jax.jit(jax.vmap(lambda world, key: prompts_to_target(bandit, world, key), in_axes=(None, 0)))


def prompts(world, name, seeds=SEEDS, **rule):
    keys = jax.random.split(jax.random.key(7), seeds)
    return tuple(np.asarray(x) for x in compiled(name, tuple(rule.items()))(world, keys))


def plain(world, seeds):
    """Uniform sampling, one seed and one slot after another."""
    start, ceiling, transfer = (np.asarray(x, float) for x in (world.start, world.ceiling, world.transfer))
    used = []
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        x, steps, rates = start.copy(), 0, rng.uniform(0.5, 1.5, len(start))
        while (ceiling / (1 + np.exp(-x))).mean() < 0.9 * ceiling.mean():
            moves = np.zeros(len(x))
            for arm in rng.integers(0, len(x), 16):
                q = (rng.random(8) < ceiling[arm] / (1 + np.exp(-x[arm]))).mean()
                moves[arm] += 0.06 * rates[arm] * np.sqrt(q * (1 - q))
            x, steps = x + moves @ transfer, steps + 1
        used.append(16 * steps)
    return np.array(used)


def test_chains():
    world = chains(2, levels=(1.0, 0.0), ceiling=(1.0, 0.5), gated=True)
    expected = [[1, 0.5, 0.02, 0.02], [0.3, 1, 0.02, 0.02], [0.02, 0.02, 1, 0.5], [0.02, 0.02, 0.3, 1]]
    np.testing.assert_allclose(world.transfer, expected, rtol=1e-6)
    np.testing.assert_array_equal(world.gated, np.eye(4, k=-1) * [[0], [1], [0], [1]])
    np.testing.assert_array_equal(world.ceiling, [1, 0.5, 1, 0.5])


@pytest.mark.slow
def test_uniform_sampling_needs_what_the_second_simulator_needs():
    world = skill_worlds()["40 % unsolvable"]
    ours, theirs = prompts(world, "uniform", 24)[0], plain(world, 12)
    gap = np.log(ours).mean() - np.log(theirs).mean()
    assert abs(gap) < 4 * np.sqrt(np.log(ours).var() / 24 + np.log(theirs).var() / 12)


@pytest.mark.slow
def test_hard_first_fails_where_something_cannot_be_solved():
    world = skill_worlds()["20 % unsolvable"]
    uniform, _ = prompts(world, "uniform")
    hard, shares = prompts(world, "sparft_v1")
    unsolvable = np.asarray(world.ceiling) == 0
    assert (hard > 8 * uniform).all()
    assert (shares[:, unsolvable].sum(1) > 0.9).all()


@pytest.mark.slow
@pytest.mark.parametrize(("rule", "least"), [("thompson", 1.7), ("proportional", 1.3), ("literal", 1.5)])
def test_gain_over_uniform(rule, least):
    for name in ("ladder", "20 % unsolvable"):
        world = skill_worlds()[name]
        gains = prompts(world, "uniform")[0] / prompts(world, "space", rule=rule)[0]
        assert np.median(gains) > least


@pytest.mark.slow
def test_late_rewards():
    world, key = skill_worlds()["ladder"], jax.random.key(3)
    bandit = curricula.make("space", 10, rule="proportional")
    run = lambda lag, bandit=bandit: prompts_to_target(bandit, world, key, most_prompts=160, lag=lag)
    assert not np.any(run(10)[1]), "ten steps are over before the first reward is known"
    first = np.asarray(jax.jit(bandit.sample, static_argnums=2)(_first_key(key), bandit.init(), 16))
    np.testing.assert_allclose(run(9)[1], np.bincount(first, minlength=10) / 16)
    uniform = curricula.make("uniform", 10)
    assert int(prompts_to_target(uniform, world, key, lag=5)[0]) == int(prompts_to_target(uniform, world, key)[0])


def _first_key(key):
    """Of the first draw of a run."""
    return jax.random.split(jax.random.fold_in(jax.random.split(key)[1], 0), 3)[0]
