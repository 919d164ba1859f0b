import math

import jax
import pytest

from jaxmix.core.errors import ConfigError
from jaxmix.selection import Embeddings, independent, jest, pairwise
from jaxmix.train.selection.cost import (
    SelectionCost,
    cost_ratios,
    describe_cost,
    filter_ratio,
    relative_step_cost,
    selection_products,
    training_cost,
)

# f, k = B/b, online reference, cached reference, Flexi-JEST: the published ratios, forward reused but for Flexi.
PUBLISHED = [(0.5, 2, 2.00, 1.33, 0.83), (0.8, 5, 4.00, 2.33, 1.11), (0.9, 10, 7.33, 4.00, 1.57)]


@pytest.mark.parametrize(("ratio", "k", "online", "cached", "flexi"), PUBLISHED)
def test_published_ratios(ratio, k, online, cached, flexi):
    assert filter_ratio(256 * k, 256) == pytest.approx(ratio)
    assert round(relative_step_cost(k, is_forward_reused=True), 2) == online
    assert round(relative_step_cost(k, reference="cached", is_forward_reused=True), 2) == cached
    low = {"score_ratio": 0.28, "low_share": 0.5, "low_ratio": 0.28}
    assert round(relative_step_cost(k, reference="cached", **low), 2) == flexi


@pytest.mark.parametrize(("reference", "expected"), [("online", 13 / 3), ("cached", 8 / 3), ("none", 8 / 3)])
def test_without_reuse_a_step_costs_a_forward_more(reference, expected):
    again = relative_step_cost(5, reference=reference)
    assert again == pytest.approx(expected)
    assert again - relative_step_cost(5, reference=reference, is_forward_reused=True) == pytest.approx(1 / 3)


def test_a_larger_reference_costs_its_size():
    assert relative_step_cost(5, reference_size=4.0) - relative_step_cost(5) == pytest.approx(5.0)
    assert relative_step_cost(5, reference="cached", reference_size=4.0) == relative_step_cost(5, reference="cached")


def test_totals_follow_the_ratio():
    """4 billion examples with a cached reference, and with Flexi, against 40 billion plain ones."""
    plain = training_cost(40_000, num_select=1000, forward_flops=1.0)
    jest = training_cost(4_000, num_select=1000, num_candidates=5000, forward_flops=1.0, is_forward_reused=True)
    assert plain == SelectionCost(40_000, 4e7, 4e7, 1.2e8)
    assert cost_ratios(jest, plain) == pytest.approx((0.1, 0.1, 0.5, 0.2333), abs=1e-4)
    flexi = training_cost(
        4_000, num_select=1000, num_candidates=5000, forward_flops=1.0, scoring_flops=0.28, training_flops=1.92
    )
    assert cost_ratios(flexi, plain).flops == pytest.approx(0.1107, abs=1e-4)


@pytest.mark.parametrize("is_reused", [False, True])
@pytest.mark.parametrize("reference_flops", [0.0, 7.0])
def test_total_and_relative_cost_agree(reference_flops, is_reused):
    arguments = {"num_select": 8, "forward_flops": 7.0}
    plain = training_cost(3, **arguments)
    arguments |= {"num_candidates": 40, "reference_flops": reference_flops}
    cost = training_cost(3, is_forward_reused=is_reused, **arguments)
    relative = relative_step_cost(5, reference="online" if reference_flops else "cached", is_forward_reused=is_reused)
    assert cost_ratios(cost, plain).flops == pytest.approx(relative)


def test_a_run_without_selection_scores_nothing():
    plain = training_cost(10, num_select=4, forward_flops=2.0)
    costs = {"forward_flops": 2.0, "reference_flops": 5.0, "selection_flops": 9.0}
    assert plain == training_cost(10, num_select=4, num_candidates=4, **costs) == SelectionCost(10, 40, 40, 240.0)


def test_products_of_a_selection():
    """The table of the specification: B = 65,536 and 163,840 at b = 32,768, N = 16, d = 768."""
    assert selection_products(jest(32_768), 65_536, 768) == pytest.approx(1.24e13, rel=5e-3)
    assert selection_products(jest(32_768), 163_840, 768) == pytest.approx(3.09e13, rel=5e-3)


@pytest.mark.parametrize(
    "make",
    [
        lambda: jest(12, num_chunks=1),
        lambda: jest(12, num_chunks=4),
        lambda: jest(12, num_chunks=4, score="hard_learner"),
        lambda: jest(12, num_chunks=3, sweeps=2),
        lambda: jest(12, num_chunks=4, loss="softmax", form="self", sweeps=1),
        lambda: jest(12, num_chunks=4, loss="softmax", form="marginal"),
        pytest.param(lambda: jest(12, num_chunks=3, loss="softmax", form="marginal", sweeps=2), marks=pytest.mark.slow),
        lambda: independent(12),
        lambda: independent(12, context=True),
    ],
)
def test_products_are_those_that_are_computed(make, monkeypatch):
    """Against a count of every product of a chunk and rows as the program runs."""
    computed = []

    def counted(chunk, rows):
        jax.debug.callback(lambda: computed.append(chunk.shape[0] * rows.shape[0]))
        return products(chunk, rows)

    products = pairwise.pair_products
    monkeypatch.setattr(pairwise, "pair_products", counted)
    candidates, width, selector = 48, 8, make()
    towers = jax.random.normal(jax.random.key(0), (4, candidates, width))
    learner, reference = Embeddings(towers[0], towers[1], 1.0, 0.0), Embeddings(towers[2], towers[3], 1.0, 0.0)
    jax.block_until_ready(selector(jax.random.key(1), learner, reference))
    jax.effects_barrier()
    assert selection_products(selector, candidates, width) == pytest.approx(2 * width * sum(computed))


def test_all_axes_are_described_together():
    plain = training_cost(300, num_select=256, forward_flops=1e6)
    assert describe_cost(plain) == "300 steps, 76,800 trained, 76,800 scanned, 2.3e+11 FLOP"
    assert describe_cost(plain, plain).count("(1.00x)") == 4
    assert math.isnan(cost_ratios(plain, plain._replace(flops=0.0)).flops)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: relative_step_cost(0.5), "candidates_per_example must be finite and in"),
        (lambda: relative_step_cost(5, reference="cash"), "Did you mean 'cached'"),
        (lambda: relative_step_cost(5, low_share=1.5), "low_share must be finite"),
        (lambda: relative_step_cost(5, score_ratio=0.3, is_forward_reused=True), "cannot be reused"),
        (lambda: filter_ratio(4, 5), "num_select must be from 1 to num_candidates"),
        (lambda: training_cost(-1, num_select=1, forward_flops=1.0), "steps must be at least 0"),
        (lambda: selection_products(jest(16), 8, 2), "num_select must be from 1 to num_candidates"),
        (lambda: selection_products(jest(16), 64, 0), "width must be at least 1"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ConfigError, match=message):
        call()
