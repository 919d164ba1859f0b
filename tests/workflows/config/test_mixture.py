"""Mixture files: one format, written and read here, and taken into configurations by name."""

import json
from pathlib import Path

import pytest

from jaxmix.cli import main
from jaxmix.core.errors import ConfigError
from jaxmix.data.sources.corpora import bundled_corpus
from jaxmix.workflows.compare.run import members
from jaxmix.workflows.config.load import from_mapping, load_config
from jaxmix.workflows.config.mixture import Mixture, read_mixture, write_mixture
from jaxmix.workflows.config.sections import config_hash, folder_of
from jaxmix.workflows.config.yaml import dump_yaml, parse_yaml

WEIGHTS = {"web": 0.7, "no": 0.3}
FOUND = Mixture("tokens", WEIGHTS, tokens=1000, available_tokens={"web": 1400, "no": 30}, about={"law": "power"})


@pytest.fixture
def path(tmp_path, monkeypatch):
    """A mixture file in the working directory."""
    monkeypatch.chdir(tmp_path)
    write_mixture(Path("runs/law/mixture.yaml"), FOUND, ["Found by hand."])
    return "runs/law/mixture.yaml"


def config(**sections):
    return {"sources": {"web": {"path": "w"}, "no": {"path": "n"}}, "train": {"steps": 10}, **sections}


def test_a_mixture_reads_back_and_says_how_often_sources_are_read(path):
    assert read_mixture(path) == read_mixture("runs/law") == FOUND
    text = Path(path).read_text()
    assert text.startswith("# Found by hand.\n# Use: jaxmix train CONFIG --mixture runs/law/mixture.yaml\n")
    assert parse_yaml(text, where=path)["epochs"] == FOUND.epochs == {"web": 0.5, "no": 10.0}
    assert FOUND.repeated() == [
        "A run of 1,000 tokens reads no 10.0 times (30.00 %, of 30 tokens): cap the weight, train on fewer tokens, "
        "or add data."
    ]
    assert FOUND.repeated(10.0) == []
    many = {f"s{i}": 1.0 for i in range(8)}
    (line,) = Mixture("tokens", many, tokens=800, available_tokens=dict.fromkeys(many, 10)).repeated()
    assert "s7 10.0 times (12.50 %, of 10 tokens)" in line
    assert " and 3 more: cap" in line
    assert Mixture("documents", WEIGHTS, tokens=1000, available_tokens={"web": 1400, "no": 30}).epochs is None
    assert Mixture("tokens", WEIGHTS, tokens=1.0, available_tokens={"no": 0}).epochs == {"no": float("inf")}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": None}, r"version must be 1, got empty \(m.yaml, version\)"),
        ({"version": 2}, r"version must be 1, got 2"),
        ({"unit": "token"}, r"unknown unit 'token'.*Did you mean 'tokens'"),
        ({"wieghts": {}}, r"unknown key 'wieghts'.*Did you mean 'weights'"),
        ({"weights": {"web": -1.0}}, r"'web' has -1 \(m.yaml, weights\)"),
        ({"weights": {"web": 0.0}}, "all mixture weights are 0"),
        ({"weights": {"web": "half"}}, r"weights.web must be a number, got 'half'"),
        ({"available_tokens": {"wbe": 3.0}}, r"'wbe' has no weight.*Did you mean 'web'"),
    ],
)
def test_a_bad_mixture_file_is_refused_by_key(changes, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plain = {"version": 1, "unit": "tokens", "weights": WEIGHTS, **changes}
    Path("m.yaml").write_text(dump_yaml(plain))
    with pytest.raises(ConfigError, match=message):
        read_mixture("m.yaml")


def test_the_path_of_a_file_may_hold_a_variable(path, monkeypatch):
    monkeypatch.setenv("LAWS", "runs/law")
    assert from_mapping(config(mixture="$LAWS")).mixture.weights == WEIGHTS


def test_a_configuration_takes_the_weights_of_a_file_and_needs_it_no_more(path):
    loaded = from_mapping(config(mixture=path), file="c.yaml")
    assert loaded.mixture.weights == WEIGHTS
    assert config_hash(loaded) == config_hash(from_mapping(config(mixture={"weights": WEIGHTS}), file="c.yaml"))
    by_option = from_mapping(config(mixture={"weights": "uniform"}), [("mixture", "runs/law")], file="c.yaml")
    assert by_option.mixture.weights == WEIGHTS
    Path(path).unlink()
    Path("again.yaml").write_text(dump_yaml(folder_of(loaded).plain))
    assert load_config("again.yaml") == loaded


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"mixture": "runs/law/mixtrue.yaml"},
         r"there is no mixture file 'runs/law/mixtrue.yaml' \(c.yaml, mixture\). Did you mean 'mixture.yaml'"),
        ({"mixture": "uniform"}, "mixture must be a mapping, got 'uniform'"),
        ({"sources": {"web": {"path": "w"}, "now": {"path": "n"}, "code": {"path": "c"}}},
         r"mixture.yaml does not fit the sources: there is no source no, and it has no weight for now, code "
         r"\(c.yaml, mixture\). Did you mean 'now'"),
        ({"sources": "bundled"}, "there is no source web, no, and it has no weight for glosses"),
        ({"data": {"unit": "documents"}}, "count tokens, and data.unit is documents"),
        ({"mixer": {"name": "scheduled", "points": [{"at": 0, "weights": "uniform"}]}}, "by its points alone"),
    ],
)  # fmt: skip
def test_a_file_that_does_not_fit_the_configuration_is_refused(sections, message, path):
    with pytest.raises(ConfigError, match=message):
        from_mapping(config(**{"mixture": path, **sections}), file="c.yaml")


@pytest.mark.parametrize(("content", "is_what"), [("- 1", "a list"), ("", "empty"), ("text", "'text'")])
def test_a_file_that_is_no_mapping_is_called_a_mixture_file(tmp_path, content, is_what):
    (tmp_path / "m.yaml").write_text(content)
    with pytest.raises(ConfigError, match=rf"the mixture file must be a mapping: it is {is_what} \(.*m\.yaml\)"):
        read_mixture(tmp_path / "m.yaml")


def test_a_schedule_through_the_prior_takes_a_file(path):
    points = [{"at": 0, "weights": "uniform"}, {"at": 5, "weights": "prior"}]
    loaded = from_mapping(config(mixture=path, mixer={"name": "scheduled", "points": points}), file="c.yaml")
    assert loaded.mixture.weights == WEIGHTS


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([("mixture", "runs/law"), ("mixture.weights", "uniform")], "mixture is 'runs/law', so 'mixture.weights'"),
        ([("mixture.weights", "uniform"), ("mixture", "runs/law")], "--mixture would undo --mixture.weights"),
    ],
)
def test_a_file_and_weights_together_are_refused(overrides, message, path):
    with pytest.raises(ConfigError, match=message):
        from_mapping(config(), overrides, file="c.yaml")


def test_a_comparison_takes_a_file_for_all_variants_or_for_one(path):
    variants = {"even": {}, "found": {"mixture": path}}
    base = config(mixture={"weights": "uniform"})
    runs = members({"base": base, "variants": variants}, (), file="c.yaml", out="runs/c")
    assert [m.config.mixture.weights for m in runs] == ["uniform", WEIGHTS]
    with pytest.raises(ConfigError, match="--mixture would replace the mixture of its own that variant 'found' has"):
        members({"base": base, "variants": variants}, [("mixture", path)], file="c.yaml", out="runs/c")
    variants["found"] = {"mixer": {"name": "odm"}}
    runs = members({"base": base, "variants": variants}, [("mixture", path)], file="c.yaml", out="runs/c")
    assert [m.config.mixture.weights for m in runs] == [WEIGHTS, WEIGHTS]


@pytest.mark.parametrize("command", ["plan", "train", "prepare", "compare", "swarm generate", "discover"])
def test_a_mixture_given_as_a_configuration_is_named(command, path, capsys):
    assert main([*command.split(), path]) == 2
    error = capsys.readouterr().err
    assert (
        f"this is a mixture, not a configuration ({path}). Use it in one: jaxmix train CONFIG --mixture {path}" in error
    )


def test_the_commands_take_a_file_by_option(path, tmp_path, capsys):
    even = dict.fromkeys(bundled_corpus(), 1 / 11) | {"novel": 10 / 11}
    write_mixture(tmp_path / "own.yaml", Mixture("tokens", even))
    Path("c.yaml").write_text(dump_yaml({"sources": "bundled", "train": {"steps": 10}}))
    assert main(["plan", "c.yaml", "--mixture", "own.yaml", "--json"]) == 0
    weights = {source["name"]: source["weight"] for source in json.loads(capsys.readouterr().out)["sources"]}
    assert weights == pytest.approx({name: weight / sum(even.values()) for name, weight in even.items()})
    assert main(["train", "c.yaml", "--mixture=own.yaml", "--dry-run", "--json"]) == 0
    assert main(["train", "c.yaml", "--mixture", path, "--dry-run"]) == 2
    assert "there is no source web, no" in capsys.readouterr().err
    assert main(["train", "--help"]) == 0
    assert "--mixture FILE" in capsys.readouterr().out
