import pytest

from jaxmix.report.verdict import compare


def test_ranges_that_do_not_overlap_are_separated():
    result = compare({"natural": {0: 2.10, 1: 2.12}, "odm": {0: 2.00, 1: 2.02}, "uniform": {0: 2.03, 1: 2.30}})
    assert [s.variant for s in result.standings] == ["odm", "natural", "uniform"]
    assert all(s.is_separated for s in result.standings[1:])
    natural = result.standings[1]
    assert natural.differences == pytest.approx({0: 0.10, 1: 0.10})
    assert natural.range == (2.10, 2.12)
    sentence = result.sentence()
    assert sentence.startswith("odm won: its mean validation loss of 2.0100 nats per token (seeds: 2.0000, 2.0200)")
    assert "natural: 2.1100, +0.1000; by seed +0.1000, +0.1000 (separated)." in sentence


def test_overlapping_ranges_are_no_win_even_when_every_pair_agrees():
    result = compare({"a": {0: 2.00, 1: 2.10}, "b": {0: 2.05, 1: 2.15}, "c": {0: 3.0, 1: 3.1}})
    assert [s.is_separated for s in result.standings] == [False, False, True]
    sentence = result.sentence()
    assert "won" not in sentence
    assert "not separated from b, so there is no clear winner" in sentence
    assert "c: 3.0500, +1.0000; by seed +1.0000, +1.0000 (separated)." in sentence


def test_touching_ranges_count_as_overlapping():
    assert not compare({"a": {0: 1.0, 1: 2.0}, "b": {0: 2.0, 1: 3.0}}).standings[1].is_separated


def test_one_seed_separates_nothing():
    result = compare({"a": {0: 1.0}, "b": {0: 9.0}})
    assert not result.standings[1].is_separated
    assert "With one seed the spread is unknown" in result.sentence()


def test_differences_pair_equal_seeds_only():
    standing = compare({"a": {0: 1.0, 1: 1.1}, "b": {1: 1.5, 2: 1.6}}).standings[1]
    assert standing.differences == pytest.approx({1: 0.4})
    assert standing.is_separated


def test_a_single_variant_is_stated_without_a_contest():
    assert compare({"a": {0: 1.5, 1: 1.7}}).sentence() == (
        "a: mean validation loss 1.6000 nats per token (seeds: 1.5000, 1.7000)."
    )


@pytest.mark.parametrize("losses", [{}, {"a": {}}])
def test_nothing_to_compare_is_an_error(losses):
    with pytest.raises(ValueError, match="at least one"):
        compare(losses)
