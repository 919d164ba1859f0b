"""Typed pytree states with versions, and the nested dictionaries a checkpoint stores.

A *state* is a frozen dataclass that is also a pytree. Its version number goes into every checkpoint; a field
added later raises the version and registers a migration, because a checkpoint with fewer fields would not
restore otherwise.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp

from jaxmix.core.errors import RunError

T = TypeVar("T")
Nested = dict[str, Any]

_MIGRATIONS: dict[tuple[str, int], Callable[[Nested], Nested]] = {}


def static_field(**kwargs: Any) -> Any:
    """A field that is part of the tree's structure (hashable, not traced, not checkpointed)."""
    return dataclasses.field(metadata={"static": True}, **kwargs)


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field, static_field))
def state(*, version: int) -> Callable[[type[T]], type[T]]:
    """Class decorator: makes a frozen dataclass, registers it as a pytree and gives it a version (≥ 1).

    Its constructor accepts any leaf, because JAX calls it with shapes, shardings and stacked arrays as well.
    """

    def decorate(cls: type[T]) -> type[T]:
        cls = dataclasses.dataclass(frozen=True)(cls)
        cls.__state_version__ = version  # type: ignore[attr-defined]
        cls.__no_type_check__ = True  # type: ignore[attr-defined]
        return jax.tree_util.register_dataclass(cls)

    return decorate


def migration(cls: type, *, from_version: int) -> Callable[[Callable[[Nested], Nested]], Callable[[Nested], Nested]]:
    """Decorator for a function that turns the stored fields of `cls` at `from_version` into the next version's."""

    def decorate(function: Callable[[Nested], Nested]) -> Callable[[Nested], Nested]:
        _MIGRATIONS[cls.__name__, from_version] = function
        return function

    return decorate


def to_nested(tree: Any) -> Nested:
    """Returns `tree`'s leaves as nested dictionaries of arrays keyed by field, key or position.

    Typed PRNG keys become their raw data, so that any array store can hold the result.
    """
    nested: Nested = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        *parents, last = _names(path)
        node = nested
        for name in parents:
            node = node.setdefault(name, {})
        node[last] = jax.random.key_data(leaf) if _is_key(leaf) else leaf
    return nested


def from_nested(template: T, nested: Mapping[str, Any], versions: Mapping[str, int] | None = None) -> T:
    """Rebuilds a tree of `template`'s structure from `to_nested`'s form.

    Args:
        template: a tree with the wanted structure; its leaves may be arrays or `jax.ShapeDtypeStruct`.
        nested: what `to_nested` returned when the checkpoint was written.
        versions: what `state_versions` returned then. Older states are migrated, newer ones rejected.

    Raises:
        RunError: a leaf is missing, has another shape, or a state was written by a newer jaxmix.
    """
    nested = _migrate(template, dict(nested), dict(versions or {}))

    def restore(path: Any, leaf: Any) -> Any:
        node: Any = nested
        where = "/".join(_names(path))
        for name in _names(path):
            if not isinstance(node, Mapping) or name not in node:
                raise RunError(f"the checkpoint has no value for {where!r}", fix="It was written by another set-up.")
            node = node[name]
        value = jax.random.wrap_key_data(node, impl=_key_impl(leaf)) if _is_key(leaf) else node
        if tuple(value.shape) != tuple(leaf.shape):
            raise RunError(
                f"the checkpoint's {where!r} has shape {tuple(value.shape)}, expected {tuple(leaf.shape)}",
                fix="The model, optimizer or domain list differs from the one that wrote it.",
            )
        return value

    return jax.tree_util.tree_map_with_path(restore, template)


def state_versions(tree: Any) -> dict[str, int]:
    """Returns the version of every state inside `tree`, keyed by its place (`""` for the root)."""
    return {"/".join(path): type(node).__state_version__ for path, node in _states(tree)}


def _migrate(template: Any, nested: Nested, versions: dict[str, int]) -> Nested:
    for path, node in _states(template):
        where, cls = "/".join(path), type(node)
        version = versions.get(where, cls.__state_version__)
        if version > cls.__state_version__:
            raise RunError(
                f"the checkpoint's {cls.__name__} has version {version}, this jaxmix knows {cls.__state_version__}",
                fix="Upgrade jaxmix to read it.",
            )
        for old in range(version, cls.__state_version__):
            if (cls.__name__, old) not in _MIGRATIONS:
                raise RunError(f"no migration of {cls.__name__} from version {old} to {old + 1}")
            nested = _replace(nested, path, _MIGRATIONS[cls.__name__, old])
    return nested


def _replace(nested: Nested, path: tuple[str, ...], function: Callable[[Nested], Nested]) -> Nested:
    if not path:
        return function(nested)
    return {**nested, path[0]: _replace(dict(nested.get(path[0], {})), path[1:], function)}


def _states(tree: Any, prefix: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    """Every state in `tree`, parents before children, with its path."""
    if hasattr(type(tree), "__state_version__"):
        found = [(prefix, tree)]
        for field in dataclasses.fields(tree):
            if not field.metadata.get("static"):
                found += _states(getattr(tree, field.name), (*prefix, field.name))
        return found
    found = []
    for path, node in jax.tree_util.tree_flatten_with_path(
        tree, is_leaf=lambda x: hasattr(type(x), "__state_version__")
    )[0]:
        if hasattr(type(node), "__state_version__"):
            found += _states(node, (*prefix, *_names(path)))
    return found


def _names(path: Any) -> tuple[str, ...]:
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _key_impl(leaf: Any) -> Any:
    """The generator of a key; by way of an array, because `key_impl` takes no `ShapeDtypeStruct`."""
    return jax.random.key_impl(jnp.empty((), leaf.dtype))
