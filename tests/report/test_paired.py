import math

import numpy as np
import pytest
from scipy import stats

from jaxmix.report import describe_result
from jaxmix.report.intervals import student_interval
from jaxmix.report.paired import domain_tables, paired_sentences, paired_table, pairings
from jaxmix.report.run_folder import load_run
from jaxmix.report.summary import summarize
from jaxmix.report.tables import comparison_table, run_table


@pytest.mark.parametrize("values", [[1.0, 2.0], [0.3, -0.2, 0.4, 0.9, 0.1], [5.0, 5.0, 5.0]])
def test_the_interval_is_students(values):
    interval = student_interval(values)
    if np.std(values) > 0:
        low, high = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
    else:
        low = high = 5.0
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=1e-12)
    assert interval.mean == pytest.approx(np.mean(values))


def test_the_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    intervals = [student_interval(row) for row in rng.normal(2.0, 3.0, (4000, 3))]
    covered = np.mean([i.low <= 2.0 <= i.high for i in intervals])
    assert abs(covered - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 4000)


def test_one_value_or_none_has_no_interval():
    assert student_interval([3.0]).half_width is None
    assert not student_interval([3.0]).excludes_zero
    assert math.isnan(student_interval([]).mean)
    assert student_interval([1.0, 1.1]).excludes_zero


@pytest.fixture
def runs(tmp_path, write_run):
    """Seeds 0, 1, 2 of `base` and `better`; `late` has seeds 2 and 7, of which one is shared."""
    losses = {"base": {0: 2.0, 1: 2.2, 2: 2.4}, "better": {0: 1.9, 1: 2.1, 2: 2.2}, "late": {2: 2.0, 7: 9.0}}
    folders = [
        write_run(
            tmp_path / f"{variant}-seed{seed}",
            {"x": loss, "y": loss + 1},
            variant=variant,
            seed=seed,
            extra={"order": order},
            given={"train": {"steps": 100, "eval_every": 50}},
        )
        for order, (variant, by_seed) in enumerate(losses.items())
        for seed, loss in by_seed.items()
    ]
    return [load_run(folder) for folder in folders]


def test_differences_pair_equal_seeds(runs):
    base, better, late = pairings(runs)
    assert base.difference.values == ()
    assert better.seeds == (0, 1, 2)
    assert better.difference.values == pytest.approx((-0.1, -0.1, -0.2))
    low, high = stats.t.interval(0.95, 2, loc=-0.4 / 3, scale=stats.sem([-0.1, -0.1, -0.2]))
    assert (better.difference.low, better.difference.high) == pytest.approx((low, high))
    assert better.domain_differences["y"].mean == pytest.approx(-0.4 / 3)
    assert late.seeds == (2,)
    assert late.difference.values == pytest.approx((-0.4,))
    assert late.loss == pytest.approx(6.0)  # over its own seeds


def test_perplexity_is_exp_of_the_loss_beside_it_in_every_table(runs, tmp_path):
    base = pairings(runs)[0]
    assert (base.loss, base.by_domain["x"]) == pytest.approx((2.7, 2.2))
    mean = dict(zip(paired_table(runs).columns, paired_table(runs).rows[0], strict=True))
    assert (mean["mean loss"], mean["perplexity"]) == ("2.7000", f"{math.exp(2.7):.3f}")
    assert domain_tables(runs)[0].rows[0][1] == f"2.2000 ({math.exp(2.2):.2f})"
    summary = summarize(runs, out="o", report=tmp_path / "report.html", verdict=[])["variants"][0]
    assert summary["mean_perplexity"] == pytest.approx(math.exp(summary["mean_loss"]))
    assert summary["perplexity"]["x"] == pytest.approx(math.exp(summary["loss"]["x"]))
    for row in run_table(runs[0]).rows:
        cells = dict(zip(run_table(runs[0]).columns, row, strict=True))
        assert cells["perplexity"] == f"{math.exp(float(cells['validation loss'])):.2f}"


def test_means_are_over_the_domains_that_all_runs_have(runs, tmp_path, write_run):
    other = write_run(tmp_path / "wide-seed0", {"x": 1.0, "y": 2.0, "z": 9.0}, variant="wide", seed=0)
    found = [*runs[:3], load_run(other)]
    wide = pairings(found)[-1]
    assert (wide.loss, wide.difference.mean) == pytest.approx((1.5, -1.0))
    assert {row[0]: row[4] for row in comparison_table(found).rows}["mean over 2 of 3 domains"] == "1.5000"
    sentences = describe_result(found)
    assert sentences[0].startswith("wide has the lowest mean validation loss over domains, 1.5000")
    assert "Means are over the 2 domains that all runs have, without z." in sentences
    alone = load_run(write_run(tmp_path / "alone-seed0", {"q": 1.0}, variant="alone"))
    assert describe_result([runs[0], alone]) == ["The runs have no domain in common."]


def test_the_tables(runs):
    table = paired_table(runs)
    rows = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    assert rows["base"]["minus base"] == "-"
    assert rows["better"]["minus base"] == "-0.1333"
    assert rows["better"]["95% interval"] == "[-0.2768, +0.0101]"
    assert rows["late"]["95% interval"] == "one seed"
    assert rows["better"]["tokens"] == "51,200"
    assert rows["better"]["seconds"] == "10"
    assert rows["better"]["evaluations"] == "3"
    assert rows["better"]["for the mixer"] == "0"
    assert {table.rows[i][0] for i, _ in table.best} == {"better"}
    losses, differences = domain_tables(runs)
    assert losses.columns == ("domain", "base", "better", "late")
    assert losses.rows[0] == ("x", "2.2000 (9.03)", "2.0667 (7.90)", "5.5000 (244.69)")
    assert differences.rows[1] == ("y", "-0.1333 ± 0.1434", "-0.4000")


def test_the_sentences_claim_no_more_than_the_seeds_show(runs):
    sentences = paired_sentences(runs)
    assert sentences[0] == "better minus base: -0.1333 [-0.2768, +0.0101], not told apart."
    assert sentences[1] == "late minus base: -0.4000 with one paired seed."
    assert "With fewer than two paired seeds there is no interval: use --seeds 2 or more." in sentences
    assert paired_sentences(runs[:3]) == []
    alone = paired_sentences([r for r in runs if r.seed == 7 or r.variant == "base"])
    assert alone[0] == "late has no finished seed in common with base: no difference can be paired."


def test_unfinished_runs_take_no_part(runs, tmp_path, write_run):
    cut = write_run(tmp_path / "cut", {"x": 0.0, "y": 0.0}, variant="better", seed=0, planned=900)
    kept = [r for r in runs if (r.variant, r.seed) != ("better", 0)]
    assert pairings([*kept, load_run(cut)])[1].seeds == (1, 2)
    assert pairings([load_run(cut)]) == []


def test_the_summary_is_plain_and_null_where_nothing_is_known(runs, tmp_path):
    summary = summarize(runs, out="o", report=tmp_path / "report.html", verdict=["v"])
    assert summary["judged_by"] == "validation"
    base, better, late = summary["variants"]
    assert "difference" not in base
    assert better["against"] == "base"
    assert better["difference"]["low"] == pytest.approx(-0.276755, abs=1e-6)
    assert late["difference"] == {"mean": pytest.approx(-0.4), "low": None, "high": None}
    assert better["cost"]["evaluations"] == 3
    first = summary["runs"][0]
    assert first["mean_validation_loss"] == pytest.approx(2.5)
    assert first["token_shares"] == {"x": 0.5, "y": 0.5}
    assert (first["ran_out"], first["held_out_tokens"], first["ended_early"]) == ({}, {}, None)
