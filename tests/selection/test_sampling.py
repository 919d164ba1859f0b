"""The draw alone: its law, ties, and room by domain."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dense import fast

from jaxmix.selection.candidates import Candidates
from jaxmix.selection.gibbs import GibbsConfig, draw_chunks, no_interaction
from jaxmix.selection.sampling import sample

KEY = jax.random.key(3)


def test_law_is_plackett_luce():
    score, gain, size, trials = np.array([1.0, 0.0, -1.0, 0.5, 3.0]), 0.7, 2, 40_000
    free = np.array([True, True, True, True, False])
    one = lambda key: sample(
        key,
        jnp.asarray(score, jnp.float32),
        jnp.asarray(free),
        Candidates(5),
        size=size,
        gain=jnp.float32(gain),
        greedy=False,
    )
    drawn = np.asarray(fast(jax.vmap(one))(jax.random.split(KEY, trials)))
    odds = np.where(free, np.exp(gain * score), 0.0)
    for pair in itertools.permutations(range(4), 2):
        first, second = odds[pair[0]] / odds.sum(), odds[pair[1]] / (odds.sum() - odds[pair[0]])
        share = (drawn == pair).all(1).mean()
        assert abs(share - first * second) < 5 * np.sqrt(first * second / trials)
    assert not (drawn == 4).any()


def test_greedy_breaks_ties_at_random_and_nothing_else():
    score = jnp.asarray([0.0] * 50 + [1.0] * 4)
    one = lambda key: sample(
        key, score, jnp.ones(54, bool), Candidates(54), size=10, gain=jnp.float32(1.0), greedy=True
    )
    drawn = np.asarray(fast(jax.vmap(one))(jax.random.split(KEY, 200)))
    assert (np.sort(drawn[:, :4]) == [50, 51, 52, 53]).all()
    assert len(np.unique(drawn[:, 4:])) == 50
    assert (np.bincount(drawn[:, 4:].ravel())[:50] > 5).all()  # 24 each on average


@functools.cache
def program(rules):
    one = lambda key, score, free: draw_chunks(
        key, no_interaction(score), Candidates(40), free, rules, gain=jnp.float32(1.0)
    )
    return fast(one)


def test_what_is_lacking_is_minus_one_at_the_end():
    free = (jnp.arange(40) % 4 == 0) & (jnp.arange(40) < 20)
    out = program(GibbsConfig(12, 3, sweeps=1))(KEY, jnp.zeros(40), free)
    assert sorted(out.indices.tolist()[:5]) == [0, 4, 8, 12, 16]
    assert out.indices.tolist()[5:] == [-1] * 7
    assert out.info.num_selected == 5
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(out.info))


@pytest.mark.parametrize("seed", range(4))
def test_chunks_do_not_matter_without_interaction(seed):
    """With one shared noise vector the chunked and the single draw give the same indices in the same order."""
    rng = np.random.default_rng(seed)
    noisy = jnp.asarray(rng.normal(size=40) + rng.gumbel(size=40), jnp.float32)
    single, chunked = (
        program(GibbsConfig(12, chunks, greedy=True))(KEY, noisy, jnp.ones(40, bool)).indices for chunks in (1, 4)
    )
    np.testing.assert_array_equal(single, chunked)
    assert single.tolist() == np.argsort(-np.asarray(noisy))[:12].tolist()


def test_room_is_filled_by_the_best_of_each_domain():
    rng = np.random.default_rng(0)
    score, domain = rng.normal(size=60), rng.integers(0, 5, 60)
    room = np.array([3, 0, 1, 100, 2])
    one = lambda score, domain, room: sample(
        KEY,
        score,
        jnp.ones(60, bool),
        Candidates(60),
        size=12,
        gain=jnp.float32(1.0),
        greedy=True,
        domain=domain,
        room=room,
    )
    found = fast(one)(*(jnp.asarray(x) for x in (score.astype(np.float32), domain, room)))
    expected = []
    for i in np.argsort(-score):
        if room[domain[i]] > 0 and len(expected) < 12:
            room[domain[i]] -= 1
            expected.append(i)
    assert found.tolist() == expected


def test_extreme_scores_and_gains_stay_in_order():
    score = jnp.asarray([1e38, -jnp.inf, jnp.nan, -1e38, 0.0, 2.0])
    select = lambda gain: sample(KEY, score, jnp.ones(6, bool), Candidates(6), size=4, gain=gain, greedy=False)
    assert fast(select)(jnp.float32(1e30)).tolist()[:3] == [0, 5, 4]
