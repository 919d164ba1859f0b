import dataclasses
import gc
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from bigram import bigram

from jaxmix.core.errors import RunError
from jaxmix.core.sharding import build_mesh, global_batch, replicated
from jaxmix.mixers.base import Mixer, MixerInfo
from jaxmix.train.lm.state import init_run_state, init_train_state, train_state_shardings
from jaxmix.train.lm.step import build_train_step
from jaxmix.train.run.checkpoint import Checkpointer, checksums

MIXER = Mixer(
    init=lambda key, m, prior=None: {"weights": prior, "key": key},
    update=lambda key, state, feedback: (state, MixerInfo(state["weights"], {})),
    weights=lambda state: state["weights"],
)


def run_state(seed=0, devices=8, vocab=16):
    mesh, optimizer = build_mesh(devices=jax.devices()[:devices]), optax.adamw(1e-3)
    train = init_train_state(jax.random.key(seed), bigram(vocab), optimizer, mesh)
    prior = jax.device_put(np.asarray([0.25, 0.75], np.float32), replicated(mesh))
    return init_run_state(jax.random.key(seed + 1), train, MIXER, prior, mesh)


def leaves(state):
    def plain(x):
        return np.asarray(jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x)

    return [plain(x) for x in jax.tree.leaves(state)]


def assert_equal(a, b):
    for x, y in zip(leaves(a), leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def checkpointer(tmp_path, notes=None, keep=3):
    return Checkpointer(tmp_path / "checkpoints", keep=keep, report=(notes if notes is not None else []).append)


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_a_state_returns_on_another_number_of_devices(tmp_path, devices):
    state, saver = run_state(), checkpointer(tmp_path)
    saver.save(5, state, {"stream": {"x": 0.1}})
    saver.wait()
    saver.close()
    restored = checkpointer(tmp_path).restore(run_state(seed=9, devices=devices))
    assert restored.step == 5
    assert restored.meta["stream"] == {"x": 0.1}
    assert_equal(restored.state, state)
    assert len(restored.state.train.step.sharding.device_set) == devices


def test_a_save_keeps_its_values_while_training_donates_the_state(tmp_path):
    mesh, optimizer, model = build_mesh(), optax.adamw(1e-1), bigram(256)
    shardings = (train_state_shardings(model, optimizer, mesh), replicated(mesh))
    step = build_train_step(model.apply, optimizer, num_domains=2, out_shardings=shardings)
    train = init_train_state(jax.random.key(0), model, optimizer, mesh)
    prior = jax.device_put(np.asarray([0.5, 0.5], np.float32), replicated(mesh))
    state = init_run_state(jax.random.key(1), train, MIXER, prior, mesh)
    rng, saver, expected = np.random.default_rng(0), checkpointer(tmp_path, keep=10), {}
    for number in range(6):
        expected[number] = [x.copy() for x in leaves(state)]
        saver.save(number, state, {})
        tokens = rng.integers(0, 256, (16, 9)).astype(np.int32)
        batch = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "domain": np.zeros(16, np.int32)}
        train, _ = step(state.train, global_batch(mesh, batch))
        state = dataclasses.replace(state, train=train)
    saver.wait()
    for number in reversed(range(6)):
        restored = saver.restore(state)
        assert restored.step == number
        for x, y in zip(leaves(restored.state), expected[number], strict=True):
            np.testing.assert_array_equal(x, y)
        shutil.rmtree(tmp_path / "checkpoints" / str(number))
        saver.close()
        saver = checkpointer(tmp_path, keep=10)


def damage_truncate(folder):
    data = [p for p in (folder / "state").rglob("d/*") if p.is_file()]
    assert data
    for path in data:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def damage_meta(folder):
    (folder / "meta" / "metadata").write_text('{"form')


def damage_value(folder):
    path = folder / "meta" / "metadata"
    record = json.loads(path.read_text())
    record["checksums"]["train/params/table/kernel"] ^= 1
    path.write_text(json.dumps(record))


def damage_remove(folder):
    shutil.rmtree(folder / "state")


# A failed read leaves Orbax's own tasks behind, which Python reports when it collects them.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", [damage_truncate, damage_meta, damage_value, damage_remove])
def test_a_damaged_checkpoint_is_reported_and_the_one_before_used(tmp_path, damage):
    first, second, saver = run_state(1), run_state(2), checkpointer(tmp_path)
    saver.save(1, first, {})
    saver.save(2, second, {})
    saver.wait()
    saver.close()
    damage(tmp_path / "checkpoints" / "2")
    notes = []
    saver = checkpointer(tmp_path, notes)
    restored = saver.restore(run_state(3))
    assert restored.step == 1
    assert_equal(restored.state, first)
    assert len(notes) == 1
    assert "checkpoint 2 is damaged" in notes[0]
    assert saver.steps() == [1]
    saver.save(2, second, {})  # its place is free again
    saver.wait()
    assert_equal(saver.restore(run_state(3)).state, second)
    gc.collect()


def test_no_whole_checkpoint_is_an_error_and_none_at_all_is_none(tmp_path):
    saver = checkpointer(tmp_path)
    assert saver.restore(run_state()) is None
    saver.save(1, run_state(), {})
    saver.wait()
    damage_remove(tmp_path / "checkpoints" / "1")
    with pytest.raises(RunError, match="no checkpoint of this run can be read"):
        saver.restore(run_state())


def test_another_model_is_an_error_not_a_damaged_checkpoint(tmp_path):
    saver = checkpointer(tmp_path)
    saver.save(1, run_state(), {})
    saver.wait()
    with pytest.raises(RunError, match="another run folder"):
        saver.restore(run_state(vocab=8))
    assert saver.steps() == [1]


def test_checksums_see_every_bit_and_no_layout():
    mesh = build_mesh()
    x = np.random.default_rng(0).normal(size=(8, 5)).astype(np.float32)
    spread = jax.device_put(x, jax.sharding.NamedSharding(mesh, jax.P("data")))
    reference = int(checksums({"x": jnp.asarray(x)})["x"])
    assert int(checksums({"x": spread})["x"]) == reference
    for flat in range(x.size):
        changed = x.copy()
        changed.view(np.uint32).reshape(-1)[flat] ^= 1
        assert int(checksums({"x": jnp.asarray(changed)})["x"]) != reference
    assert int(checksums({"x": jnp.asarray(x[::-1].copy())})["x"]) != reference
