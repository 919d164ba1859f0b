"""The driver on a loop of plain numbers: when things happen, and what a user's hooks see of it."""

import dataclasses
import os
import signal
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmix.core.errors import ConfigError, RunError
from jaxmix.core.pytree import state
from jaxmix.core.sharding import build_mesh
from jaxmix.train.lm.settings import TrainSettings
from jaxmix.train.run.driver import Driver, Hook, Loop, Record
from jaxmix.train.run.records import latest_by_step, read_records


@state(version=1)
class Train:
    params: typing.Any
    skipped: typing.Any


@state(version=1)
class State:
    train: Train


class Info(typing.NamedTuple):
    loss: typing.Any
    grad_norm: typing.Any
    skipped: typing.Any
    consecutive_skipped: typing.Any


class Counting(Loop):
    """Adds 1 to its only parameter in every step, and says so."""

    def __init__(self, settings, stop_at=None):
        super().__init__(settings, build_mesh(devices=jax.devices()[:1]))
        self.stop_at, self.said = stop_at, []

    def init(self):
        return State(Train(jnp.zeros(()), jnp.int32(0)))

    def batch(self, step):
        self.said.append(f"batch {step}")
        if step == self.stop_at:
            raise StopIteration
        return step

    def step(self, step, batch):
        assert batch == step
        self.said.append(f"step {step}")
        train = self.state.train
        self.state = State(dataclasses.replace(train, params=train.params + 1))
        zero = jnp.int32(0)
        return Info(self.state.train.params, jnp.ones(()), zero, zero)

    def evaluations(self):
        return [Hook(self.settings.eval_every, self.evaluate, "eval")]

    def evaluate(self, view):
        self.said.append(f"eval {view.step}")
        return {"x": float(view.params)}

    def update(self, step, output):
        self.said.append(f"update {step}")
        return output, {"twice": 2 * output.loss}

    def measure(self, info, extras):
        self.metrics.add({"loss": info.loss, "twice": extras["twice"]})

    def record(self, step, info, extras):
        self.said.append(f"record {step}")
        return Record({f"train/{name}": float(x) for name, x in self.metrics.take().items()}, step)

    def position(self, step):
        return {"tokens": 10 * step}

    def result(self, end):
        return end, float(self.state.train.params)


def run(run_dir, *, hooks=(), trackers=(), stop_at=None, **settings):
    settings = {"steps": 6, "warmup_steps": 0, "log_every": 2, "eval_every": 3, "checkpoint_every": 4, **settings}
    loop = Counting(TrainSettings(**settings), stop_at)
    driver = Driver(loop, run_dir, hooks=hooks, trackers=trackers, label="count", show_progress=False)
    return *driver.run(), loop.said


def records(run_dir, kind):
    return latest_by_step(read_records(run_dir / "metrics.jsonl"), kind)


def test_the_order_is_the_one_written_down(tmp_path):
    end, value, said = run(tmp_path)
    assert said == [
        *("eval 0", "batch 0", "step 0", "update 0"),
        *("batch 1", "step 1", "update 1"),
        *("batch 2", "step 2", "update 2", "record 2", "eval 3"),
        *("batch 3", "step 3", "update 3"),
        *("record 4", "batch 4", "step 4", "update 4"),  # before the checkpoint at 4
        *("batch 5", "step 5", "update 5", "record 6", "eval 6"),
    ]
    assert (end.steps, end.resumed_from, end.ended_early, value) == (6, None, None, 6.0)
    assert [(r["step"], r["train/loss"], r["train/twice"]) for r in records(tmp_path, "train")] == [
        *((2, 3.0, 6.0), (4, 7.0, 14.0), (6, 11.0, 22.0))
    ]
    assert records(tmp_path, "eval")[1] == {"kind": "eval", "step": 3, "tokens": 30, "eval/x": 3.0}
    assert sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir()) == [4, 6]


def test_a_finished_run_is_evaluated_again_and_saves_nothing(tmp_path):
    run(tmp_path)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "checkpoints").rglob("*")}
    end, value, said = run(tmp_path)
    assert (end.resumed_from, value, said) == (6, 6.0, ["eval 6"])
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "checkpoints").rglob("*")} == before


def test_a_stream_that_ends_ends_the_run(tmp_path):
    end, value, _ = run(tmp_path, stop_at=5)
    assert (end.steps, end.ended_early, value) == (5, "the stream ended after step 5", 5.0)
    assert [r["step"] for r in records(tmp_path, "eval")] == [0, 3, 5]


class Tracked:
    def __init__(self):
        self.seen = {}

    def log(self, step, record):
        self.seen |= {(step, key): value for key, value in record.items() if "/" in key}

    def close(self):
        self.seen["closed"] = True


def test_hooks_are_called_at_their_steps_and_recorded(tmp_path):
    called, tracker = [], Tracked()

    def norm(view):
        called.append(view.step)
        return {"l1": abs(view.params), "step": np.float32(view.step)}

    def sparse(view):
        view.record({"seen": float(view.state.train.params)})

    hooks = [Hook(every=2, run=norm), Hook(every=lambda step: step == 3, run=sparse, name="rare", at_end=False)]
    _, value, _ = run(tmp_path, hooks=hooks, trackers=[tracker], steps=7)
    assert (called, value) == ([0, 2, 4, 6, 7], 7.0)
    expected = {step: {"norm/l1": float(step), "norm/step": float(step)} for step in called}
    expected[7]["at_end"] = True  # a longer run would not have called it there
    for record in records(tmp_path, "norm"):
        assert record == {"kind": "norm", "step": record["step"], "tokens": 10 * record["step"]} | expected.pop(
            record["step"]
        )
    assert not expected
    assert records(tmp_path, "rare") == [{"kind": "rare", "step": 3, "tokens": 30, "rare/seen": 3.0}]
    assert tracker.seen[7, "norm/l1"] == 7.0
    assert tracker.seen["closed"]


def test_an_interrupted_run_calls_every_hook_once_at_every_step(tmp_path):
    called = []
    hook = Hook(every=2, run=lambda view: called.append(view.step), name="mine")
    at_four = Hook(every=lambda step: step == 4, run=lambda view: os.kill(os.getpid(), signal.SIGTERM), name="stop")
    with pytest.raises(RunError, match="saved at step 4"):
        run(tmp_path, hooks=[hook, at_four])
    assert called == [0, 2, 4]
    end, *_ = run(tmp_path, hooks=[hook])
    assert (end.resumed_from, called) == (4, [0, 2, 4, 6])


@pytest.mark.parametrize(
    ("answer", "match"),
    [
        (lambda view: 1 / (view.step - 4), "the hook 'mine' failed: ZeroDivisionError.*step 4"),
        (lambda view: {"x": "much"}, "the hook 'mine' failed: ValueError.*step 0"),
        (lambda view: 3.0, r"(?s)the hook 'mine' failed: .*step 0"),
    ],
)
def test_an_error_in_a_hook_names_it(tmp_path, answer, match):
    only_at_four = answer if "step 0" in match else lambda view: answer(view) and None
    with pytest.raises(RunError, match=match):
        run(tmp_path, hooks=[Hook(every=4, run=only_at_four, name="mine")])


def test_hooks_that_cannot_be_told_apart_are_refused_before_anything_is_written(tmp_path):
    for hooks, match in (
        ([Hook(1, print), Hook(2, print)], "the name 'print' of a hook is taken"),
        ([Hook(1, print, name="eval")], "the name 'eval' of a hook is taken"),
    ):
        with pytest.raises(ConfigError, match=match):
            run(tmp_path / "run", hooks=hooks)
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match="an identifier, got '<lambda>'"):
        Hook(1, lambda view: None)
    with pytest.raises(ConfigError, match="every must be at least 1, got 0"):
        Hook(0, print)


def test_checkpoints_of_an_earlier_version_are_refused_with_a_word(tmp_path):
    from jaxmix.train.run.checkpoint import Checkpointer

    checkpointer = Checkpointer(tmp_path / "checkpoints", keep=1, report=print)
    checkpointer.save(3, Counting(TrainSettings(steps=1, warmup_steps=0)).init(), {"window": {}})
    checkpointer.wait()
    checkpointer.close()
    with pytest.raises(RunError, match="earlier version of jaxmix"):
        run(tmp_path)
