"""`jaxmix law`: a table to a judged law, a law to a mixture that `jaxmix train` takes."""

import dataclasses
import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxmix.cli import main
from jaxmix.data.run_tables import write_run_table
from jaxmix.laws import RunTable, fit, make, propose
from jaxmix.workflows.config.load import from_mapping
from jaxmix.workflows.config.mixture import read_mixture
from jaxmix.workflows.law import limit_epochs

NAMES = ["drama", "mail", "novel"]
QUICK = ("--starts", "4", "--folds", "2")
SCALE = ("--model-size", "1", "--tokens", "2")


def small_table():
    rng = np.random.default_rng(0)
    weights = rng.dirichlet(np.ones(3), 16)
    ones = np.ones(16)
    losses = np.array([1.0, 1.5, 0.5]) + np.array([0.4, 0.5, 0.8]) * (weights + 0.05) ** -np.array([0.3, 0.4, 0.35])
    losses *= np.exp(0.002 * rng.normal(size=losses.shape))
    return RunTable(weights, losses, ones, 2 * ones, NAMES, NAMES)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return str(write_run_table(tmp_path_factory.mktemp("table") / "swarm.csv", small_table()))


@pytest.fixture(scope="module")
def folder(path, tmp_path_factory):
    """A law fitted by the command."""
    out = tmp_path_factory.mktemp("out") / "law"
    assert main(["law", "fit", path, "--laws", "power,linear", "--out", str(out), *QUICK]) == 0
    return out


def test_fit_writes_a_law_its_runs_and_a_page(folder, path):
    assert sorted(p.name for p in folder.iterdir()) == ["law.json", "report.html", "runs.csv"]
    about = json.loads((folder / "law.json").read_text())
    assert set(about["diagnoses"]) == {"power", "linear"}
    best = min(about["diagnoses"], key=lambda name: about["diagnoses"][name]["mre"])
    assert about["law"] == best
    assert about["domains"] == NAMES
    assert {"jaxmix", "jax"} <= set(about["versions"])
    found = fit(make(best), small_table(), key=jax.random.key(0), num_starts=4)
    for name, value in found.params.items():
        np.testing.assert_allclose(about["params"][name], value, rtol=1e-12)
    page = (folder / "report.html").read_text()
    assert page.count("<svg") == 3
    assert not re.search(r"(src|href)=\"http", page)
    for heading in ("Predicted and observed", "Residuals", "What each domain is worth"):
        assert heading in page
    assert (folder / "runs.csv").read_text() == Path(path).read_text()


def test_check_prints_every_law_and_the_mean(path, capsys):
    assert main(["law", "check", path, "--laws", "power", *QUICK]) == 0
    text = capsys.readouterr().out
    assert "power" in text
    assert "(mean of the other runs)" in text
    assert main(["law", "check", path, "--laws", "power", *QUICK, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["laws"]["power"]
    assert 0 < found["mre"] < found["mean_mre"]
    assert set(found["mre_per_metric"]) == set(NAMES)


def test_a_proposal_is_that_of_the_law_and_train_takes_it(folder, tmp_path, capsys):
    words = ["law", "propose", str(folder), *SCALE, "--out", str(tmp_path), "--json"]
    assert main([*words, "--metric-weights", "{drama: 3, mail: 1}", "--max-weights", "{drama: 0.4}"]) == 0
    about = json.loads(capsys.readouterr().out)
    law = json.loads((folder / "law.json").read_text())
    fitted = fit(make(law["law"]), small_table(), key=jax.random.key(0), num_starts=4)
    wanted = propose(fitted, model_size=1, tokens=2, metric_weights=[3, 1, 0], max_weights=[0.4, 1, 1])
    np.testing.assert_allclose([about["weights"][n] for n in NAMES], wanted.weights, atol=1e-6)
    assert about["objective"] == pytest.approx(wanted.objective, abs=1e-9)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mixture.yaml", "proposal.json"]
    assert "how many tokens each domain has is not known" in about["warnings"][-1]
    assert about["epochs"] is None
    sources = {name: {"path": name} for name in NAMES}
    overrides = [("mixture", str(tmp_path / "mixture.yaml"))]
    config = from_mapping({"sources": sources, "train": {"steps": 3}}, overrides)
    assert config.mixture.weights == about["weights"]


def test_caps_from_tokens_hold_and_warnings_are_printed(folder, tmp_path, capsys):
    words = ["law", "propose", str(folder), "--model-size", "10", "--tokens", "2", "--out", str(tmp_path)]
    assert main([*words, "--available", "{novel: 0.1}", "--max-epochs", "4"]) == 0
    text = capsys.readouterr().out
    assert "The model size is 10 times outside" in text
    assert "At the cap: novel." in text
    found = read_mixture(tmp_path)
    assert found.weights["novel"] == pytest.approx(0.2, abs=1e-6)
    assert sum(found.weights.values()) == pytest.approx(1, abs=1e-9)
    assert found.epochs == {"novel": pytest.approx(4.0, abs=1e-4)}
    assert "# The model size is 10 times" in (tmp_path / "mixture.yaml").read_text()


@pytest.fixture(scope="module")
def small_novel(tmp_path_factory):
    """A fitted law whose table knows the data: there are 258,000 tokens of `novel`."""
    table = dataclasses.replace(small_table(), available_tokens=[1.0, 2.0, 0.000258])
    path = write_run_table(tmp_path_factory.mktemp("table") / "table.csv", table)
    out = tmp_path_factory.mktemp("out") / "law"
    assert main(["law", "fit", str(path), "--law", "power", "--out", str(out), *QUICK]) == 0
    return out


def proposed(small_novel, capsys, *words):
    assert main(["law", "propose", str(small_novel), *SCALE, "--json", *words]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_proposal_reads_no_domain_more_than_four_times_unless_asked_to(small_novel, tmp_path, capsys):
    capsys.readouterr()
    out = ("--out", str(tmp_path))
    about = proposed(small_novel, capsys, *out)
    assert about["capped"] == ["novel"]
    assert about["epochs"]["novel"] == pytest.approx(4.0, rel=1e-4)
    assert about["unconstrained_weights"]["novel"] > 0.1
    assert about["warnings"] == []
    assert "# At the cap: novel.\n" in (tmp_path / "mixture.yaml").read_text()
    assert read_mixture(tmp_path).available_tokens == {"drama": 10**9, "mail": 2 * 10**9, "novel": 258_000}
    assert proposed(small_novel, capsys, *out, "--max-epochs", "8")["epochs"]["novel"] == pytest.approx(8.0, rel=1e-4)
    free = proposed(small_novel, capsys, *out, "--max-epochs", "inf")
    assert (free["caps"], free["capped"]) == (None, [])
    assert free["epochs"]["novel"] > 20
    assert re.match(r"A run of 2,000,000,000 tokens reads novel [\d.,]+ times \(.*: cap the", free["warnings"][-1])
    more = proposed(small_novel, capsys, *out, "--available", "{novel: 5}")
    assert more["epochs"]["novel"] < 0.2
    assert more["epochs"]["drama"] < 4  # the table still knows the others


def test_a_domain_of_unknown_size_is_said_not_to_be_capped():
    (line,) = limit_epochs(small_table(), tokens=0.01, available_tokens=np.array([1.0, np.inf, 1.0]))[1]
    assert line == "Not capped by epochs, for lack of its number of tokens: mail."


def test_a_run_longer_than_four_epochs_of_all_data_reads_all_domains_alike(small_novel, tmp_path, capsys):
    capsys.readouterr()
    words = ("--out", str(tmp_path), "--tokens", "2000")
    about = proposed(small_novel, capsys, *words)
    assert list(about["epochs"].values()) == pytest.approx([2000 / 3.000258] * 3, rel=0.02)
    assert "takes 2000 billion tokens and there are 3: the cap is 673.3 epochs instead of 4." in str(about["warnings"])
    assert all(name in about["warnings"][-1] for name in NAMES)
    assert main(["law", "propose", str(small_novel), *SCALE, *words, "--max-epochs", "4"]) == 2
    assert "within the epochs allowed, and the run takes 2000 (--max-epochs)" in capsys.readouterr().err


def test_a_floor_above_the_cap_that_nobody_asked_for_wins_with_a_warning(small_novel, tmp_path, capsys):
    capsys.readouterr()
    words = ("--out", str(tmp_path), "--min-weights", "{novel: 0.2}")
    about = proposed(small_novel, capsys, *words)
    assert about["weights"]["novel"] >= 0.2 - 1e-9
    assert any("floor 0.2 above cap" in line for line in about["warnings"])
    assert main(["law", "propose", str(small_novel), *SCALE, *words, "--max-epochs", "4"]) == 2
    assert "floor 0.2 above cap" in capsys.readouterr().err


def test_weights_that_count_documents_say_nothing_of_epochs(tmp_path, capsys):
    table = dataclasses.replace(small_table(), available_tokens=[1.0, 2.0, 0.1], unit="documents")
    path = str(write_run_table(tmp_path / "table.csv", table))
    words = ["law", "propose", path, "--law", "power", *QUICK, *SCALE, "--out", str(tmp_path / "law"), "--json"]
    assert main([*words, "--max-epochs", "4"]) == 2
    assert "the weights of this table count documents" in capsys.readouterr().err
    assert main(words) == 0
    assert "weights count documents" in json.loads(capsys.readouterr().out)["warnings"][-1]
    assert read_mixture(tmp_path / "law").unit == "documents"


@pytest.mark.parametrize("action", ["fit", "check", "propose"])
def test_a_dry_run_writes_nothing(action, path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["law", action, path, "--dry-run", *SCALE]) == 0
    text = capsys.readouterr().out
    assert "16 runs of 16 mixtures, 3 domains, 3 metrics" in text
    assert "Nothing was written" in text
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["fot", "{path}"], "Did you mean 'fit'?"),
        (["fit", "{path}x"], "there is no table"),
        (["fit", "{path}", "--law", "capasity"], "Did you mean 'capacity'?"),
        (["fit", "{path}", "--law", "capacity", "--options", "offset: wide"], "unknown offset 'wide'"),
        (["fit", "{path}", "--law", "capacity", "--options", "ofset: none"], "has no argument 'ofset'"),
        (["fit", "{path}", "--options", "rank: 1"], "options belong to one law"),
        (["check", "{path}", "--laws", "capacity,foo"], "unknown law 'foo'"),
        (["check", "{path}", "--folds", "1"], "--folds must be at least 2, got 1"),
        (["propose", "{path}"], "--model-size is missing"),
        (["propose", "{path}", *SCALE, "--max-weights", "{dramas: 1}"], "Did you mean 'drama'?"),
        (["propose", "{path}", *SCALE, "--prior", "{drama: 1}"], "no weight for source"),
        (["propose", "{path}", *SCALE, "--max-epochs", "4"], "--max-epochs needs --available"),
        (["propose", "{path}", *SCALE, "--max-epochs", "nan"], "--max-epochs must be above 0, got nan"),
        (["propose", "{path}", "--model-size", "1", "--tokens", "0"], "tokens must be finite and above 0, got 0"),
        (["propose", "{path}", "--model-size", "nan", "--tokens", "1", "--dry-run"], "model_size must be finite"),
        (["propose", "{path}", *SCALE, "--min-weights", "0.5"], "min_weights add up to 1.5"),
        (["propose", "{path}", *SCALE, "--min-weights", "{mail: 0.3}", "--max-weights", "{mail: 0.2}"],
         "domain mail has floor 0.3 above cap 0.2"),
        (["propose", "{path}", *SCALE, "--available", "{drama: .nan}"], "'drama' must be a number, got nan"),
        (["propose", "{path}", *SCALE, "--available", "{drama: 0.1, mail: 0.1, novel: 0.1}", "--max-epochs", "2"],
         "0.6 billion tokens may be drawn"),
    ],
)  # fmt: skip
def test_mistakes_are_refused_before_anything_is_fitted(words, complaint, path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["law", *(w.replace("{path}", path) for w in words)]) == 2
    error = capsys.readouterr().err
    assert complaint in error
    assert error.startswith("jaxmix: ")
    assert not list(tmp_path.iterdir())


def test_a_law_whose_runs_were_changed_is_refused(folder, tmp_path, capsys):
    for name in ("law.json", "runs.csv"):
        (tmp_path / name).write_text((folder / name).read_text())
    lines = (tmp_path / "runs.csv").read_text().splitlines()
    (tmp_path / "runs.csv").write_text("\n".join(lines[:-1]) + "\n")
    assert main(["law", "propose", str(tmp_path), *SCALE]) == 2
    assert "not the table the law was fitted to" in capsys.readouterr().err
