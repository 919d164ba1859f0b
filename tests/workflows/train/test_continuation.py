"""What a run folder may be continued with."""

import json

import pytest

from jaxmix.core.errors import ConfigError
from jaxmix.data.lock import locked
from jaxmix.workflows.config.build import to_plain
from jaxmix.workflows.config.load import from_mapping
from jaxmix.workflows.config.sections import folder_of
from jaxmix.workflows.config.yaml import dump_yaml
from jaxmix.workflows.provenance import begin_run, changed_settings, check_same_data, provenance_of
from jaxmix.workflows.train.run import check_continuation, run_train


def config(**sections):
    base = {"sources": "bundled", "train": {"steps": 100}, "mixer": {"name": "odm", "wrap": [{"floor": 0.01}]}}
    return from_mapping({**base, **sections}, file="run.yaml")


@pytest.fixture
def run_dir(tmp_path):
    (tmp_path / "checkpoints" / "50").mkdir(parents=True)
    (tmp_path / "config.yaml").write_text(dump_yaml(to_plain(config())))
    return tmp_path


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"train": {"steps": 500, "learning_rate": 1e-4}},
        {"mixture": {"weights": "uniform"}},
        {"mixer": {"name": "odm", "discount": 0.5, "wrap": [{"floor": 0.02}]}},
        {"checkpoint": {"every": 7}},
    ],
)
def test_length_rates_and_weights_may_change(run_dir, sections):
    check_continuation(folder_of(config(**sections, out=str(run_dir))))


@pytest.mark.parametrize(
    ("sections", "key"),
    [
        ({"model": {"preset": "lm-3m"}}, "model.preset"),
        ({"model": {"num_layers": 3}}, "model.num_layers"),
        ({"data": {"seq_len": 64}}, "data.seq_len"),
        ({"data": {"batch_size": 8}}, "data.batch_size"),
        ({"mixer": {"name": "static"}}, "mixer.name"),
        ({"mixer": {"name": "odm", "wrap": [{"ema": 0.5}]}}, "mixer.wrap"),
        ({"train": {"steps": 100, "seed": 1}}, "train.seed"),
    ],
)
def test_shapes_and_cursors_may_not(run_dir, sections, key):
    with pytest.raises(ConfigError, match=rf"{key} was .* and is now .* cannot be continued"):
        check_continuation(folder_of(config(**sections, out=str(run_dir))))


def test_a_model_setting_taken_back_may_not_either(run_dir):
    (run_dir / "config.yaml").write_text(dump_yaml(to_plain(config(model={"num_layers": 3}))))
    with pytest.raises(ConfigError, match=r"model.num_layers was 3 and is now None"):
        check_continuation(folder_of(config(out=str(run_dir))))


def test_without_checkpoints_anything_goes(run_dir):
    (run_dir / "checkpoints" / "50").rmdir()
    check_continuation(folder_of(config(model={"preset": "lm-3m"}, out=str(run_dir))))


def test_a_run_without_steps_left_is_not_touched_by_other_settings(run_dir):
    changed = {"mixture": {"weights": "uniform"}, "train": {"steps": 50}}
    before = {path: path.read_bytes() for path in run_dir.iterdir() if path.is_file()}
    with pytest.raises(
        ConfigError, match=r"has had 50 steps.*mixture\.weights was 'natural' and is 'uniform'.*Nothing was"
    ):
        check_continuation(folder_of(config(**changed, out=str(run_dir))))
    with pytest.raises(ConfigError, match=r"train\.steps was 100 and is 50"):
        run_train(config(train={"steps": 50}, out=str(run_dir)), command="test")
    assert {path: path.read_bytes() for path in run_dir.iterdir() if path.is_file()} == before
    check_continuation(folder_of(config(mixture={"weights": "uniform"}, out=str(run_dir))))
    (run_dir / "config.yaml").write_text(dump_yaml(to_plain(config(train={"steps": 50}))))
    check_continuation(folder_of(config(train={"steps": 50}, checkpoint={"every": 9}, out=str(run_dir))))


def test_a_session_says_what_it_changed(run_dir, capsys):
    folder = folder_of(config(train={"steps": 500}, mixture={"weights": "uniform"}, out=str(run_dir)))
    provenance = provenance_of(folder, command="test", content={}, changed_data=["code"])
    assert not (run_dir / "provenance.json").exists()
    begin_run(folder, provenance)
    (session,) = json.loads((run_dir / "provenance.json").read_text())["sessions"]
    assert session["changed"] == {"train.steps": [100, 500], "mixture.weights": ["natural", "uniform"]}
    said = capsys.readouterr().err
    assert "train.steps 500 (was 100), mixture.weights 'uniform' (was 'natural')" in said
    assert "the learning-rate schedule is that of a run of 500 steps from here on" in said
    assert "continued on other documents of code" in said
    changed = {"sources.web.path": ["w", None], "sources.web.format": ["text", None], "sources.new.path": [None, "n"]}
    begin_run(folder, {"sessions": [{"changed": changed}]})
    assert "continued with sources.web left out, sources.new new\n" in capsys.readouterr().err
    begin_run(folder, provenance)
    assert changed_settings(folder) == {}


def test_other_data_are_refused_by_name(run_dir):
    (run_dir / "provenance.json").write_text(json.dumps({"data_hash": {"web": "1", "code": "2"}}))
    folder = folder_of(config(out=str(run_dir)))
    check_same_data(folder, {"web": "1", "code": "2", "new": "3"}, allowed=False)
    with pytest.raises(
        ConfigError, match=r"source 'code' has changed since the run began.*checkpoint\.allow_changed_data"
    ):
        check_same_data(folder, {"web": "1", "code": "x"}, allowed=False)
    assert check_same_data(folder, {"web": "1", "code": "x"}, allowed=True) == ["code"]
    never = folder_of(config(out=str(run_dir), checkpoint={"resume": "never"}))
    check_same_data(never, {"web": "1", "code": "x"}, allowed=False)


def test_two_runs_do_not_share_a_folder(run_dir):
    with locked(run_dir, "trains"), pytest.raises(ConfigError, match=r"process \d+ on .* trains here since"):
        run_train(config(out=str(run_dir)), command="test")
