import json

import numpy as np
import pytest
from hypothesis import given, strategies as st

from jaxmix.train.lm.fields import loss_fields, mixer_fields
from jaxmix.train.run.metrics import Metrics
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
def test_metrics_saved_anywhere_give_the_same_record(losses, cut):
    names = ("a", "b", "c")
    straight, resumed = Metrics(), Metrics()
    for step, loss in enumerate(losses):
        if step == cut:
            resumed = Metrics.from_json(json.loads(json.dumps(resumed.to_json())))
        for metrics in (straight, resumed):
            add(metrics, loss, [0, 1, 2], score=np.asarray(loss))
    assert fields(straight, names) == fields(resumed, names)


def test_a_domain_that_was_not_drawn_has_no_loss():
    metrics = Metrics()
    add(metrics, [6.0, 0.0], [3.0, 0.0], rate=np.float32(0.5))
    assert fields(metrics, ("a", "b")) == {"train/loss": 2.0, "train/loss/a": 2.0, "mix/rate": 0.5}
    add(metrics, [0.0, 0.0], [0.0, 0.0])
    assert fields(metrics, ("a", "b")) == {"mix/rate": 0.5}


def test_values_that_are_not_finite_survive_a_checkpoint():
    metrics = Metrics()
    metrics.add_total({"rows": [1.0, np.nan]})
    again = Metrics.from_json(json.loads(json.dumps(metrics.to_json(), allow_nan=False)))
    np.testing.assert_array_equal(again.total["rows"], [1.0, np.nan])


def add(metrics, loss_sum, token_count, **extras):
    metrics.add({"loss_sum": np.asarray(loss_sum, np.float32), "token_count": np.asarray(token_count, np.float32)})
    metrics.keep(extras)


def fields(metrics, names):
    return loss_fields(metrics.take(), names) | mixer_fields(metrics, names)
