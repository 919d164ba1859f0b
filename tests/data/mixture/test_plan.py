import numpy as np
import pytest

from jaxmix.data.mixture.plan import UNLIMITED, plan_block


def plan(weights, limits, policies, rows=24, cursors=None, carry=None):
    m = len(weights)
    return plan_block(
        weights=np.asarray(weights, np.float64),
        carry=np.zeros(m) if carry is None else np.asarray(carry),
        cursors=np.zeros(m, np.int64) if cursors is None else np.asarray(cursors),
        limits=np.asarray(limits),
        policies=policies,
        rows=rows,
    )


def test_places_continue_each_source():
    block = plan([0.5, 0.25, 0.25], [UNLIMITED] * 3, ["repeat"] * 3, cursors=[10, 20, 30])
    for j, start in enumerate([10, 20, 30]):
        mine = block.cursor[block.domain == j]
        assert mine.tolist() == list(range(start, start + len(mine)))
    assert block.asked(0).tolist() == [0, 0, 0]
    np.testing.assert_allclose(block.asked(len(block.domain)), [12, 6, 6])


@pytest.mark.parametrize("policy", ["stop", "error"])
def test_a_block_ends_where_a_source_does(policy):
    block = plan([0.5, 0.5], [5, UNLIMITED], [policy, "repeat"])
    assert block.ended == (policy, 0)
    assert (block.domain == 0).sum() == 5
    assert len(block.domain) in (10, 11)


def test_a_dropped_source_hands_its_share_on_in_proportion():
    block = plan([0.5, 0.3, 0.2], [3, UNLIMITED, UNLIMITED], ["drop", "repeat", "repeat"], rows=200)
    assert block.ended is None
    counts = np.bincount(block.domain, minlength=3)
    assert counts[0] == 3
    rest = 200 - 3
    assert np.abs(counts[1:] - rest * np.asarray([0.6, 0.4])).max() < 2
    np.testing.assert_allclose(block.asked(len(block.domain)).sum(), 200)
    np.testing.assert_allclose(block.asked(len(block.domain)) - counts, block.carry, atol=1e-9)
    assert block.carry[0] == pytest.approx(0, abs=1e-9)


def test_when_all_are_dropped_the_plan_ends():
    block = plan([0.5, 0.5], [3, 4], ["drop", "drop"])
    assert block.ended == ("drop", -1)
    assert np.bincount(block.domain).tolist() == [3, 4]


def test_a_used_up_source_of_weight_zero_ends_nothing():
    block = plan([0.0, 1.0], [0, UNLIMITED], ["error", "repeat"])
    assert block.ended is None
    assert set(block.domain.tolist()) == {1}


def test_the_carry_does_not_drift_over_many_blocks():
    rng = np.random.default_rng(0)
    carry, cursors = np.zeros(7), np.zeros(7, np.int64)
    for _ in range(3000):
        block = plan(rng.dirichlet(np.ones(7)), [UNLIMITED] * 7, ["repeat"] * 7, carry=carry, cursors=cursors, rows=16)
        carry, cursors = block.carry, cursors + np.bincount(block.domain, minlength=7)
    assert abs(carry.sum()) < 1e-9
