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


def weights_of(step, **weights):
    return {"kind": "train", "step": step, **{f"mix/weight/{name}": weight for name, weight in weights.items()}}


@pytest.fixture
def changed(tmp_path, write_run, add_records):
    """b is drawn until step 20 and c from there on, in another order; logged at 10, 20, 25 and 40."""
    folder = write_run(tmp_path / "run", {"a": 1.0, "b": 2.0}, steps=40)
    (folder / "metrics.jsonl").write_text("")
    losses = {"eval/loss/a": 2.0, "eval/loss/b": 3.0, "eval/loss/uniform": 2.5}
    tokens = {"data/tokens/b": 400, "data/tokens/a": 800, "data/tokens/c": 400}
    add_records(
        folder,
        {"kind": "eval", "step": 0, **losses},
        weights_of(10, a=0.75, b=0.25),
        weights_of(20, a=0.5, b=0.5),
        weights_of(25, c=0.4, a=0.6),
        {**weights_of(40, c=1.0, a=0.0), **tokens},
        {"kind": "eval", "step": 40, "eval/loss/c": 1.0, "eval/loss/a": 2.0, "eval/loss/uniform": 1.5},
    )
    return folder


def test_domains_that_came_and_left_are_known_with_their_steps(changed):
    run = load_run(changed)
    assert run.domains == ("c", "a")
    assert run.changes == [(20, ("c",), ("b",))]
    assert run.left == {"b": 20}
    assert run.final_losses() == {"c": 1.0, "a": 2.0}
    assert run.token_shares() == {"c": 0.25, "a": 0.5, "b": 0.25}
    assert run.average_weights() == pytest.approx(
        {"a": (10 * 0.75 + 10 * 0.5 + 5 * 0.6) / 40, "b": (10 * 0.25 + 10 * 0.5) / 40, "c": (5 * 0.4 + 15) / 40}
    )


def test_average_weights_are_over_steps_and_not_over_records(tmp_path, write_run, add_records):
    folder = write_run(tmp_path / "run", {"a": 1.0, "b": 2.0}, steps=10)
    (folder / "metrics.jsonl").write_text("")
    for step, mean, latest in ((2, 0.5, 0.9), (10, 0.25, 0.1)):
        means = {"mix/mean_weight/a": mean, "mix/mean_weight/b": 1 - mean}
        add_records(folder, {**weights_of(step, a=latest, b=1 - latest), **means})
    run = load_run(folder)
    assert run.average_weights() == pytest.approx({"a": (2 * 0.5 + 8 * 0.25) / 10, "b": (2 * 0.5 + 8 * 0.75) / 10})
    assert run.average_weights(since=2) == pytest.approx({"a": 0.25, "b": 0.75})


def test_a_loss_that_is_not_finite_at_the_end_has_no_earlier_value_in_its_place(tmp_path, write_run, add_records):
    folder = write_run(tmp_path / "run", {"a": 1.0, "b": 2.0})
    add_records(folder, {"kind": "eval", "step": 100, "eval/loss/a": None, "eval/loss/b": 2.0})
    assert load_run(folder).final_losses() == {"b": 2.0}
