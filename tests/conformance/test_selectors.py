"""What every selector must do, one table for all: a selector is tested by a line in `CASES`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import MappingProxyType
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmix.selection as selection
from jaxmix.core.errors import ConfigError
from jaxmix.selection import Embeddings

C, B, D, M = 48, 12, 6, 3  # candidates, selected, width, domains
KEY = jax.random.key(0)
VALID = jnp.asarray(np.random.default_rng(1).random(C) < 0.6)
DOMAIN = jnp.asarray(np.random.default_rng(2).integers(0, M, C), jnp.int32)


def embeddings(rng, count):
    """Learner and reference; every array with rows in front."""
    rows = rng.normal(size=(4, count, D))
    rows /= np.linalg.norm(rows, axis=-1, keepdims=True)
    image, text, other_image, other_text = jnp.asarray(rows, jnp.float32)
    scale = jnp.float32(10.0), jnp.float32(-3.0)
    return Embeddings(image, text, *scale), Embeddings(other_image, other_text, *scale)


def losses(rng, count):
    return tuple(jnp.asarray(rng.gamma(2.0, size=(2, count)), jnp.float32))


def features(rng, count):
    return jnp.asarray(rng.normal(size=count), jnp.float32), jnp.asarray(rng.normal(size=(count, D)), jnp.float32)


def gradients(rng, count):
    return jnp.asarray(rng.normal(size=(count, D)), jnp.float32), jnp.asarray(rng.normal(size=D), jnp.float32)


class Case(NamedTuple):
    make: Callable[..., selection.Selector]
    data: Callable[..., Any]
    options: Any = MappingProxyType({})
    is_chunked: bool = True


CASES = {
    "jest": Case(selection.jest, embeddings),
    "jest_greedy": Case(selection.jest, embeddings, {"greedy": True, "sweeps": 1}),
    "jest_marginal": Case(selection.jest, embeddings, {"loss": "softmax", "form": "marginal", "greedy": True}),
    "independent_context": Case(selection.independent, embeddings, {"context": True, "greedy": True}, False),
    "top_learnability": Case(selection.top_learnability, losses, {}, False),
    "rho_loss": Case(selection.top_learnability, losses, {"greedy": True}, False),
    "diverse_linear": Case(selection.diverse, features, {"kernel": "linear"}),
    "diverse_squared": Case(
        selection.diverse, features, {"kernel": "squared", "standardize": False, "greedy": True, "sweeps": 1}
    ),
    "diverse_near_duplicate": Case(selection.diverse, features, {"kernel": "near_duplicate"}),
    "greats": Case(selection.greats, gradients),
}
RANDOM = {"jest", "top_learnability", "diverse_linear", "diverse_near_duplicate"}
FAST = {"xla_backend_optimization_level": 0}
"""What is tested here does not depend on how well the programs are compiled."""
TRACES: dict[str, int] = {}


def selector(name, num_select=B, num_chunks=3):
    case = CASES[name]
    chunks = {"num_chunks": num_chunks} if case.is_chunked else {}
    return case.make(num_select, **chunks, **case.options)


@functools.cache
def program(name):
    """One program for all tests of a case: which rows are valid, domains, quotas and gain are data."""
    made = selector(name)

    def select(key, data, valid, gain, domain, quota):
        TRACES[name] = TRACES.get(name, 0) + 1
        return made(key, *data, valid, gain=gain, domain=domain, quota=quota)

    return jax.jit(select, compiler_options=FAST)


def compiled(name):
    return lambda key, data, valid, gain=1.0, domain=DOMAIN, quota=(C,) * M: program(name)(
        key, data, valid, jnp.float32(gain), domain, jnp.asarray(quota, jnp.int32)
    )


def data(name, seed=0, count=C):
    return CASES[name].data(np.random.default_rng(seed), count)


ALL = jnp.ones(C, bool)


HEAVY = ("jest_marginal", "diverse_squared", "diverse_near_duplicate")
"""Whose programs take long to compile; tests/selection has their oracles."""


@pytest.fixture(params=[pytest.param(n, marks=pytest.mark.slow) if n in HEAVY else n for n in sorted(CASES)])
def name(request):
    return request.param


def check(out, count=B, num_select=B):
    indices = np.asarray(out.indices)
    assert indices.shape == (num_select,)
    assert indices.dtype == np.int32
    assert (indices[:count] >= 0).all()
    assert (indices[:count] < C).all()
    assert len(set(indices[:count])) == count
    assert (indices[count:] == -1).all()
    assert out.info.num_selected == count
    chex.assert_tree_all_finite(out.info)
    np.testing.assert_allclose(out.info.score, out.info.positive + out.info.negative, rtol=1e-5, atol=1e-6)
    assert 0 <= out.info.overlap <= 1
    assert (np.asarray(out.info.chunk_share) >= 0).all()
    assert (np.asarray(out.info.chunk_share) <= 1).all()
    return indices


def test_bundle(name):
    made = selector(name)
    jax.eval_shape(jax.jit(made), KEY, *data(name))
    assert made.num_select == B
    assert made.num_chunks == (3 if CASES[name].is_chunked else 1)
    assert made.name in dir(selection)
    assert made.needs <= {"learner", "reference"}


def test_distinct_and_in_range(name):
    for seed in range(3):
        check(compiled(name)(jax.random.fold_in(KEY, seed), data(name, seed), ALL))


def test_padding_is_never_drawn(name):
    for seed in range(3):
        indices = check(compiled(name)(jax.random.fold_in(KEY, seed), data(name, seed), VALID))
        assert np.asarray(VALID)[indices].all()


@pytest.mark.parametrize("count", [0, 1, 7, 11])
def test_too_few_valid_rows_end_in_minus_one(name, count):
    valid = jnp.zeros(C, bool).at[jnp.arange(count) * 3 + 2].set(True)
    indices = check(compiled(name)(KEY, data(name), valid), count)
    assert sorted(indices[:count]) == [3 * i + 2 for i in range(count)]


def test_same_key_same_answer_and_only_then(name):
    select = compiled(name)
    first, again = select(KEY, data(name), ALL), select(KEY, data(name), ALL)
    chex.assert_trees_all_equal(first, again)
    other = select(jax.random.key(99), data(name), ALL)
    if name in RANDOM:
        assert set(first.indices.tolist()) != set(other.indices.tolist())
    elif name != "greats":
        np.testing.assert_array_equal(first.indices, other.indices)


@pytest.mark.slow
@pytest.mark.parametrize("few", ["jest", "diverse_linear", "rho_loss"])
def test_compiled_and_eager_agree(few):
    """Step by step, the loops too."""
    with jax.disable_jit():
        eager = selector(few)(KEY, *data(few), VALID)
    np.testing.assert_array_equal(compiled(few)(KEY, data(few), VALID).indices, eager.indices)


def test_quotas_hold_and_are_filled(name):
    available = np.bincount(np.asarray(DOMAIN)[np.asarray(VALID)], minlength=M)
    for seed in range(4):
        quota = np.array([12, seed, 3])
        out = compiled(name)(jax.random.key(seed), data(name, seed), VALID, quota=quota)
        indices = check(out, min(B, np.minimum(available, quota).sum()))
        drawn = indices[indices >= 0]
        counts = np.bincount(np.asarray(DOMAIN)[drawn], minlength=M)
        assert np.asarray(VALID)[drawn].all()
        assert (counts <= quota).all()
        assert out.info.domain_count.tolist() == counts.tolist()


def test_traces_once(name):
    for seed in range(4):
        compiled(name)(jax.random.key(seed), data(name, seed), VALID, gain=1.0 + seed, quota=(seed, 9, 9))
    assert TRACES[name] == 1


def test_a_gain_of_zero_is_a_uniform_draw(name):
    if name not in RANDOM:
        pytest.skip("greedy")
    one, other = (compiled(name)(KEY, data(name, seed), ALL, gain=0.0) for seed in (1, 2))
    np.testing.assert_array_equal(one.indices, other.indices)


def test_permuting_the_candidates_permutes_the_selection(name):
    if name in RANDOM:
        pytest.skip("the noise belongs to the row")
    order = np.random.default_rng(3).permutation(C)
    permute = lambda x: x[order] if jnp.ndim(x) and len(x) == C else x
    plain = compiled(name)(KEY, data(name), VALID)
    moved = compiled(name)(KEY, jax.tree.map(permute, data(name)), VALID[order])
    np.testing.assert_array_equal(order[moved.indices], plain.indices)


def test_candidates_without_any_difference(name):
    same = jax.tree.map(lambda x: x * 0 if jnp.ndim(x) else x, data(name))
    check(compiled(name)(KEY, same, ALL))
    one_hot = jax.tree.map(lambda x: (x * 0).at[..., :1].set(1.0) if jnp.ndim(x) else x, data(name))
    check(compiled(name)(KEY, one_hot, ALL))


@pytest.mark.parametrize("few", ["jest", "independent_context", "top_learnability", "diverse_near_duplicate"])
def test_everything_is_selected_where_nothing_can_be_left(few):
    select = jax.jit(selector(few, 3, 3).select, compiler_options=FAST)
    out = select(KEY, *data(few, count=3))
    assert sorted(out.indices.tolist()) == [0, 1, 2]
    assert out.info.overlap == 1


def test_fewer_candidates_than_examples_are_refused(name):
    with pytest.raises(ConfigError, match="5 candidates are fewer than the 12 to select"):
        jax.eval_shape(lambda: selector(name)(KEY, *data(name, count=5)))


def test_chunks_must_divide_the_selection(name):
    if not CASES[name].is_chunked:
        pytest.skip("one chunk")
    with pytest.raises(ConfigError, match="num_select 13 is not a multiple of num_chunks 3"):
        selector(name, 13)


def test_no_gradient_flows_through():
    def total(scale):
        scaled = jax.tree.map(lambda x: x * scale, data("jest"))
        return selector("jest")(KEY, *scaled).info.score

    assert jax.jit(jax.grad(total), compiler_options=FAST)(1.0) == 0


def test_the_table_has_every_selector():
    made = {CASES[name].make.__name__ for name in CASES}
    assert made == {"jest", "independent", "top_learnability", "diverse", "greats"}
