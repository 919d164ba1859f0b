"""Rollouts and updates on several devices give what one device gives."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "train"))

from finetuning import EOS, PAD, toy_model, toy_params, toy_prompts, toy_settings

from jaxmix.core.sharding import batch_sharding, build_mesh, use_mesh
from jaxmix.train.rl.step import build_policy_programs, init_policy

MESHES = {"1": {"data": 1}, "2": {"data": 2}, "4": {"data": 4}, "8": {"data": 8}, "mixed": {"fsdp": 4, "tensor": 2}}


def on_mesh(name, *, is_updated):
    """Rollouts of eight prompts; and the policy after an update on them, with what the update shows."""
    axes = {"data": 1, **MESHES[name]}
    mesh = build_mesh(**axes, devices=jax.devices()[: int(np.prod(list(axes.values())))])
    settings = toy_settings(groups_per_update=8)
    programs = build_policy_programs(toy_model(), settings, completion_length=3, eos_id=EOS, pad_id=PAD, mesh=mesh)
    prompts = jnp.asarray(toy_prompts().tokens[:8])
    rewards = np.tile(np.arange(4) % 2, (8, 1)).astype(np.float32)
    with use_mesh(mesh):
        train = init_policy(jax.random.key(0), toy_model(), programs, toy_params())
        before = jax.tree.map(lambda x: x.sharding, train)
        placed = jax.device_put(prompts, batch_sharding(mesh))
        made = programs.rollout(train.params, jax.random.key(1), placed)
        if not is_updated:
            return jax.device_get(made), None
        buffer = programs.collect(programs.buffer(4), placed, made, rewards, np.ones(8, bool))
        train, buffer, info = programs.update(train, None, buffer)
    assert jax.tree.all(jax.tree.map(lambda x, y: x.sharding.is_equivalent_to(y, x.ndim), train, before))
    return jax.device_get(made), jax.device_get((train.params, info))


def assert_same(one, other):
    np.testing.assert_array_equal(one.tokens, other.tokens)
    np.testing.assert_array_equal(one.mask, other.mask)
    np.testing.assert_allclose(one.logp, other.logp, atol=1e-5)


def test_eight_devices_draw_the_tokens_of_one():
    assert_same(on_mesh("8", is_updated=False)[0], on_mesh("1", is_updated=False)[0])


@pytest.mark.slow
def test_any_devices_draw_and_learn_the_same():
    alone, (params, info) = on_mesh("1", is_updated=True)
    for name in list(MESHES)[1:]:
        made, (others, shown) = on_mesh(name, is_updated=True)
        assert_same(made, alone)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), others, params)
        np.testing.assert_allclose(shown.grad_norm, info.grad_norm, rtol=1e-4)
