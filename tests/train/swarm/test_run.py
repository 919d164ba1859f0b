"""Every proxy of a swarm is the lone run with its mixture and seed, whatever chunks, devices and interruptions."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bigram import bigram
from small_run import NAMES, token_sources
from swarms import STREAM, assert_same_losses, held_out, programs, proxies, settings, small_swarm

import jaxmix
from jaxmix.core.errors import ConfigError, RunError
from jaxmix.core.sharding import build_mesh, proxy_mesh
from jaxmix.data.mixture.stream import MixtureStream
from jaxmix.models import TransformerConfig, transformer
from jaxmix.train import build_programs, run_training, validation_set
from jaxmix.train.swarm.plan import SwarmPlan, drawing_weights
from jaxmix.train.swarm.run import Proxy, run_swarm

LONE = {}


def lone_programs(model, changes):
    """Compiled once for all seeds."""
    key = (model.num_params, repr(changes))
    if key not in LONE:
        mesh = build_mesh(devices=jax.devices()[:1])
        LONE[key] = build_programs(model, settings(**changes), num_domains=len(NAMES), mesh=mesh)
    return LONE[key]


def lone_run(run_dir, proxy, *, model=None, changes=None, **stream_options):
    model, changes = model or bigram(), changes or {}
    with MixtureStream(token_sources(), seed=proxy.seed, **{**STREAM, **stream_options}) as stream:
        return run_training(
            run_dir,
            model=model,
            mixer=jaxmix.mixers.make("static"),
            stream=stream,
            validation=held_out(),
            settings=settings(seed=proxy.seed, **changes),
            prior=proxy.weights,
            programs=lone_programs(model, changes),
            show_progress=False,
        )


def two_devices():
    return proxy_mesh(jax.devices()[:2])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"unit": "documents", "block": 3},
        {"unit": "rows", "seq_len": 60},
        {"on_exhaust": {"dense": "drop"}, "max_epochs": {"rare": 2}, "block": 1},
    ],
    ids=["tokens", "documents", "rows", "drop"],
)
def test_the_rows_are_those_that_a_stream_delivers(options):
    sources, options = token_sources(), {**STREAM, **options}
    plan = SwarmPlan(proxies(), sources, vocab_size=16, **options)
    domain, row = (np.concatenate(parts, axis=1) for parts in zip(plan.next(7), plan.next(4), strict=True))
    table = plan.table()
    assert table.tokens.dtype == np.uint8
    for r, proxy in enumerate(proxies()):
        weights = drawing_weights(proxy.weights)
        with MixtureStream(sources, seed=proxy.seed, weights=weights, **options) as stream:
            for s in range(11):
                batch = next(stream)
                np.testing.assert_array_equal(batch["domain"], domain[r, s])
                tokens, targets = table.tokens[row[r, s]].astype(np.int32), table.targets[row[r, s]]
                np.testing.assert_array_equal(batch["tokens"], tokens[:, :-1])
                has_target = np.arange(options["seq_len"]) < targets[:, None]
                np.testing.assert_array_equal(batch["targets"], np.where(has_target, tokens[:, 1:], -1))
            assert plan.tokens()[r] == sum(drawn["tokens"] for drawn in stream.realized().values())
    read = plan.read(row[1, :3].reshape(-1))
    np.testing.assert_array_equal(read.tokens, table.tokens[row[1, :3].reshape(-1)])


@pytest.mark.parametrize(
    "changes", [pytest.param({}, marks=pytest.mark.slow), {"loss_normalization": "domain_mean", "accumulate": 2}]
)
def test_losses_are_those_of_lone_runs(tmp_path, changes):
    result = small_swarm(tmp_path / "swarm", changes=changes, mesh=two_devices())
    assert result.curve_steps == (0, 8, 16, 24)
    for i, proxy in enumerate(proxies()[:3]):
        lone = lone_run(tmp_path / proxy.name, proxy, changes=changes)
        expected = [lone.final_eval[name] for name in NAMES]
        assert_same_losses(result.losses[i], expected)
        evals = jaxmix.train.latest_by_step(jaxmix.train.read_records(tmp_path / proxy.name / "metrics.jsonl"), "eval")
        curve = [[record[f"eval/loss/{name}"] for name in NAMES] for record in evals]
        assert_same_losses(result.proxies[i].curve, curve)
        assert result.proxies[i].tokens == sum(drawn["tokens"] for drawn in lone.realized.values())
        assert result.proxies[i].seed == proxy.seed


@pytest.mark.parametrize(
    "width", [pytest.param(None, marks=pytest.mark.slow, id="one after the other"), pytest.param(5, id="all at once")]
)
def test_a_transformer_learns_as_in_a_lone_run_whatever_the_batching(tmp_path, monkeypatch, width):
    monkeypatch.setattr("jaxmix.train.swarm.step._CACHED_TOKENS", 32)  # four micro-batches
    model = transformer(TransformerConfig(num_layers=1, width=16, num_heads=2, vocab_size=16, seq_len=8))
    changes = {"learning_rate": 0.01}
    result = small_swarm(
        tmp_path / "swarm", model=model, width=width, changes=changes, mesh=proxy_mesh(jax.devices()[:1])
    )
    for i in (0, 2, 4) if width is None else (3,):
        lone = lone_run(tmp_path / f"{i}", proxies()[i], model=model, changes=changes)
        # Twenty-four steps of AdamW enlarge the rounding of sums in another order.
        np.testing.assert_allclose(result.losses[i], [lone.final_eval[name] for name in NAMES], rtol=2e-4)


def test_chunks_and_streamed_tokens_change_nothing(tmp_path):
    whole = small_swarm(tmp_path / "whole", mesh=two_devices())
    parts = small_swarm(tmp_path / "parts", chunk=2, mesh=two_devices())
    streamed = small_swarm(tmp_path / "streamed", table_bytes=0, mesh=two_devices())
    assert len(list((tmp_path / "parts").glob("chunk_*"))) == 3
    assert [p.name for p in parts.proxies] == [p.name for p in whole.proxies]
    assert_same_losses(parts.losses, whole.losses)
    assert_same_losses(streamed.losses, whole.losses)


def test_the_length_of_stretches_changes_no_bit(tmp_path, monkeypatch):
    whole = small_swarm(tmp_path / "whole", mesh=two_devices())
    monkeypatch.setattr("jaxmix.train.swarm.run._STRETCH_SECONDS", 0.0)  # one step at a time
    cut = small_swarm(tmp_path / "cut", mesh=two_devices())
    assert len((tmp_path / "cut" / "progress.jsonl").read_text().splitlines()) == 24
    for one, other in zip(whole.proxies, cut.proxies, strict=True):
        np.testing.assert_array_equal(one.curve, other.curve)


class Stop(Exception):
    pass


@pytest.mark.parametrize("stop_at", [8, 24, *(pytest.param(k, marks=pytest.mark.slow) for k in (1, 13))])
def test_a_stopped_swarm_ends_with_the_same_bits(tmp_path, monkeypatch, stop_at):
    whole = small_swarm(tmp_path / "whole", chunk=3, mesh=two_devices())
    update = jaxmix.train.run.progress.Progress.update

    def stopping(self, step, **kwargs):
        update(self, step, **kwargs)
        if step >= stop_at:
            raise Stop

    monkeypatch.setattr(jaxmix.train.run.progress.Progress, "update", stopping)
    with pytest.raises(Stop):
        small_swarm(tmp_path / "stopped", chunk=3, mesh=two_devices())
    monkeypatch.undo()
    # Another limit on memory at the second start: the chunks stay as they were.
    again = small_swarm(tmp_path / "stopped", chunk=2, mesh=two_devices())
    assert not (tmp_path / "stopped" / "chunk_000" / "checkpoints").exists()
    for one, other in zip(whole.proxies, again.proxies, strict=True):
        np.testing.assert_array_equal(one.curve, other.curve)
        np.testing.assert_array_equal(one.losses, other.losses)
        assert one.tokens == other.tokens


def test_a_checkpoint_is_continued_on_other_devices(tmp_path, monkeypatch):
    whole = small_swarm(tmp_path / "whole", mesh=two_devices())
    monkeypatch.setattr(
        jaxmix.train.run.progress.Progress, "update", lambda self, step, **_: (_ for _ in ()).throw(Stop)
    )
    monkeypatch.setattr("jaxmix.train.swarm.run.Interruption.is_requested", lambda self, step: True)
    with pytest.raises(Stop):
        small_swarm(tmp_path / "moved", mesh=two_devices())
    monkeypatch.undo()
    monkeypatch.setattr("jaxmix.train.swarm.run.Interruption.is_requested", lambda self, step: step >= 5)
    with pytest.raises(RunError, match="interrupted; saved at step"):
        small_swarm(tmp_path / "moved", mesh=two_devices())
    monkeypatch.undo()
    again = small_swarm(tmp_path / "moved", mesh=proxy_mesh(jax.devices()[:4]))
    assert_same_losses(again.losses, whole.losses)


def poisoned(token):
    """A bigram model whose loss is nan for batches with `token`."""
    model = bigram()

    def apply(params, batch):
        is_bad = jnp.any(batch["tokens"] == token)
        return jnp.where(is_bad & (batch["targets"] >= 0), jnp.nan, model.apply(params, batch))

    return model._replace(apply=apply)


def test_a_proxy_that_diverges_is_reported_and_hurts_no_other(tmp_path):
    only_here = {name: [doc % 15 for doc in docs] for name, docs in token_sources().items()}
    only_here["rare"] = [np.where(np.arange(len(doc)) % 4 == 0, 15, doc % 15) for doc in only_here["rare"]]
    mixtures = {"clean": [0.5, 0.5, 0.0], "mixed": [0.4, 0.3, 0.3], "also clean": [1.0, 0.0, 0.0]}
    members = [Proxy(name, np.asarray(weights)) for name, weights in mixtures.items()]
    unpoisoned = {name: [doc % 15 for doc in docs] for name, docs in token_sources(seed=1).items()}
    validation = validation_set(unpoisoned, seq_len=8, rows_per_domain=10)
    options = {
        "validation": validation,
        "model": poisoned(15),
        "sources": only_here,
        "members": members,
        "mesh": two_devices(),
    }
    result = small_swarm(tmp_path / "all", changes={"max_consecutive_skipped": 6}, **options)
    clean, mixed, also = result.proxies
    assert clean.reason is None
    assert also.reason is None
    assert (clean.skipped, also.skipped) == (0, 0)
    assert mixed.reason == "6 updates in a row had a loss or gradient that was not finite, at step 6"
    assert np.isnan(mixed.losses).all()
    alone = small_swarm(tmp_path / "alone", **{**options, "members": members[:1]})
    assert_same_losses(alone.losses[0], clean.losses)
    patient = small_swarm(tmp_path / "patient", changes={"max_consecutive_skipped": 100}, **options).proxies[1]
    assert (patient.skipped, patient.reason) == (24, None)
    assert_same_losses(patient.curve[-1], patient.curve[0])  # no update was made


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"members": []}, "there are no proxies"),
        ({"members": [Proxy("a", np.ones(3)), Proxy("a", np.ones(3))]}, "two proxies are called 'a'"),
        ({"members": [Proxy("a", np.ones(2))]}, r"proxy 'a' has weights of shape \[2\], there are 3 sources"),
        ({"members": [Proxy("a", np.asarray([1.0, -1.0, 1.0]))]}, "finite and ≥ 0: 'dense' has -1"),
        ({"on_exhaust": "stop"}, "on_exhaust 'stop' would end some proxies before others"),
        ({"chunk": -1}, "chunk must be at least 1, got -1"),
        ({"changes": {"resume": "must"}}, "there is no swarm to resume"),
    ],
)
def test_what_cannot_be_a_swarm_is_refused_before_anything_is_written(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        small_swarm(tmp_path / "swarm", **options)
    assert not list((tmp_path / "swarm").glob("chunk_*"))


def test_a_folder_keeps_one_swarm(tmp_path):
    small_swarm(tmp_path, steps=3, mesh=two_devices())
    finished = small_swarm(
        tmp_path, steps=3, changes={"log_every": 7}, mesh=two_devices()
    )  # what decides no result may change
    assert len(finished.proxies) == 5
    with pytest.raises(ConfigError, match="a swarm of other proxies, settings or data"):
        small_swarm(tmp_path, steps=4)
    with pytest.raises(ConfigError, match="already holds a swarm"):
        small_swarm(tmp_path, steps=3, changes={"resume": "never"})


def test_sources_that_run_out_are_named_with_the_proxy(tmp_path):
    members = [Proxy("greedy", np.asarray([0.0, 0.0, 1.0]))]
    with pytest.raises(RunError, match="the sources of proxy 'greedy' are used up"):
        small_swarm(tmp_path, members=members, steps=200, on_exhaust="drop")


def test_one_program_serves_stretches_of_every_length(tmp_path):
    changes = {"eval_every": 7, "checkpoint_every": 5}
    small_swarm(tmp_path, changes=changes, mesh=two_devices())
    assert programs(settings(**changes), two_devices()).advance._cache_size() == 1


def start(run_dir):
    script = Path(__file__).parents[1] / "swarms.py"
    return subprocess.Popen(
        [sys.executable, str(script), str(run_dir), "600"],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def finish(process):
    _, stderr = process.communicate(timeout=240)
    assert process.returncode == 0, stderr.decode()[-2000:]


@pytest.mark.slow
def test_kill_nine_at_two_moments(tmp_path):
    finish(start(tmp_path / "whole"))
    expected = np.load(tmp_path / "whole" / "losses.npy")
    run_dir = tmp_path / "killed"
    for lines in (4, 12):
        process, progress = start(run_dir), run_dir / "progress.jsonl"
        while process.poll() is None and not (progress.exists() and progress.read_bytes().count(b"\n") >= lines):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert not (run_dir / "losses.npy").exists()
    finish(start(run_dir))
    np.testing.assert_array_equal(np.load(run_dir / "losses.npy"), expected)
    records = [json.loads(line) for line in (run_dir / "progress.jsonl").read_text().splitlines()]
    assert {record["chunk"] for record in records} == {0, 1}


def test_defaults_of_the_file_format_do_not_drift(tmp_path):
    """`run_swarm` in its plainest form, and what it leaves behind."""
    result = run_swarm(
        tmp_path,
        model=bigram(),
        proxies=proxies(2),
        sources=token_sources(),
        validation=held_out(),
        settings=settings(4),
        batch_size=8,
        seq_len=8,
        vocab_size=16,
        show_progress=False,
    )
    assert result.names == NAMES
    assert result.losses.shape == (2, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chunk_000", "plan.json", "progress.jsonl"]
    record = json.loads((tmp_path / "chunk_000" / "result.json").read_text())
    assert set(record["proxies"][0]) == set(type(result.proxies[0])._fields)
