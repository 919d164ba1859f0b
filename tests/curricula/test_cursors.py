"""Prompts inside an arm: every one once per epoch, deterministic, resumable."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmix.core.errors import ConfigError
from jaxmix.core.pytree import from_nested, state_versions, to_nested
from jaxmix.curricula import prompt_cursors
from jaxmix.curricula.cursors import shuffled_place

KEPT = jnp.asarray([[10, 11, 12, 13, 14], [20, -1, 21, -1, -1], [-1] * 5, [30, 31, 32, 33, -1]])
SIZES = [5, 2, 0, 4]
CURSORS = prompt_cursors(KEPT)
TAKE = jax.jit(CURSORS.take)


def arms_of(seed):
    return np.random.default_rng(seed).integers(-1, 5, 16)


def test_every_prompt_once_per_epoch():
    state, taken = CURSORS.init(jax.random.key(0)), {arm: [] for arm in range(4)}
    for step in range(25):
        arms = arms_of(step)
        prompts, state = TAKE(state, jnp.asarray(arms, jnp.int32))
        for arm, prompt in zip(arms, prompts.tolist(), strict=True):
            if arm in (-1, 2, 4):  # evaluation, empty, unknown
                assert prompt == -1
            else:
                taken[arm].append(prompt)
    orders = set()
    for arm, size in enumerate(SIZES):
        assert int(state.drawn[arm]) == (len(taken[arm]) if size else 0)
        pool = sorted(x for x in KEPT[arm].tolist() if x >= 0)
        for start in range(0, len(taken[arm]) - size + 1, size or 1):
            epoch = taken[arm][start : start + size]
            assert sorted(epoch) == pool
            orders.add((arm, *epoch))
    assert len(orders) > 20  # epochs have orders of their own


def test_a_restored_state_goes_on_and_batches_do_not_matter():
    straight = CURSORS.init(jax.random.key(3))
    arms = jnp.asarray(arms_of(0), jnp.int32)
    whole, after = TAKE(straight, arms)
    stored = jax.tree.map(np.asarray, to_nested(straight))
    template = jax.eval_shape(CURSORS.init, jax.random.key(0))
    state = from_nested(template, jax.tree.map(jnp.asarray, stored), state_versions(straight))
    parts = []
    for i in range(16):
        # One slot at a time, the rest padding.
        prompts, state = TAKE(state, jnp.where(jnp.arange(16) == i, arms, -1))
        parts.append(int(prompts[i]))
    assert parts == whole.tolist()
    np.testing.assert_array_equal(state.drawn, after.drawn)


@pytest.mark.parametrize("size", [1, 2, 3, 10, 64, 65, 1000])
def test_shuffled_places_are_a_permutation(size):
    places = jax.jit(jax.vmap(shuffled_place, (None, 0, None)))(
        jax.random.key(size), jnp.arange(1024, dtype=jnp.int32) % size, jnp.int32(size)
    )[:size]
    assert sorted(places.tolist()) == list(range(size))
    if size >= 64:
        assert abs(np.corrcoef(np.arange(size), places)[0, 1]) < 0.4


def test_every_place_is_equally_likely():
    spots = jax.vmap(lambda key: jax.vmap(shuffled_place, (None, 0, None))(key, jnp.arange(6), jnp.int32(6)))
    places = np.asarray(jax.jit(spots)(jax.random.split(jax.random.key(0), 6000)))
    counts = np.stack([np.bincount(places[:, i], minlength=6) for i in range(6)])
    np.testing.assert_allclose(counts / 6000, 1 / 6, atol=0.025)


def test_errors():
    with pytest.raises(ConfigError, match=r"kept has shape \(3,\)"):
        prompt_cursors(jnp.arange(3))
