"""Joint criteria with redundancy against brute force over all pairs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dense import fast, loop

from jaxmix.core.errors import ConfigError
from jaxmix.selection import diverse, greats

C, CHOSEN, CHUNKS = 60, 20, 5
KEY = jax.random.key(9)
STRENGTH = 2.0
RNG = np.random.default_rng(0)
SCORE = RNG.normal(size=C) * 3 + 5
FEATURES = RNG.normal(size=(C, 6)) + np.eye(6)[RNG.integers(0, 6, C)] * 3
VALID = RNG.random(C) < 0.8


def kernel_of(kernel, features, width):
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    near = unit @ unit.T
    return {"linear": near, "squared": near**2, "near_duplicate": np.exp((near - 1) / width)}[kernel]


def criterion(scores, table, factor):
    return lambda chosen: (scores, -factor * table[:, chosen].sum(1))


@pytest.mark.parametrize(("kernel", "sweeps"), [("linear", 1), ("squared", 0), ("near_duplicate", 1)])
def test_raw_criterion_equals_the_loop(kernel, sweeps):
    selector = diverse(
        CHOSEN, num_chunks=CHUNKS, strength=0.7, kernel=kernel, width=0.3, standardize=False, sweeps=sweeps
    )
    found = fast(selector)(KEY, jnp.asarray(SCORE, jnp.float32), jnp.asarray(FEATURES, jnp.float32), jnp.asarray(VALID))
    part = criterion(SCORE, kernel_of(kernel, FEATURES, 0.3), 0.7)
    assert found.indices.tolist() == loop(KEY, C, part, CHOSEN, CHUNKS, sweeps=sweeps, valid=VALID)


@functools.cache
def standardized(kernel):
    return fast(diverse(CHOSEN, num_chunks=CHUNKS, strength=STRENGTH, kernel=kernel, width=0.3))


@pytest.mark.parametrize("kernel", ["linear", "squared", "near_duplicate"])
def test_standardized_terms_weigh_the_same_half_way(kernel):
    """λ is such that what b/2 random rows put on the others has the spread of the standardized scores: 1."""
    found = standardized(kernel)(
        KEY, jnp.asarray(SCORE, jnp.float32), jnp.asarray(FEATURES, jnp.float32), jnp.asarray(VALID)
    )
    lot = np.asarray(jax.random.uniform(jax.random.fold_in(KEY, 0x7FFFFFFF), (C,)))
    half = np.argsort(-np.where(VALID, lot, -np.inf))[: CHOSEN // 2]
    table = kernel_of(kernel, FEATURES, 0.3)
    rest = VALID.copy()
    rest[half] = False
    factor = STRENGTH / table[:, half].sum(1)[rest].std()
    scores = (SCORE - SCORE[VALID].mean()) / SCORE[VALID].std()
    assert found.indices.tolist() == loop(KEY, C, criterion(scores, table, factor), CHOSEN, CHUNKS, valid=VALID)


def test_strength_lowers_redundancy():
    table, by_score = kernel_of("linear", FEATURES, 0.3), np.argsort(-SCORE)[:CHOSEN]
    select = fast(diverse(CHOSEN, num_chunks=CHOSEN, kernel="linear", strength=4.0, greedy=True))
    chosen = select(KEY, jnp.asarray(SCORE, jnp.float32), jnp.asarray(FEATURES, jnp.float32)).indices
    assert table[np.ix_(chosen, chosen)].sum() < 0.5 * table[np.ix_(by_score, by_score)].sum()


def test_no_strength_is_selection_by_score():
    select = fast(diverse(CHOSEN, num_chunks=CHUNKS, kernel="linear", strength=0.0, greedy=True))
    chosen = select(KEY, jnp.asarray(SCORE, jnp.float32), jnp.asarray(FEATURES, jnp.float32)).indices
    assert chosen.tolist() == np.argsort(-SCORE)[:CHOSEN].tolist()


@pytest.mark.parametrize("kernel", ["linear", "squared", "near_duplicate"])
def test_features_that_say_nothing_do_not_act(kernel):
    select = lambda features: standardized(kernel)(KEY, jnp.asarray(SCORE, jnp.float32), features, jnp.asarray(VALID))
    scores = (SCORE - SCORE[VALID].mean()) / SCORE[VALID].std()
    expected = loop(KEY, C, lambda chosen: (scores, 0.0 * scores), CHOSEN, CHUNKS, valid=VALID)
    for features in (jnp.ones((C, 6)), jnp.zeros((C, 6))):
        assert select(features).indices.tolist() == expected


def test_greats_is_the_best_step_one_by_one():
    rng = np.random.default_rng(4)
    gradients, target, step = rng.normal(size=(30, 5)), rng.normal(size=5), 0.3
    found = fast(greats(6, num_chunks=6, step_size=step))(
        KEY, jnp.asarray(gradients, jnp.float32), jnp.asarray(target, jnp.float32)
    )
    chosen = []
    for _ in range(6):
        gain = step * gradients @ target - step**2 * gradients @ gradients[chosen].sum(0)
        gain[chosen] = -np.inf
        chosen.append(int(np.argmax(gain)))
    assert found.indices.tolist() == chosen


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: diverse(8, num_chunks=3), "num_select 8 is not a multiple"),
        (lambda: diverse(8, num_chunks=4, kernel="rbf"), "unknown kernel 'rbf'"),
        (lambda: diverse(8, num_chunks=4, strength=-1.0), "strength must be finite and at least 0, got -1.0"),
        (lambda: diverse(8, num_chunks=4, width=0.0), "width must be finite and above 0, got 0.0"),
        (lambda: greats(8, num_chunks=4, step_size=0.0), "step_size must be finite and above 0"),
        (
            lambda: diverse(8, num_chunks=4)(KEY, jnp.zeros(9), jnp.zeros((10, 2))),
            r"scores of shape \(9,\) and features of shape \(10, 2\)",
        ),
        (lambda: greats(8, num_chunks=4)(KEY, jnp.zeros((9, 2)), jnp.zeros(3)), "Pass f\\[c, r\\] and f\\[r\\]"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ConfigError, match=message):
        call()
