"""The commands as a person types them, at the smallest size: exit codes, messages, and what they leave."""

import json
import re

import pytest
import yaml

from jaxmix.cli import main
from jaxmix.train import latest_by_step, read_records

RUN_FILES = ("config.yaml", "provenance.json", "metrics.jsonl", "timing.jsonl", "mixture.yaml", "report.html")


@pytest.fixture
def config(tmp_path):
    """A run on two tiny domains."""
    for name, word in (("plain", "the cat sat on the mat. "), ("code", "def f(x): return x\n")):
        (tmp_path / name).mkdir()
        for i in range(12):
            (tmp_path / name / f"{i}.txt").write_text((word * (20 + i))[i:])
    content = {
        "sources": {n: {"path": str(tmp_path / n)} for n in ("plain", "code")},
        "data": {
            "prepared": str(tmp_path / "prepared"),
            "seq_len": 32,
            "batch_size": 8,
            "block": 2,
            "validation_fraction": 0.2,
        },
        "mixer": {"name": "odm", "wrap": [{"floor": 0.01}]},
        "model": {"preset": "lm-300k"},
        "train": {"steps": 6, "log_every": 2, "eval_every": 3, "warmup_steps": 1},
        "checkpoint": {"every": 2},
        "out": str(tmp_path / "run"),
    }
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def records(run):
    return latest_by_step(read_records(run / "metrics.jsonl"), "train")


def test_prepare_plan_train_report(config, tmp_path, capsys):
    assert main(["plan", str(config)]) == 0
    assert not (tmp_path / "prepared").exists()
    assert main(["prepare", str(config), "--dry-run"]) == 0
    assert not (tmp_path / "prepared").exists()
    assert main(["prepare", str(config), "--json"]) == 0
    capsys.readouterr()
    assert main(["plan", str(config), "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert planned["tokens"] == 6 * 8 * 32

    assert main(["train", str(config), "--dry-run"]) == 0
    assert not (tmp_path / "run").exists()
    capsys.readouterr()
    assert main(["train", str(config), "--json"]) == 0
    outcome = json.loads(capsys.readouterr().out)
    assert outcome["steps"] == 6
    assert set(outcome["validation_loss"]) == {"plain", "code"}
    for name in RUN_FILES:
        assert (tmp_path / "run" / name).is_file(), name
    assert [r["step"] for r in records(tmp_path / "run")] == [2, 4, 6]

    (tmp_path / "run" / "report.html").unlink()
    assert main(["report", str(tmp_path / "run")]) == 0
    page = (tmp_path / "run" / "report.html").read_text()
    assert "plain" in page
    assert "<svg" in page
    assert "http://" not in page.replace("http://www.w3.org", "")

    # The same command again continues a finished run: nothing is trained, the same result is told.
    capsys.readouterr()
    assert main(["train", str(config), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["validation_loss"] == outcome["validation_loss"]


@pytest.mark.slow
def test_a_longer_run_continues_a_shorter_one(config, capsys):
    assert main(["train", str(config), "--train.steps", "4"]) == 0
    capsys.readouterr()
    assert main(["train", str(config), "--json"]) == 0
    outcome = json.loads(capsys.readouterr().out)
    assert outcome["resumed_from"] == 4
    assert outcome["steps"] == 6


@pytest.mark.slow
def test_sources_that_run_out_and_change_are_told_truly(config, tmp_path, capsys):
    content = yaml.safe_load(config.read_text())
    content["model"] |= {"num_layers": 1, "width": 16, "num_heads": 2, "mlp_width": 16}
    content |= {"mixer": {"name": "static"}, "mixture": {"weights": "uniform"}}
    content["data"]["block"] = 1
    content["sources"]["plain"]["max_epochs"] = 0.05
    config.write_text(yaml.safe_dump(content))
    assert main(["train", str(config), "--train.steps", "4"]) == 0
    said = capsys.readouterr()
    (step,) = {int(found) for found in re.findall(r"ran out at step (\d)", said.out)}
    assert 0 < step < 4
    assert f"step {step}: source 'plain' ran out after" in said.err
    assert "plain 0.000" in said.err

    content["sources"] = {"added": content["sources"].pop("plain") | {"max_epochs": 9}, **content["sources"]}
    config.write_text(yaml.safe_dump(content))
    arguments = ["train", str(config), "--train.allow_changed_domains", "true", "--json"]
    for steps in ("5", "7"):
        assert main([*arguments, "--train.steps", steps]) == 0
    outcome = json.loads(capsys.readouterr().out.split("\n}\n")[1] + "}")
    assert outcome["resumed_from"] == 5
    assert list(outcome["token_shares"]) == ["added", "code", "plain"]
    assert sum(outcome["token_shares"].values()) == pytest.approx(1.0)
    assert outcome["ran_out"] == {"plain": step}
    weights = outcome["average_weights"]
    assert weights["added"] == pytest.approx(0.5 * 3 / 7)
    assert weights["plain"] == pytest.approx(0.5 * step / 7)
    page = (tmp_path / "run" / "report.html").read_text()
    assert "After step 4 added came and plain left." in page
    assert "no evaluation besides the run&#x27;s own 6" in page  # at 0, 3 and 6, and where the sessions ended: 4, 5, 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mixer.name", "odn"], "Did you mean 'odm'"),
        (["--mixer.discont", "0.5"], "discount"),
        (["--data.seqlen", "16"], "seq_len"),
        (["--train.steps", "0"], "steps"),
        (["--train.steps", "many"], "many"),
        (["--model.preset", "lm-1g"], "lm-1"),
        (["--mixture.weights", "{plain: 1, code: -1}"], "-1"),
        (["--data.batch_size", "7"], "7"),
    ],
)
def test_wrong_settings_end_with_two_before_anything_is_written(config, tmp_path, capsys, arguments, message):
    assert main(["train", str(config), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("jaxmix: ")
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_unknown_commands_and_files_end_with_two(capsys, tmp_path):
    assert main(["trian"]) == 2
    assert "Did you mean 'train'" in capsys.readouterr().err
    assert main(["train", str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml" in capsys.readouterr().err


def test_a_run_that_fails_ends_with_one(config, capsys):
    arguments = ["--train.learning_rate", "1e30", "--train.clip_norm", "0", "--train.max_consecutive_skipped", "2"]
    assert main(["train", str(config), "--train.steps", "40", *arguments]) == 1
    assert "updates in a row" in capsys.readouterr().err


def test_damaged_data_ends_with_one(config, tmp_path, capsys):
    assert main(["prepare", str(config)]) == 0
    shard = next((tmp_path / "prepared" / "plain").rglob("train-*.array_record"))
    shard.write_bytes(shard.read_bytes()[:-3])
    assert main(["train", str(config)]) == 1
    assert "the index says" in capsys.readouterr().err


def test_doctor_names_a_known_bad_pair(monkeypatch, capsys):
    from jaxmix.workflows import doctor

    real = doctor.installed_version
    fake = {"jax": "0.11.2", "jaxlib": "0.11.2", "flax": "0.12.8"}
    monkeypatch.setattr(doctor, "installed_version", lambda name: fake.get(name) or real(name))
    assert main(["doctor"]) == 3
    assert "flax" in capsys.readouterr().out
    monkeypatch.setattr(doctor, "installed_version", real)
    assert main(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ok"]


@pytest.mark.slow
def test_quickstart_discovers_domains_too(tmp_path, capsys):
    arguments = ["quickstart", "--steps", "3", "--seeds", "1", "--out", str(tmp_path / "q"), "--json"]
    small = ["--data.seq_len", "32", "--data.batch_size", "8", "--data.validation_rows", "4"]
    assert main([*arguments, *small]) == 0
    notes = json.loads(capsys.readouterr().out)["notes"]
    assert "odm on 11 domains discovered by GEM" in notes[1]
    run = tmp_path / "q" / "gem" / "odm-seed0"
    result = json.loads((run / "result.json").read_text())
    given = yaml.safe_load((tmp_path / "q" / "odm-seed0" / "config.yaml").read_text())
    assert set(result["losses"]) == set(
        yaml.safe_load((tmp_path / "q" / "law" / "mixture.yaml").read_text())["weights"]
    )
    discovered = yaml.safe_load((run / "config.yaml").read_text())
    assert len(discovered["sources"]) == 11
    assert discovered["train"]["steps"] == given["train"]["steps"] == 3
    assert len(list((tmp_path / "q" / "gem" / "domains").glob("report.html"))) == 1
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "q").rglob("metrics.jsonl")}
    assert main([*arguments, *small]) == 0
    assert json.loads(capsys.readouterr().out)["notes"] == notes
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "q").rglob("metrics.jsonl")} == before


def test_quickstart_compares_and_is_not_repeated(tmp_path, capsys):
    arguments = ["quickstart", "--steps", "3", "--seeds", "1", "--out", str(tmp_path / "q"), "--json", "--given-only"]
    small = ["--data.seq_len", "32", "--data.batch_size", "8", "--data.validation_rows", "4", "--train.log_every", "1"]
    assert main([*arguments, *small]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert {(r["variant"], r["seed"]) for r in summary["runs"]} == {
        (v, s) for v in ("natural", "uniform", "odm", "law") for s in (0,)
    }
    assert "proxies" in summary["notes"][0]
    proposed = yaml.safe_load((tmp_path / "q" / "law" / "mixture.yaml").read_text())["weights"]
    trained = yaml.safe_load((tmp_path / "q" / "law-seed0" / "config.yaml").read_text())["mixture"]["weights"]
    assert trained == proposed
    tokens = [r["tokens"] for r in summary["runs"]]
    assert min(tokens) > 0.99 * 3 * 8 * 32  # the last row of a source has fewer targets
    assert max(tokens) <= 3 * 8 * 32
    page = (tmp_path / "q" / "report.html").read_text()
    for word in ("natural", "uniform", "odm", "law", "novel", "jaxmix quickstart"):
        assert word in page
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "q").rglob("metrics.jsonl")}
    assert main([*arguments, *small]) == 0
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "q").rglob("metrics.jsonl")} == before


@pytest.fixture
def comparison(config, tmp_path):
    """Two mixtures of the two tiny domains."""
    base = yaml.safe_load(config.read_text())
    for key in ("out", "mixer"):
        del base[key]
    del base["data"]["prepared"]
    variants = {"even": {"mixture": {"weights": "uniform"}}, "odm": {"mixer": {"name": "odm"}}}
    path = tmp_path / "both.yaml"
    path.write_text(yaml.safe_dump({"base": base, "variants": variants, "seeds": [3]}))
    return path


def test_compare_trains_what_is_not_finished_and_tells_the_differences(comparison, tmp_path, capsys):
    out = ["compare", str(comparison), "--out", str(tmp_path / "c")]
    assert main([*out, "--dry-run"]) == 0
    assert "odm-seed3" in capsys.readouterr().out
    assert not (tmp_path / "c").exists()

    assert main([*out, "--json"]) == 0
    one = json.loads(capsys.readouterr().out)
    assert [(r["variant"], r["seed"]) for r in one["runs"]] == [("even", 3), ("odm", 3)]
    assert one["variants"][1]["difference"]["low"] is None
    assert one["runs"][1]["tokens"] == one["runs"][0]["tokens"]
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "c").rglob("metrics.jsonl")}

    assert main([*out, "--seeds", "2"]) == 0
    text = capsys.readouterr().out
    for words in (
        "odm seed 3 (2/4): already finished",
        "odm minus even: ",
        "95% interval",
        "pair equal seeds",
        "Page: ",
    ):
        assert words in text, words
    assert all(p.stat().st_mtime_ns == stamp for p, stamp in before.items())
    summary = json.loads((tmp_path / "c" / "summary.json").read_text())
    gap = summary["variants"][1]
    by_seed = {(r["variant"], r["seed"]): r["mean_validation_loss"] for r in summary["runs"]}
    expected = [by_seed["odm", s] - by_seed["even", s] for s in (3, 4)]
    assert gap["difference"]["mean"] == pytest.approx(sum(expected) / 2)
    assert gap["difference"]["low"] < gap["difference"]["mean"] < gap["difference"]["high"]
    assert gap["cost"]["evaluations"] == 3
    assert "Differences to even over paired seeds" in (tmp_path / "c" / "report.html").read_text()


def test_compare_checks_everything_first(comparison, tmp_path, capsys):
    wrong = yaml.safe_load(comparison.read_text())
    wrong["variants"]["third"] = {"mixer": {"name": "odm", "discont": 0.5}}
    comparison.write_text(yaml.safe_dump(wrong))
    assert main(["compare", str(comparison), "--out", str(tmp_path / "c")]) == 2
    error = capsys.readouterr().err
    assert "Did you mean 'discount'" in error
    assert "variant third" in error
    assert not (tmp_path / "c").exists()
    assert main(["compare", str(comparison), "--seeds", "0"]) == 2
