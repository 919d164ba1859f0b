"""Builds mixers and wraps them as a configuration says.

A wrapper takes a mixer and returns a mixer. Wrappers compose in any order around any mixer; the first one applied is
the innermost. A wrapper changes the weights that data is drawn by, not what the inner mixer learns: the inner mixer's
state evolves as if it were alone (until `freeze_after` stops it).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jaxmix.core.errors import ConfigError
from jaxmix.mixers import base
from jaxmix.mixers.base import Mixer
from jaxmix.mixers.wrappers.base import registry


def wrap_with(mixer: Mixer, wrappers: Sequence[Mapping[str, Any]], *, where: str = "mixer.wrap") -> Mixer:
    """Applies wrappers as they stand in a configuration file, the first one innermost.

    Args:
        mixer: the mixer to wrap.
        wrappers: entries with one key each, the wrapper's name; the value is its first argument, or a mapping of
            its arguments: `[{"floor": 0.001}, {"kl_to_prior": {"strength": 0.5}}]`.
        where: the configuration key, for error messages.

    Raises:
        ConfigError: an entry has not exactly one key, or the wrapper or an argument is unknown.
    """
    for i, entry in enumerate(wrappers):
        place = f"{where}[{i}]"
        if not isinstance(entry, Mapping) or len(entry) != 1:
            raise ConfigError(
                f"a wrapper is one name with its argument, got {entry!r}", where=place, fix="For example floor: 0.001."
            )
        ((name, value),) = entry.items()
        options, arguments = (value, ()) if isinstance(value, Mapping) else ({}, (value,))
        mixer = registry.make(name, mixer, *arguments, where=place, **options)
    return mixer


def build(
    name: str,
    options: Mapping[str, Any] | None = None,
    wrap: Sequence[Mapping[str, Any]] = (),
    *,
    where: str = "mixer",
) -> Mixer:
    """Builds a mixer from configuration: `build("odm", {"variant": "paper"}, [{"floor": 0.001}])`.

    Raises:
        ConfigError: the mixer, a wrapper or an argument is unknown (the nearest is suggested) or out of range.
    """
    mixer = base.registry.make(name, where=f"{where}.name", **(options or {}))
    return wrap_with(mixer, wrap, where=f"{where}.wrap")
