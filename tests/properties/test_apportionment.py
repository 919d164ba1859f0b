"""How far realized rows are from asked ones, for weights that stay, change and attack."""

from itertools import product

import numpy as np
import pytest
from hypothesis import example, given, settings, strategies as st

from jaxmix.data.mixture.apportion import apportion, is_lasting, order_rows, worst_error
from jaxmix.data.mixture.plan import UNLIMITED, plan_block


def plan(weights, carry=None, cursors=None, rows=32):
    m = len(weights)
    return plan_block(
        weights=np.asarray(weights, np.float64),
        carry=np.zeros(m) if carry is None else carry,
        cursors=np.zeros(m, np.int64) if cursors is None else cursors,
        limits=np.full(m, UNLIMITED),
        policies=["repeat"] * m,
        rows=rows,
    )


def naive_apportion(weights, carry, rows):
    """The rule in words: everyone the whole part of the quota, then one each to the largest remainders."""
    quota = [rows * w + c for w, c in zip(weights, carry, strict=True)]
    counts = [max(int(np.floor(q + 1e-9)), 0) if w > 0 else 0 for q, w in zip(quota, weights, strict=True)]
    while sum(counts) != rows:
        step = 1 if sum(counts) < rows else -1
        open_to = [j for j, w in enumerate(weights) if w > 0 and (step > 0 or counts[j] > 0)]
        best = max(open_to, key=lambda j: (step * (quota[j] - counts[j]), -j))
        counts[best] += step
    return counts


simplex = (
    st.integers(1, 9)
    .flatmap(lambda m: st.lists(st.sampled_from([0.0, 1e-6, 1e-3, 0.1, 0.3, 1.0, 7.0]), min_size=m, max_size=m))
    .filter(lambda w: sum(w) > 0)
    .map(lambda w: np.asarray(w) / sum(w))
)


@given(simplex, st.integers(1, 40))
def test_first_block_agrees_with_the_rule_in_words(weights, rows):
    counts = apportion(weights, np.zeros(len(weights)), rows)
    assert counts.tolist() == naive_apportion(weights, np.zeros(len(weights)), rows)
    assert np.abs(rows * weights - counts).max() < 1
    assert counts[weights == 0].sum() == 0


@settings(max_examples=60)
@example(np.array([0.025, 0.075, 0.075, 0.075, 0.25, 0.25, 0.25]), 2)  # three deadlines at one row
@given(simplex, st.integers(1, 17))
def test_constant_weights_are_never_a_row_off_at_any_row(weights, rows):
    carry, cursors = np.zeros(len(weights)), np.zeros(len(weights), np.int64)
    drawn = np.zeros(len(weights))
    total = 0
    for _ in range(12):
        block = plan(weights, carry, cursors, rows)
        for domain in block.domain.tolist():
            drawn[domain] += 1
            total += 1
            assert np.abs(total * weights - drawn).max() < 1
        carry, cursors = block.carry, drawn.astype(np.int64)
        np.testing.assert_allclose(carry, total * weights - drawn, atol=1e-9)


@pytest.mark.parametrize("m", [2, 5, 50, 200])
def test_constant_weights_at_every_row_for_many_domains(m):
    # Tijdeman's bound is 1 − 1/(2m − 2); the rule here reaches below 1.
    rng = np.random.default_rng(m)
    for weights in (rng.dirichlet(np.full(m, 0.1)), rng.dirichlet(np.ones(m)), np.full(m, 1 / m)):
        order = order_rows(weights, np.zeros(m), 512)
        drawn = np.cumsum(np.eye(m)[order], axis=0)
        asked = np.arange(1, 513)[:, None] * weights
        assert np.abs(asked - drawn).max() < 1


@pytest.mark.parametrize("rows", [32, 256])
@pytest.mark.parametrize("kind", ["dirichlet", "sparse", "one_hot", "tiny", "mixed"])
def test_changing_weights_are_never_a_row_off_after_a_block(rows, kind):
    rng, m = np.random.default_rng(7), 9

    def draw():
        choice = rng.choice(["dirichlet", "sparse", "one_hot", "tiny"]) if kind == "mixed" else kind
        if choice == "one_hot":
            return np.eye(m)[rng.integers(m)]
        if choice == "tiny":
            weights = np.full(m, 1e-6)
            weights[rng.integers(m)] = 1.0
            return weights / weights.sum()
        return rng.dirichlet(np.full(m, 1.0 if choice == "dirichlet" else 0.1))

    kind_is_dense = kind in ("dirichlet", "one_hot", "tiny")
    carry, cursors, asked, worst = np.zeros(m), np.zeros(m, np.int64), np.zeros(m), 0.0
    for _ in range(300):
        weights = draw()
        before = carry
        block = plan(weights, carry, cursors, rows)
        asked += rows * weights
        cursors = cursors + np.bincount(block.domain, minlength=m)
        carry = block.carry
        worst = max(worst, np.abs(asked - cursors).max())
        assert not kind_is_dense or worst_error(weights, before, block.domain) < 1  # at every row
        assert block.domain.size == rows
        assert not np.any(weights[block.domain] == 0)
    assert worst < 1


def exists_an_order(weights, carry, rows):
    """All orders, kept apart by their counts: is there one that never leaves a domain a row off?"""
    reached = {(0,) * len(weights)}
    for row in range(1, rows + 1):
        following = {
            tuple(n + (i == j) for i, n in enumerate(counts)) for counts in reached for j in range(len(counts))
        }
        reached = {c for c in following if np.abs(carry + row * weights - np.asarray(c)).max() < 1 - 1e-9}
        if not reached:
            return False
    return True


def hard_states(seed, number, sizes):
    """Sparse weights, some of them 0, and carries that a fierce history may have left."""
    rng = np.random.default_rng(seed)
    while number:
        m = int(rng.integers(*sizes))
        weights = rng.dirichlet(np.full(m, rng.choice([0.15, 1.0])))
        weights[rng.integers(m)] *= rng.random() < 0.5
        carry = rng.uniform(-1, 1, m)
        carry -= carry.mean()
        if np.abs(carry).max() < 1:
            number -= 1
            yield weights / weights.sum(), carry


def test_deadlines_are_met_whenever_any_order_meets_them_and_lasting_states_have_one():
    seen = set()
    for weights, carry in hard_states(0, 250, (3, 6)):
        exists = exists_an_order(weights, carry, 16)
        order = order_rows(weights, carry, 16)
        assert (worst_error(weights, carry, order) < 1) == exists
        lasting = is_lasting(weights, carry)
        assert exists or not lasting
        seen.add((exists, lasting))
    assert seen >= {(True, True), (False, False)}


def test_lasting_is_certain_and_seldom_unknown():
    unknown = 0
    for weights, carry in hard_states(1, 400, (3, 12)):
        rows = np.arange(1, 3001)
        must = np.floor(np.maximum(carry + rows[:, None] * weights + 1e-9, 0)).sum(axis=1)
        lasting = is_lasting(weights, carry)
        assert not lasting or np.all(must <= rows)
        unknown += not lasting and bool(np.all(must <= rows))
    assert unknown < 0.05 * 400


def test_slow_domains_served_early_do_not_make_others_late_when_weights_stay():
    """Slow domains that hold five rows early, and fast ones whose deadlines fall together far beyond the horizon."""
    slow, fast = np.full(5, 1e-4), np.full(3, 1e-3)
    weights = np.concatenate([slow, fast, [1 - 0.0035]])
    carry, cursors, total = np.zeros(9), np.zeros(9, np.int64), 0
    for rows in [6101, *[97] * 60]:
        block = plan(weights, carry, cursors, rows)
        assert worst_error(weights, carry, block.domain) < 1
        carry, cursors, total = block.carry, cursors + np.bincount(block.domain, minlength=9), total + rows
    assert np.abs(total * weights - cursors).max() < 1


def test_a_weight_of_one_in_a_million_is_served_on_time():
    weights = np.asarray([1 - 1e-3, 1e-3])
    carry, cursors, seen = np.zeros(2), np.zeros(2, np.int64), []
    for number in range(400):
        block = plan(weights, carry, cursors, 16)
        seen += (16 * number + np.flatnonzero(block.domain == 1)).tolist()
        carry, cursors = block.carry, cursors + np.bincount(block.domain, minlength=2)
    assert len(seen) == 6
    assert all(1000 * i <= row < 1000 * (i + 1) for i, row in enumerate(seen))


def test_no_online_plan_stays_within_a_row_of_every_adversary():
    """All choices of one row a block, against the adversary of `apportion`'s docstring: each is 13/12 off somewhere."""
    best = np.inf
    for choices in product(range(4), repeat=3):
        carry, worst, in_play = np.zeros(4), 0.0, {0, 1, 2, 3}
        for choice in choices:
            weights = np.asarray([1 / len(in_play) if j in in_play else 0.0 for j in range(4)])
            carry = carry + weights - np.eye(4)[choice]
            worst = max(worst, np.abs(carry).max())
            if choice in in_play:
                in_play = in_play - {choice}
        best = min(best, worst)
    assert best == pytest.approx(13 / 12)
    carry, cursors, in_play = np.zeros(4), np.zeros(4, np.int64), {0, 1, 2, 3}
    for _ in range(3):
        weights = np.asarray([1 / len(in_play) if j in in_play else 0.0 for j in range(4)])
        block = plan(weights, carry, cursors, 1)
        carry, in_play = block.carry, in_play - set(block.domain.tolist())
    assert np.abs(carry).max() == pytest.approx(13 / 12)  # as good as any
