import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxmix.train.run.metrics import LogWindow
from jaxmix.train.run.records import RecordFile, latest_by_step, read_records


def test_a_torn_tail_is_dropped_and_writing_goes_on(tmp_path):
    path = tmp_path / "metrics.jsonl"
    file = RecordFile(path)
    file.write({"step": 1, "x": 0.1})
    file.write({"step": 2, "x": 0.2})
    file.close()
    whole = path.read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        kept = read_records(path)
        assert kept == [{"step": 1, "x": 0.1}, {"step": 2, "x": 0.2}][: whole[:cut].count(b"\n")]
        file = RecordFile(path)
        file.write({"step": 9})
        file.close()
        assert [json.loads(line) for line in path.read_text().splitlines()] == [*kept, {"step": 9}]


def test_a_long_torn_tail_is_found(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + b"x" * 200_000)
    RecordFile(path).close()
    assert path.read_bytes() == b'{"step": 1}\n'


def test_broken_lines_inside_are_an_error_that_names_the_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\nnonsense\n{"step": 2}\n')
    with pytest.raises(ValueError, match="line 2"):
        read_records(path)


def test_numbers_json_cannot_hold_become_null(tmp_path):
    file = RecordFile(tmp_path / "m.jsonl")
    file.write({"step": 1, "x": float("nan"), "y": float("inf")})
    file.close()
    assert read_records(tmp_path / "m.jsonl") == [{"step": 1, "x": None, "y": None}]


def test_the_later_record_of_a_step_wins_within_its_kind():
    records = [
        {"kind": "train", "step": 2, "x": 1},
        {"kind": "eval", "step": 2, "x": 2},
        {"kind": "train", "step": 1, "x": 3},
        {"kind": "train", "step": 2, "x": 4},
    ]
    assert [r["x"] for r in latest_by_step(records, "train")] == [3, 4]
    assert [r["x"] for r in latest_by_step(records, "eval")] == [2]


@given(
    st.lists(st.lists(st.floats(0, 2.0**99, width=32), min_size=3, max_size=3), min_size=1, max_size=5),
    st.integers(0, 5),
)
def test_a_window_saved_anywhere_gives_the_same_record(losses, cut):
    names = ("a", "b", "c")
    straight, resumed = LogWindow(3), LogWindow(3)
    for step, loss in enumerate(losses):
        if step == cut:
            resumed = LogWindow.from_json(json.loads(json.dumps(resumed.to_json())))
        for window in (straight, resumed):
            window.add(np.asarray(loss, np.float32), np.asarray([0, 1, 2], np.float32), {"score": np.asarray(loss)})
    assert straight.take(names) == resumed.take(names)


def test_a_domain_that_was_not_drawn_has_no_loss():
    window = LogWindow(2)
    window.add(np.asarray([6.0, 0.0], np.float32), np.asarray([3.0, 0.0], np.float32), {"rate": np.float32(0.5)})
    assert window.take(("a", "b")) == {"train/loss": 2.0, "train/loss/a": 2.0, "mix/rate": 0.5}
    assert window.take(("a", "b")) == {"mix/rate": 0.5}
