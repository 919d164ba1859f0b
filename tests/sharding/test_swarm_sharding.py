"""Eight devices along `proxy` compute the losses of one."""

import sys
from pathlib import Path

import jax

sys.path.insert(0, str(Path(__file__).parents[1] / "train"))

from swarms import assert_same_losses, proxies, small_swarm

from jaxmix.core.sharding import proxy_mesh


def test_eight_devices_equal_one(tmp_path):
    members = proxies(10)  # two on each device, six of the sixteen places filled up
    one = small_swarm(tmp_path / "one", members=members, steps=8, mesh=proxy_mesh(jax.devices()[:1]))
    eight = small_swarm(tmp_path / "eight", members=members, steps=8)
    assert len(eight.proxies) == 10
    assert_same_losses(eight.losses, one.losses)
    for alone, sharded in zip(one.proxies, eight.proxies, strict=True):
        assert (alone.name, alone.tokens, alone.skipped) == (sharded.name, sharded.tokens, sharded.skipped)
        assert_same_losses(sharded.curve, alone.curve)
