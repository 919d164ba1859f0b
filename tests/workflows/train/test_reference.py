"""Runs that measure their loss against another run, or against a table."""

import json

import numpy as np
import pytest

from jaxmix.core.errors import ConfigError
from jaxmix.train import latest_by_step, read_records
from jaxmix.workflows.config.load import from_mapping
from jaxmix.workflows.train.run import run_train

NAMES = ("plain", "dense")


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    rng = np.random.default_rng(0)
    words = {"plain": ["ab", "cd"], "dense": ["the", "of", "and", "mixture", "domain", "weight"]}
    for name in NAMES:
        lines = [json.dumps({"text": " ".join(rng.choice(words[name], 60))}) for _ in range(60)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    return folder


def configured(texts, out, **sections):
    plain = {
        "sources": {name: {"path": str(texts / f"{name}.jsonl")} for name in NAMES},
        "data": {"prepared": str(texts / "prepared"), "seq_len": 32, "batch_size": 8, "block": 1, "validation_rows": 4},
        "mixture": {"weights": "uniform"},
        "model": {"preset": "lm-300k", "num_layers": 1, "width": 64},
        "train": {"steps": 12, "log_every": 1, "eval_every": 6, "learning_rate": 0.01},
        "checkpoint": {"every": 100, "keep": 1},
        "out": str(out),
    }
    for section, value in sections.items():
        plain[section] = {**plain.get(section, {}), **value}
    return from_mapping(plain, file="reference.yaml")


@pytest.fixture(scope="module")
def reference(texts):
    out = texts / "reference"
    run_train(configured(texts, out, mixer={"name": "static"}), command="test", has_page=False)
    return out


def test_a_finished_run_serves_as_reference(texts, reference, tmp_path):
    config = configured(
        texts, tmp_path / "run", mixer={"name": "doremi", "step_size": 0.5}, reference={"run": str(reference)}
    )
    outcome = run_train(config, command="test", has_page=False)
    scores = [
        [record[f"mix/score/{name}"] for name in NAMES]
        for record in latest_by_step(read_records(tmp_path / "run" / "metrics.jsonl"), "train")
    ]
    # An untrained learner is behind the reference everywhere, and catches up.
    assert min(scores[0]) > 0
    assert sum(scores[-1]) < sum(scores[0])
    assert outcome.result.final_weights != {"plain": 0.5, "dense": 0.5}
    assert sum(outcome.result.recommended.values()) == pytest.approx(1.0, abs=1e-5)


def test_a_table_serves_as_reference(texts, tmp_path):
    table = {"plain": 1.0, "dense": 2.0}
    config = configured(
        texts, tmp_path / "run", mixer={"name": "learnability", "step_size": 0.1}, reference={"losses": table}
    )
    run_train(config, command="test", has_page=False)
    records = read_records(tmp_path / "run" / "metrics.jsonl")
    # Every step is logged by its own losses: the score is their distance from the table.
    for record in latest_by_step(records, "train"):
        for name in NAMES:
            expected = record[f"train/loss/{name}"] - table[name]
            assert record[f"mix/score/{name}"] == pytest.approx(expected, abs=1e-5)


def test_loss_weights_train_on_the_prior_and_recommend_a_mixture(texts, reference, tmp_path):
    mixer = {"name": "doremi", "mode": "proxy", "step_size": 2.0}
    config = configured(texts, tmp_path / "run", mixer=mixer, reference={"run": str(reference)})
    result = run_train(config, command="test", has_page=False).result
    assert {name: drawn["share"] for name, drawn in result.realized.items()} == {"plain": 0.5, "dense": 0.5}
    assert abs(result.recommended["plain"] - 0.5) > 0.01


@pytest.mark.parametrize(
    ("sections", "match"),
    [
        ({"mixer": {"name": "doremi"}}, "against a reference, and the run has none"),
        ({"reference": {"run": "x", "losses": {"plain": 1.0, "dense": 1.0}}}, "both run and losses"),
        ({"reference": {"losses": {"plain": 1.0, "dense": -1.0}}}, "'dense' has -1.0"),
        ({"reference": {"losses": {"plane": 1.0, "dense": 1.0}}}, "unknown source 'plane'"),
        (
            {"mixer": {"name": "doremi", "mode": "proxy", "normalizer": "domain"}}
            | {"reference": {"losses": {"plain": 1.0, "dense": 1.0}}},
            "weights losses for train.loss_normalization 'domain_mean'",
        ),
    ],
)
def test_references_are_checked_before_anything_runs(texts, tmp_path, sections, match):
    with pytest.raises(ConfigError, match=match):
        configured(texts, tmp_path, **sections)


def test_what_cannot_be_a_reference_says_why(texts, reference, tmp_path):
    run = lambda path: run_train(
        configured(texts, tmp_path / "run", mixer={"name": "doremi"}, reference={"run": str(path)}),
        command="test",
        has_page=False,
    )
    with pytest.raises(ConfigError, match="there is no run to take the reference from"):
        run(tmp_path / "nowhere")
    other = tmp_path / "other"
    other.mkdir()
    (other / "provenance.json").write_text(json.dumps({"tokenizer_hash": "another"}))
    with pytest.raises(ConfigError, match="another tokenizer"):
        run(other)


def test_a_test_part_is_read_once_and_apart_from_validation(texts, tmp_path):
    data = {"test_rows": 3, "validation_rows": 4, "control_rows": 1}
    config = configured(texts, tmp_path / "run", data=data, mixer={"name": "aioli", "round_length": 6, "sweeps": 1}
                        | {"interval": 2})  # fmt: skip
    result = run_train(config, command="test", has_page=False).result
    records = read_records(tmp_path / "run" / "metrics.jsonl")
    assert [r["step"] for r in latest_by_step(records, "test")] == [12]
    # Every probe of two steps ends with an evaluation of the control rows alone.
    assert [r["step"] for r in latest_by_step(records, "control")] == [0, 2, 4, 6, 8, 10, 12]
    assert [r["step"] for r in latest_by_step(records, "eval")] == [0, 6, 12]
    assert result.final_test is not None
    assert result.final_test != result.final_eval
