"""What a comparison refuses before anything runs, and what its runs share."""

import pytest

from jaxmix.core.errors import ConfigError
from jaxmix.workflows.compare import run as compare
from jaxmix.workflows.compare.run import load_comparison, members
from jaxmix.workflows.compare.variant import program_key
from jaxmix.workflows.config.yaml import dump_yaml

BASE = {
    "sources": "bundled",
    "data": {"seq_len": 32, "batch_size": 8, "block": 2},
    "model": {"preset": "lm-300k"},
    "train": {"steps": 4},
}
VARIANTS = {"natural": {"mixer": {"name": "static"}}, "odm": {"mixer": {"name": "odm"}}}


def made(variants=None, *, seeds=(0, 1), count=None):
    mapping = {"base": BASE, "variants": VARIANTS if variants is None else variants, "seeds": list(seeds)}
    return members(mapping, (), file="c.yaml", out="runs/c", seeds=count)


def test_every_variant_meets_every_seed_seed_by_seed():
    runs = made()
    assert [(m.variant, m.seed) for m in runs] == [("natural", 0), ("odm", 0), ("natural", 1), ("odm", 1)]
    assert [m.config.out for m in runs][:2] == ["runs/c/natural-seed0", "runs/c/odm-seed0"]
    assert {m.config.data.prepared for m in runs} == {"runs/c/prepared"}
    assert [m.config.train.seed for m in runs] == [0, 0, 1, 1]


def test_seeds_are_counted_up_from_the_first():
    assert [m.seed for m in made(seeds=(5, 9), count=3)] == [5, 5, 6, 6, 7, 7]
    with pytest.raises(ConfigError, match="--seeds must be at least 1, got 0"):
        made(count=0)


@pytest.mark.parametrize(
    ("variants", "message"),
    [
        ({}, "variants is empty"),
        ({"a/b": {}}, "'a/b' cannot be the name of a variant"),
        ({**VARIANTS, "bad": {"mixer": {"name": "odn"}}}, r"unknown mixer 'odn'.*variant bad"),
        ({**VARIANTS, "bad": {"train": {"steps": 4, "lerning_rate": 1}}}, r"unknown key 'lerning_rate'.*variant bad"),
        (
            {**VARIANTS, "wide": {"data": {"seq_len": 32, "batch_size": 16, "block": 2}}},
            r"variant 'wide' has other data.batch_size than 'natural': 16, and 8.*set it in base",
        ),
        ({**VARIANTS, "other": {"sources": {"a": {"path": "x"}}}}, "variant 'other' has other sources than 'natural'"),
        (
            {**VARIANTS, "own": {"data": {**BASE["data"], "prepared": "elsewhere"}}},
            "other data.prepared than 'natural': 'elsewhere', and 'runs/c/prepared'",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused(variants, message):
    with pytest.raises(ConfigError, match=message):
        made(variants)


def test_variants_may_repeat_rows_as_often_as_they_like():
    assert len(made({**VARIANTS, "thrice": {"data": {**BASE["data"], "max_epochs": 3}}})) == 6


@pytest.mark.parametrize("seeds", [(), (1, 1)])
def test_seeds_must_differ(seeds):
    with pytest.raises(ConfigError, match="seeds must be different numbers"):
        made(seeds=seeds)


def test_compiled_functions_are_shared_over_mixers_and_seeds_alone():
    faster = {"train": {"steps": 4, "learning_rate": 0.1}}
    runs = made({**VARIANTS, "faster": faster, "wider": {"model": {"preset": "lm-1m"}}})
    keys = {(m.variant, m.seed): program_key(m.config) for m in runs}
    assert keys["natural", 0] == keys["odm", 0] == keys["odm", 1]
    assert len(set(keys.values())) == 3


def test_nothing_trains_while_one_run_is_wrong(tmp_path, monkeypatch):
    """A budget that the sources cannot give shows only once their sizes are known."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(12):
            (tmp_path / name / f"{i}.txt").write_text(f"{name} {i} " * 40)
    small = {
        **BASE,
        "sources": {n: {"path": str(tmp_path / n)} for n in ("a", "b")},
        "data": {**BASE["data"], "validation_fraction": 0.2},
        "train": {"steps": 5000},
    }
    variants = {**VARIANTS, "capped": {"mixer": {"name": "odm", "wrap": [{"epoch_cap": 1}]}}}
    runs = members({"base": small, "variants": variants}, (), file="c.yaml", out=str(tmp_path / "out"))
    trained = []
    monkeypatch.setattr(compare, "run_train", lambda *args, **kwargs: trained.append(args))
    with pytest.raises(ConfigError, match="more than max_epochs = 1"):
        compare.run_comparison(runs, out=str(tmp_path / "out"), command="jaxmix compare")
    assert not trained


def test_a_file_names_the_folder(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(dump_yaml({"base": BASE, "variants": VARIANTS}))
    assert load_comparison(str(path))[0].config.out == "runs/mine/natural-seed0"
    assert load_comparison(str(path), out="x", seeds=2)[-1].config.out == "x/odm-seed1"
    assert load_comparison(str(path), [("train.steps", "9")])[0].config.train.steps == 9
    path.write_text("- 1")
    with pytest.raises(ConfigError, match="must be a mapping with base and variants"):
        load_comparison(str(path))
