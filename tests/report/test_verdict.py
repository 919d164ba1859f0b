import pytest

from jaxmix.report.verdict import compare


def test_variants_whose_paired_interval_excludes_zero_are_separated():
    result = compare({"natural": {0: 2.10, 1: 2.13}, "odm": {0: 2.00, 1: 2.02}, "uniform": {0: 2.03, 1: 2.30}})
    assert [s.variant for s in result.standings] == ["odm", "natural", "uniform"]
    # +0.10 and +0.11: 0.105 +- 12.7 * 0.005; +0.03 and +0.28: 0.155 +- 12.7 * 0.125.
    assert [s.is_separated for s in result.standings] == [False, True, False]
    natural = result.standings[1]
    assert natural.differences == pytest.approx({0: 0.10, 1: 0.11})
    assert natural.range == (2.10, 2.13)
    sentence = result.sentence()
    assert "not separated from uniform, so there is no clear winner" in sentence
    assert "natural: 2.1150, +0.1050; by seed +0.1000, +0.1100 (separated)." in sentence


def test_pairs_count_and_not_the_ranges_over_seeds():
    """Seeds that are far apart, with one difference: the ranges overlap, and every pair agrees."""
    result = compare({"a": {0: 2.00, 1: 2.10, 2: 2.3}, "b": {0: 2.05, 1: 2.16, 2: 2.35}, "c": {0: 3.0, 1: 3.2, 2: 2.4}})
    assert [s.is_separated for s in result.standings] == [False, True, False]
    assert compare({"a": {0: 1.0, 1: 2.0}, "b": {0: 1.1, 1: 2.2}}).sentence().startswith("a has the lowest")


def test_one_seed_separates_nothing():
    result = compare({"a": {0: 1.0}, "b": {0: 9.0}})
    assert not result.standings[1].is_separated
    assert "With one seed the spread is unknown" in result.sentence()


def test_differences_pair_equal_seeds_only():
    standing = compare({"a": {0: 1.0, 1: 1.1}, "b": {1: 1.5, 2: 1.6}}).standings[1]
    assert standing.differences == pytest.approx({1: 0.4})
    assert not standing.is_separated  # one pair has no interval


def test_a_single_variant_is_stated_without_a_contest():
    assert compare({"a": {0: 1.5, 1: 1.7}}).sentence() == (
        "a: mean validation loss 1.6000 nats per token (seeds: 1.5000, 1.7000)."
    )


@pytest.mark.parametrize("losses", [{}, {"a": {}}])
def test_nothing_to_compare_is_an_error(losses):
    with pytest.raises(ValueError, match="at least one"):
        compare(losses)
