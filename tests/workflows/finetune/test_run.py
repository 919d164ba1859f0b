"""`jaxmix finetune`: strict configuration, the plan, a tiny run and its continuation, a comparison."""

import json

import pytest

from jaxmix.cli import main
from jaxmix.core.errors import ConfigError
from jaxmix.train import latest_by_step, read_records
from jaxmix.workflows.config.sections import config_hash
from jaxmix.workflows.config.yaml import dump_yaml
from jaxmix.workflows.finetune.compare import load_finetune_comparison
from jaxmix.workflows.finetune.load import finetune_of
from jaxmix.workflows.finetune.plan import finetune_plan_lines, finetune_plan_rows, make_finetune_plan
from jaxmix.workflows.finetune.resolve import resolve_finetune

TINY = {
    "tasks": {"name": "digits", "per_arm": 12, "families": ["rev", "rand"], "levels": 2, "evaluation": {"per_arm": 4}},
    "model": {"preset": "lm-300k", "num_layers": 1, "width": 16, "mlp_width": 16, "num_heads": 2},
    "start": {"steps": 2, "batch_size": 8, "level_decay": 0.5},
    "bandit": {"name": "space"},
    "train": {"steps": 4, "batch_size": 8, "rollouts": 2, "eval_every": 2, "log_every": 2},
    "checkpoint": {"every": 2},
}


def changed(**changes):
    mapping = json.loads(json.dumps(TINY))
    for path, value in changes.items():
        *parents, last = path.split("__")
        section = mapping
        for name in parents:
            section = section.setdefault(name, {})
        section[last] = value
    return mapping


@pytest.mark.parametrize(
    ("changes", "where", "match"),
    [
        ({"taks": {}}, "c.yaml, taks", "unknown key 'taks'"),
        ({"tasks": {"per_arm": 4}}, "c.yaml, tasks", "tasks.name is missing"),
        ({"tasks__per_arm": 0}, "c.yaml, tasks.per_arm", "per_arm must be .* got 0"),
        ({"tasks__evaluation": {"per_arm": -3}}, "c.yaml, tasks.evaluation.per_arm", "per_arm must be .* got -3"),
        ({"tasks__name": "digit"}, "tasks.name", "unknown tasks 'digit'.*Did you mean 'digits'"),
        ({"tasks__famlies": ["rev"]}, "tasks.famlies", "unknown key 'famlies'.*Did you mean 'families'"),
        ({"tasks__families": ["rew"]}, "tasks.families", "unknown family 'rew'"),
        ({"tasks__levels": "two"}, "tasks.levels", "must be a whole number"),
        ({"tasks__part": "train"}, "tasks.part", "unknown key 'part'"),
        ({"tasks__tokenizer": "byte"}, "tasks.tokenizer", "its own tokens"),
        ({"tasks__evaluation": {"color": 1}}, "tasks.evaluation.color", "unknown key 'color'"),
        ({"tasks": {"name": "gsm8k"}}, "tasks", "tasks.path is missing"),
        ({"bandit__name": "spaec"}, "bandit.name", "unknown bandit 'spaec'.*Did you mean 'space'"),
        ({"bandit__rule": "wild"}, "bandit.rule", "unknown rule 'wild'"),
        ({"bandit__ruel": "literal"}, "bandit.ruel", "unknown key 'ruel'"),
        ({"bandit__num_arms": 3}, "bandit.num_arms", "unknown key 'num_arms'"),
        ({"bandit": {"name": "uniform", "sizes": {"rev9": 1}}}, "bandit.sizes", "unknown arm 'rev9'"),
        ({"bandit": {"name": "uniform", "sizes": {"rev0": 1}}}, "bandit.sizes", "no value for arm 'rev1'"),
        ({"train__learning_rate": 0}, "train.learning_rate", "learning_rate must be"),
        ({"train__rollots": 2}, "train.rollots", "unknown key 'rollots'"),
        ({"train__resume": "auto"}, "train.resume", "train.resume is set as checkpoint.resume"),
        ({"train__refill": True, "train__accumulate_live_groups": False}, "train.refill", "keeps all"),
        ({"model__vocab_size": 4}, "model.vocab_size", "is below the vocabulary of the data, 20"),
        ({"model__depth": 4}, "model.depth", "unknown key 'depth'"),
        ({"start__run": "runs/x"}, "start", "both run and steps"),
        ({"start__level_decay": 0}, "start.level_decay", "must be above 0"),
        ({"track": ["wanb"]}, "track", "unknown track 'wanb'"),
    ],
)
def test_mistakes_are_named_with_their_place(changes, where, match):
    with pytest.raises(ConfigError, match=match) as caught:
        finetune_of(changed(**changes), file="c.yaml")
    assert where in str(caught.value.where)


def test_overrides_are_named_as_such():
    with pytest.raises(ConfigError, match=r"command line, --bandit\.rule"):
        finetune_of(TINY, [("bandit.rule", "wild")], file="c.yaml")
    config = finetune_of(TINY, [("train.steps", "9"), ("bandit.name", "dump")], file="configs/c.yaml")
    assert (config.train.steps, config.bandit.name, config.out) == (9, "dump", "runs/c")


def test_numbers_per_arm():
    prompts = resolve_finetune(finetune_of(TINY)).prompts
    assert prompts.arm_names == ("rev0", "rev1", "rand0", "rand1")
    make = lambda **bandit: resolve_finetune(finetune_of(changed(bandit=bandit))).make_bandit(prompts)
    of = lambda bandit: [round(float(p), 3) for p in bandit.probabilities(bandit.init())]
    assert of(make(name="uniform", sizes={"level_decay": 0.25})) == [0.4, 0.1, 0.4, 0.1]
    assert of(make(name="uniform", sizes={"rev0": 1, "rev1": 2, "rand0": 3, "rand1": 4})) == [0.1, 0.2, 0.3, 0.4]
    assert of(make(name="staged", order="level")) == [1, 0, 0, 0]
    assert of(make(name="adarft", difficulty="level", initial_target=100.0)) == [0, 1, 0, 0]


def test_the_supervised_start_leaves_noise_out():
    assert resolve_finetune(finetune_of(TINY)).start_weights == (1.0, 0.5, 0.0, 0.0)


def test_the_hash_is_of_what_is_trained():
    base = config_hash(finetune_of(TINY))
    assert base == config_hash(finetune_of(changed(out="elsewhere", checkpoint__every=3)))
    assert base == config_hash(finetune_of(changed(train__clip_low=0.2)))  # a default, written out
    assert base != config_hash(finetune_of(changed(train__learning_rate=1e-3)))


def test_the_plan_adds_up():
    config = finetune_of(changed(tasks__kept_per_arm=5))
    plan = make_finetune_plan(config)
    assert (plan.prompts, plan.rollouts, plan.updates, plan.evaluations) == (32, 64, 4, 3)
    assert plan.unique_prompts == 20
    assert [arm.kept for arm in plan.arms] == [5] * 4
    assert plan.evaluation_rollouts == 4 * 4 * 2
    forward = plan.start_flops / (3 * 2 * 8 * 18)
    assert plan.generation_flops == pytest.approx(forward * (32 * 10 + 64 * 8))
    assert plan.update_flops == pytest.approx(3 * forward * 4 * 8 * 2 * 18)
    assert plan.evaluation_flops == pytest.approx(forward * 3 * (16 * 10 + 32 * 8))
    assert plan.parameter_bytes == 16 * plan.num_params
    text = "\n".join(finetune_plan_lines(plan))
    assert "32 prompts, 64 rollouts" in text
    assert finetune_plan_rows(plan)[1][0] == ("rev", "2", "24", "10", "8")
    notes = " ".join(
        make_finetune_plan(finetune_of(changed(train__accumulate_live_groups=False, start__steps=0))).notes
    )
    assert "hides most of what a curriculum saves" in notes
    assert "starts from fresh parameters" in notes


def test_prompts_in_both_parts_are_noticed(tmp_path):
    paths = [tmp_path / "train.jsonl", tmp_path / "test.jsonl"]
    lines = [json.dumps({"question": f"{i} + {i}?", "answer": str(2 * i)}) for i in range(5)]
    paths[0].write_text("\n".join(lines[:3]))
    paths[1].write_text("\n".join(lines[2:]))
    tasks = {"name": "gsm8k", "path": str(paths[0]), "completion_length": 8, "evaluation": {"path": str(paths[1])}}
    notes = make_finetune_plan(finetune_of({"tasks": tasks, "train": {"steps": 1}})).notes
    assert any("1 held-out prompts are also training prompts" in note for note in notes)
    assert not any("held-out prompts are" in note for note in make_finetune_plan(finetune_of(TINY)).notes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of four steps from fresh parameters, by the command line."""
    folder = tmp_path_factory.mktemp("finetune")
    path = folder / "tiny.yaml"
    path.write_text(dump_yaml(changed(start={})))
    assert main(["finetune", str(path), "--out", str(folder / "run")]) == 0
    return path, folder / "run"


def test_a_run_folder(finished):
    _, run = finished
    names = {path.name for path in run.iterdir()}
    expected = {"config.yaml", "provenance.json", "metrics.jsonl", "timing.jsonl", "checkpoints"}
    assert names == expected | {"curriculum.yaml", "report.html"}
    about = json.loads((run / "provenance.json").read_text())
    assert [arm["is_learnable"] for arm in about["arms"]] == [True, True, False, False]
    assert about["plan"]["prompts"] == 32
    assert about["finished"]
    assert "jaxmix finetune" in about["command"]
    records = read_records(run / "metrics.jsonl")
    assert [(r["kind"], r["step"]) for r in records] == [
        ("eval", 0), ("train", 2), ("eval", 2), ("train", 4), ("eval", 4),
    ]  # fmt: skip
    assert records[-1]["rollouts"] == 64
    page = (run / "report.html").read_text()
    assert "Accuracy in three currencies" in page


def test_dry_run_and_json(finished, capsys, tmp_path):
    path, run = finished
    capsys.readouterr()
    assert main(["finetune", str(path), "--out", str(tmp_path / "x"), "--dry-run"]) == 0
    assert "Nothing was written" in capsys.readouterr().out
    assert main(["finetune", str(path), "--out", str(tmp_path / "x"), "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["prompts"] == 32
    assert not (tmp_path / "x").exists()
    assert main(["report", str(run), "--json"]) == 0
    assert "32 prompts" in json.loads(capsys.readouterr().out)["verdict"][0]


@pytest.mark.slow
def test_a_run_is_continued_from_its_own_start(tmp_path, capsys):
    """Two steps, then four by the same command: the records of the run that was not stopped, and one start."""
    path, straight, out = tmp_path / "tiny.yaml", tmp_path / "straight", tmp_path / "run"
    path.write_text(dump_yaml(TINY))
    assert main(["finetune", str(path), "--out", str(straight)]) == 0
    assert main(["finetune", str(path), "--out", str(out), "--train.steps", "2", "--json"]) == 0
    started = sorted(p.stat().st_mtime_ns for p in (out / "start").rglob("*") if p.is_file())
    capsys.readouterr()
    assert main(["finetune", str(path), "--out", str(out), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["resumed_from"], result["steps"], result["prompts"]) == (2, 4, 32)
    assert sorted(p.stat().st_mtime_ns for p in (out / "start").rglob("*") if p.is_file()) == started
    for kind in ("train", "eval"):
        resumed, expected = (latest_by_step(read_records(f / "metrics.jsonl"), kind) for f in (out, straight))
        assert resumed == expected
    assert len(json.loads((out / "provenance.json").read_text())["sessions"]) == 2
    assert main(["finetune", str(path), "--out", str(out), "--train.rollouts", "4"]) == 2
    assert "train.rollouts was 2 and is now 4" in capsys.readouterr().err


@pytest.mark.slow
def test_a_comparison_shares_its_start(tmp_path, capsys):
    path = tmp_path / "compare.yaml"
    base = changed(train__steps=2)
    variants = {"uniform": {"bandit": {"name": "uniform"}}, "space": {"bandit": {"name": "space"}}}
    path.write_text(dump_yaml({"base": base, "variants": variants, "seeds": [3]}))
    command = ["compare", str(path), "--out", str(tmp_path / "runs"), "--json"]
    assert main([*command, "--dry-run"]) == 0
    assert len(json.loads(capsys.readouterr().out)["runs"]) == 2
    assert main(command) == 0
    summary = json.loads(capsys.readouterr().out)
    assert [row["variant"] for row in summary["variants"]] == ["uniform", "space"]
    assert set(summary["runs"]) == {"uniform-seed3", "space-seed3"}
    assert len(list((tmp_path / "runs" / "starts").iterdir())) == 1
    firsts = [read_records(tmp_path / "runs" / name / "metrics.jsonl")[0] for name in summary["runs"]]
    assert firsts[0] == firsts[1]
    before = (tmp_path / "runs" / "space-seed3" / "metrics.jsonl").stat().st_mtime_ns
    assert main(["compare", str(path), "--out", str(tmp_path / "runs")]) == 0
    assert "space seed 3 (2/2): already finished" in capsys.readouterr().out
    assert (tmp_path / "runs" / "space-seed3" / "metrics.jsonl").stat().st_mtime_ns == before


def test_a_comparison_is_checked_before_it_begins(tmp_path):
    path = tmp_path / "compare.yaml"
    write = lambda variants: path.write_text(dump_yaml({"base": TINY, "variants": variants}))
    write({"a": {}, "b": {"tasks": {"name": "symbols"}}})
    with pytest.raises(ConfigError, match="variant 'b' has other tasks than 'a'"):
        load_finetune_comparison(str(path))
    write({"a": {}, "b": {"bandit": {"name": "dumb"}}})
    with pytest.raises(ConfigError, match="unknown bandit 'dumb'") as caught:
        load_finetune_comparison(str(path))
    assert "variant b" in str(caught.value.where)
    write({"a": {}, "b": {"bandit": {"name": "dump"}}})
    runs = load_finetune_comparison(str(path), out="runs/x", seeds=2)
    assert [(r.variant, r.config.train.seed) for r in runs] == [("a", 0), ("b", 0), ("a", 1), ("b", 1)]
    assert runs[-1].config.out == "runs/x/b-seed1"
