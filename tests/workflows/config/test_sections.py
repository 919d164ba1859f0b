import pytest

from jaxmix.core.errors import ConfigError
from jaxmix.workflows.config.build import to_plain
from jaxmix.workflows.config.load import from_mapping
from jaxmix.workflows.config.resolve import Sizes, prior_weights, resolve_run
from jaxmix.workflows.config.sections import config_hash, what_is_trained
from jaxmix.workflows.train.plan import make_plan

SOURCES = {
    "web": {"path": "nowhere/web/*.jsonl", "tokens": 1_000_000},
    "code": {"path": "nowhere/code", "tokens": 20_000, "max_epochs": 2},
}


def config(**sections):
    base = {"sources": SOURCES, "data": {"prepared": "nowhere/prepared"}, "train": {"steps": 100}}
    return {**base, **sections}


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"train": {"steps": 10, "learning_rte": 1}}, "learning_rate"),
        ({"train": {}}, "train.steps"),
        ({"trian": {"steps": 10}}, "train"),
        ({"train": {"steps": "ten"}}, "ten"),
        ({"train": {"steps": 10, "keep": 2}}, "checkpoint.keep"),
        ({"train": {"steps": 10, "mesh": {"dat": -1}}}, "data"),
        ({"train": {"steps": 10, "mesh": {"data": -1, "fsdp": -1}}}, "only one mesh axis"),
        ({"train": {"steps": 10, "accumulate": 3}}, "micro-batches"),
        ({"mixture": {"weights": {"web": 1}}}, "'code'"),
        ({"mixture": {"weights": {"web": 1, "code": -0.2}}}, "'code' has -0.2"),
        ({"mixture": {"weights": {"web": 0, "code": 0}}}, "all mixture weights are 0"),
        ({"mixer": {"name": "odm", "wrap": [{"flor": 0.1}]}}, "floor"),
        ({"mixer": {"name": "odm", "wrap": [{"floor": 0.9}]}}, "0.9"),
        ({"model": {"preset": "lm-1m", "num_layer": 2}}, "num_layers"),
        ({"data": {"prepared": "x", "unit": "token"}}, "tokens"),
        ({"data": {"prepared": "x", "tokenizer": "byte"}, "model": {"preset": "lm-1m", "vocab_size": 100}}, "256"),
        ({"track": ["tensorbord"]}, "tensorboard"),
        ({"sources": {"web": {"path": "a", "hf": "b"}}}, "exactly one"),
        ({"sources": {"web": {"pth": "a"}}}, "path"),
        ({"sources": {}}, "sources"),
        ({"sources": {"web": {"path": "a", "format": "jsnl"}}}, "Did you mean 'jsonl'"),
        ({"sources": {"web": {"path": "a", "config_name": "en"}}}, "web.yaml, sources.web.config_name"),
        ({"sources": {"a/b": {"path": "a"}}}, "'a/b' cannot be the name of a source (web.yaml, sources)"),
        ({"sources": {"Web": {"path": "a"}, "web": {"path": "b"}}}, "'Web' and 'web' differ in case"),
        ({"data": {"prepared": "x", "end_of_document": "</s>"}}, "web.yaml, data.end_of_document"),
        ({"checkpoint": {"resume": "maybe"}}, "maybe"),
    ],
)
def test_every_mistake_is_named_before_anything_is_opened(sections, message):
    with pytest.raises(ConfigError) as caught:
        from_mapping(config(**sections), file="web.yaml")
    assert message in str(caught.value)


def test_overrides_win_and_reach_nested_values():
    overrides = [("train.steps", "7"), ("mixture.weights", "{web: 3, code: 1}"), ("sources.web.max_epochs", "5")]
    loaded = from_mapping(config(), overrides, file="web.yaml")
    assert loaded.train.steps == 7
    assert loaded.mixture.weights == {"web": 3, "code": 1}
    run = resolve_run(loaded)
    assert run.max_epochs == {"web": 5, "code": 2}
    assert run.prior == {"web": 0.75, "code": 0.25}
    assert run.settings.steps == 7
    assert loaded.out == "runs/web"


def test_the_hash_sees_what_is_trained_and_not_where():
    base = from_mapping(config(), file="a.yaml")
    assert config_hash(base) == config_hash(from_mapping(config(out="elsewhere"), file="b.yaml"))
    assert config_hash(base) != config_hash(from_mapping(config(mixer={"name": "odm"}), file="a.yaml"))


def test_a_key_that_was_added_later_changes_no_hash_until_it_is_set():
    plain = to_plain(from_mapping(config()))["sources"]
    without = {n: {key: value for key, value in source.items() if key != "config_name"} for n, source in plain.items()}
    assert what_is_trained({"sources": plain}) == {"sources": without}
    sets = [{"hf": "x", "tokens": 1}, {"hf": "x", "tokens": 1, "config_name": "en"}]
    assert len({config_hash(from_mapping(config(sources={"a": source}))) for source in sets}) == 2


def test_arguments_have_the_types_of_the_mixer_once_the_file_is_read():
    wrap = [{"epoch_cap": 4}, {"kl_to_prior": {"strength": 1, "prior": {"code": 1, "web": 0}}}]
    section = from_mapping(config(mixer={"name": "odm", "wrap": wrap}), file="web.yaml").mixer
    cap, prior = section.wrap[0]["epoch_cap"], section.wrap[1]["kl_to_prior"]
    assert (cap, prior) == (4.0, {"strength": 1.0, "prior": {"code": 1.0, "web": 0.0}})
    assert {type(value) for value in (cap, prior["strength"], *prior["prior"].values())} == {float}
    with pytest.raises(ConfigError, match=r"mixer\.wrap\[0\]\.kl_to_prior\.prior\.web must be a number, got 'much'"):
        from_mapping(
            config(mixer={"name": "odm", "wrap": [{"kl_to_prior": {"strength": 1, "prior": {"web": "much"}}}]})
        )


def test_a_wrapper_may_be_written_without_an_argument():
    section = from_mapping(config(mixer={"name": "odm", "wrap": [{"time_average": None}]}), file="web.yaml").mixer
    assert section.wrap == ({"time_average": {}},)
    with pytest.raises(ConfigError, match="unknown key 'argument'"):
        from_mapping(config(mixer={"name": "odm", "wrap": [{"time_average": 3}]}), file="web.yaml")


def test_a_resolved_run_holds_the_configuration_only_as_written():
    run = resolve_run(from_mapping(config(), file="web.yaml"))
    assert str(run.folder.path) == "runs/web"
    assert run.folder.plain["train"]["steps"] == 100
    assert not hasattr(run, "config")


def test_plan_by_hand():
    data = {"prepared": "nowhere/prepared", "seq_len": 100, "batch_size": 10}
    plan = make_plan(from_mapping(config(data=data, mixture={"weights": {"web": 3, "code": 1}}), file="web.yaml"))
    assert plan.tokens == 100 * 10 * 100
    by_name = {s.name: s for s in plan.sources}
    assert by_name["web"].tokens == pytest.approx(75_000)
    assert by_name["web"].epochs == pytest.approx(0.075)
    assert by_name["code"].rows == pytest.approx(250)
    assert by_name["code"].epochs == pytest.approx(1.25)
    data["batch_size"] = 20
    plan = make_plan(from_mapping(config(data=data, mixture={"weights": {"web": 3, "code": 1}}), file="web.yaml"))
    assert any("code would need 2.50 epochs and may have 2" in note for note in plan.notes)


def test_natural_weights_follow_sizes():
    loaded = from_mapping(config(), file="web.yaml")
    sized = lambda **tokens: Sizes(tokens, {}, None)
    assert prior_weights(loaded, sized(web=30, code=10)) == {"web": 0.75, "code": 0.25}
    assert prior_weights(loaded, sized(web=30, code=None)) is None


def test_a_plan_follows_the_schedule():
    """From all of web to all of code in the first tenth, linearly, then back at once."""
    points = [
        {"at": 0, "weights": [1.0, 0.0]},
        {"at": 10, "weights": {"web": 0, "code": 1}},
        {"at": 11, "weights": "prior"},
    ]
    mixer = {"name": "scheduled", "points": points, "interpolation": "linear"}
    weights = {"weights": {"web": 0.8, "code": 0.2}}
    plan = make_plan(from_mapping(config(mixer=mixer, mixture=weights), file="web.yaml"))
    code = (sum(i / 10 for i in range(10)) + 1 + 89 * 0.2) / 100
    assert {s.name: s.weight for s in plan.sources} == pytest.approx({"web": 1 - code, "code": code})
    assert "weights, draws and epochs are means over the schedule" in plan.notes
    wrapped = {**mixer, "wrap": [{"floor": 0.01}]}
    plan = make_plan(from_mapping(config(mixer=wrapped, mixture=weights), file="web.yaml"))
    assert {s.name: s.weight for s in plan.sources} == pytest.approx({"web": 1 - code, "code": code})
    assert "what wraps the mixer (floor) moves the weights" in plan.notes[-1]
