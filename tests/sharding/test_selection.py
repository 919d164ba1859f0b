"""Selection over rows that lie on several devices: the same indices, little communication, memory in shares."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxmix.core.errors import ConfigError
from jaxmix.core.sharding import batch_sharding, build_mesh, replicated
from jaxmix.selection import Embeddings, diverse, independent, jest

C, CHOSEN, CHUNKS, WIDTH = 512, 128, 8, 16
KEY = jax.random.key(1)
FAST = {"xla_backend_optimization_level": 0}
"""What is tested here does not depend on how well the programs are compiled."""


def mesh_of(devices):
    return build_mesh(data=devices // 2 or 1, fsdp=2 if devices > 1 else 1, devices=jax.devices()[:devices])


@functools.cache
def models():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(4, C, WIDTH))
    rows[1::2] += rows[::2]
    rows = jnp.asarray(rows / np.linalg.norm(rows, axis=-1, keepdims=True), jnp.float32)
    scale = jnp.float32(10.0), jnp.float32(-5.0)
    return Embeddings(rows[0], rows[1], *scale), Embeddings(rows[2], rows[3], *scale)


VALID = jnp.asarray(np.random.default_rng(1).random(C) < 0.7)
DOMAIN = jnp.asarray(np.random.default_rng(2).integers(0, 4, C), jnp.int32)


def spread(tree, mesh):
    place = lambda x: jax.device_put(x, batch_sharding(mesh) if jnp.ndim(x) else replicated(mesh))
    return jax.tree.map(place, tree)


@functools.cache
def on_one_device():
    return jax.jit(jest(CHOSEN, num_chunks=CHUNKS).select, compiler_options=FAST)(KEY, *models())


@pytest.mark.parametrize(
    ("devices", "way"),
    [
        (1, "shard_map"),
        pytest.param(2, "shard_map", marks=pytest.mark.slow),
        pytest.param(4, "shard_map", marks=pytest.mark.slow),
        (8, "shard_map"),
        (8, "jit"),
        pytest.param(2, "jit", marks=pytest.mark.slow),
        pytest.param(4, "jit", marks=pytest.mark.slow),
    ],
)
def test_the_same_selection_on_any_number_of_devices(devices, way):
    mesh = mesh_of(devices)
    selector = jest(CHOSEN, num_chunks=CHUNKS, mesh=mesh if way == "shard_map" else None)
    key, (learner, reference) = jax.device_put(KEY, replicated(mesh)), spread(models(), mesh)
    found = jax.jit(selector.select, compiler_options=FAST)(key, learner, reference)
    np.testing.assert_array_equal(found.indices, on_one_device().indices)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), found.info, on_one_device().info)
    if way == "shard_map":
        for piece in found.indices.addressable_shards:
            np.testing.assert_array_equal(piece.data, on_one_device().indices)


OTHERS = {
    "marginal, sweep, quota": lambda mesh: (
        jest(CHOSEN, num_chunks=4, loss="softmax", form="marginal", sweeps=1, mesh=mesh),
        {"quota": jnp.asarray([60, 10, 60, 60], jnp.int32)},
    ),
    "greedy, equal captions": lambda mesh: (
        jest(CHOSEN, num_chunks=4, greedy=True, num_domains=4, mesh=mesh),
        {"group": DOMAIN * 7 % 5},
    ),
    "few of many, blocks": lambda mesh: (jest(16, num_chunks=4, num_domains=4, row_block=20, mesh=mesh), {}),
    "context": lambda mesh: (independent(CHOSEN, context=True, num_domains=4, mesh=mesh), {}),
    "near duplicates": lambda mesh: (
        diverse(CHOSEN, num_chunks=4, kernel="near_duplicate", num_domains=4, mesh=mesh),
        {},
    ),
}


SLOW = ("marginal, sweep, quota", "near duplicates", "few of many, blocks", "context")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in OTHERS]
)
def test_other_selectors_on_eight_devices(name):
    results = []
    for mesh in (None, mesh_of(8)):
        selector, options = OTHERS[name](mesh)
        data = models() if name != "near duplicates" else (models()[0].image[:, 0], models()[1].image)
        data, rows = (
            (data, {"valid": VALID, "domain": DOMAIN})
            if mesh is None
            else spread((data, {"valid": VALID, "domain": DOMAIN}), mesh)
        )
        results.append(jax.jit(selector.select, compiler_options=FAST)(KEY, *data, **rows, **options))
    one, eight = results
    np.testing.assert_array_equal(one.indices, eight.indices)
    np.testing.assert_array_equal(one.info.domain_count, eight.info.domain_count)
    np.testing.assert_allclose(one.info.overlap, eight.info.overlap, rtol=1e-6)


LARGE, LARGE_CHOSEN, LARGE_CHUNKS, LARGE_WIDTH = 8192, 2048, 16, 256


@functools.cache
def large_program(devices, way):
    """The program for a super-batch that is never made."""
    mesh = mesh_of(devices)
    selector = jest(LARGE_CHOSEN, num_chunks=LARGE_CHUNKS, mesh=mesh if way == "shard_map" else None)
    place = lambda shape, spec: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))
    rows = place((LARGE, LARGE_WIDTH), batch_sharding(mesh).spec)
    scalar = place((), PartitionSpec())
    model = Embeddings(rows, rows, scalar, scalar)
    return jax.jit(selector.select).lower(KEY, model, model).compile(FAST)


@pytest.mark.parametrize("way", ["shard_map", "jit"])
def test_no_array_of_pairs_and_little_communication(way):
    text = large_program(8, way).as_text()
    share, size = LARGE // 8, LARGE_CHOSEN // LARGE_CHUNKS
    shapes = {tuple(map(int, dims.split(","))) for dims in re.findall(r"[a-z]\d+\[(\d+(?:,\d+)*)\]", text)}
    assert {(share, LARGE_WIDTH), (size, share)} <= shapes
    # Not even a device's share of all candidates by all selected, [B/P, b], let alone [B/P, B] or [B, B].
    assert max(map(math.prod, shapes)) < share * LARGE_CHOSEN
    assert not [shape for shape in shapes if sum(n > 1 for n in shape) > 1 and {LARGE, LARGE_CHOSEN} & {*shape}]
    moved = re.findall(r"= (.*?) (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)[-\w]*\(", text)
    assert {kind for _, kind in moved} == {"all-gather", "all-reduce"}
    for result, kind in moved:
        sizes = [math.prod(map(int, dims.split(","))) for dims in re.findall(r"\[(\d+(?:,\d+)*)\]", result)]
        # All-gathers carry a vector of all candidates, sums the embeddings of one chunk.
        assert max(sizes, default=1) <= (LARGE if kind == "all-gather" else size * LARGE_WIDTH)


@pytest.mark.parametrize("way", ["shard_map", "jit"])
def test_memory_of_a_device_falls_with_their_number(way):
    one, eight = (large_program(*which).memory_analysis() for which in ((1, "jit"), (8, way)))
    used = lambda found: found.argument_size_in_bytes + found.temp_size_in_bytes
    assert used(eight) < used(one) / 6


def test_rows_that_do_not_divide_are_refused():
    few = [Embeddings(m.image[:90], m.text[:90], m.temperature, m.bias) for m in models()]
    with pytest.raises(ConfigError, match=r"90 candidates cannot be divided over 8 devices.*multiple of 8"):
        jest(16, num_chunks=4, mesh=mesh_of(8))(KEY, *few)
