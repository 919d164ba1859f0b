"""`jaxmix swarm` from a file to a table, and DoReMi offline."""

import csv
import json

import numpy as np
import pytest

from jaxmix.cli import main
from jaxmix.core.errors import ConfigError, RunError
from jaxmix.data import open_prepared
from jaxmix.data.run_tables import read_run_table
from jaxmix.workflows.config.mixture import read_mixture
from jaxmix.workflows.config.yaml import dump_yaml, parse_yaml
from jaxmix.workflows.swarm.config import swarm_of
from jaxmix.workflows.swarm.run import collect, generate, plan_swarm, read_design
from jaxmix.workflows.train.doremi import load_doremi

NAMES = ("plain", "dense", "other")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    rng = np.random.default_rng(0)
    words = {"plain": ["ab", "cd"], "dense": ["the", "of", "mixture", "domain"], "other": ["x1", "y2", "z3"]}
    for name in NAMES:
        lines = [json.dumps({"text": " ".join(rng.choice(words[name], 40))}) for _ in range(40)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    return {
        "sources": {name: {"path": str(folder / f"{name}.jsonl")} for name in NAMES},
        "data": {
            "prepared": str(folder / "prepared"),
            "seq_len": 16,
            "batch_size": 8,
            "block": 1,
            "validation_rows": 4,
            "validation_fraction": 0.2,
            "workers": 1,
        },
        "model": {"preset": "lm-300k", "num_layers": 1, "width": 16, "num_heads": 2, "mlp_width": 16},
        "train": {"steps": 4, "eval_every": 2},
        "checkpoint": {"every": 2},
    }


def made(base, out="runs/s", *, overrides=(), **changes):
    mapping = {"base": base, "design": {"runs": 3}, **changes}
    return swarm_of(mapping, overrides, file="s.yaml", out=str(out))


def open_sizes(base):
    return {name: source.num_tokens for name, source in open_prepared(base["data"]["prepared"], "train").items()}


def test_from_a_file_to_a_table(base, tmp_path, capsys):
    path, out = tmp_path / "two.yaml", tmp_path / "out"
    sizes = {"small": {}, "larger": {"runs": 2, "model": {**base["model"], "width": 32}}}
    design = {"runs": 2, "include": ["prior"], "concentration": [1.0, 10.0]}
    path.write_text(dump_yaml({"base": base, "sizes": sizes, "design": design, "seeds": [0, 1]}))
    arguments = [str(path), "--out", str(out), "--json"]
    assert main(["swarm", "run", *arguments, "--dry-run"]) == 0
    plans = json.loads(capsys.readouterr().out)["sizes"]
    assert [(plan["name"], plan["proxies"]) for plan in plans] == [("small", 6), ("larger", 4)]
    assert not out.exists()

    assert main(["swarm", "generate", *arguments]) == 0
    mixtures = json.loads(capsys.readouterr().out)["mixtures"]
    assert list(mixtures) == ["prior", "mix-0000", "mix-0001"]
    assert main(["swarm", "run", *arguments]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["runs"], result["diverged"], result["domains"]) == (10, {}, list(NAMES))
    assert "larger: " in (out / "report.html").read_text()

    table = read_run_table(out / "table.csv")
    expected = [list(mixtures[name].values()) for name in mixtures]
    np.testing.assert_array_equal(table.weights, np.asarray([*expected, *expected, *expected[:2], *expected[:2]]))
    assert table.seed.tolist() == [0] * 3 + [1] * 3 + [0] * 2 + [1] * 2
    assert len(set(table.model_size.tolist())) == 2
    np.testing.assert_allclose(table.tokens, 4 * 8 * 16 / 1e9)
    assert np.isfinite(table.losses).all()
    assert table.available_tokens.tolist() == [size / 1e9 for size in open_sizes(base).values()]
    assert table.unit == "tokens"
    with (out / "curves.csv").open() as file:
        curves = list(csv.DictReader(file))
    assert [row["step"] for row in curves[:3]] == ["0", "2", "4"]
    assert float(curves[2]["loss/plain"]) == table.losses[0, 0]
    assert curves[-1]["run"] == "9"

    before = (out / "table.csv").read_bytes()
    assert main(["swarm", "run", *arguments]) == 0  # finished: nothing is trained again
    assert (out / "table.csv").read_bytes() == before
    capsys.readouterr()
    assert main(["swarm", "status", *arguments]) == 0
    state = json.loads(capsys.readouterr().out)
    assert {name: (s["proxies"], s["chunks"], s["finished"]) for name, s in state.items()} == {
        "small": (6, 1, 1),
        "larger": (4, 1, 1),
    }
    assert main(["swarm", "status", str(path), "--out", str(out)]) == 0
    assert main(["swarm", "collect", *arguments, "--dry-run"]) == 0


def test_a_design_is_drawn_once_and_may_be_written_by_hand(base, tmp_path):
    swarm = made(base, tmp_path, design={"runs": 5, "seed": 3})
    designed = generate(swarm)
    assert generate(swarm) == designed == read_design(swarm)
    weights = np.asarray([list(mixture.values()) for mixture in designed.values()])
    np.testing.assert_allclose(weights.sum(axis=1), 1.0)
    assert len(np.unique(weights.round(6), axis=0)) == 5
    with pytest.raises(ConfigError, match="holds another design"):
        generate(made(base, tmp_path, design={"runs": 5, "seed": 4}))
    own = "run,weight/plain,weight/dense,weight/other\nmine,0.5,0.25,0.25\n"
    (tmp_path / "design.csv").write_text(own)
    assert read_design(swarm) == {"mine": {"plain": 0.5, "dense": 0.25, "other": 0.25}}
    for text, message in (
        (own.replace("0.5", "0.6"), r"line 2.*|add up to 1.1"),
        (own.replace("0.5", "half"), "weight/plain is not a number: 'half'"),
        (own.replace("weight/other", "weight/else"), "the sources are plain, dense, other"),
        (own + "mine,1,0,0\n", "'mine' occurs twice, first in line 2"),
        (own.replace("run", "name"), "the columns must be run and weight/<domain>, got name, weight/plain"),
        (own.splitlines()[0] + "\n", "no runs"),
    ):
        (tmp_path / "design.csv").write_text(text)
        with pytest.raises(ConfigError, match=message):
            read_design(swarm)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"design": {}}, "Set design.runs"),
        ({"design": {"runs": 3, "method": "dirichelt"}}, "design.method"),
        ({"sizes": {}}, "sizes is empty"),
        ({"sizes": {"a/b": {}}}, "'a/b' cannot be the name of a size"),
        ({"sizes": {"a": {"runs": 0}}}, "runs must be at least 1, got 0"),
        ({"sizes": {"a": {"model": {"preset": "lm-301k"}}}}, "unknown model preset.*sizes.a"),
        ({"sizes": {"a": {"mixer": {"name": "odm"}}}}, "cannot have the mixer 'odm'"),
        ({"sizes": {"a": {}, "b": {"mixture": {"weights": "uniform"}}}}, "size 'b' has other sources or another prior"),
        ({"seeds": [1, 1]}, "seeds must be different"),
        ({"swarm": {"chunk": 0}}, "swarm.chunk"),
    ],
)
def test_what_cannot_be_a_swarm_is_refused(base, changes, message):
    with pytest.raises(ConfigError, match=message):
        made(base, **changes)


def test_overrides_reach_the_design_and_the_base(base):
    swarm = made(base, overrides=[("design.runs", "7"), ("train.steps", "9"), ("swarm.chunk", "2")])
    assert (swarm.design.runs, swarm.limits.chunk) == (7, 2)
    assert swarm.sizes[0].config.train.steps == 9
    (plan,) = plan_swarm(swarm)
    assert (plan.proxies, plan.steps, plan.chunk) == (7, 9, 2)


def test_memory_decides_the_chunks(base):
    (roomy,) = plan_swarm(made(base, design={"runs": 100}, swarm={"memory": 10.0}))
    assert roomy.chunk == 100
    (tight,) = plan_swarm(made(base, design={"runs": 100}, swarm={"memory": 0.002}))
    assert tight.chunk < 100
    assert tight.bytes_per_device <= 0.002 * 1e9 + tight.bytes_per_proxy


def test_nothing_finished_is_said(base, tmp_path):
    with pytest.raises(RunError, match="no chunk is finished"):
        collect(made(base, tmp_path))


def test_an_unknown_action_names_the_nearest(tmp_path, capsys):
    assert main(["swarm", "colect", "x.yaml"]) == 2
    assert "collect" in capsys.readouterr().err


def test_doremi_writes_the_proxy_runs_average_weights(base, tmp_path, capsys):
    path, out = tmp_path / "d.yaml", tmp_path / "out"
    path.write_text(dump_yaml({"base": base, "reference": {"train": {"steps": 3}}}))
    arguments = ["swarm", "doremi", str(path), "--out", str(out)]
    assert main([*arguments, "--dry-run"]) == 0
    assert not out.exists()
    capsys.readouterr()
    assert main([*arguments, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    mixture, proxy = read_mixture(out), read_mixture(out / "proxy")
    assert mixture.weights == proxy.weights == result["weights"]
    assert mixture.available_tokens == proxy.available_tokens == open_sizes(base)
    assert (mixture.unit, mixture.epochs) == ("tokens", result["epochs"])
    assert result["warnings"] == []
    assert sum(result["weights"].values()) == pytest.approx(1.0)
    assert result["weights"] != result["prior"]
    config = parse_yaml((out / "proxy" / "config.yaml").read_text(), where="config.yaml")
    assert config["reference"]["run"] == f"{out}/reference"
    assert config["mixer"]["mode"] == "proxy"


def test_doremi_keeps_its_mixer(base, tmp_path):
    path = tmp_path / "d.yaml"
    path.write_text(dump_yaml({"base": base, "proxy": {"mixer": {"name": "odm"}}}))
    with pytest.raises(ConfigError, match="the proxy has the mixer 'odm'"):
        load_doremi(str(path))
