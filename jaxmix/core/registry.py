"""Registries of factories by name; an unknown name raises an error that suggests the nearest one."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from jaxmix.core.errors import ConfigError, nearest

F = TypeVar("F", bound=Callable[..., Any])


class Registry:
    """A table of factories of one kind (`"mixer"`, `"law"`, …).

    Example:
        >>> colors = Registry("color")
        >>> @colors.register
        ... def red(shade=1): return ("red", shade)
        >>> colors.make("red", shade=2)
        ('red', 2)
    """

    def __init__(self, kind: str):
        self.kind = kind
        self._factories: dict[str, Callable[..., Any]] = {}

    def register(self, factory: F) -> F:
        """Decorator: adds `factory` under its own name. Reloading a module replaces its factories."""
        name = factory.__name__
        if name in self._factories and self._factories[name].__module__ != factory.__module__:
            raise ValueError(f"{self.kind} {name!r} is registered twice")
        self._factories[name] = factory
        return factory

    def get(self, name: str, *, where: str | None = None) -> Callable[..., Any]:
        """Returns the factory called `name`; an unknown name raises `ConfigError` with the nearest one."""
        if name not in self._factories:
            raise ConfigError(f"unknown {self.kind} {name!r}", where=where, fix=nearest(name, self._factories))
        return self._factories[name]

    def make(self, name: str, /, *args: Any, where: str | None = None, **kwargs: Any) -> Any:
        """Calls the factory `name`; an unknown or missing argument raises `ConfigError`."""
        factory = self.get(name, where=where)
        parameters = inspect.signature(factory).parameters
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            for key in kwargs:
                if key not in parameters:
                    raise ConfigError(
                        f"{self.kind} {name!r} has no argument {key!r}", where=where, fix=nearest(key, parameters)
                    )
        for position, parameter in enumerate(parameters.values()):
            is_given = position < len(args) or parameter.name in kwargs
            is_single = parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
            if is_single and parameter.default is parameter.empty and not is_given:
                raise ConfigError(f"{self.kind} {name!r} needs the argument {parameter.name!r}", where=where)
        return factory(*args, **kwargs)

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._factories))

    def __contains__(self, name: object) -> bool:
        return name in self._factories
