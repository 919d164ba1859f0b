"""Training on part of what is drawn: the choice against a float64 oracle, and the loop around it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from bigram import bigram, bigram_loss
from small_run import NAMES, small_run
from tolerance import adam_tolerance, float32_tolerance

import jaxmix
from jaxmix.core.errors import ConfigError
from jaxmix.core.sharding import build_mesh, global_batch, replicated
from jaxmix.data.mixture.stream import MixtureStream
from jaxmix.train import TrainSettings, build_programs, latest_by_step, read_records
from jaxmix.train.lm.programs import with_selection
from jaxmix.train.lm.signals import reference_model
from jaxmix.train.lm.step import StepInfo, build_train_step
from jaxmix.train.selection.program import BatchSelection, build_selection
from jaxmix.train.selection.settings import SelectionSettings, candidate_rows, check_selection, forward_passes_of
from jaxmix.train.selection.super_batch import (
    domain_quota,
    losses_in_micro_batches,
    row_features,
    scoring_micro_batches,
)

M, B, C, T = 3, 8, 24, 6
REFERENCE = np.asarray(bigram(scale=1.5).init(jax.random.key(7))["table"]["kernel"])
LEARNER = np.asarray(bigram(scale=1.0).init(jax.random.key(8))["table"]["kernel"])


def batch_of(rng):
    tokens = rng.integers(0, 16, (C, T)).astype(np.int32)
    targets = np.where(rng.random((C, T)) < 0.2, -1, rng.integers(0, 16, (C, T))).astype(np.int32)
    targets[:, 0] = np.maximum(targets[:, 0], 0)  # every row has a token that counts
    return {"tokens": tokens, "targets": targets, "domain": rng.integers(0, M, C).astype(np.int32)}


@functools.cache
def compiled(settings, devices):
    mesh = build_mesh(devices=jax.devices()[:devices])
    forward_passes = forward_passes_of(settings, frozenset({"loss_sum"}))
    return mesh, build_selection(
        bigram().apply, settings, forward_passes=forward_passes, batch_size=B, num_domains=M, mesh=mesh
    )


def chosen_of(settings, batch, *, devices=1, step=3):
    """What the program makes of a batch, on the host."""
    mesh, program = compiled(settings, devices)
    on_mesh = global_batch(mesh, batch)
    if program.forward_passes.reference:
        frozen = {"table": {"kernel": jax.device_put(REFERENCE, replicated(mesh))}}
        on_mesh["reference_loss"] = reference_model(bigram().apply, frozen)(on_mesh)
    params = {"table": {"kernel": jax.device_put(LEARNER, replicated(mesh))}}
    key = jax.device_put(jax.random.key(0), replicated(mesh))
    return jax.device_get(program.select(params, on_mesh, key, jnp.uint32(step)))


def oracle_losses(batch):
    return [bigram_loss(table, batch["tokens"], batch["targets"]) for table in (LEARNER, REFERENCE)]


def by_domain(values, domain):
    return np.asarray([values[domain == j].sum() for j in range(M)])


ROW_SCORES = {
    "learnability": lambda learner, reference: learner - reference,
    "easy_reference": lambda learner, reference: -reference,
    "hard_learner": lambda learner, reference: learner,
}


@pytest.mark.parametrize("method", sorted(ROW_SCORES))
def test_the_best_rows_by_a_float64_oracle(method):
    batch = batch_of(np.random.default_rng(0))
    valid = batch["targets"] >= 0
    learner, reference = oracle_losses(batch)
    mean = [losses.sum(1) / valid.sum(1) for losses in (learner, reference)]
    score = ROW_SCORES[method](*mean)
    best = np.sort(np.argsort(-score)[:B])
    settings = SelectionSettings(method, filter_ratio=2 / 3, greedy=True)
    chosen, scanned = chosen_of(settings, batch)
    for name, rows in batch.items():
        np.testing.assert_array_equal(chosen[name], rows[best])
    np.testing.assert_array_equal(scanned.feedback.token_count, by_domain(valid.sum(1), batch["domain"]))
    np.testing.assert_allclose(scanned.feedback.loss_sum, by_domain(learner.sum(1), batch["domain"]), rtol=1e-5)
    if method != "hard_learner":
        excess = np.maximum(learner - reference, 0).sum(1)
        expected = by_domain(reference.sum(1), batch["domain"]), by_domain(excess, batch["domain"])
        np.testing.assert_allclose(scanned.feedback.reference_loss_sum, expected[0], rtol=1e-5)
        np.testing.assert_allclose(scanned.feedback.clipped_excess_sum, expected[1], rtol=1e-5)
    np.testing.assert_array_equal(scanned.trained_rows, by_domain(np.ones(B), batch["domain"][best]))
    np.testing.assert_array_equal(scanned.trained_tokens, by_domain(valid[best].sum(1), batch["domain"][best]))
    np.testing.assert_allclose(scanned.score, [score.mean(), score[best].mean()], rtol=1e-4)


@pytest.mark.parametrize("method", ["learnability", "hard_learner"])
def test_the_tokens_that_enter_the_loss_by_a_float64_oracle(method):
    batch = batch_of(np.random.default_rng(1))
    valid = batch["targets"] >= 0
    learner, reference = oracle_losses(batch)
    score = ROW_SCORES[method](learner, reference)[valid]
    chosen, scanned = chosen_of(SelectionSettings(method, level="token", keep=0.4), batch)
    kept = chosen["targets"] >= 0
    assert not (kept & ~valid).any()
    np.testing.assert_array_equal(chosen["targets"][kept], batch["targets"][kept])
    np.testing.assert_array_equal(chosen["tokens"], batch["tokens"])
    assert abs(kept.sum() - 0.4 * valid.sum()) <= 1
    threshold = np.sort(score)[-int(kept.sum())]
    np.testing.assert_array_equal(kept[valid], score >= threshold)
    np.testing.assert_array_equal(scanned.trained_tokens, by_domain(kept.sum(1), batch["domain"]))


def test_draws_follow_the_score_the_key_and_the_step():
    batch = batch_of(np.random.default_rng(2))
    settings = SelectionSettings("learnability", filter_ratio=2 / 3, gain=0.5)
    first, again = chosen_of(settings, batch)[0], chosen_of(settings, batch)[0]
    np.testing.assert_array_equal(first["tokens"], again["tokens"])
    other = chosen_of(settings, batch, step=4)[0]
    assert not np.array_equal(first["tokens"], other["tokens"])
    score = chosen_of(settings, batch)[1].score
    assert score[1] > score[0]


@pytest.mark.parametrize(
    "settings",
    [
        SelectionSettings("learnability", filter_ratio=2 / 3, gain=20.0, hold_shares=True),
        SelectionSettings("learnability", level="token", keep=0.4),
    ],
    ids=["rows", "tokens"],
)
def test_one_and_eight_devices_choose_the_same(settings):
    batch = batch_of(np.random.default_rng(3))
    one, counted_one = chosen_of(settings, batch)
    eight, counted = chosen_of(settings, batch, devices=8)
    for name in one:
        np.testing.assert_array_equal(one[name], eight[name])
    np.testing.assert_array_equal(counted.trained_tokens, counted_one.trained_tokens)
    rounding = float32_tolerance(1.0, batch["targets"].size + 16)
    np.testing.assert_allclose(counted.feedback.loss_sum, counted_one.feedback.loss_sum, rtol=rounding)


def test_copies_are_left_out_where_diversity_is_asked_for():
    batch = batch_of(np.random.default_rng(4))
    batch = jax.tree.map(lambda x: np.concatenate([np.repeat(x[:1], C // 2, axis=0), x[C // 2 :]]), batch)
    settings = SelectionSettings("hard_learner", filter_ratio=2 / 3, diversity=5.0, num_chunks=8, gain=20.0)
    chosen, _ = chosen_of(settings, batch)
    copies = (chosen["tokens"] == batch["tokens"][0]).all(axis=1).sum()
    assert copies <= 2  # half of what is there, and four of eight at random


def test_shares_are_held_within_a_row_and_on_average():
    batch = batch_of(np.random.default_rng(4))
    settings = SelectionSettings("learnability", filter_ratio=2 / 3, gain=20.0, hold_shares=True)
    _, scanned = chosen_of(settings, batch)
    assert np.abs(scanned.trained_rows - scanned.rows * B / C).max() < 1
    domain = jnp.asarray([0] * 16 + [1] * 7 + [2])
    quotas = jax.vmap(lambda key: domain_quota(key, domain, B, M))(jax.random.split(jax.random.key(0), 3000))
    assert (np.asarray(quotas).sum(1) == B).all()
    np.testing.assert_allclose(np.asarray(quotas).mean(0), np.asarray([16, 7, 1]) * B / C, atol=0.04)


def test_features_tell_shared_text():
    rng = np.random.default_rng(5)
    rows = rng.integers(0, 256, (3, 64)).astype(np.int32)
    rows[1, :48] = rows[0, 16:]  # three quarters shared, elsewhere in the row
    valid = np.ones(rows.shape, bool)
    z = np.asarray(row_features(jnp.asarray(rows), jnp.asarray(valid)))
    np.testing.assert_allclose(np.linalg.norm(z, axis=1), 1.0, rtol=1e-5)
    shared, apart = z[0] @ z[1], z[0] @ z[2]
    # 46 of 62 windows are shared; a sketch of 256 numbers is good to 1/16.
    assert abs(shared - 46 / 62) < 3 / 16
    assert abs(apart) < 3 / 16


def test_scoring_takes_no_more_rows_at_a_time_than_training():
    mesh = build_mesh(devices=jax.devices()[:1])
    assert [scoring_micro_batches(C, B, accumulate=a, mesh=mesh) for a in (1, 2, 4, 8)] == [3, 6, 12, 24]
    assert scoring_micro_batches(20, 8, accumulate=1, mesh=mesh) == 4
    assert scoring_micro_batches(8, 8, accumulate=1, mesh=build_mesh()) == 1
    batch = jax.tree.map(jnp.asarray, batch_of(np.random.default_rng(6)))
    params = {"table": {"kernel": jnp.asarray(LEARNER)}}
    whole = bigram().apply(params, batch)
    np.testing.assert_array_equal(losses_in_micro_batches(bigram().apply, 4)(params, batch), whole)


# ── the loop ─────────────────────────────────────────────────────────────────────────────────────────────────────

SELECTION = SelectionSettings("learnability", filter_ratio=0.5, gain=5.0)


def frozen():
    params = bigram(scale=1.0).init(jax.random.key(7))
    return reference_model(bigram().apply, jax.device_put(params, replicated(build_mesh())))


@functools.cache
def programs_for(mixer, selection):
    """Compiled once for all runs of eight devices: their length shows nowhere in the programs."""
    settings = TrainSettings(steps=14, learning_rate=0.05, warmup_steps=2, schedule="constant")
    programs = build_programs(bigram(), settings, num_domains=3, mesh=build_mesh())
    return with_selection(programs, selection, mixer=mixer, batch_size=8)


STATIC, ODM = jaxmix.mixers.make("static"), jaxmix.mixers.make("odm")
LEARNS = jaxmix.mixers.make("doremi")


def selecting_run(run_dir, *, mixer=ODM, selection=SELECTION, steps=14, **options):
    return small_run(
        run_dir,
        mixer=mixer,
        selection=selection,
        reference=frozen(),
        steps=steps,
        schedule="constant",
        programs=programs_for(mixer, selection),
        **options,
    )


def table(result):
    return np.asarray(result.params["table"]["kernel"])


def train_records(run_dir):
    return latest_by_step(read_records(run_dir / "metrics.jsonl"), "train")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("whole")
    return run_dir, selecting_run(run_dir)


def test_the_records_show_what_was_scanned_and_what_was_trained_on(whole):
    run_dir, result = whole
    last = train_records(run_dir)[-1]
    assert last["select/rows"] == 14 * 8
    assert last["select/scanned_rows"] == 14 * 16 == sum(r["rows"] for r in result.realized.values())
    assert last["tokens"] == sum(r["tokens"] for r in result.realized.values())
    assert last["select/tokens"] < last["tokens"]
    for key in ("select/share", "select/recent_share"):
        assert sum(last[f"{key}/{n}"] for n in NAMES) == pytest.approx(1.0)
    for record in train_records(run_dir):
        assert record["select/score/trained"] > record["select/score/scanned"]
        assert any(f"select/reference_loss/{n}" in record for n in NAMES)


class _Killed(BaseException):
    pass


def test_a_killed_run_resumes_bit_exactly(tmp_path, whole, monkeypatch):
    drawn, real = 0, MixtureStream.__next__

    def dying(self):
        nonlocal drawn
        drawn += 1
        if drawn == 12:  # after the checkpoint at step 10, inside an interval of the log
            raise _Killed
        return real(self)

    with monkeypatch.context() as patch:
        patch.setattr(MixtureStream, "__next__", dying)
        with pytest.raises(_Killed):
            selecting_run(tmp_path)
    result = selecting_run(tmp_path)
    assert result.resumed_from == 10
    np.testing.assert_array_equal(table(result), table(whole[1]))
    assert train_records(tmp_path) == train_records(whole[0])


def test_accumulation_and_one_device_train_on_the_same_rows(tmp_path, whole):
    one = small_run(
        tmp_path,
        selection=SELECTION,
        reference=reference_model(bigram().apply, bigram(scale=1.0).init(jax.random.key(7))),
        steps=14,
        schedule="constant",
        accumulate=2,
        mesh=build_mesh(devices=jax.devices()[:1]),
    )
    np.testing.assert_allclose(table(one), table(whole[1]), rtol=0, atol=adam_tolerance(14, 0.05, terms=64 + 16))
    ours, theirs = train_records(tmp_path)[-1], train_records(whole[0])[-1]
    for name in NAMES:
        assert ours[f"select/share/{name}"] == theirs[f"select/share/{name}"]


@pytest.mark.parametrize("feedback", [pytest.param("scanned", marks=pytest.mark.slow), "trained"])
def test_tokens_chosen_inside_the_step_are_those_chosen_before_it(tmp_path, feedback):
    selection = SelectionSettings("learnability", level="token", keep=0.4, feedback=feedback)
    options = {"selection": selection, "reference": frozen(), "mixer": LEARNS, "steps": 8, "schedule": "constant"}
    programs = programs_for(LEARNS, selection)
    assert programs.selection.train_step is not None
    inside = small_run(tmp_path / "inside", programs=programs, **options)
    before = small_run(tmp_path / "before", accumulate=2, **options)  # two micro-batches: a pass of its own
    np.testing.assert_allclose(table(inside), table(before), rtol=0, atol=adam_tolerance(8, 0.05, terms=64 + 16))
    ours, theirs = train_records(tmp_path / "inside"), train_records(tmp_path / "before")
    assert [set(record) for record in ours] == [set(record) for record in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert one["select/tokens"] < one["tokens"]
        for name, value in one.items():
            if name.startswith(("select", "mix", "train/loss")):
                np.testing.assert_allclose(value, other[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_a_step_that_chooses_takes_no_micro_batches():
    with pytest.raises(ConfigError, match="2 micro-batches"):
        build_train_step(bigram().apply, optax.sgd(0.1), num_domains=3, accumulate=2, choose=lambda loss, batch: batch)


def test_choosing_everything_is_training_without_selection(tmp_path):
    everything = SelectionSettings("hard_learner", filter_ratio=0.0)
    programs = programs_for(STATIC, everything)
    options = {"steps": 5, "mixer": STATIC, "schedule": "constant", "programs": programs}
    plain = small_run(tmp_path / "plain", **options)
    assert plain.steps == 5
    chosen = small_run(tmp_path / "all", selection=everything, **options)
    np.testing.assert_array_equal(table(plain), table(chosen))


def spying(needs):
    """A mixer that shows the feedback it gets as its score."""
    mixer = jaxmix.mixers.make("static")

    def update(key, state, feedback):
        return state, jaxmix.mixers.MixerInfo(feedback.token_count, {"loss_sum": feedback.loss_sum})

    return mixer._replace(update=update, needs=needs)


def test_mixers_learn_from_what_was_scanned(tmp_path):
    settings = SelectionSettings("hard_learner", filter_ratio=0.5, greedy=True)
    mixer = spying(frozenset({"loss_sum", "token_count"}))
    result = selecting_run(tmp_path, steps=3, log_every=1, mixer=mixer, selection=settings)
    records = train_records(tmp_path)
    seen = sum(record[f"mix/score/{n}"] for record in records for n in NAMES)
    assert seen == sum(r["tokens"] for r in result.realized.values()) > records[-1]["select/tokens"]
    # The hardest rows lose more than the rows they were chosen from; train/loss is of the former.
    first = records[0]
    mean = sum(first[f"mix/loss_sum/{n}"] for n in NAMES) / sum(first[f"mix/score/{n}"] for n in NAMES)
    assert mean < first["train/loss"] - 0.01


def test_mixers_learn_from_what_was_trained_on_where_told_and_from_no_skipped_step():
    batch = batch_of(np.random.default_rng(6))
    own = jaxmix.mixers.Feedback(loss_sum=jnp.ones(M), token_count=jnp.full(M, 2.0))
    for feedback, skipped in (("trained", 0), ("scanned", 0), ("scanned", 1)):
        settings = SelectionSettings("learnability", filter_ratio=2 / 3, greedy=True)
        mesh, program = compiled(settings, 1)
        program = program._replace(settings=dataclasses.replace(settings, feedback=feedback))
        scanned = chosen_of(settings, batch)[1]
        zero = jnp.zeros((), jnp.int32)
        info = StepInfo(own, jnp.zeros(()), jnp.zeros(()), zero, zero + skipped)
        selection = BatchSelection(program, reference=None, seed=0, mesh=mesh)
        learned = selection.feedback(info, scanned)
        expected = own.loss_sum if feedback == "trained" else (1 - skipped) * scanned.feedback.loss_sum
        np.testing.assert_array_equal(learned.loss_sum, expected)


def test_nothing_compiles_twice_and_no_step_moves_data_unasked(tmp_path, monkeypatch):
    from jaxmix.train.run.driver import Driver

    mixer, real = jaxmix.mixers.make("learnability"), Driver._advance

    def step(self, number, batch):
        with jax.transfer_guard("disallow" if number > 0 else "allow"):
            real(self, number, batch)

    monkeypatch.setattr(Driver, "_advance", step)
    for seed in range(2):
        selecting_run(tmp_path / str(seed), mixer=mixer, steps=6, stream_options={"seed": seed})
    programs = programs_for(mixer, SELECTION)
    assert programs.selection.select._cache_size() == 1
    assert programs.train_step._cache_size() == 1


# ── settings ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_super_batches_are_whole_rows():
    assert [candidate_rows(32, f) for f in (0.0, 0.5, 0.8, 0.9, 1 / 3)] == [32, 64, 160, 320, 48]
    assert candidate_rows(8, 0.9, multiple=8) == 80
    with pytest.raises(ConfigError, match=r"0\.333333 \(48 rows\) or 0\.319149 \(47 rows\)"):
        candidate_rows(32, 0.333)
    assert candidate_rows(32, 0.333333) == 48
    with pytest.raises(ConfigError, match=r"10 rows.*spread over 8 devices.*0\.0 \(8 rows\) or 0\.5 \(16 rows\)"):
        candidate_rows(8, 0.2, multiple=8)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"method": "learnabilty"}, "unknown method 'learnabilty'.*Did you mean 'learnability'"),
        ({"method": "uniform", "filter_ratio": 1.0}, "filter_ratio must be at least 0 and below 1, got 1.0"),
        ({"method": "uniform", "keep": 0.0}, "keep must be above 0 and at most 1, got 0.0"),
        ({"method": "uniform", "gain": float("inf")}, "gain must be finite"),
        ({"method": "uniform", "num_chunks": 0}, "num_chunks must be at least 1"),
    ],
)
def test_settings_out_of_range(settings, match):
    with pytest.raises(ConfigError, match=match):
        SelectionSettings(**settings)


@pytest.mark.parametrize(
    ("settings", "mixer", "reference", "match"),
    [
        ({"method": "learnability"}, {}, None, "against a reference, and the run has none"),
        ({"method": "easy_reference"}, {}, "table", "cannot tell rows apart"),
        ({"method": "uniform"}, {"needs": frozenset({"gradient_alignment"})}, None, "measures gradient_alignment"),
        ({"method": "uniform", "filter_ratio": 0.7}, {}, None, "26.6667 rows"),
        ({"method": "uniform", "diversity": 1.0, "num_chunks": 3}, {}, None, "num_chunks 3"),
    ],
)
def test_impossible_selections(settings, mixer, reference, match):
    static = jaxmix.mixers.make("static")._replace(**mixer)
    with pytest.raises(ConfigError, match=match):
        check_selection(SelectionSettings(**settings), static, reference=reference, batch_size=8)


def test_no_forward_pass_is_made_that_nothing_needs():
    needs = {"static": frozenset(), "loss": frozenset({"loss_sum"}), "both": frozenset({"reference_loss_sum"})}
    forward_passes = lambda method, mixer, **options: tuple(
        forward_passes_of(SelectionSettings(method, **options), needs[mixer])
    )
    assert forward_passes("uniform", "both") == (False, False, True)
    assert forward_passes("uniform", "loss") == (False, False, False)
    assert forward_passes("easy_reference", "static") == (False, True, False)
    assert forward_passes("easy_reference", "loss") == (True, True, False)
    assert forward_passes("hard_learner", "static") == (True, False, False)
    assert forward_passes("hard_learner", "both") == (True, True, False)
    assert forward_passes("learnability", "both", feedback="trained") == (True, True, True)
