"""Losses of runs on a held-out part that is not their own: the same as a run's own evaluation where it is."""

import pyarrow.parquet as pq
import pytest
import yaml

from jaxmix.cli import main
from jaxmix.core.errors import ConfigError
from jaxmix.data import open_prepared
from jaxmix.train import latest_by_step, read_records
from jaxmix.workflows.train.cross_eval import held_out_losses, write_training_texts


@pytest.fixture
def config(tmp_path):
    """A tiny run on two tiny domains; → the file."""
    for name, word in (("plain", "the cat sat. "), ("code", "def f(x): ")):
        (tmp_path / name).mkdir()
        for i in range(12):
            (tmp_path / name / f"{i}.txt").write_text(f"{i} " + word * (20 + i))
    content = {
        "sources": {n: {"path": str(tmp_path / n)} for n in ("plain", "code")},
        "data": {
            "prepared": str(tmp_path / "prepared"), "seq_len": 32, "batch_size": 8, "block": 2,
            "validation_fraction": 0.3, "validation_rows": 4,
        },
        "model": {"preset": "lm-300k", "num_layers": 1, "width": 16, "num_heads": 1},
        "train": {"steps": 2, "warmup_steps": 1},
    }  # fmt: skip
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_texts_of_the_training_part(config, tmp_path, capsys):
    assert main(["prepare", str(config), "--json"]) == 0
    files = write_training_texts(tmp_path / "prepared", tmp_path / "texts")
    held = {bytes(tokens[:-1].astype("u1")).decode() for s in ("plain", "code")
            for tokens in open_prepared(tmp_path / "prepared", "validation")[s]}  # fmt: skip
    for name, file in files.items():
        texts = set(pq.read_table(file)["text"].to_pylist())
        whole = {p.read_text() for p in (tmp_path / name).iterdir()}
        assert texts == whole - held, "all that is not held out"
        assert texts < whole
    times = {file: file.stat().st_mtime_ns for file in files.values()}
    write_training_texts(tmp_path / "prepared", tmp_path / "texts")
    assert {file: file.stat().st_mtime_ns for file in files.values()} == times


@pytest.mark.slow
def test_losses_are_those_of_the_runs_own_evaluation(config, tmp_path, capsys):
    assert main(["train", str(config), "--out", str(tmp_path / "run"), "--json"]) == 0
    own = latest_by_step(read_records(tmp_path / "run" / "metrics.jsonl"), "eval")[-1]
    found = held_out_losses(tmp_path / "run", tmp_path / "prepared", rows_per_domain=4)
    assert found == {name: pytest.approx(own[f"eval/loss/{name}"], rel=1e-6) for name in ("plain", "code")}
    index = tmp_path / "prepared" / "index.json"
    index.write_text(index.read_text().replace('"tokenizer": "', '"tokenizer": "other '))
    with pytest.raises(ConfigError, match="another tokenizer"):
        held_out_losses(tmp_path / "run", tmp_path / "prepared", rows_per_domain=4)
