import sys
import types

import pytest

from jaxmix.core.errors import ConfigError, EnvironmentProblem
from jaxmix.train.run.trackers import make_tracker

RECORD = {"kind": "train", "step": 3, "tokens": 24, "train/loss": 2.5, "mix/weight/a": 0.25, "eval/loss/b": None}


def test_tensorboard_gets_every_scalar(tmp_path):
    pytest.importorskip("tensorboardX", reason="the extra tensorboard is not installed")
    tracker = make_tracker("tensorboard", tmp_path, {})
    tracker.log(3, RECORD)
    tracker.close()
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"train/loss" in events.read_bytes()


def test_wandb_continues_the_run_of_the_folder(tmp_path, monkeypatch):
    calls = []

    class Run:
        def log(self, values):
            calls.append(values)

        def finish(self):
            calls.append("finished")

    module = types.SimpleNamespace(init=lambda **kwargs: calls.append(kwargs) or Run())
    monkeypatch.setitem(sys.modules, "wandb", module)
    tracker = make_tracker("wandb", tmp_path, {"a": 1})
    tracker.log(3, RECORD)
    tracker.close()
    assert calls[0]["id"] == tmp_path.name
    assert calls[0]["resume"] == "allow"
    assert calls[1:] == [{"train/loss": 2.5, "mix/weight/a": 0.25, "step": 3}, "finished"]


def test_unknown_and_missing_trackers_say_what_to_do(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="tensorboard"):
        make_tracker("tensorbord", tmp_path, {})
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(EnvironmentProblem, match=r"jaxmix\[wandb\]"):
        make_tracker("wandb", tmp_path, {})
