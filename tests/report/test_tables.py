"""Tables of runs: which runs take part, what is averaged over what, and how numbers are written."""

import math

import pytest

from jaxmix.report import html
from jaxmix.report.numbers import mean_of_all, mean_of_known, number, percent, perplexity
from jaxmix.report.run_folder import load_run
from jaxmix.report.tables import (
    Table,
    by_variant,
    comparison,
    comparison_table,
    finished_by_variant,
    mean_loss,
    median_rate,
    run_table,
    unfinished,
)


@pytest.fixture
def make_run(tmp_path, write_run):
    def make(name, losses, **given):
        return load_run(write_run(tmp_path / name, losses, **given))

    return make


def rows_of(table):
    return {row[0].strip(): dict(zip(table.columns, row, strict=True)) for row in table.rows}


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (1234.5678, 2, "1,234.57"),
        (0.0, 0, "0"),
        (-0.5, 3, "-0.500"),
        (None, 2, "-"),
        (math.nan, 2, "-"),
        (math.inf, 1, "-"),
    ],
)
def test_numbers(value, digits, text):
    assert number(value, digits) == text
    assert number(value, digits, missing="?") == text.replace("-", "?", text == "-")


def test_signs_and_shares():
    assert (number(0.25, 2, sign=True), number(-0.25, 2, sign=True)) == ("+0.25", "-0.25")
    shares = {None: "-", 0: "0 %", 1: "100.0 %", 0.12345: "12.3 %", 0.01: "1.0 %", 0.00123: "0.12 %", 1e-6: "0.0001 %"}
    assert {share: percent(share) for share in shares} == shares


def test_means_of_values_of_which_some_are_missing():
    assert mean_of_known([1.0, None, 3.0]) == 2.0
    assert mean_of_known([None]) is mean_of_known([]) is None
    assert mean_of_all(iter([1.0, 3.0])) == 2.0
    assert mean_of_all([1.0, None]) is mean_of_all([]) is None
    assert perplexity(math.log(7.0)) == pytest.approx(7.0)
    assert perplexity(1e6) == math.exp(700.0)


def test_variants_stand_in_their_order_and_runs_by_seed(make_run):
    runs = [
        make_run("z1", {"a": 1.0}, variant="z", seed=1, extra={"order": 0}),
        make_run("a0", {"a": 1.0}, variant="a", seed=0, extra={"order": 1}),
        make_run("z0", {"a": 1.0}, variant="z", seed=0, extra={"order": 0}),
    ]
    assert {v: [r.name for r in g] for v, g in by_variant(runs).items()} == {"z": ["z0", "z1"], "a": ["a0"]}
    assert list(by_variant(runs)) == ["z", "a"]


def test_only_finished_runs_take_part(make_run, tmp_path):
    done = make_run("done", {"a": 1.0, "b": 2.0})
    short = make_run("short", {"a": 0.1, "b": 0.1}, planned=500)
    begun = make_run("begun", {"a": 1.0, "b": 2.0})
    (begun.folder / "metrics.jsonl").write_text("")
    runs = [done, short, load_run(begun.folder)]
    assert [run.name for run in unfinished(runs)] == ["short", "begun"]
    assert list(finished_by_variant(iter(runs))) == ["done"]
    assert comparison_table(runs).columns == ("domain", "done loss", "share", "epochs")
    assert [s.variant for s in comparison(runs).standings] == ["done"]
    assert comparison(runs[1:]) is None


def test_mean_loss_weighs_domains(make_run):
    run = make_run("run", {"a": 1.0, "b": 3.0})
    assert mean_loss(run) == pytest.approx(2.0)
    assert mean_loss(run, {"a": 3.0, "b": 1.0, "unknown": 9.0}) == pytest.approx(1.5)
    assert math.isnan(mean_loss(run, {"unknown": 1.0}))


def test_the_table_of_one_run_has_every_metric_in_its_column(make_run):
    table = run_table(make_run("run", {"a": 1.0, "b": 2.0}, moving=True))
    rows = rows_of(table)
    assert rows["a"] == {
        "domain": "a",
        "prior": "50.0 %",
        "weight": "75.0 %",
        "average weight": "63.7 %",  # 1/2 + 1/4 · (mean of 0.1 … 1.0) = 63.75 %, a little less in binary
        "asked share": "75.0 %",
        "share of tokens": "75.0 %",
        "tokens": "38,400",
        "epochs": "0.50",
        "training loss": "4.0000",
        "validation loss": "1.0000",
        "perplexity": "2.72",
    }
    assert table.first_total == 2
    assert [row[0] for row in table.rows[2:]] == ["mean over domains", "mean, prior-weighted", "worst domain"]
    assert rows["worst domain"]["perplexity"] == f"{math.exp(2.0):.2f}"
    assert rows["worst domain"]["weight"] == ""


def test_a_run_of_which_nothing_is_known_has_a_table_of_dashes(make_run):
    run = make_run("run", {"a": 1.0})
    (run.folder / "metrics.jsonl").write_text('{"kind": "train", "step": 1, "mix/weight/a": 1.0}\n')
    (row,) = run_table(load_run(run.folder)).rows
    assert row == ("a", "100.0 %", "100.0 %", "100.0 %", *["-"] * 7)


def test_the_comparison_averages_seeds_and_marks_only_real_contests(make_run):
    runs = [
        make_run("x0", {"a": 1.0, "b": 4.0}, variant="x", seed=0, extra={"order": 0}),
        make_run("x1", {"a": 2.0, "b": 4.0}, variant="x", seed=1, extra={"order": 0}),
        make_run("y0", {"a": 3.0, "b": 2.0}, variant="y", seed=0, extra={"order": 1}),
    ]
    table = comparison_table(runs)
    cells = {row[0].strip(): row[1::3] for row in table.rows}
    assert cells["a"] == ("1.5000", "3.0000")
    assert cells["b"] == ("4.0000", "2.0000")
    assert cells["mean over domains"] == ("2.7500", "2.5000")
    assert cells["seed 0"] == ("2.5000", "2.5000")
    assert cells["seed 1"] == ("3.0000", "-")
    assert cells["mean, weighted by size"] == ("3.1667", "2.3333")  # sizes 1 : 2
    assert cells["worst domain"] == ("4.0000", "3.0000")
    best = {(table.rows[i][0].strip(), j) for i, j in table.best}
    both = {("seed 0", 1), ("seed 0", 4)}  # a tie is won by both; seed 1 has one variant and nothing to win
    assert (
        best
        == {("a", 1), ("b", 4), ("mean over domains", 4), ("mean, weighted by size", 4), ("worst domain", 4)} | both
    )
    assert table.first_total == 2


def test_the_rate_leaves_the_interval_with_compilation_out(make_run):
    run = make_run("run", {"a": 1.0}, steps=20)
    assert median_rate(run) == pytest.approx(5120.0)
    (run.folder / "timing.jsonl").write_text('{"step": 10, "tokens_per_second": 7.0}\n')
    assert median_rate(load_run(run.folder)) == 7.0
    (run.folder / "timing.jsonl").unlink()
    assert median_rate(load_run(run.folder)) is None


def test_cells_are_escaped_and_marked():
    content = Table(("<a>", "b"), (("<script>alert(1)</script>", "1"), ("total", '"2" & 3')), frozenset({(0, 1)}), 1)
    assert html.table(content, "x < y") == (
        '<h2>x &lt; y</h2><div class="scroll"><table><thead><tr><th>&lt;a&gt;</th><th>b</th></tr></thead><tbody>'
        '<tr class=""><td class="">&lt;script&gt;alert(1)&lt;/script&gt;</td><td class="best">1</td></tr>'
        '<tr class="total"><td class="">total</td><td class="">&quot;2&quot; &amp; 3</td></tr></tbody></table></div>'
    )
