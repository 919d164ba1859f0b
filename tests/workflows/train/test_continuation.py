"""What a run folder may be continued with."""

import pytest

from jaxmix.core.errors import ConfigError
from jaxmix.workflows.config.build import to_plain
from jaxmix.workflows.config.load import from_mapping
from jaxmix.workflows.config.sections import folder_of
from jaxmix.workflows.config.yaml import dump_yaml
from jaxmix.workflows.train.run import check_continuation


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
