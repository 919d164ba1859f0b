import json

import pytest

from jaxmix.core.errors import ConfigError, RunError
from jaxmix.report.run_folder import find_runs, load_run


def test_a_later_line_of_the_same_step_wins_and_a_torn_line_is_left_out(tmp_path, write_run):
    folder = write_run(tmp_path / "run", {"a": 1.0, "b": 2.0})
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(
            json.dumps({"kind": "train", "step": 50, "tokens": 1, "train/loss": 9.5, "mix/weight/a": 1.0}) + "\n"
        )
        file.write('{"kind": "train", "step": 110, "train/lo')
    run = load_run(folder)
    steps, losses = run.series("train", "train/loss")
    assert steps == list(range(10, 101, 10))
    assert losses[4] == 9.5
    assert run.steps == 100


def test_domains_keep_the_order_of_the_run_and_may_be_called_like_an_aggregate(tmp_path, write_run):
    run = load_run(write_run(tmp_path / "run", {"zebra": 1.0, "worst": 2.0, "a/b": 3.0}))
    assert run.domains == ("zebra", "worst", "a/b")
    assert run.final_losses()["a/b"] == pytest.approx(3.0)


def test_before_the_first_training_record_the_domains_come_from_the_evaluation(tmp_path, write_run):
    folder = write_run(tmp_path / "run", {"x": 1.0, "y": 2.0})
    lines = [line for line in (folder / "metrics.jsonl").read_text().splitlines() if '"kind": "eval"' in line]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert load_run(folder).domains == ("x", "y")


def test_missing_and_torn_side_files_are_empty_not_fatal(tmp_path, write_run):
    folder = write_run(tmp_path / "run", {"a": 1.0})
    (folder / "timing.jsonl").unlink()
    (folder / "provenance.json").write_text('{"seed": 1')
    run = load_run(folder)
    assert (run.timing, run.provenance, run.seed) == ([], {}, 0)


def test_null_is_not_a_measurement(tmp_path, write_run):
    folder = write_run(tmp_path / "run", {"a": 1.0})
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"kind": "train", "step": 100, "train/loss": None}) + "\n")
    assert load_run(folder).series("train", "train/loss")[0][-1] == 90


def test_a_broken_line_in_the_middle_is_an_error_with_its_number(tmp_path, write_run):
    folder = write_run(tmp_path / "run", {"a": 1.0})
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text("\n".join([lines[0], "{oops", *lines[1:]]) + "\n")
    with pytest.raises(RunError, match="line 2"):
        load_run(folder)


def test_what_is_no_run_folder_is_named(tmp_path, write_run):
    with pytest.raises(ConfigError, match="no run in"):
        find_runs(tmp_path)
    with pytest.raises(ConfigError, match="no folder"):
        find_runs(tmp_path / "missing")
    write_run(tmp_path / "b", {"a": 1.0})
    write_run(tmp_path / "a", {"a": 1.0})
    assert [p.name for p in find_runs(tmp_path)] == ["a", "b"]
    assert find_runs(tmp_path / "b") == [tmp_path / "b"]
