import contextlib
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bigram import bigram, bigram_loss
from small_run import NAMES, small_run, token_sources
from tolerance import adam_tolerance

import jaxmix
from jaxmix.core.errors import ConfigError, RunError
from jaxmix.core.sharding import build_mesh
from jaxmix.data.mixture.stream import MixtureStream
from jaxmix.mixers.base import Mixer
from jaxmix.train import Hook, TrainSettings, latest_by_step, read_records, run_training, validation_set
from jaxmix.train.lm.evaluate import aggregates


def records(run_dir):
    found = read_records(run_dir / "metrics.jsonl")
    return latest_by_step(found, "train"), latest_by_step(found, "eval")


def table(result):
    return np.asarray(result.params["table"]["kernel"])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run that others are compared with."""
    run_dir = tmp_path_factory.mktemp("whole")
    return run_dir, small_run(run_dir)


def test_records_hold_every_metric_by_domain(whole):
    run_dir, result = whole
    train, evaluation = records(run_dir)
    assert [r["step"] for r in train] == list(range(3, 25, 3))
    assert [r["step"] for r in evaluation] == [0, 8, 16, 24]
    last = train[-1]
    assert last["tokens"] == sum(r["tokens"] for r in result.realized.values())
    for name in NAMES:
        for metric in ("mix/weight", "mix/score", "data/share", "data/asked", "data/epochs"):
            assert f"{metric}/{name}" in last
        assert evaluation[-1][f"eval/loss/{name}"] == result.final_eval[name]
    assert sum(last[f"mix/weight/{n}"] for n in NAMES) == pytest.approx(1.0, abs=1e-6)
    assert evaluation[-1]["eval/loss/uniform"] == pytest.approx(np.mean(list(result.final_eval.values())))
    assert evaluation[-1]["eval/loss/worst"] == max(result.final_eval.values())
    assert evaluation[-1]["eval/loss/uniform"] < evaluation[0]["eval/loss/uniform"]
    assert "seconds" not in last
    timing = read_records(run_dir / "timing.jsonl")
    assert {r["step"] for r in timing} == {r["step"] for r in train}
    assert all(r["tokens_per_second"] > 0 for r in timing)


def test_validation_losses_agree_with_a_float64_oracle(whole):
    _, result = whole
    validation = validation_set(token_sources(NAMES, seed=1), seq_len=8, rows_per_domain=10)
    loss = bigram_loss(table(result), validation.tokens, validation.targets)
    for index, name in enumerate(NAMES):
        rows = validation.domain == index
        expected = loss[rows].sum() / (validation.targets[rows] >= 0).sum()
        assert result.final_eval[name] == pytest.approx(expected, rel=1e-5)


class _Killed(BaseException):
    """What a kill looks like from inside: nothing below the loop may catch it and tidy up."""


@contextlib.contextmanager
def killed_at(monkeypatch, number):
    """What runs inside dies when it draws its batch of this number, counted from 1."""
    drawn, real = 0, MixtureStream.__next__

    def dying(self):
        nonlocal drawn
        drawn += 1
        if drawn == number:
            raise _Killed
        return real(self)

    with monkeypatch.context() as patch:
        patch.setattr(MixtureStream, "__next__", dying)
        with pytest.raises(_Killed):
            yield


@pytest.mark.parametrize(
    "kill_at", [1, 10, 16, 23, *(pytest.param(k, marks=pytest.mark.slow) for k in (4, 5, 6, 9, 17))]
)
def test_a_run_killed_at_any_step_and_resumed_is_bit_exact(tmp_path, whole, monkeypatch, kill_at):
    with killed_at(monkeypatch, kill_at):
        small_run(tmp_path)
    result = small_run(tmp_path)
    assert records(tmp_path) == records(whole[0])
    np.testing.assert_array_equal(table(result), table(whole[1]))
    assert result.final_eval == whole[1].final_eval
    assert result.realized == whole[1].realized


def test_hooks_are_recorded_the_same_in_a_killed_run(tmp_path, whole, monkeypatch):
    hook = Hook(every=4, run=lambda view: {"norm": jnp.linalg.norm(view.params["table"]["kernel"])}, name="kernel")
    with killed_at(monkeypatch, 10):
        small_run(tmp_path, hooks=[hook])
    result = small_run(tmp_path, hooks=[hook])
    assert records(tmp_path) == records(whole[0])
    shown = latest_by_step(read_records(tmp_path / "metrics.jsonl"), "kernel")
    assert [r["step"] for r in shown] == list(range(0, 25, 4))
    assert shown[-1]["tokens"] == sum(r["tokens"] for r in result.realized.values())
    assert shown[-1]["kernel/norm"] == pytest.approx(np.linalg.norm(table(result)), rel=1e-6)


def test_a_finished_run_started_again_only_reports(tmp_path):
    first = small_run(tmp_path, steps=6)
    again = small_run(tmp_path, steps=6)
    assert again.resumed_from == again.steps == 6
    np.testing.assert_array_equal(table(first), table(again))
    assert first.final_eval == again.final_eval


def test_one_and_eight_devices_agree(tmp_path, whole):
    # Sums over devices, of 64 tokens and 16 words, are taken in another order.
    drift = adam_tolerance(steps=24, rate=0.05, terms=64 + 16)
    one = small_run(tmp_path, mesh=build_mesh(devices=jax.devices()[:1]))
    np.testing.assert_allclose(table(one), table(whole[1]), rtol=0, atol=drift)
    for name in NAMES:  # a token's loss moves by at most twice as much as the table
        assert one.final_eval[name] == pytest.approx(whole[1].final_eval[name], abs=2 * drift)
        assert one.final_weights[name] == pytest.approx(whole[1].final_weights[name], rel=1e-5)
        assert one.realized[name]["rows"] == whole[1].realized[name]["rows"]


def test_weights_are_one_step_old_and_reach_the_next_block(tmp_path):
    seen = []

    def update(key, state, feedback):
        count = state["count"] + 1
        info = jaxmix.mixers.MixerInfo(jnp.zeros(3), {})
        return {"count": count}, info

    def weights(state):
        return jnp.stack([jnp.ones(()), state["count"], jnp.ones(())]) / (2.0 + state["count"])

    mixer = Mixer(
        init=lambda key, m, prior=None: {"count": jnp.zeros(())},
        update=update,
        weights=weights,
        needs=frozenset({"token_count"}),
    )
    real = MixtureStream.set_weights

    def spy(self, given):
        seen.append(np.asarray(given))
        return real(self, given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MixtureStream, "set_weights", spy)
        small_run(tmp_path, mixer=mixer, steps=6, log_every=1)
    expected = [0, 0, 1, 2, 3, 4, 5]  # before step 0; then, during step s, the weights known before it
    np.testing.assert_allclose([w[1] * (2 + c) for w, c in zip(seen, expected, strict=True)], expected, atol=1e-6)
    lags = [r["data/weight_lag"] for r in records(tmp_path)[0]]
    assert lags == [0, 1, 1, 2, 1, 2]


def test_nothing_compiles_twice(tmp_path):
    from jaxmix.train import build_programs

    settings = TrainSettings(steps=9, log_every=2, eval_every=4, checkpoint_every=4, warmup_steps=1)
    mesh = build_mesh()
    model = bigram()
    programs = build_programs(model, settings, num_domains=3, mesh=mesh)
    for seed in range(2):
        with MixtureStream(token_sources(), batch_size=8, seq_len=8, seed=seed, block=2) as stream:
            run_training(
                tmp_path / str(seed),
                model=model,
                mixer=jaxmix.mixers.make("odm"),
                stream=stream,
                validation=validation_set(token_sources(seed=1), seq_len=8, rows_per_domain=4),
                settings=settings,
                programs=programs,
                show_progress=False,
            )
    assert programs.train_step._cache_size() == 1


def test_updates_that_are_not_finite_stop_the_run_with_an_intact_checkpoint(tmp_path):
    model = bigram()

    def broken_after_a_while(params, batch):
        size = jnp.max(jnp.abs(params["table"]["kernel"]))
        return model.apply(params, batch) * jnp.where(size > 0.6, jnp.nan, 1.0)

    with pytest.raises(RunError, match="3 updates in a row"):
        small_run(
            tmp_path,
            model=model._replace(apply=broken_after_a_while),
            max_consecutive_skipped=3,
            learning_rate=0.1,
            clip_norm=0.0,
        )
    train, _ = records(tmp_path)
    assert any(r["train/skipped"] > 0 for r in train) or train == []
    saved = max(int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit())
    resumed = small_run(tmp_path, steps=saved, warmup_steps=0, clip_norm=0.0)
    assert np.isfinite(table(resumed)).all()


def test_a_changed_domain_list_needs_the_flag(tmp_path):
    small_run(tmp_path, steps=7)
    names, started = ("plain", "rare", "new"), []
    given = {"names": names, "steps": 12, "on_start": lambda: started.append(True)}
    with pytest.raises(ConfigError, match="allow_changed_domains"):
        small_run(tmp_path, **given)
    assert not started  # a run that is refused has written nothing
    result = small_run(tmp_path, **given, allow_changed_domains=True)
    assert started == [True]
    assert result.resumed_from == 7
    assert set(result.final_weights) == set(names)
    assert result.realized["new"]["rows"] > 0


@pytest.mark.parametrize(("resume", "error"), [("must", RunError), ("never", ConfigError)])
def test_resume_policies(tmp_path, resume, error):
    if resume == "never":
        small_run(tmp_path, steps=3)
    with pytest.raises(error):
        small_run(tmp_path, steps=3, resume=resume)


def test_a_source_that_runs_out_is_said_where_it_does_and_has_no_weight_from_there(tmp_path, capsys):
    options = {"max_epochs": {"dense": 0.3}, "block": 1}
    given = {"mixer": jaxmix.mixers.make("static"), "steps": 12, "log_every": 1, "stream_options": options}
    result = small_run(tmp_path, **given, show_progress=True)
    (said,) = latest_by_step(read_records(tmp_path / "metrics.jsonl"), "used_up")
    step = said["step"]
    assert 0 < step < 12
    assert said["used_up/dense"] == pytest.approx(0.3, abs=0.05)
    assert f"step {step}: source 'dense' ran out after" in capsys.readouterr().err
    train, _ = records(tmp_path)
    third, half = pytest.approx(1 / 3), pytest.approx(1 / 2)
    assert [r["mix/weight/dense"] for r in train] == [third] * (step - 1) + [0.0] * (13 - step)
    assert [r["mix/mean_weight/dense"] for r in train] == [third] * step + [0.0] * (12 - step)
    assert [r["mix/weight/rare"] for r in train[step - 1 :]] == [half] * (13 - step)
    assert train[-1]["data/tokens/dense"] == train[step - 1]["data/tokens/dense"] == result.realized["dense"]["tokens"]
    assert result.final_weights["dense"] == third  # what the mixer asks for
    small_run(tmp_path, **given | {"steps": 14})
    assert len(latest_by_step(read_records(tmp_path / "metrics.jsonl"), "used_up")) == 1


def test_mean_weights_cover_the_steps_between_records(tmp_path):
    small_run(tmp_path / "often", steps=9, log_every=1)
    small_run(tmp_path / "seldom", steps=9, log_every=4)
    often, seldom = records(tmp_path / "often")[0], records(tmp_path / "seldom")[0]
    assert [r["step"] for r in seldom] == [4, 8, 9]
    means = [r["mix/mean_weight/rare"] for r in often]
    assert means[0] == pytest.approx(1 / 3)  # the prior draws the first step
    assert [r["mix/weight/rare"] for r in often[:-1]] == pytest.approx(means[1:])
    assert [r["mix/mean_weight/rare"] for r in seldom] == pytest.approx(
        [np.mean(means[:4]), np.mean(means[4:8]), means[8]]
    )


def test_a_stream_that_ends_ends_the_run_with_everything_saved(tmp_path):
    result = small_run(tmp_path, steps=500, stream_options={"on_exhaust": "stop"}, warmup_steps=2)
    assert result.steps < 500
    assert re.fullmatch(rf"the stream ended after step {result.steps}: source '\w+' is used up .*", result.ended_early)
    _, evaluation = records(tmp_path)
    assert evaluation[-1]["step"] == result.steps
    assert (tmp_path / "checkpoints" / str(result.steps)).is_dir()


def test_domains_of_validation_and_stream_must_agree(tmp_path):
    stream = MixtureStream(token_sources(), batch_size=8, seq_len=8, seed=0)
    with stream, pytest.raises(ConfigError, match="same order"):
        run_training(
            tmp_path / "run",
            model=bigram(),
            mixer=jaxmix.mixers.make("static"),
            stream=stream,
            validation=validation_set(token_sources(("dense", "plain")), seq_len=8, rows_per_domain=4),
            settings=TrainSettings(steps=2, warmup_steps=0),
        )
    assert not (tmp_path / "run").exists()


def test_a_mixer_that_needs_what_the_loop_cannot_measure_is_refused(tmp_path):
    for changes, match in (
        ({"needs": frozenset({"reward"})}, "does not compute the signal 'reward'"),
        ({"needs": frozenset({"clipped_excess_sum"})}, "against a reference, and the run has none"),
        ({"needs": frozenset({"gradient_alignment"}), "gradients": "last_layer"}, "what its last layer is"),
        ({"gradients": "exat"}, "unknown estimate of gradients 'exat'"),
    ):
        with pytest.raises(ConfigError, match=match):
            small_run(tmp_path, mixer=jaxmix.mixers.make("static")._replace(**changes))


def test_aggregates_leave_out_what_was_not_measured():
    values = aggregates(np.asarray([1.0, np.nan, 4.0]), np.asarray([0.25, 0.5, 0.25]))
    assert values == {"uniform": 2.5, "prior": 2.5, "worst": 4.0}
    assert aggregates(np.asarray([np.nan]), np.asarray([1.0])) == {}


def test_no_step_moves_data_unasked(tmp_path, monkeypatch):
    from jaxmix.train.run.driver import Driver

    guarded, real = [], Driver._advance

    def step(self, number, batch):
        with jax.transfer_guard("disallow" if number > 0 else "allow"):  # step 0 compiles, with its constants
            real(self, number, batch)
        guarded.append(number)

    monkeypatch.setattr(Driver, "_advance", step)
    small_run(tmp_path, steps=6, log_every=2)
    assert guarded == list(range(6))


def test_a_schedule_in_steps_switches_at_its_block(tmp_path):
    points = [{"at": 0, "weights": [1, 0, 0]}, {"at": 4, "weights": [0, 1, 0]}]
    small_run(tmp_path, steps=8, log_every=1, mixer=jaxmix.mixers.make("scheduled", points=points))
    train, _ = records(tmp_path)
    assert ["train/loss/plain" in r for r in train] == [True] * 4 + [False] * 4
    assert ["train/loss/dense" in r for r in train] == [False] * 4 + [True] * 4


def test_settings_are_checked():
    with pytest.raises(ConfigError, match="warmup_steps must be below"):
        TrainSettings(steps=5, warmup_steps=5)
    with pytest.raises(ConfigError, match=r"learning_rate must be finite"):
        TrainSettings(learning_rate=float("nan"))
    with pytest.raises(ConfigError, match="auto"):
        TrainSettings(resume="atuo")
    assert json.dumps(TrainSettings().__dict__)


def probing():
    return jaxmix.mixers.make("aioli", round_length=14, sweeps=2, interval=2, smoothing=0.5, step_size=2.0)


@pytest.mark.parametrize("kill_at", [14, *(pytest.param(k, marks=pytest.mark.slow) for k in (2, 7, 12, 15))])
def test_a_probe_interrupted_anywhere_is_resumed_bit_exactly(tmp_path, monkeypatch, kill_at):
    options = {"stream_options": {"block": 1}, "checkpoint_every": 1, "steps": 24}
    straight = small_run(tmp_path / "straight", mixer=probing(), **options)
    with killed_at(monkeypatch, kill_at):
        small_run(tmp_path / "cut", mixer=probing(), **options)
    resumed = small_run(tmp_path / "cut", mixer=probing(), **options)
    assert records(tmp_path / "cut") == records(tmp_path / "straight")
    np.testing.assert_array_equal(table(resumed), table(straight))
    assert resumed.final_weights == straight.final_weights


def test_probes_reach_the_batches_they_are_for(tmp_path):
    seen = []
    real = MixtureStream.__next__

    def spy(self):
        batch = real(self)
        seen.append(np.bincount(batch["domain"], minlength=3))
        return batch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MixtureStream, "__next__", spy)
        small_run(tmp_path, mixer=probing(), steps=28, stream_options={"block": 1, "batch_size": 24})
    # A probe has two thirds of its rows from one domain: intervals of two steps, twelve steps in each round of 14.
    for start in (0, 14):
        probed = [int(np.argmax(seen[start + 2 * k])) for k in range(6)]
        for k in range(6):
            for step in (start + 2 * k, start + 2 * k + 1):
                assert seen[step][probed[k]] >= 15, (step, seen[step])
        assert sorted(probed[:3]) == sorted(probed[3:]) == [0, 1, 2]
        assert max(seen[start + 12]) < 15


def test_an_update_sees_the_losses_after_its_own_step(tmp_path):
    mixer = jaxmix.mixers.make("static")._replace(
        update=lambda key, state, feedback: (state, jaxmix.mixers.MixerInfo(feedback.validation_loss, {})),
        needs=frozenset({"validation_loss"}),
        cadence=jaxmix.mixers.Cadence(update=4, validate=4),
    )
    small_run(tmp_path, mixer=mixer, steps=12, eval_every=1, log_every=4)
    train, evaluation = records(tmp_path)
    assert [r["step"] for r in train] == [4, 8, 12]
    for record in train:
        after = next(r for r in evaluation if r["step"] == record["step"])
        for name in NAMES:
            assert record[f"mix/score/{name}"] == after[f"eval/loss/{name}"]


# Every estimate of gradients once; the rest of the table is slow.
@pytest.mark.parametrize(
    ("name", "gradients"),
    [
        ("grape", "sketch"),
        *(
            pytest.param(*pair, marks=pytest.mark.slow)
            for pair in (
                ("doge", "exact"),
                ("doge", "sketch"),
                ("grape", "exact"),
                ("pike", "sketch"),
                ("pike", "exact"),
            )
        ),
    ],
)
def test_gradient_mixers_train_and_resume(tmp_path, name, gradients):
    arguments = {"pike": {"batch_size": 8, "every": 2}, "grape": {"every": 3}}.get(name, {"every": 2})
    make = lambda: jaxmix.mixers.make(name, gradients=gradients, **arguments)
    straight = small_run(tmp_path / "straight", mixer=make(), steps=10, gradient_rows=2)
    assert straight.final_weights != {n: pytest.approx(1 / 3) for n in NAMES}
    small_run(tmp_path / "cut", mixer=make(), steps=5, gradient_rows=2, schedule="constant")
    first = small_run(tmp_path / "whole", mixer=make(), steps=10, gradient_rows=2, schedule="constant")
    resumed = small_run(tmp_path / "cut", mixer=make(), steps=10, gradient_rows=2, schedule="constant")
    assert resumed.resumed_from == 5
    assert resumed.final_weights == first.final_weights


def test_one_and_eight_devices_agree_on_gradient_signals(tmp_path):
    make = lambda: jaxmix.mixers.make("doge", regularization=1e-4, target="validation")
    one = small_run(tmp_path / "one", mixer=make(), mesh=build_mesh(devices=jax.devices()[:1]), steps=8)
    eight = small_run(tmp_path / "eight", mixer=make(), mesh=build_mesh(data=4, fsdp=2), steps=8)
    for name in NAMES:
        assert one.final_weights[name] == pytest.approx(eight.final_weights[name], rel=1e-4)


def test_control_rows_are_what_the_mixer_sees(tmp_path):
    from jaxmix.train.lm.evaluate import subset

    validation = validation_set(token_sources(NAMES, seed=1), seq_len=8, rows_per_domain=10)
    few = subset(validation, 2)
    assert [int((few.domain == j).sum()) for j in range(3)] == [2, 2, 2]
    parts = [
        validation_set(token_sources(NAMES, seed=1), seq_len=8, rows_per_domain=1000, part=part)
        for part in ("all", "validation", "test")
    ]
    rows = [{row.tobytes() for row in part.tokens} for part in parts]
    assert len(parts[1].domain) + len(parts[2].domain) == len(parts[0].domain)
    assert rows[1] | rows[2] == rows[0]
    with pytest.raises(ConfigError, match="unknown part 'tests'"):
        validation_set(token_sources(NAMES), seq_len=8, rows_per_domain=2, part="tests")
