"""Checkpoints of published architectures against what `transformers` computed, see scripts/golden_checkpoints.py."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxmix.core.errors import ConfigError
from jaxmix.core.sharding import build_mesh
from jaxmix.models import PRESETS, load_checkpoint, save_checkpoint
from jaxmix.models.checkpoints.config import write_config

GOLDEN = Path(__file__).parent / "golden"
NAMES = sorted(folder.name for folder in GOLDEN.iterdir())


@pytest.fixture(scope="module")
def mesh():
    return build_mesh(devices=jax.devices()[:1])


def expected(name):
    return np.load(GOLDEN / name / "expected.npz")


def tokens_and_targets(tokens):
    return {"tokens": jnp.asarray(tokens[:, :-1]), "targets": jnp.asarray(tokens[:, 1:])}


@pytest.mark.parametrize("name", NAMES)
def test_loss_is_that_of_transformers(name, mesh):
    model, params = load_checkpoint(GOLDEN / name, mesh=mesh, compute_dtype="float32", attention_block=8)
    golden = expected(name)
    loss = jax.jit(model.apply)(params, tokens_and_targets(golden["tokens"]))
    np.testing.assert_allclose(loss, golden["loss"], rtol=0, atol=2e-5)
    assert model.num_params == sum(leaf.size for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize(
    "name",
    # These have positions or windows of their own; the others' parts are the same in both ways of running a block.
    [name if name in ("gpt2", "mistral", "smollm3") else pytest.param(name, marks=pytest.mark.slow) for name in NAMES],
)
def test_logits_of_every_step_are_those_of_transformers(name, mesh):
    """Prompts padded on the left, then token by token: prefill, extend and score."""
    model, params = load_checkpoint(GOLDEN / name, mesh=mesh, compute_dtype="float32")
    golden = expected(name)
    tokens, logits = golden["tokens"], golden["logits"]
    length, pad = 9, 3
    prompts = np.pad(tokens[:, :length], ((0, 0), (pad, 0)))
    valid = np.arange(length + pad)[None] >= np.full((2, 1), pad)
    rest = tokens[:, None, length:]
    found, cache = jax.jit(model.decoding.prefill, static_argnums=(3, 4))(params, prompts, valid, 1, rest.shape[2])
    np.testing.assert_allclose(found, logits[:, length - 1], rtol=0, atol=2e-5)
    extend = jax.jit(model.decoding.extend)
    for i in range(rest.shape[2]):
        found, cache = extend(params, rest[:, :, i], jnp.int32(i), cache)
        np.testing.assert_allclose(found[:, 0], logits[:, length + i], rtol=0, atol=2e-5)
    scores = jax.jit(model.decoding.score)(params, prompts, valid, rest, np.ones(rest.shape, bool))
    np.testing.assert_allclose(scores[:, 0], -golden["loss"][:, length - 1 :], rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", NAMES)
def test_written_again_it_is_the_same_bit_by_bit(name, mesh, tmp_path):
    model, params = load_checkpoint(GOLDEN / name, mesh=mesh)
    before = load_file(GOLDEN / name / "model.safetensors")
    plain = json.loads((GOLDEN / name / "config.json").read_text())
    dtype = next(iter(before.values())).dtype
    save_checkpoint(tmp_path, model.config, params, kind=plain["model_type"], dtype=dtype, extra=plain)
    after = load_file(tmp_path / "model.safetensors")
    assert after.keys() == before.keys()
    for key, array in before.items():
        np.testing.assert_array_equal(after[key], array, err_msg=key)
    again = load_checkpoint(tmp_path, mesh=mesh).model.config
    assert write_config(again, plain["model_type"]) == write_config(model.config, plain["model_type"])


def test_stacked_and_sharded_it_is_the_same(mesh, tmp_path):
    """Blocks as one compiled loop, over eight devices, from several files."""
    model, params = load_checkpoint(GOLDEN / "qwen3", mesh=mesh)
    save_checkpoint(tmp_path, model.config, params, kind="qwen3", shard_bytes=4_000)
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    eight = build_mesh(fsdp=4, tensor=2)
    stacked, split = load_checkpoint(tmp_path, mesh=eight, compute_dtype="float32", scan_layers=True)
    assert split["blocks"]["attention"]["input"].addressable_shards[0].data.size * 8 == (
        split["blocks"]["attention"]["input"].size
    )
    golden = expected("qwen3")
    loss = jax.jit(stacked.apply)(split, tokens_and_targets(golden["tokens"]))
    np.testing.assert_allclose(loss, golden["loss"], rtol=0, atol=2e-5)
    again = tmp_path / "again"
    save_checkpoint(again, stacked.config, split, kind="qwen3")
    before = load_file(GOLDEN / "qwen3" / "model.safetensors")
    for key, array in load_file(again / "model.safetensors").items():
        np.testing.assert_array_equal(array, before[key].astype(np.float32))


def test_parameters_may_stay_in_sixteen_bits(mesh):
    params = load_checkpoint(GOLDEN / "llama", mesh=mesh, dtype=jnp.bfloat16, compute_dtype="float32").params
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}
    stored = load_file(GOLDEN / "llama" / "model.safetensors")["lm_head.weight"]
    np.testing.assert_array_equal(np.asarray(params["readout"]), stored)


def changed(tmp_path, name="llama", arrays=None, **keys):
    folder = shutil.copytree(GOLDEN / name, tmp_path / name)
    plain = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**plain, **keys}))
    if arrays is not None:
        save_file(arrays(load_file(folder / "model.safetensors")), folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"model_type": "mamba"}, "a model of type 'mamba' cannot be loaded .*Known: llama"),
        ({"hidden_act": "relu"}, "hidden_act 'relu' is not supported"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "rotary positions of type 'yarn'"),
        ({"hidden_size": 24}, "do not make up"),
        ({"num_hidden_layers": 3}, "there is no array 'model.layers.2"),
        ({"num_hidden_layers": 1}, "9 arrays belong to no parameter, the first 'model.layers.1"),
    ],
)
def test_what_cannot_be_loaded_is_named(keys, text, mesh, tmp_path):
    with pytest.raises(ConfigError, match=text):
        load_checkpoint(changed(tmp_path, **keys), mesh=mesh)


def test_a_setting_of_the_checkpoint_cannot_be_changed(mesh):
    with pytest.raises(ConfigError, match="rope_base is part of the checkpoint"):
        load_checkpoint(GOLDEN / "llama", mesh=mesh, rope_base=1.0)


def test_a_missing_file_is_named(mesh, tmp_path):
    folder = changed(tmp_path)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"there is no file model\.safetensors"):
        load_checkpoint(folder, mesh=mesh)
    with pytest.raises(ConfigError, match="there is no folder"):
        load_checkpoint(tmp_path / "nothing", mesh=mesh)


def test_a_second_copy_of_a_tied_table_is_no_error(mesh, tmp_path):
    twice = lambda arrays: {**arrays, "lm_head.weight": arrays["model.embed_tokens.weight"]}
    load_checkpoint(changed(tmp_path, "qwen2", twice), mesh=mesh)


def test_a_trunk_without_its_prefix_is_read(mesh, tmp_path):
    bare = lambda arrays: {name.removeprefix("transformer."): array for name, array in arrays.items()}
    model, params = load_checkpoint(changed(tmp_path, "gpt2", bare), mesh=mesh)
    golden = expected("gpt2")
    loss = jax.jit(model.apply)(params, tokens_and_targets(golden["tokens"]))
    np.testing.assert_allclose(loss, golden["loss"], rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", ["lm-60m", "lm-125m", "lm-350m", "lm-1b"])
def test_presets_from_sixty_million_on_are_llamas(name):
    kind, plain = write_config(PRESETS[name])
    assert (kind, plain["hidden_size"]) == ("llama", PRESETS[name].width)


def test_a_model_of_no_published_architecture_says_what_differs():
    with pytest.raises(ConfigError, match=r"no published architecture .*: activation is .relu2., llama has swiglu"):
        write_config(PRESETS["lm-1m"])
    with pytest.raises(ConfigError, match="window is 4, llama has None"):
        write_config(dataclasses.replace(PRESETS["lm-60m"], window=4), "llama")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_transformers_loads_what_is_written(name, mesh, tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model, params = load_checkpoint(GOLDEN / name, mesh=mesh, compute_dtype="float32")
    changed = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape, x.dtype), params)
    plain = json.loads((GOLDEN / name / "config.json").read_text())
    save_checkpoint(tmp_path, model.config, changed, kind=plain["model_type"], extra=plain)
    tokens = expected(name)["tokens"]
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, attn_implementation="eager"
    )
    with torch.no_grad():
        logits = theirs(torch.from_numpy(tokens).long()).logits.double()
    targets = torch.from_numpy(tokens[:, 1:]).long()
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), targets, reduction="none")
    np.testing.assert_allclose(model.apply(changed, tokens_and_targets(tokens)), loss.numpy(), rtol=0, atol=5e-5)
