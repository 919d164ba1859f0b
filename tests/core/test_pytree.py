"""States: round trips, versions, migrations and refusals."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from strict_types import assert_fields_hold

import jaxmix
from jaxmix.core import pytree
from jaxmix.core.errors import RunError
from jaxmix.core.pytree import from_nested, state, state_versions, static_field, to_nested


@state(version=1)
class Inner:
    values: Any


@state(version=3)
class Outer:
    inner: Inner
    key: Any
    table: Any
    label: str = static_field(default="x")


def example():
    return Outer(
        inner=Inner(values=jnp.arange(3.0)),
        key=jax.random.key(7),
        table={"a": (jnp.int32(1), jnp.bfloat16(2.5)), "b": [Inner(values=jnp.ones((2, 2)))]},
    )


def assert_trees_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(x, y)


def test_a_state_is_a_frozen_pytree():
    tree = example()
    with pytest.raises(AttributeError):
        tree.label = "y"
    assert jax.tree.structure(tree) != jax.tree.structure(Outer(tree.inner, tree.key, tree.table, label="y"))
    doubled = jax.jit(lambda t: jax.tree.map(lambda x: x, t))(tree)
    assert_trees_equal(doubled, tree)


def test_round_trip():
    tree = example()
    nested = to_nested(tree)
    assert set(nested) == {"inner", "key", "table"}
    assert nested["key"].dtype == jnp.uint32
    assert_trees_equal(from_nested(tree, nested, state_versions(tree)), tree)


def test_round_trip_into_shapes_only():
    tree = example()
    shapes = jax.eval_shape(lambda: tree)
    assert_trees_equal(from_nested(shapes, to_nested(tree)), tree)


def test_restored_key_draws_the_same_numbers():
    tree = example()
    restored = from_nested(tree, to_nested(tree))
    np.testing.assert_array_equal(jax.random.uniform(tree.key, (3,)), jax.random.uniform(restored.key, (3,)))


def test_key_implementation_is_kept():
    tree = {"key": jax.random.key(1, impl="rbg")}
    assert jax.random.key_impl(from_nested(tree, to_nested(tree))["key"]) == jax.random.key_impl(tree["key"])


def test_versions_are_found_at_every_depth():
    assert state_versions(example()) == {"": 3, "inner": 1, "table/b/0": 1}


def test_missing_leaf():
    nested = to_nested(example())
    del nested["table"]["a"]
    with pytest.raises(RunError, match="no value for 'table/a/0'"):
        from_nested(example(), nested)


def test_wrong_shape():
    nested = to_nested(example())
    nested["inner"]["values"] = np.zeros(4)
    with pytest.raises(RunError, match=r"'inner/values' has shape \(4,\), expected \(3,\)"):
        from_nested(example(), nested)


def test_newer_state_is_rejected():
    with pytest.raises(RunError, match=r"Inner has version 2, this jaxmix knows 1.*Upgrade jaxmix"):
        from_nested(example(), to_nested(example()), {"": 3, "inner": 2})


def test_old_state_without_migration_is_rejected():
    with pytest.raises(RunError, match="no migration of Outer from version 2 to 3"):
        from_nested(example(), to_nested(example()), {"": 2})


def test_migrations_run_in_order_and_parents_first(monkeypatch):
    monkeypatch.setattr(pytree, "_MIGRATIONS", {})

    @pytree.migration(Outer, from_version=1)
    def rename(nested):
        return {**{k: v for k, v in nested.items() if k != "core"}, "inner": nested["core"]}

    @pytree.migration(Outer, from_version=2)
    def add_table(nested):
        return {**nested, "table": to_nested(example().table)}

    tree = example()
    old = to_nested(tree)
    old = {"core": old["inner"], "key": old["key"]}
    assert_trees_equal(from_nested(tree, old, {"": 1}), tree)


def test_migration_of_an_inner_state(monkeypatch):
    monkeypatch.setattr(pytree, "_MIGRATIONS", {})

    @state(version=2)
    class Grown:
        old: Any
        new: Any

    @pytree.migration(Grown, from_version=1)
    def grow(nested):
        return {**nested, "new": nested["old"] * 2}

    tree = {"mixer": Grown(old=jnp.ones(2), new=jnp.full(2, 2.0))}
    restored = from_nested(tree, {"mixer": {"old": jnp.ones(2)}}, {"mixer": 1})
    assert_trees_equal(restored, tree)


def test_fields_are_held_to_their_annotations_in_conformance_tests():
    state = jaxmix.mixers.make("odm").init(jax.random.key(0), 3)
    assert_fields_hold(state)
    field = next(f.name for f in dataclasses.fields(state) if jnp.ndim(getattr(state, f.name)) == 1)
    with pytest.raises(AssertionError, match=field):
        assert_fields_hold(dataclasses.replace(state, **{field: jnp.zeros((3, 2))}))
