"""Laws to compare, given by name with arguments, or as laws."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from jaxmix.core.errors import ConfigError
from jaxmix.laws.base import Law, make


def parse(text: str) -> tuple[str, dict[str, Any]]:
    """A law's name and arguments from "name" or "name:argument=value,…", values as in JSON, words without quotes.

    Example:
        >>> parse("capacity:offset=per_domain,rank=2")
        ('capacity', {'offset': 'per_domain', 'rank': 2})
    """
    name, _, rest = text.partition(":")
    options: dict[str, Any] = {}
    for pair in filter(None, rest.split(",")):
        argument, _, value = pair.partition("=")
        try:
            options[argument] = json.loads(value.lower() if value in ("True", "False") else value)
        except json.JSONDecodeError:
            options[argument] = value
    return name, options


def named_laws(laws: Iterable[str | Law] | Mapping[str, str | Law], where: str) -> dict[str, Law]:
    """The laws by label: that of the mapping, or their text or name. Raises `ConfigError` where two are alike."""
    label = lambda law: law if isinstance(law, str) else law.name
    named: dict[str, Law] = {}
    for name, law in laws.items() if isinstance(laws, Mapping) else [(label(law), law) for law in laws]:
        if name in named:
            raise ConfigError(f"two laws are called {name!r}", where=where, fix="Give a mapping of labels.")
        if isinstance(law, str):
            kind, options = parse(law)
            law = make(kind, where=where, **options)
        named[name] = law
    return named
