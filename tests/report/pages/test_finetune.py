"""Metrics and page of fine-tuning runs, on run folders whose values can be worked out by hand."""

import json
import math

import pytest

from jaxmix.core.errors import ConfigError
from jaxmix.report import describe_result, load_run, write_report
from jaxmix.report.pages.finetune import finetune_comparison_table, finetune_table
from jaxmix.report.pages.finetune_metrics import (
    accuracy,
    area,
    arms_of,
    families_of,
    final_accuracy,
    is_finetune,
    learnable_arms,
    mastered_change,
    prompts_to,
    share_of,
    smoothed,
    solve_rates,
)

ARMS = [
    {"name": "add1", "family": "add", "level": 1, "is_learnable": True},
    {"name": "add0", "family": "add", "level": 0, "is_learnable": True},
    {"name": "rev0", "family": "rev", "level": 0, "is_learnable": True},
    {"name": "noise0", "family": "noise", "level": 0, "is_learnable": False},
]


@pytest.fixture
def write_finetune(tmp_path):
    """`write_finetune(name, curve, …)`: a run whose arms other than add0 (0.95 throughout) and noise follow `curve`."""

    def write(name, curve, *, variant=None, seed=0, shares=(0.5, 0.2, 0.2, 0.1), mastered=0.95, planned=None, order=0):
        folder = tmp_path / name
        folder.mkdir()
        steps = 10 * (len(curve) - 1)
        config = {"tasks": {"name": "digits"}, "train": {"steps": steps if planned is None else planned, "seed": seed}}
        (folder / "config.yaml").write_text(json.dumps(config))
        about = {"seed": seed, "arms": ARMS, "order": order, "command": "jaxmix finetune", "versions": {"jax": "0"}}
        (folder / "provenance.json").write_text(json.dumps(about | ({"variant": variant} if variant else {})))
        lines = []
        for index, value in enumerate(curve):
            spent = {"step": 10 * index, "prompts": 160 * index, "rollouts": 1280 * index}
            spent |= {"unique_prompts": min(160 * index, 400), "updates": 5 * index}
            fallen = mastered if index else 0.95
            solved = {"add1": value, "add0": fallen, "rev0": value, "noise0": 0.01}
            mean = sum(solved.values()) / 4
            record = {f"eval/solve/{n}": x for n, x in solved.items()} | {"eval/solve/mean": mean}
            lines.append({"kind": "eval", **spent, **record})
            if index:
                drawn = {f"arm/share/{a['name']}": s for a, s in zip(ARMS, shares, strict=True)}
                chance = {f"bandit/probability/{a['name']}": s for a, s in zip(ARMS, shares, strict=True)}
                lines.append({"kind": "train", **spent, "reward/live_share": 0.25, **drawn, **chance})
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return load_run(folder)

    return write


CURVE = (0.2, 0.3, 0.4, 0.5, 0.6, 0.6, 0.6, 0.6)
"""Of two arms; the mean with add0 at 0.95 is (2 c + 0.95) / 3."""


def of_three(value):
    return (2 * value + 0.95) / 3


def test_arms_families_and_noise(write_finetune):
    run = write_finetune("a", CURVE)
    assert is_finetune(run)
    assert arms_of(run) == ("add1", "add0", "rev0", "noise0")
    assert learnable_arms(run) == ("add1", "add0", "rev0")
    assert families_of(run) == {"add": ["add0", "add1"], "rev": ["rev0"], "noise": ["noise0"]}


def test_accuracy_leaves_noise_out(write_finetune):
    run = write_finetune("a", CURVE)
    found = accuracy(run)
    assert found.value == pytest.approx([of_three(value) for value in CURVE])
    assert found.prompts == tuple(160 * i for i in range(8))
    assert found.unique_prompts[-1] == 400
    assert final_accuracy(run) == pytest.approx(of_three(0.6))
    assert final_accuracy(run, ["rev0"]) == pytest.approx(0.6)
    assert solve_rates(run, last=4)["add1"] == pytest.approx(0.6)
    trapezes = sum((CURVE[i] + CURVE[i + 1]) / 2 for i in range(7)) / 7
    assert area(run, ["rev0"]) == pytest.approx(trapezes)


def test_median_of_three_takes_single_spikes_away():
    assert smoothed([1, 9, 2, 3, 0, 4]) == [1, 2, 3, 2, 3, 4]
    assert smoothed([1]) == [1]
    assert smoothed([]) == []


def test_prompts_to_a_level_are_read_between_evaluations(write_finetune):
    run = write_finetune("a", CURVE)
    assert prompts_to(run, 0.45, ["rev0"]) == pytest.approx(160 * 2.5)
    assert prompts_to(run, 0.6, ["rev0"]) == pytest.approx(160 * 4)
    assert prompts_to(run, 0.2, ["rev0"]) == 0.0
    assert prompts_to(run, 0.7, ["rev0"]) is None
    spike = write_finetune("b", (0.2, 0.9, 0.2, 0.2, 0.8, 0.8, 0.8, 0.2))
    assert prompts_to(spike, 0.5, ["rev0"]) == pytest.approx(160 * 3.5)  # the spike at 1 does not count
    late = write_finetune("c", (0.2, 0.2, 0.2, 0.9))
    assert prompts_to(late, 0.5, ["rev0"]) is None  # one evaluation is not two


def test_guard_and_shares(write_finetune):
    run = write_finetune("a", CURVE, mastered=0.8)
    assert mastered_change(run) == (1, pytest.approx(-0.15))
    assert share_of(run, ["add1", "noise0"]) == pytest.approx(0.6)
    text = " ".join(describe_result([run]))
    assert "1,120 prompts, 400 of them unique, 8,960 rollouts" in text
    assert "have lost 0.150" in text
    assert "add1 took 50% of the prompts" in text
    calm = write_finetune("b", CURVE, shares=(0.25, 0.25, 0.25, 0.25))
    assert "lost" not in " ".join(describe_result([calm]))
    assert "took" not in " ".join(describe_result([calm]))


def test_the_table_of_arms(write_finetune):
    table = finetune_table(write_finetune("a", CURVE))
    assert table.rows[0] == ("add1", "0.200", "0.600", "0.500", "0.500")
    assert table.rows[-1] == ("mean", f"{of_three(0.2):.3f}", f"{of_three(0.6):.3f}", "0.900", "")
    assert table.first_total == 4


def test_variants_are_compared_by_paired_seeds(write_finetune):
    fast = (0.2, 0.6, 0.6, 0.7, 0.7, 0.7, 0.7, 0.7)
    runs = [write_finetune(f"base-{s}", CURVE, variant="base", seed=s) for s in (0, 1)]
    runs += [write_finetune(f"fast-{s}", fast, variant="fast", seed=s, order=1) for s in (0, 1)]
    runs += [write_finetune("slow-0", (0.2,) * 8, variant="slow", order=2)]
    table = finetune_comparison_table(runs)
    rows = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    assert rows["base"]["prompts to the first's end"] == "640"
    assert rows["base"]["gain"] == "1.75x"  # 1120 / 640
    assert rows["fast"]["prompts to the first's end"] == "160"
    assert rows["fast"]["gain"] == "7.00x"
    assert rows["slow"]["gain"] == "?"
    assert rows["fast"]["on noise"] == "0.100"
    assert table.best == frozenset({(1, 2)})
    sentences = describe_result(runs)
    assert sentences[0].startswith("fast solves the most held-out prompts")
    assert f"base {of_three(0.6):.3f} (2 seeds)" in sentences[0]


def test_the_page(write_finetune):
    run = write_finetune("a", CURVE)
    page = write_report(run.folder).read_text()
    for text in ("Arms", "Accuracy in three currencies", "unique prompts", "Accuracy by family", "Allocation"):
        assert text in page, text
    assert page.count("<svg") == 3 + 1 + 1 + 2
    assert "<image" not in page  # vector shapes, also in heat maps
    for match in set(page.split('id="')[1:]):
        assert page.count(f'id="{match.split(chr(34))[0]}"') == 1


def test_unfinished_runs_are_named(write_finetune):
    runs = [write_finetune("a", CURVE), write_finetune("b", CURVE, variant="b", planned=200)]
    assert "Not finished: b." in describe_result(runs)


@pytest.mark.slow
def test_a_page_of_several_runs(write_finetune, tmp_path):
    for name in "ab":
        write_finetune(name, CURVE, variant=name)
    assert "Solve rates over the run: b" in write_report(tmp_path).read_text()


def test_a_run_that_was_just_begun(write_finetune):
    run = write_finetune("a", (0.2,), planned=100)
    assert final_accuracy(run) == pytest.approx(of_three(0.2))
    assert area(run) is None
    assert share_of(run, ["add1"]) is None
    assert prompts_to(run, 0.1) is None
    assert finetune_table(run).rows[0][3] == "?"


def test_runs_of_two_kinds_are_not_put_on_one_page(write_finetune, write_run, tmp_path):
    write_finetune("a", CURVE)
    write_run(tmp_path / "b", {"web": 3.0, "code": 2.0})
    with pytest.raises(ConfigError, match="two kinds"):
        write_report(tmp_path)


def test_the_curve_of_unknown_arms_is_empty(write_finetune):
    run = write_finetune("a", CURVE)
    assert accuracy(run, ["nothing"]).value == ()
    assert final_accuracy(run, ["nothing"]) is None
    assert not math.isnan(final_accuracy(run) or math.nan)
