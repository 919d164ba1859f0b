"""The section `selection` of a configuration: what it refuses, what it plans, and runs that show it in their report."""

import json

import numpy as np
import pytest
import yaml

from jaxmix.core.errors import ConfigError
from jaxmix.models.lm.accounting import flops_per_token
from jaxmix.report import load_run, write_report
from jaxmix.report.pages.selection import axes_of, axes_table
from jaxmix.train import latest_by_step, read_records
from jaxmix.workflows.compare.run import load_comparison, run_comparison
from jaxmix.workflows.config.build import to_plain
from jaxmix.workflows.config.load import from_mapping
from jaxmix.workflows.config.resolve import resolve_run
from jaxmix.workflows.config.sections import config_hash
from jaxmix.workflows.config.yaml import dump_yaml
from jaxmix.workflows.swarm.config import swarm_of
from jaxmix.workflows.train.plan import make_plan, plan_lines
from jaxmix.workflows.train.run import run_train

NAMES = ("plain", "dense")
TABLE = {"losses": {"plain": 1.0, "dense": 2.0}}


def sources(folder="nowhere"):
    return {name: {"path": f"{folder}/{name}.jsonl", "tokens": 1e5} for name in NAMES}


def configured(folder="nowhere", **sections):
    plain = {
        "sources": sources(folder),
        "data": {"prepared": f"{folder}/prepared", "seq_len": 32, "batch_size": 8, "block": 1, "validation_rows": 4},
        "mixture": {"weights": "uniform"},
        "mixer": {"name": "static"},
        "model": {"preset": "lm-300k", "num_layers": 1, "width": 64},
        "train": {"steps": 6, "log_every": 2, "eval_every": 3, "learning_rate": 0.01},
        "checkpoint": {"every": 100, "keep": 1},
    }
    for section, value in sections.items():
        plain[section] = {**plain.get(section, {}), **value} if isinstance(value, dict) else value
    return from_mapping(plain, file="selection.yaml")


@pytest.mark.parametrize(
    ("sections", "match"),
    [
        ({"selection": {"method": "learnability"}}, "measures the loss against a reference, and the run has none"),
        ({"selection": {"method": "learnabilty"}}, "unknown method 'learnabilty'.*selection.method.*Did you mean"),
        ({"selection": {"filter_ratio": 0.5}}, "selection.method is missing"),
        ({"selection": {"method": "uniform", "filter_rate": 0.5}}, "unknown key 'filter_rate'.*filter_ratio"),
        ({"selection": {"method": "uniform", "filter_ratio": 0.7}}, r"26\.6667 rows.*selection\.yaml, selection"),
        ({"selection": {"method": "uniform", "gain": -1}}, r"gain must be finite.*selection\.yaml, selection\.gain"),
        ({"selection": {"method": "uniform", "keep": 0.5}}, "keep has no effect at the level of a sequence"),
        (
            {"selection": {"method": "hard_learner", "level": "token", "filter_ratio": 0.5}},
            "filter_ratio has no effect at the level of a token",
        ),
        (
            {"selection": {"method": "hard_learner", "filter_ratio": 0.5}, "mixer": {"name": "doge"}},
            "mixer 'doge' measures .* and selection chooses those rows",
        ),
        ({"selection": {"method": "easy_reference"}, "reference": TABLE}, "cannot tell rows apart"),
    ],
)
def test_every_mistake_is_named_before_anything_is_opened(sections, match):
    with pytest.raises(ConfigError, match=match):
        configured(**sections)


def test_a_swarm_cannot_select():
    base = to_plain(configured(selection={"method": "uniform", "filter_ratio": 0.5}))
    for key in ("out", "track"):
        del base[key]
    with pytest.raises(ConfigError, match="selection"):
        swarm_of({"base": base, "design": {"runs": 2}}, file="s.yaml", out="runs/s")


def test_the_section_means_the_same_written_out_and_its_absence_changes_no_hash():
    config = configured(selection={"method": "learnability", "gain": 3}, reference=TABLE)
    again = from_mapping(to_plain(config), file="config.yaml")
    assert again.selection == config.selection
    assert to_plain(again)["selection"]["filter_ratio"] == 0.8
    assert resolve_run(config).drawn() == 40
    assert config_hash(config) != config_hash(configured(reference=TABLE))
    plain = to_plain(configured())
    assert plain["selection"] is None
    del plain["selection"]
    assert config_hash(from_mapping(plain, file="config.yaml")) == config_hash(configured())


def test_the_plan_shows_every_axis():
    config = configured(selection={"method": "learnability", "filter_ratio": 0.75}, reference={"run": "nowhere"})
    plan = make_plan(config)
    per_token = flops_per_token(resolve_run(config).model)
    assert (plan.steps, plan.rows_trained, plan.rows_scanned) == (6, 48, 192)
    # Forward and backward over 8 rows; a forward pass of 32 rows by each of two models.
    assert plan.flops == pytest.approx(6 * 32 * per_token * (8 + 2 * 32 / 3))
    assert plan.relative_flops == pytest.approx(1 + 2 * 4 / 3)
    text = "\n".join(plan_lines(plan))
    for part in ("6 steps", "48 rows trained", "192 rows scanned", "3.67x", "wall time", "learner's size"):
        assert part in text, part
    assert sum(s.rows for s in plan.sources) == pytest.approx(192)
    table = make_plan(configured(selection={"method": "learnability", "filter_ratio": 0.75}, reference=TABLE))
    assert table.relative_flops == pytest.approx(1 + 4 / 3)
    tokens = {"method": "hard_learner", "level": "token"}
    token = make_plan(configured(selection=tokens))
    assert (token.rows_trained, token.rows_scanned) == (48, 48)
    assert token.relative_flops == 1.0  # chosen by the training pass itself
    cut = make_plan(configured(selection=tokens, train={"accumulate": 2}))
    assert cut.relative_flops == pytest.approx(4 / 3)
    control = make_plan(configured(selection={"method": "uniform", "filter_ratio": 0.75}))
    assert (control.rows_scanned, control.relative_flops) == (192, 1.0)


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """Plain steps, rows by learnability against a table under a learning mixer, tokens by loss: one seed."""
    folder = tmp_path_factory.mktemp("selection")
    rng = np.random.default_rng(0)
    words = {"plain": ["ab", "cd"], "dense": ["the", "of", "and", "mixture", "domain", "weight"]}
    for name in NAMES:
        lines = [json.dumps({"text": " ".join(rng.choice(words[name], 60))}) for _ in range(60)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    base = to_plain(configured(folder, reference=TABLE))
    for key in ("out", "track", "selection", "mixer"):
        del base[key]
    rows = {"method": "learnability", "filter_ratio": 0.5, "hold_shares": True}
    variants = {
        "iid": {},
        "rows": {"selection": rows, "mixer": {"name": "learnability", "step_size": 0.1}},
        "tokens": {"selection": {"method": "hard_learner", "level": "token", "keep": 0.5}},
    }
    path = folder / "compare.yaml"
    path.write_text(dump_yaml({"base": base, "variants": variants, "seeds": [0]}))
    runs = load_comparison(str(path), out=str(folder / "runs"))
    run_comparison(runs, out=str(folder / "runs"), command="test")
    return folder / "runs"


def test_variants_of_a_comparison_may_differ_in_selection(compared):
    last = {
        name: latest_by_step(read_records(compared / f"{name}-seed0" / "metrics.jsonl"), "train")[-1]
        for name in ("iid", "rows", "tokens")
    }
    assert "select/tokens" not in last["iid"]
    assert last["rows"]["select/rows"] == last["iid"]["tokens"] / 32 == 48
    assert last["rows"]["tokens"] == 2 * last["iid"]["tokens"]
    for name in NAMES:
        assert last["rows"][f"select/share/{name}"] == pytest.approx(last["rows"][f"data/share/{name}"], abs=0.06)
        # The mixer's score comes from the pass that scored: the scanned rows' loss over the table's.
        gap = last["rows"][f"select/loss/{name}"] - TABLE["losses"][name]
        assert abs(last["rows"][f"mix/score/{name}"] - gap) < 0.5
    written = yaml.safe_load((compared / "rows-seed0" / "mixture.yaml").read_text())
    assert written["about"]["trained"] == {name: last["rows"][f"select/share/{name}"] for name in NAMES}
    assert last["tokens"]["select/tokens"] == pytest.approx(last["iid"]["tokens"] / 2, abs=6)


def test_the_report_shows_every_axis_and_three_shares(compared):
    records = [load_run(compared / f"{name}-seed0") for name in ("iid", "rows", "tokens")]
    axes = [axes_of(record) for record in records]
    assert [a.steps for a in axes] == [6, 6, 6]
    assert [a.trained for a in axes] == [48, 48, 48]
    assert [a.scanned for a in axes] == [48, 96, 48]
    ratios = [a.flops / axes[0].flops for a in axes]
    assert ratios == pytest.approx([1, 1 + 2 / 3, 1])  # tokens are chosen by the training pass itself
    assert all(a.seconds > 0 for a in axes)
    assert axes_table(records).rows[1][3] == "96 (2.00x)"
    page = (compared / "report.html").read_text()
    for part in ("Cost on every axis", "against every axis", "rows scanned", "What selection did: rows-seed0"):
        assert part in page, part
    single = write_report(compared / "rows-seed0").read_text()
    for part in ("What selection did", "the mixture that selection implies", "Learnability of each domain"):
        assert part in single, part


def test_a_run_goes_on_only_with_the_rows_it_was_begun_with(compared):
    folder = compared / "rows-seed0"
    plain = json.loads(json.dumps(to_plain(from_mapping(_written(folder), file="config.yaml"))))
    plain["selection"]["filter_ratio"] = 0.75
    with pytest.raises(ConfigError, match=r"selection\.filter_ratio was 0\.5 and is now 0\.75"):
        run_train(from_mapping(plain, file="config.yaml"), command="test")


def _written(folder):
    return yaml.safe_load((folder / "config.yaml").read_text())
