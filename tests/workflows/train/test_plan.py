import contextlib
import dataclasses
import json

import pytest

from jaxmix.data import MixtureStream, open_prepared
from jaxmix.models import preset
from jaxmix.workflows.config.load import from_mapping
from jaxmix.workflows.train.data import prepare_sources
from jaxmix.workflows.train.plan import estimate_memory, make_plan, plan_lines, plan_rows


def plan(**sections):
    base = {"sources": {"a": {"path": "x", "tokens": 4e6}, "b": {"path": "y", "tokens": 1e6}}, "train": {"steps": 50}}
    return make_plan(from_mapping({**base, **sections}, file="p.yaml"))


def test_memory_by_hand():
    # One layer of width 4 with one head of 4 and 8 hidden units; 2 rows of 3 tokens; vocabulary 10; float32.
    config = preset(
        "lm-1m", num_layers=1, width=4, num_heads=1, mlp_width=8, vocab_size=10, compute_dtype="float32", loss_chunk=0
    )
    params = 4 * (4 * 4 * 4 + 2 * 4 * 8 + 3 * 4 + 10 * 4)
    memory = estimate_memory(config, rows=2, seq_len=3, parameter_shards=1, is_accumulating=False)
    assert memory.params == params
    assert memory.gradients == params
    assert memory.optimizer == 2 * params
    per_token = 8 * 4 + 4 * (2 * 4 + 2 * (1 + 1) * 4 + 2 * 8) + 4 * 1 * 3
    assert memory.activations == 6 * (per_token + 4 * 4)
    assert memory.logits == 8 * 10 * 6
    assert memory.total == 4 * params + memory.activations + memory.logits


def test_memory_follows_shards_accumulation_and_recomputation():
    config = preset("lm-10m", compute_dtype="float32")
    base = estimate_memory(config, rows=4, seq_len=256, parameter_shards=1, is_accumulating=False)
    halved = estimate_memory(config, rows=4, seq_len=256, parameter_shards=2, is_accumulating=True)
    assert halved.params == base.params // 2
    assert halved.gradients == base.params
    sizes = [
        estimate_memory(
            dataclasses.replace(config, remat=remat), rows=4, seq_len=256, parameter_shards=1, is_accumulating=False
        ).activations
        for remat in ("none", "dots", "block")
    ]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[2] < sizes[0] / 3


def test_memory_is_within_a_factor_of_two_of_what_the_compiler_takes():
    import jax
    import jax.numpy as jnp

    from jaxmix.core.sharding import build_mesh
    from jaxmix.models import transformer
    from jaxmix.train import TrainSettings, build_programs
    from jaxmix.train.lm.state import init_train_state

    config, rows = preset("lm-1m", num_layers=2, seq_len=128), 8
    model, mesh = transformer(config), build_mesh(devices=jax.devices()[:1])
    programs = build_programs(model, TrainSettings(steps=10, warmup_steps=1), num_domains=3, mesh=mesh)
    state = jax.eval_shape(lambda: init_train_state(jax.random.key(0), model, programs.optimizer, mesh))
    shapes = {"tokens": (rows, 128), "targets": (rows, 128), "domain": (rows,)}
    batch = {name: jax.ShapeDtypeStruct(shape, jnp.int32) for name, shape in shapes.items()}
    taken = programs.train_step.lower(state, batch).compile().memory_analysis()
    measured = taken.argument_size_in_bytes + taken.temp_size_in_bytes
    estimate = estimate_memory(config, rows=rows, seq_len=128, parameter_shards=1, is_accumulating=False).total
    assert 0.5 < estimate / measured < 2.0


def test_rows_of_one_device():
    data = {"prepared": "nowhere", "seq_len": 64, "batch_size": 32}
    whole = plan(data=data, train={"steps": 50, "mesh": {"data": 1}})
    split = plan(data=data, train={"steps": 50, "accumulate": 2, "mesh": {"data": 2, "fsdp": 2, "tensor": 2}})
    assert split.devices == {"data": 2, "fsdp": 2, "tensor": 2}
    assert split.memory.logits * 8 == whole.memory.logits  # 32 rows become 32 / (2 · 2 · 2) at a time
    assert split.memory.params == whole.memory.params // 4
    assert all("no file at" in line for line in whole.unknown)
    assert any("number of devices" in line for line in plan(data=data).unknown)


def test_natural_weights_without_sizes_are_unknown_not_guessed():
    result = plan(sources={"a": {"path": "x", "tokens": 10}, "b": {"path": "y"}})
    assert [s.weight for s in result.sources] == [None, None]
    text = "\n".join(plan_lines(result))
    assert "the size of b" in text
    assert "natural weights need the size of every source" in text
    assert plan_rows(result)[1][0] == ("a", "?", "?", "?", "10", "?", "-")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Short documents (9 tokens with their end) in one domain, long ones (90 tokens) in the other, half as many."""
    folder = tmp_path_factory.mktemp("units")
    for name, count, length in (("short", 400, 8), ("long", 200, 89)):
        lines = [json.dumps({"text": f"{i:03d}" + "x" * (length - 3)}) for i in range(count)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    mapping = {
        "sources": {n: {"path": str(folder / f"{n}.jsonl")} for n in ("short", "long")},
        "data": {"prepared": str(folder / "prepared"), "seq_len": 128, "batch_size": 8, "validation_fraction": 0.1},
        "train": {"steps": 50},
    }
    prepare_sources(from_mapping(mapping, file="units.yaml"))
    return mapping


@pytest.mark.parametrize("unit", ["tokens", "documents", "rows"])
@pytest.mark.parametrize("weights", ["natural", {"short": 0.5, "long": 0.5}], ids=["natural", "half"])
def test_the_plan_is_what_the_stream_draws_in_every_unit(prepared, unit, weights):
    mapping = {**prepared, "data": {**prepared["data"], "unit": unit}, "mixture": {"weights": weights}}
    config = from_mapping(mapping, file="units.yaml")
    planned = {s.name: s for s in make_plan(config).sources}
    train = open_prepared(config.data.prepared)
    assert {name: source.num_tokens for name, source in train.items()} == {
        name: s.available for name, s in planned.items()
    }
    prior = {name: s.weight for name, s in planned.items()}
    with contextlib.closing(
        MixtureStream(train, batch_size=8, seq_len=128, seed=0, unit=unit, block=1, weights=prior)
    ) as stream:
        for _ in range(50):
            next(stream)
        drawn = stream.realized()
    for name, source in planned.items():
        assert drawn[name]["rows"] == pytest.approx(source.rows, abs=1)
        assert drawn[name]["epochs"] == pytest.approx(source.epochs, rel=0.03)
    if weights == "natural":  # every source is passed over equally often, whatever is counted
        assert planned["short"].epochs == pytest.approx(planned["long"].epochs, rel=0.03)


def test_sizes_are_those_of_the_index_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sources = {}
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text('{"text": "' + name * 900 + '"}\n{"text": "' + "x" * 900 + '"}\n')
        sources[name] = {"path": f"{name}.jsonl"}
    data = {"prepared": "p"}
    prepare_sources(from_mapping({"sources": sources, "data": data, "train": {"steps": 1}}))
    turned = plan(sources={"b": sources["b"], "a": sources["a"]}, data=data)
    assert [(s.name, s.available) for s in turned.sources] == [("b", 901.0), ("a", 901.0)]
    assert not [line for line in turned.unknown if "size" in line]
    (tmp_path / "c.jsonl").write_text('{"text": "c"}\n')
    more = plan(sources={"c": {"path": "c.jsonl"}, "a": sources["a"]}, data=data)
    assert [s.available for s in more.sources] == [None, 901.0]
    assert any("the size of c: run" in line for line in more.unknown)


def test_documents_that_are_not_counted_yet_are_unknown():
    result = plan(data={"prepared": "nowhere", "unit": "documents"}, mixture={"weights": {"a": 1, "b": 1}})
    assert [(s.weight, s.rows) for s in result.sources] == [(0.5, None), (0.5, None)]
    assert any("the number of documents" in line for line in result.unknown)


def test_an_online_mixer_is_noted_and_a_static_one_is_not():
    assert not plan().notes
    assert any("moves the weights" in note for note in plan(mixer={"name": "odm"}).notes)


def test_evaluations_and_checkpoints_are_counted():
    result = plan(train={"steps": 50, "eval_every": 20}, checkpoint={"every": 20})
    # Evaluations before steps 0, 20, 40 and after the last; checkpoints at 20, 40 and after the last.
    assert (result.evaluations, result.checkpoints) == (4, 3)


def test_what_a_mixer_evaluates_and_probes_is_counted():
    mixer = {"name": "aioli", "round_length": 100, "sweeps": 2, "interval": 10}
    data = {"batch_size": 8, "seq_len": 64, "control_rows": 4}
    result = plan(mixer=mixer, data=data, train={"steps": 1000})
    # Five evaluations in each of ten rounds, and one at the end of the run, where an eleventh would begin.
    assert result.mixer_evaluations == 51
    cost, probing = result.notes[1:]
    assert "51 evaluations of at most 4 rows per source cost about 2% of" in cost
    assert "lower data.control_rows" not in cost
    assert "probes for 40% of every round" in probing
    dear = plan(mixer=mixer, data=data | {"control_rows": 64}, train={"steps": 1000})
    assert "lower data.control_rows" in dear.notes[1]
    assert any("51 more for the mixer" in line for line in plan_lines(result))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            {"max_epochs": 0.4},
            "a would need 0.80 epochs and may have 0.4: it runs out at about step 25, and the others",
        ),
        ({"max_epochs": 0.4, "on_exhaust": "stop"}, "about step 25, and the run ends there (on_exhaust: stop)"),
        (
            {"tokens": 16_000, "on_exhaust": "drop"},
            "a would need 3.20 epochs and may have 1: it runs out at about step 16,",
        ),
    ],
)
def test_sources_that_run_out_are_named_with_the_step(given, words):
    sources = {"a": {"path": "x", "tokens": 64_000, **given}, "b": {"path": "y", "tokens": 1e6}}
    data = {"prepared": "nowhere", "seq_len": 64, "batch_size": 32}  # 16 of 32 rows of a step are of a
    (note,) = plan(sources=sources, data=data, mixture={"weights": "uniform"}).notes
    assert words in note


def test_sources_that_run_out_hasten_the_others_to_the_end_of_the_run():
    """Rows 3,907, 391 and 16, eight a step: a `MixtureStream` of these ends after 539 steps."""
    sources = {name: {"path": name, "tokens": tokens} for name, tokens in (("a", 5e5), ("b", 5e4), ("c", 2000))}
    data = {"prepared": "nowhere", "seq_len": 128, "batch_size": 8, "max_epochs": 1}
    notes = plan(sources=sources, data=data, mixture={"weights": "uniform"}, train={"steps": 1000}).notes
    steps = [note.partition("at about step ")[2].partition(",")[0] for note in notes]
    assert steps == ["6", "100", "539"]
    assert "the run ends there: every source is used up" in notes[2]
    assert not plan(sources=sources, data=data | {"max_epochs": 100}, train={"steps": 10}).notes


@pytest.mark.parametrize(
    ("mixer", "words"),
    [
        (
            {"name": "static", "wrap": [{"floor": 0.2}]},
            "(floor) moves the weights; draws and epochs are those of the prior",
        ),
        ({"name": "static", "wrap": [{"epoch_cap": 0.5}]}, "(epoch_cap) moves the weights"),
        (
            {
                "name": "scheduled",
                "points": [{"at": 0, "weights": {"a": 1, "b": 0}}, {"at": 25, "weights": {"a": 0, "b": 1}}],
                "wrap": [{"floor": 0.2}],
            },
            "those of the schedule alone",
        ),
    ],
)
def test_what_wraps_a_mixer_is_noted(mixer, words):
    result = plan(mixer=mixer)
    assert words in result.notes[-1]
    if mixer["name"] == "scheduled":
        assert [s.weight for s in result.sources] == pytest.approx([0.5, 0.5], abs=0.02)
