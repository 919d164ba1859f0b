import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmix.cli import main
from jaxmix.core.errors import ConfigError
from jaxmix.mixers import Feedback
from jaxmix.train import latest_by_step, read_records
from jaxmix.workflows.config.load import from_mapping
from jaxmix.workflows.config.mixer import _of_active, inactive_names
from jaxmix.workflows.config.resolve import Sizes, resolve_run

PRIOR = {"web": 0.75, "held": 0.0, "code": 0.25}
SIZES = {"web": 3e6, "held": 1e6, "code": 1e6}
KEY = jax.random.key(0)


def drawing(mixer, *, prior=PRIOR, steps=10):
    config = from_mapping(
        {"sources": {n: {"path": n} for n in prior}, "mixture": {"weights": prior}, "mixer": mixer}
        | {"train": {"steps": steps}, "data": {"batch_size": 8, "seq_len": 32}}
    )
    return resolve_run(config, Sizes(SIZES, {}, None), is_drawing=True).mixer


def drawn(mixer, updates=3):
    state = mixer.init(KEY, 3, jnp.asarray(list(PRIOR.values())))
    for _ in range(updates):
        state, _ = mixer.update(KEY, state, Feedback(loss_sum=jnp.asarray([9.0, 5.0, 2.0]), token_count=jnp.ones(3)))
    return np.asarray(mixer.weights(state))


@pytest.mark.parametrize(
    "wrap", [[], [{"floor": 0.05}], [{"kl_to_prior": 0.5}], [{"epoch_cap": 4}], [{"floor": 0.1}, {"time_average": {}}]]
)
def test_a_mixer_that_explores_never_draws_what_is_kept_for_evaluation(wrap):
    mixer = drawing({"name": "odm", "wrap": wrap})
    assert mixer.name.startswith("mask(")
    weights = drawn(mixer)
    assert weights[1] == 0
    assert (weights[[0, 2]] > 0.05).all()


def test_nothing_is_hidden_where_all_are_drawn():
    assert drawing({"name": "odm"}, prior={"web": 0.5, "held": 0.25, "code": 0.25}).name == "odm"


def test_written_weights_stay_as_they_are():
    assert drawing({"name": "static"}).name == "static"
    points = [{"at": 0, "weights": "prior"}, {"at": 5, "weights": "uniform"}]
    mixer = drawing({"name": "scheduled", "points": points})
    assert mixer.name == "scheduled"
    np.testing.assert_allclose(drawn(mixer, 6), 1 / 3, atol=1e-6)


def test_a_wrapper_does_not_draw_what_written_weights_leave_out():
    mixer = drawing({"name": "static", "wrap": [{"floor": 0.3}]})
    assert mixer.name == "mask(floor(static))"
    np.testing.assert_allclose(drawn(mixer), [0.7, 0.0, 0.3], atol=1e-6)


@pytest.mark.parametrize("prior", [[0.4, 0.0, 0.6], {"code": 0.6, "web": 0.4, "held": 0.0}])
def test_values_per_source_are_those_of_the_drawn_ones(prior):
    wrap = [{"kl_to_prior": {"strength": 1e7, "prior": prior}}]
    np.testing.assert_allclose(drawn(drawing({"name": "odm", "wrap": wrap})), [0.4, 0.0, 0.6], atol=1e-6)


def test_matrices_lose_rows_and_columns():
    names, is_active = ("a", "b", "c"), (True, False, True)
    by_name = {"a": {"a": 1, "b": 2, "c": 3}, "b": {"a": 4, "b": 5, "c": 6}, "c": {"a": 7, "b": 8, "c": 9}}
    assert _of_active([[1, 2, 3], [4, 5, 6], [7, 8, 9]], names, is_active) == [[1, 3], [7, 9]]
    assert _of_active(by_name, names, is_active) == {"a": {"a": 1, "c": 3}, "c": {"a": 7, "c": 9}}
    points = [{"at": i, "weights": [0.5, 0.0, 0.5]} for i in range(3)]
    assert _of_active(points, names, is_active) == [{"at": i, "weights": [0.5, 0.5]} for i in range(3)]
    assert _of_active({"step_size": 0.1, "times": [1, 2]}, names, is_active) == {"step_size": 0.1, "times": [1, 2]}


def test_values_that_fit_all_sources_only_are_refused():
    wrap = [{"kl_to_prior": {"strength": 1.0, "prior": [0.2, 0.5, 0.3]}}]
    with pytest.raises(ConfigError, match=r"these add to 0\.5.*'held' has weight 0 and is hidden"):
        drawing({"name": "odm", "wrap": wrap})


def test_names_in_a_written_configuration():
    assert inactive_names({"mixture": {"weights": {"b": 0, "a": 0.0, "c": 1}}}) == ["a", "b"]
    assert inactive_names({"mixture": {"weights": "natural"}}) == inactive_names({}) == []


def test_a_run_evaluates_the_hidden_source_and_never_draws_it(tmp_path, capsys):
    for name in PRIOR:
        (tmp_path / name).mkdir()
        for i in range(12):
            (tmp_path / name / f"{i}.txt").write_text(f"{name} says the same again and again. " * (10 + i))
    path = tmp_path / "c.yaml"
    sources = ", ".join(f"{n}: {{path: {tmp_path / n}}}" for n in PRIOR)
    path.write_text(
        f"sources: {{{sources}}}\nmixture: {{weights: {{web: 0.75, held: 0, code: 0.25}}}}\n"
        "mixer: {name: odm, wrap: [{floor: 0.1}, {epoch_cap: 50}]}\nmodel: {preset: lm-300k}\n"
        f"data: {{prepared: {tmp_path / 'prepared'}, seq_len: 32, batch_size: 8, block: 2, validation_fraction: 0.2}}\n"
        "train: {steps: 6, log_every: 2, eval_every: 3, warmup_steps: 1}\ncheckpoint: {every: 3}\n"
    )
    out = ["--out", str(tmp_path / "run")]
    assert main(["train", str(path), *out, "--train.steps", "3"]) == 0
    assert main(["train", str(path), *out]) == 0  # and goes on from a checkpoint of the hidden state
    records = read_records(tmp_path / "run" / "metrics.jsonl")
    train, evaluated = latest_by_step(records, "train"), latest_by_step(records, "eval")
    assert all(r["mix/weight/held"] == 0 and r["data/share/held"] == 0 for r in train)
    assert all(r["mix/weight/code"] > 0.09 for r in train)
    assert all(r["eval/loss/held"] > 0 for r in evaluated)
    assert train[-1]["mix/score/held"] == 0
    capsys.readouterr()
    assert main(["train", str(path), *out, "--mixture.weights", "{web: 1, held: 0, code: 0}"]) == 2
    assert "mixture.weights of 0 was ['held']" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrap", "place"),
    [
        ([{"floor": 0.6}], r"wrap\[0\].floor"),
        ([{"floor": "x"}], r"wrap\[0\].floor"),
        ([{"floor": {"minimun": 0.1}}], r"wrap\[0\].floor.minimun"),
        ([{"floor": 0.1}, {"kl_to_prior": {"strength": -1}}], r"wrap\[1\].kl_to_prior.strength"),
        ([{"epoch_cap": {"available_tokens": [1, 2]}}], r"wrap\[0\].epoch_cap"),
    ],
)
def test_an_error_of_a_wrapper_names_its_place(wrap, place):
    sources = {"a": {"path": "x"}, "b": {"path": "y"}}
    mixer = {"name": "odm", "wrap": wrap}
    with pytest.raises(ConfigError, match=rf"\(f.yaml, mixer.{place}\)"):
        from_mapping({"sources": sources, "train": {"steps": 3}, "mixer": mixer}, file="f.yaml")


def test_a_run_longer_than_can_be_counted_is_refused():
    mapping = {"sources": "bundled", "train": {"steps": 10**18}}
    with pytest.raises(ConfigError, match=r"longer than can be counted .*train.steps"):
        from_mapping(mapping, file="f.yaml")
