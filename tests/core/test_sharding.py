"""Meshes, shardings and how processes find each other."""

import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from loopback import free_port

from jaxmix.core import sharding
from jaxmix.core.errors import ConfigError, EnvironmentProblem


@pytest.mark.parametrize(
    ("axes", "shape"),
    [
        ({}, (8, 1, 1)),
        ({"fsdp": 2}, (4, 2, 1)),
        ({"fsdp": 2, "tensor": 2}, (2, 2, 2)),
        ({"data": 1, "fsdp": -1}, (1, 8, 1)),
        ({"data": 2, "fsdp": 2, "tensor": -1}, (2, 2, 2)),
        ({"data": 8, "fsdp": 1, "tensor": 1}, (8, 1, 1)),
    ],
)
def test_mesh_shapes(axes, shape):
    mesh = sharding.build_mesh(**axes)
    assert mesh.axis_names == ("data", "fsdp", "tensor")
    assert mesh.devices.shape == shape


def test_mesh_of_given_devices_keeps_their_order():
    devices = jax.devices()[2:6]
    mesh = sharding.build_mesh(fsdp=2, devices=devices)
    assert list(mesh.devices.ravel()) == devices


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"data": 3}, r"data=3 x fsdp=1 x tensor=1 does not fit on 8 devices.*product is 8"),
        ({"fsdp": 3}, r"does not fit on 8 devices.*product divides 8"),
        ({"data": -1, "fsdp": -1}, r"only one mesh axis may be -1.*data.*fsdp"),
        ({"tensor": 0}, r"'tensor' has 0"),
        ({"fsdp": -2}, r"'fsdp' has -2"),
    ],
)
def test_mesh_errors_say_what_to_do(axes, message):
    with pytest.raises(ConfigError, match=message):
        sharding.build_mesh(**axes)


def test_named_shardings_of_a_tree():
    mesh = sharding.build_mesh(fsdp=2)
    tree = {"w": PartitionSpec("fsdp", None), "b": None}
    got = sharding.named_shardings(mesh, tree)
    assert got == {"w": NamedSharding(mesh, PartitionSpec("fsdp", None)), "b": NamedSharding(mesh, PartitionSpec())}
    assert sharding.named_shardings(mesh, None) == sharding.replicated(mesh)


def test_global_batch_splits_rows_over_data_and_fsdp():
    mesh = sharding.build_mesh(data=2, fsdp=2, tensor=2)
    host = {"tokens": np.arange(24, dtype=np.int32).reshape(8, 3), "domain": np.arange(8, dtype=np.int32)}
    batch = sharding.global_batch(mesh, host)
    for name, array in batch.items():
        np.testing.assert_array_equal(array, host[name])
        assert array.sharding.is_equivalent_to(sharding.batch_sharding(mesh), array.ndim)
        assert array.addressable_shards[0].data.shape[0] == 2


def test_global_batch_with_too_few_rows():
    with pytest.raises(ConfigError, match=r"6 rows cannot be divided over 8 devices.*multiple of 8"):
        sharding.global_batch(sharding.build_mesh(), {"tokens": np.zeros((6, 2), np.int32)})


def test_sum_over_skips_axes_on_which_the_value_does_not_vary():
    mesh = sharding.build_mesh(data=4, fsdp=2)
    spec = PartitionSpec("data")

    def total(x):
        return sharding.sum_over({"varying": jnp.sum(x), "constant": jnp.float32(3.0)})

    got = jax.jit(sharding.shard_map(total, mesh, in_specs=spec, out_specs=PartitionSpec()))(jnp.arange(8.0))
    assert got["varying"] == 28.0  # not 56: the two fsdp shards hold the same rows
    assert got["constant"] == 3.0


def test_sum_over_both_row_axes():
    mesh = sharding.build_mesh(data=4, fsdp=2)
    total = sharding.shard_map(
        lambda x: sharding.sum_over(jnp.sum(x)), mesh, in_specs=sharding.batch_spec(), out_specs=PartitionSpec()
    )
    assert jax.jit(total)(jnp.arange(16.0)) == 120.0


def test_use_mesh_gives_bare_specifications_a_mesh():
    mesh = sharding.build_mesh(fsdp=2)
    with sharding.use_mesh(mesh):
        out = jax.jit(lambda x: jax.lax.with_sharding_constraint(x, PartitionSpec("fsdp")))(jnp.arange(8.0))
    assert out.sharding.is_equivalent_to(NamedSharding(mesh, PartitionSpec("fsdp")), 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("127.0.0.1:1234", 2, None), "go together"),
        ((None, 2, 0), "go together"),
        (("127.0.0.1:1234", 2, 2), "from 0 to 1, got 2"),
        (("localhost", 2, 0), "host:port, got 'localhost'"),
    ],
)
def test_process_arguments_are_checked(arguments, message):
    with pytest.raises(ConfigError, match=message):
        sharding.initialize_distributed(*arguments)


@pytest.mark.multihost
def test_two_processes_share_a_batch():
    port = free_port()
    script = textwrap.dedent("""
        import sys
        import jax, numpy as np
        jax.config.update("jax_num_cpu_devices", 2)
        from jaxmix.core import sharding
        sharding.initialize_distributed(f"127.0.0.1:{sys.argv[1]}", 2, int(sys.argv[2]), timeout_s=60)
        index, count = sharding.process_shard()
        assert (index, count) == (int(sys.argv[2]), 2)
        rows = np.arange(24, dtype=np.float32).reshape(8, 3)
        for axes in ({}, {"fsdp": 2}, {"data": 1, "fsdp": 4}, {"data": 2, "tensor": 2}):
            mesh = sharding.build_mesh(**axes)
            mine = rows[index * 4 : (index + 1) * 4]
            batch = sharding.global_batch(mesh, {"x": mine})["x"]
            assert batch.shape == (8, 3)
            weighted = jax.jit(lambda x: (x * np.arange(8, dtype=np.float32)[:, None]).sum())(batch)
            assert float(weighted) == float((rows * np.arange(8)[:, None]).sum())
        try:
            sharding.global_batch(sharding.build_mesh(data=1, tensor=4), {"x": rows[:4]})
        except Exception as error:
            assert "multiple of the number of processes" in str(error), error
        else:
            raise AssertionError("a mesh that splits rows over fewer shards than processes was accepted")
        print(f"done {index}")
        """)
    members = [
        subprocess.Popen([sys.executable, "-c", script, str(port), str(i)], stdout=-1, stderr=-2, text=True)
        for i in range(2)
    ]
    output = [member.communicate(timeout=120)[0] for member in members]
    assert [f"done {i}" in text for i, text in enumerate(output)] == [True, True], "\n".join(output)


@pytest.mark.multihost
def test_a_missing_process_is_named():
    port = free_port()
    script = (
        "import sys; from jaxmix.core.rendezvous import wait_for_all\n"
        "wait_for_all('127.0.0.1:' + sys.argv[1], 4, 2, timeout_s=3)"
    )
    other = subprocess.Popen([sys.executable, "-c", script, str(port)], stdout=-1, stderr=-2, text=True)
    try:
        with pytest.raises(EnvironmentProblem, match=r"process 0 of 4 waited 3 s and processes 1, 3 did not come"):
            sharding.initialize_distributed(f"127.0.0.1:{port}", 4, 0, timeout_s=3)
    finally:
        output = other.communicate(timeout=60)[0]
    assert "process 2 of 4 waited 3 s and processes 1, 3 did not come" in output


@pytest.mark.multihost
def test_a_missing_process_zero_is_named():
    with pytest.raises(EnvironmentProblem, match=r"process 1 of 2 waited 1 s and process 0 did not answer"):
        sharding.initialize_distributed(f"127.0.0.1:{free_port()}", 2, 1, timeout_s=1)
