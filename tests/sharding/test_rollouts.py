"""Rollouts and updates on several devices give what one device gives."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "train"))

from finetuning import EOS, PAD, toy_model, toy_params, toy_prompts, toy_settings

from jaxmix.core.sharding import build_mesh, use_mesh
from jaxmix.train.finetune_step import build_policy_programs, init_policy

MESHES = {"1": {"data": 1}, "2": {"data": 2}, "4": {"data": 4}, "8": {"data": 8}, "mixed": {"fsdp": 4, "tensor": 2}}


def one_update(name):
    """Rollouts of eight prompts, and the policy after an update on them."""
    axes = {"data": 1, **MESHES[name]}
    mesh = build_mesh(**axes, devices=jax.devices()[: int(np.prod(list(axes.values())))])
    settings = toy_settings(groups_per_update=8)
    programs = build_policy_programs(toy_model(), settings, completion_length=3, eos_id=EOS, pad_id=PAD, mesh=mesh)
    prompts = jnp.asarray(toy_prompts().tokens[:8])
    rewards = np.tile(np.arange(4) % 2, (8, 1)).astype(np.float32)
    with use_mesh(mesh):
        train = init_policy(jax.random.key(0), toy_model(), programs, toy_params())
        before = jax.tree.map(lambda x: x.sharding, train)
        made = programs.rollout(train.params, jax.random.key(1), prompts)
        buffer = programs.collect(programs.buffer(4), prompts, made, rewards, np.ones(8, bool))
        train, buffer, info = programs.update(train, None, buffer)
    assert jax.tree.all(jax.tree.map(lambda x, y: x.sharding.is_equivalent_to(y, x.ndim), train, before))
    return jax.device_get((made, train.params, info))


@pytest.fixture(scope="module")
def one_device():
    return one_update("1")


@pytest.mark.parametrize("name", ["8", *(pytest.param(name, marks=pytest.mark.slow) for name in ("2", "4", "mixed"))])
def test_devices_draw_the_same_tokens(name, one_device):
    made, params, info = one_update(name)
    np.testing.assert_array_equal(made.tokens, one_device[0].tokens)
    np.testing.assert_array_equal(made.mask, one_device[0].mask)
    np.testing.assert_allclose(made.logp, one_device[0].logp, atol=1e-5)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), params, one_device[1])
    np.testing.assert_allclose(info.grad_norm, one_device[2].grad_norm, rtol=1e-4)
