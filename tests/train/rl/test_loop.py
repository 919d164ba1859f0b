"""Fine-tuning runs: resumed to the bit, compiled once, and doing what their settings say."""

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from finetuning import EOS, PAD, toy_model, toy_params, toy_programs, toy_prompts, toy_run, toy_settings

from jaxmix.core.errors import ConfigError, RunError
from jaxmix.core.sharding import build_mesh, use_mesh
from jaxmix.curricula import dapo, space, uniform
from jaxmix.models.lm.generation import is_prompt_token
from jaxmix.train import Hook, latest_by_step, read_records, run_finetuning, warm_start
from jaxmix.train.grpo import grpo_loss
from jaxmix.train.rl.step import init_policy


class Killed(Exception):
    pass


def records(run_dir, kind):
    return latest_by_step(read_records(run_dir / "metrics.jsonl"), kind)


def equal(one, other):
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), one, other)


def at_reward(number, happens):
    """Training prompts whose `number`-th reward does something first."""
    prompts, calls = toy_prompts(), []

    def reward(rows, completions):
        calls.append(1)
        if len(calls) == number:
            happens()
        return prompts.reward(rows, completions)

    return dataclasses.replace(prompts, reward=reward)


def kill():
    raise Killed


def test_a_run_cut_twice_equals_one_that_was_not(tmp_path):
    whole = toy_run(tmp_path / "whole")
    cut = tmp_path / "cut"
    with pytest.raises(Killed):
        toy_run(cut, prompts=at_reward(7, kill))  # at step 6, two steps after a checkpoint
    # A notice in the middle of step 5: that step is finished and saved, between two records.
    with pytest.raises(RunError, match="saved at step 6"):
        toy_run(cut, prompts=at_reward(2, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    rest = toy_run(cut)
    assert (whole.resumed_from, rest.resumed_from, rest.steps) == (None, 6, 12)
    assert whole.updates > 2
    equal(rest.params, whole.params)
    for field in ("final_eval", "probabilities", "updates", "unique_prompts", "prompts", "rollouts"):
        assert getattr(rest, field) == getattr(whole, field)
    for kind in ("train", "eval"):
        assert records(cut, kind) == records(tmp_path / "whole", kind)

    programs = toy_programs(toy_settings())
    for program in (programs.rollout, programs.collect, programs.update, programs.evaluate):
        assert program._cache_size() == 1

    with pytest.raises(ConfigError, match="written with seed 0, this run has 1"):
        toy_run(cut, seed=1)
    with pytest.raises(ConfigError, match="written with bandit"):
        toy_run(cut, bandit=uniform(3))
    with pytest.raises(ConfigError, match="already holds checkpoints up to step 12"):
        toy_run(cut, resume="never")
    with pytest.raises(RunError, match="no checkpoint to resume"):
        toy_run(tmp_path / "new", resume="must")


def test_records_hold_what_happened(tmp_path):
    seen = []
    prompts = toy_prompts()

    def reward(rows, completions):
        made = prompts.reward(rows, completions)
        seen.append((rows.copy(), made))
        return made

    kept = np.array([[0, 1, 2], [12, 13, -1], [24, -1, 30]])
    hook = Hook(every=7, run=lambda view: {"groups": view.state.buffer.count}, name="buffer")
    watched = dataclasses.replace(prompts, reward=reward)
    result = toy_run(tmp_path, prompts=watched, bandit=space(3), kept=kept, hooks=[hook])
    train, evaluations = records(tmp_path, "train"), records(tmp_path, "eval")
    assert [r["step"] for r in train] == [3, 6, 9, 12]
    assert [r["step"] for r in evaluations] == [0, 5, 10, 12]
    live = 0
    for number, record in enumerate(train):
        rows, rewards = (np.concatenate(parts) for parts in zip(*seen[3 * number : 3 * number + 3], strict=True))
        arms = prompts.arms[rows]
        so_far = np.concatenate([rows for rows, _ in seen[: 3 * number + 3]])
        assert set(so_far) <= set(kept.ravel())
        assert record["unique_prompts"] == len(set(so_far))
        assert (record["prompts"], record["rollouts"]) == (len(so_far), 4 * len(so_far))
        is_live = (rewards.min(1) != rewards.max(1)).sum()
        live += is_live
        assert record["updates"] == live // 4
        assert record["reward/live_share"] == pytest.approx(is_live / len(rows))
        assert record["reward/mean"] == pytest.approx(rewards.mean())
        for arm, name in enumerate(prompts.arm_names):
            assert record[f"arm/share/{name}"] == pytest.approx((arms == arm).mean())
            if (arms == arm).any():
                assert record[f"arm/solve/{name}"] == pytest.approx(rewards[arms == arm].mean())
            assert 0 < record[f"bandit/probability/{name}"] < 1
        assert ("train/loss" in record) == (record["updates"] > (train[number - 1]["updates"] if number else 0))
    assert live >= 8
    assert result.updates == live // 4
    assert evaluations[-1]["eval/solve/mean"] == result.final_eval["mean"]
    assert evaluations[-1]["eval/solve/never"] == 0.0
    shown = {r["step"]: (r["prompts"], r["buffer/groups"]) for r in records(tmp_path, "buffer")}
    assert list(shown) == [0, 7, 12]
    assert shown[12] == (12 * 8, live % 4)


def test_dead_groups_wait_and_patience_ends(tmp_path):
    prompts = toy_prompts()
    dead = dataclasses.replace(prompts, reward=lambda rows, made: np.zeros(made.shape[:2], np.float32))
    result = toy_run(tmp_path / "dead", prompts=dead, max_wait=2)
    assert result.updates == 0
    equal(result.params, toy_params())

    def one_live(rows, made):
        rewards = np.zeros(made.shape[:2], np.float32)
        rewards[0, 0] = 1.0
        rewards[1, 0] = np.nan  # a verifier that failed is not a live group
        return rewards

    alone = dataclasses.replace(prompts, reward=one_live)
    assert toy_run(tmp_path / "alone", prompts=alone).updates == 3  # 12 batches with one of the 4 groups each
    assert {record["reward/failed"] for record in records(tmp_path / "alone", "train")} == {1 / 8}
    assert toy_run(tmp_path / "patience", prompts=alone, max_wait=3).updates == 4


def test_a_policy_that_is_not_finite_stops_the_run(tmp_path):
    broken = jax.tree.map(lambda x: np.full_like(x, np.nan), toy_params())
    half = np.tile(np.array([0.0, 1.0, 0.0, 1.0], np.float32), (8, 1))
    prompts = dataclasses.replace(toy_prompts(), reward=lambda rows, made: half[: len(rows)])
    with pytest.raises(RunError, match="in a row had a loss"):
        toy_run(tmp_path, prompts=prompts, initial_params=broken, max_consecutive_skipped=4)


def test_a_step_fetches_the_tokens_and_sends_the_rewards(tmp_path):
    prompts, calls = toy_prompts(), []

    def reward(rows, completions):
        calls.append(1)
        # Between the second reward and the last nothing may cross over but what is asked for by name.
        guard = "disallow" if 2 <= len(calls) < 5 else "allow"
        jax.config.update("jax_transfer_guard", guard)
        return prompts.reward(rows, completions)

    try:
        toy_run(tmp_path, prompts=dataclasses.replace(prompts, reward=reward), steps=5, eval_every=99, log_every=99)
    finally:
        jax.config.update("jax_transfer_guard", "allow")
    assert len(calls) == 5


@pytest.mark.parametrize(
    ("count", "changes"),
    [
        (7, {}),  # more than the groups of an update
        pytest.param(
            3,
            {
                "updates_per_batch": 3,
                "micro_batches": 2,
                "kl_weight": 0.05,
                "temperature": 0.8,
                "aggregate": "constant",
            },
            marks=pytest.mark.slow,
        ),
    ],
)
def test_updates_follow_the_loss(count, changes):
    settings, model = toy_settings(**changes), toy_model()
    programs = toy_programs(settings)
    reference = jax.tree.map(lambda x: jnp.asarray(x) * 1.1, toy_params()) if settings.kl_weight else None
    tokens = jnp.asarray(toy_prompts().tokens[:8])
    rewards = np.tile(np.arange(4) % 2, (8, 1)).astype(np.float32)
    prompts, grouped = tokens[:4], jnp.asarray(rewards[:4])

    def logp(params, made, mask):
        valid = is_prompt_token(prompts, PAD)
        return model.decoding.score(params, prompts, valid, made.tokens[:4], mask, settings.temperature)

    @jax.jit
    def step(params, opt_state, made):
        mask = made.mask[:4] & (jnp.arange(4) < count)[:, None, None]
        frozen = None if reference is None else logp(reference, made, mask)

        def loss(params):
            options = {"kl_weight": settings.kl_weight, "aggregate": settings.aggregate}
            return grpo_loss(logp(params, made, mask), made.logp[:4], frozen, grouped, mask, **options)

        (value, info), grads = jax.value_and_grad(loss, has_aux=True)(params)
        with jax.numpy_dtype_promotion("standard"):
            updates, opt_state = programs.optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, (value, info, optax.tree.norm(grads))

    with use_mesh(programs.mesh):
        train = init_policy(jax.random.key(0), model, programs, toy_params())
        made = programs.rollout(train.params, jax.random.key(3), tokens)
        params, opt_state, seen = train.params, train.opt_state, []
        for _ in range(settings.updates_per_batch):
            params, opt_state, shown = step(params, opt_state, made)
            seen.append(jax.device_get(shown))
        empty = programs.buffer(tokens.shape[1])
        buffer = programs.collect(empty, tokens, made, rewards, np.arange(8) < count)
        train, buffer, info = programs.update(train, reference, buffer)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-5), train.params, params)
    mean = lambda pick: np.mean([float(pick(shown)) for shown in seen])
    np.testing.assert_allclose(info.loss, mean(lambda s: s[0]), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(info.grad_norm, mean(lambda s: s[2]), rtol=1e-4)
    np.testing.assert_allclose(info.kl, mean(lambda s: s[1].kl), rtol=1e-4)
    np.testing.assert_allclose(info.drift, mean(lambda s: s[1].drift), rtol=1e-3, atol=1e-7)
    # What was not trained on waits in front of the buffer, with the log-probabilities it was drawn with.
    surplus = max(count - 4, 0)
    assert (int(train.step), int(buffer.count)) == (settings.updates_per_batch, surplus)
    np.testing.assert_array_equal(buffer.tokens[:surplus], made.tokens[4 : 4 + surplus])
    np.testing.assert_array_equal(buffer.logp[:surplus], made.logp[4 : 4 + surplus])


@pytest.fixture(scope="module")
def started():
    reports = []
    params = warm_start(
        toy_model(),
        toy_prompts(),
        key=jax.random.key(0),
        steps=60,
        batch_size=16,
        learning_rate=0.02,
        arm_weights=[1.0, 1.0, 0.0],
        mesh=build_mesh(devices=jax.devices()[:1]),
        report=lambda step, loss: reports.append(loss),
    )
    return params, reports


def test_a_supervised_start_learns_the_answers_of_the_arms_it_is_given(started):
    params, reports = started
    prompts = toy_prompts()
    tokens, answers = jnp.asarray(prompts.tokens), jnp.asarray(prompts.targets)[:, None]
    counted = answers != PAD
    score = jax.jit(toy_model().decoding.score)
    logp = score(params, tokens, is_prompt_token(tokens, PAD), answers, counted)
    chance = np.exp(np.asarray(logp).sum((1, 2)))
    assert len(reports) == 10
    assert reports[-1] < 0.3 < reports[0]
    assert chance[prompts.arms < 2].mean() > 0.7
    assert (np.asarray(answers)[:, 0, 1] == EOS).all()


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"refill": True}, "two ways to wait"),
        ({"micro_batches": 3}, "do not divide the 4 groups"),
        ({"accumulate_live_groups": False}, "an update takes the 8 of its batch"),
        ({"aggregate": "token_men"}, "token_mean"),
        ({"rollouts": 1}, "rollouts must be at least 2, got 1"),
        ({"temperature": 0.0}, "temperature must be finite"),
    ],
)
def test_settings_that_do_not_fit(wrong, match):
    with pytest.raises(ConfigError, match=match):
        toy_settings(**wrong)


def test_prompts_that_do_not_fit_are_refused_before_anything_runs(tmp_path):
    prompts = toy_prompts()
    for changes, match in (
        ({"bandit": space(4)}, "bandit has 4 arms"),
        ({"kept": np.array([[0], [12], [-1]])}, "no prompts in the arms never"),
        ({"kept": np.array([[0], [12], [3]])}, "under an arm that is not theirs"),
        ({"kept": np.array([[0], [12], [99]])}, "beyond the 36"),
        ({"prompts": dataclasses.replace(prompts, eos_id=5)}, "eos_id differs"),
        ({"prompts": dataclasses.replace(prompts, vocab_size=9)}, "the model knows 8 tokens"),
    ):
        with pytest.raises(ConfigError, match=match):
            toy_run(tmp_path / "run", **changes)
    with pytest.raises(ConfigError, match="built with another learning_rate"):
        run_finetuning(
            tmp_path / "run",
            model=toy_model(),
            prompts=prompts,
            bandit=space(3),
            evaluation=prompts,
            settings=toy_settings(learning_rate=0.02),
            programs=toy_programs(toy_settings()),
        )
    assert not (tmp_path / "run").exists()


# ── slower: other programs than the ones above ───────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_refilling_drops_the_surplus(tmp_path):
    changes = {"accumulate_live_groups": False, "refill": True, "groups_per_update": 8}
    prompts, kept = toy_prompts(), []

    def reward(rows, completions):
        made = (np.random.default_rng(len(kept)).random(completions.shape[:2]) < 0.2).astype(np.float32)
        kept.append(int((made.min(1) != made.max(1)).sum()))
        return made

    result = toy_run(tmp_path, prompts=dataclasses.replace(prompts, reward=reward), bandit=dapo(3), **changes)
    assert result.prompts == 12 * 24
    collected = updates = 0
    for number in kept:
        collected += number
        if collected >= 8:
            collected, updates = 0, updates + 1
    assert result.updates == updates
    with pytest.raises(ConfigError, match="does not say which groups it keeps"):
        toy_run(tmp_path, **changes)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"scale_by_live_share": True}, {"kl_weight": 0.1, "updates_per_batch": 2}])
def test_an_update_after_every_batch(tmp_path, changes):
    changes |= {"accumulate_live_groups": False, "groups_per_update": None}
    whole = toy_run(tmp_path / "whole", **changes)
    assert whole.updates == 12 * changes.get("updates_per_batch", 1)
    with pytest.raises(Killed):
        toy_run(tmp_path / "cut", prompts=at_reward(7, kill), **changes)
    equal(toy_run(tmp_path / "cut", **changes).params, whole.params)


@pytest.mark.slow
def test_rewards_are_earned(tmp_path):
    """From a policy that guesses; the arm that nothing solves is left with less than an even share."""
    result = toy_run(tmp_path, steps=150, eval_every=50)
    first, *_, last = records(tmp_path, "eval")
    assert last["eval/solve/mean"] > first["eval/solve/mean"] + 0.15
    assert result.probabilities["never"] < 1 / 3


@pytest.mark.slow
def test_kill_nine_at_any_moment(tmp_path):
    script = Path(__file__).parents[1] / "finetuning.py"

    def start(run_dir):
        return subprocess.Popen([sys.executable, str(script), str(run_dir), "60"], env={**os.environ})

    assert start(tmp_path / "whole").wait(300) == 0
    cut = tmp_path / "cut"
    for wanted in (8, 25):
        process, metrics = start(cut), cut / "metrics.jsonl"
        while process.poll() is None:
            if metrics.exists() and metrics.read_bytes().count(b"\n") >= wanted:
                process.kill()
                break
        process.wait()
    assert start(cut).wait(300) == 0
    np.testing.assert_array_equal(np.load(cut / "params.npy"), np.load(tmp_path / "whole" / "params.npy"))
    for kind in ("train", "eval"):
        assert records(cut, kind) == records(tmp_path / "whole", kind)
