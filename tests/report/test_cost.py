import json

import pytest

from jaxmix.report.cost import Cost, cost_of, cost_sentence
from jaxmix.report.run_folder import load_run

DATA = {"validation_rows": 16, "seq_len": 32, "control_rows": None}


def test_time_leaves_the_interval_of_compilation_out(tmp_path, write_run):
    folder = write_run(tmp_path / "run", {"a": 1.0, "b": 2.0})
    assert cost_of(load_run(folder)).seconds == pytest.approx(100 * 0.1)
    first = json.dumps({"step": 10, "step_seconds": 5.0}) + "\n"
    (folder / "timing.jsonl").write_text(first)
    assert cost_of(load_run(folder)).seconds == pytest.approx(500.0)  # the only one there is
    (folder / "timing.jsonl").write_text("")
    assert cost_of(load_run(folder)).seconds is None


def test_a_slow_interval_counts_by_its_length(tmp_path, write_run):
    folder = write_run(tmp_path / "run", {"a": 1.0})
    lines = [(20, 9.0), (30, 1.0), (90, 2.0), (100, 1.0)]
    (folder / "timing.jsonl").write_text("".join(json.dumps({"step": s, "step_seconds": t}) + "\n" for s, t in lines))
    assert cost_of(load_run(folder)).seconds == pytest.approx((10 * 1 + 60 * 2 + 10 * 1) * 100 / 80)


def test_evaluations_off_the_runs_schedule_are_the_mixers(tmp_path, write_run):
    given = {"train": {"steps": 100, "eval_every": 100}, "data": DATA}
    cost = cost_of(load_run(write_run(tmp_path / "run", {"a": 1.0, "b": 2.0}, given=given)))  # at 0, 50 and 100
    assert (cost.evaluations, cost.extra_evaluations, cost.evaluation_tokens) == (3, 1, 16 * 32 * 2)
    assert cost.extra_share == pytest.approx(1024 / 3 / 51_200)
    given["train"]["eval_every"] = 30  # the last evaluation, at 100, is the run's own all the same
    cost = cost_of(load_run(write_run(tmp_path / "other", {"a": 1.0, "b": 2.0}, given=given)))
    assert cost.extra_evaluations == 1
    assert cost_of(load_run(write_run(tmp_path / "unknown", {"a": 1.0}))).extra_evaluations is None


def test_ends_of_sessions_that_a_run_went_on_from_are_its_own(tmp_path, write_run, add_records):
    given = {"train": {"steps": 100, "eval_every": 100}, "data": DATA}
    folder = write_run(tmp_path / "run", {"a": 1.0, "b": 2.0}, given=given)
    add_records(folder, *({"kind": "eval", "step": s, "at_end": True, "eval/loss/a": 1.0} for s in (50, 70)))
    cost = cost_of(load_run(folder))  # at 0, 50, 70 and 100
    assert (cost.evaluations, cost.extra_evaluations) == (4, 0)


def test_rows_of_the_mixers_own_are_all_its_cost(tmp_path, write_run, add_records):
    given = {"train": {"steps": 100, "eval_every": 50}, "data": {**DATA, "control_rows": 4}}
    folder = write_run(tmp_path / "run", {"a": 1.0, "b": 2.0}, given=given)
    add_records(folder, *({"kind": "control", "step": s, "control/loss/a": 1.0} for s in range(0, 101, 10)))
    run = load_run(folder)
    cost = cost_of(run)
    assert (cost.evaluations, cost.extra_evaluations, cost.evaluation_tokens) == (14, 11, 4 * 32 * 2)
    assert cost_sentence(run) == (
        "Cost of the mixer: 11 evaluations of at most 256 tokens each (1.8 % of the training's computation) besides "
        "the run's own 3."
    )


@pytest.mark.parametrize(
    ("mixer", "count", "words"),
    [
        ({"needs": ["loss_sum"], "update_every": 1}, 0, "no measurement of gradients"),
        ({"needs": ["loss_sum", "validation_alignment"], "update_every": 30}, 3, "3 measurements of gradients"),
    ],
)
def test_gradient_measurements_follow_from_needs_and_cadence(tmp_path, write_run, mixer, count, words):
    run = load_run(write_run(tmp_path / "run", {"a": 1.0}, extra={"mixer": mixer}))
    assert cost_of(run).gradient_measurements == count
    assert words in cost_sentence(run)


def test_nothing_known_is_nothing_said(tmp_path, write_run):
    assert cost_sentence(load_run(write_run(tmp_path / "run", {"a": 1.0}))) == ""


def test_means_are_over_those_that_know():
    mean = Cost.mean([Cost(10.0, None, 2.0, None, None, 0.0), Cost(30.0, 4.0, 4.0, None, None, None)])
    assert mean == Cost(20.0, 4.0, 3.0, None, None, 0.0)
    assert mean.extra_share is None
