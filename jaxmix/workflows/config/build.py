"""Strict conversion of plain mappings to frozen dataclasses and back.

Nothing is guessed and nothing is dropped: an unknown key names its nearest neighbor, a value of the wrong type says
where it stands and what is expected. Ranges and choices are those of `jaxmix.core.settings`.

Libraries were tried on the same four mistakes (name, type, range, choice). pydantic names path and value, but neither
the file, an override, nor the nearest name, and its errors would have to be translated one kind at a time; draccus and
simple-parsing check no ranges and report only the first two words of a place; tyro's parser, made from a fixed class,
rejects the free keys of `mixer`, `model` and `sources`, and takes 0.7 s to import.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeVar

from jaxmix.core.errors import ConfigError, nearest
from jaxmix.core.settings import check_value, escape_path, expand_path, map_paths, members_of, type_hints
from jaxmix.workflows.config.yaml import describe

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where values come from, for error messages.

    Attributes:
        file: the configuration file as the user named it.
        overrides: dotted paths that the command line set.
        places: dotted key in the file by dotted path in the dataclass, where they differ.
    """

    file: str = "configuration"
    overrides: frozenset[str] = frozenset()
    places: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __call__(self, path: str) -> str:
        """The `where` of an error about the value at `path`."""
        path = self.key(path)
        if any(path == o or path.startswith((o + ".", o + "[")) for o in self.overrides):
            return f"command line, --{path}"
        return f"{self.file}, {path}" if path else self.file

    def key(self, path: str) -> str:
        """The dotted key under which the file gives the value at `path`."""
        for inner, key in self.places.items():
            if path == inner or path.startswith(inner + "."):
                return key + path[len(inner) :]
        return path

    def explain(self, error: ConfigError) -> ConfigError:
        """The same error, its bare dotted path completed by the file or the command line."""
        where = error.where or ""
        is_complete = where.startswith((self.file, "command line"))
        return ConfigError(error.what, where=where if is_complete else self(where), fix=error.fix)


def read(cls: type[T], mapping: Any, *, origin: Origin) -> T:
    """Builds the dataclass `cls` of a whole file; fields with a `place` are taken from there.

    Args:
        cls: a dataclass; its annotations and the ranges of `setting` are the rules.
        mapping: what the file holds. `None` counts as an empty mapping.
        origin: names the file or the command line in errors.

    Raises:
        ConfigError: for an unknown or missing key, a wrong type, a value out of range.
    """
    places = _places(cls)
    outer, origin = origin, dataclasses.replace(origin, places={inner: key for key, inner in places.items()})
    if not isinstance(mapping, Mapping) or not places:
        return _build(cls, mapping, origin, "")
    plain = {key: dict(value) if isinstance(value, Mapping) else value for key, value in mapping.items()}
    for key, inner in places.items():
        if _take(plain, inner) is not _NOTHING:
            raise ConfigError(f"{inner} is set as {key}", where=outer(inner), fix=f"Write it as {key}.")
    moved = {inner: value for key, inner in places.items() if (value := _take(plain, key)) is not _NOTHING}
    for section in {key.split(".")[0] for key in places} - {f.name for f in dataclasses.fields(cls)}:  # type: ignore[arg-type]
        keys = [key.split(".")[1] for key in places if key.startswith(f"{section}.")]
        rest = plain.pop(section, None)
        if rest is not None and not isinstance(rest, Mapping):
            raise _mismatch("a mapping", rest, origin, section)
        for name in rest or ():
            raise ConfigError(f"unknown key {name!r}", where=origin(f"{section}.{name}"), fix=nearest(str(name), keys))
    for inner, value in moved.items():
        _put(plain, inner, value)
    return _build(cls, plain, origin, "")


_NOTHING = object()


def _places(cls: Any, path: str = "") -> dict[str, str]:
    """Dotted path in the dataclass by dotted key in the file, of fields that have a `place`."""
    found = {}
    for f in dataclasses.fields(cls):
        here = _join(path, f.name)
        if f.metadata.get("place"):
            found[f.metadata["place"]] = here
        hint = type_hints(cls)[f.name]
        if dataclasses.is_dataclass(hint):
            found |= _places(hint, here)
    return found


def _take(plain: dict[str, Any], path: str) -> Any:
    """Removes and returns the value at a dotted path of at most two names."""
    *section, name = path.split(".")
    holder = plain.get(section[0]) if section else plain
    return holder.pop(name, _NOTHING) if isinstance(holder, dict) else _NOTHING


def _put(plain: dict[str, Any], path: str, value: Any) -> None:
    *section, name = path.split(".")
    holder = plain
    if section:
        if plain.get(section[0]) is None:
            plain[section[0]] = {}
        holder = plain[section[0]]
    if isinstance(holder, dict):
        holder[name] = value


def _build(cls: type[T], mapping: Any, origin: Origin, path: str) -> T:
    mapping = {} if mapping is None else mapping
    if not isinstance(mapping, Mapping):
        raise _mismatch("a mapping", mapping, origin, path)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    rest = next((name for name, f in fields.items() if f.metadata.get("rest")), None)
    hints = type_hints(cls)
    values: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    for key, value in mapping.items():
        here = _join(path, key)
        if not isinstance(key, str):
            raise ConfigError(f"key {key!r} is not text", where=origin(here), fix="Put a name in quotes.")
        if key in fields and key != rest:
            values[key] = convert(value, hints[key], origin, here)
            check_value(key, values[key], hints[key], fields[key].metadata, origin(here))
        elif rest is not None:
            extra[key] = value
        else:
            known = {name for name, f in fields.items() if not f.metadata.get("place")}
            for section, name in (place.split(".") for place in origin.places.values()):
                known |= {section} if not path else {name} if section == path else set()
            raise ConfigError(f"unknown key {key!r}", where=origin(here), fix=nearest(key, known))
    if rest is not None:
        values[rest] = extra
    for name in [name for name in values if fields[name].metadata.get("is_path")]:
        where = origin(path if name == rest else _join(path, name))
        values[name] = map_paths(values[name], functools.partial(expand_path, where=where))
    for name, f in fields.items():
        has_default = f.default is not dataclasses.MISSING or f.default_factory is not dataclasses.MISSING
        if name not in values and (f.metadata.get("required") or not has_default):
            here = _join(path, name)
            raise ConfigError(f"{here} is missing", where=origin(path), fix=f.metadata.get("help") or f"Set {here}.")
    try:
        built: Any = cls(**values)
        return built.checked(origin, path) if hasattr(built, "checked") else built
    except ConfigError as error:
        raise origin.explain(error) from None


def _join(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)


_NAMES = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


def _expected(hint: Any) -> str:
    """A type in words."""
    if len(members := members_of(hint)) > 1:
        words = dict.fromkeys(_expected(member) for member in members if member is not type(None))
        return " or ".join(words) + (" or empty" if type(None) in members else "")
    kind = typing.get_origin(hint) or hint
    if kind is Literal:
        return " or ".join(repr(choice) for choice in typing.get_args(hint))
    if kind in (tuple, list, Sequence):
        return "a list"
    if kind in (dict, Mapping) or dataclasses.is_dataclass(kind):
        return "a mapping"
    return _NAMES.get(hint, getattr(hint, "__name__", str(hint)))


def _mismatch(expected: str, value: Any, origin: Origin, path: str) -> ConfigError:
    name = origin.key(path) or "the configuration"
    is_unquoted = expected.startswith("text") and isinstance(value, (int, float))
    fix = "Put it in quotes if it is meant as text." if is_unquoted else None
    return ConfigError(f"{name} must be {expected}, got {describe(value)}", where=origin(path), fix=fix)


def convert(value: Any, hint: Any, origin: Origin, path: str) -> Any:
    """`value` as the annotation `hint` asks, or `ConfigError`. A whole float is a whole number (`1e4`)."""
    kind, args = typing.get_origin(hint) or hint, typing.get_args(hint)
    if hint is Any or hint is object:
        return value
    if len(members_of(hint)) > 1:
        return _convert_union(value, args, hint, origin, path)
    if kind is Literal:
        if value in args and not isinstance(value, bool):
            return value
        if isinstance(value, str):
            name = path.rpartition(".")[2].partition("[")[0]
            raise ConfigError(f"unknown {name} {value!r}", where=origin(path), fix=nearest(value, map(str, args)))
    elif kind in (tuple, list, Sequence):
        if isinstance(value, (list, tuple)):
            if kind is tuple and args and args[-1] is not Ellipsis and len(value) != len(args):
                raise _mismatch(f"a list of {len(args)}", value, origin, path)
            return tuple(convert(v, args[0] if args else Any, origin, f"{path}[{i}]") for i, v in enumerate(value))
    elif kind in (dict, Mapping):
        if isinstance(value, Mapping):
            for key in value:
                if not isinstance(key, str):
                    raise ConfigError(f"key {key!r} is not text", where=origin(path), fix="Put it in quotes.")
            return {k: convert(v, args[1] if args else Any, origin, _join(path, k)) for k, v in value.items()}
    elif dataclasses.is_dataclass(hint):
        return _build(typing.cast(type, hint), value, origin, path)
    else:
        return _convert_scalar(value, hint, origin, path)
    raise _mismatch(_expected(hint), value, origin, path)


def _convert_scalar(value: Any, hint: Any, origin: Origin, path: str) -> Any:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int and is_number and abs(value) < 2**63 and value == int(value):  # 1e4 is a whole number
        return int(value)
    if hint is float and is_number and not math.isnan(value):
        return float(value)
    if hint not in (int, float) and isinstance(hint, type) and isinstance(value, hint):
        return value
    raise _mismatch(_expected(hint), value, origin, path)


def _convert_union(value: Any, members: Iterable[Any], hint: Any, origin: Origin, path: str) -> Any:
    """The first member that takes the value; the error of the one whose shape fits, else of the union."""
    members = list(members)
    if value is None and type(None) in members:
        return None
    lists = [member for member in members if typing.get_origin(member) in (tuple, list, Sequence)]
    for member in members:
        is_structure = dataclasses.is_dataclass(member) or typing.get_origin(member) in (dict, Mapping)
        # Keep the inner error: it names the key, or the place in the list.
        if (isinstance(value, Mapping) and is_structure) or (isinstance(value, (list, tuple)) and [member] == lists):
            return convert(value, member, origin, path)
    for member in members:
        if member is type(None):
            continue
        try:
            return convert(value, member, origin, path)
        except ConfigError as error:
            if isinstance(value, str) and typing.get_origin(member) is Literal and str not in members:
                raise error from None
    raise _mismatch(_expected(hint), value, origin, path)


def arguments(
    factory: Callable[..., Any],
    given: Mapping[str, Any],
    *,
    origin: Origin,
    path: str,
    skip: int = 0,
    taken: Sequence[str] = (),
    takes_names: bool = False,
) -> dict[str, Any]:
    """Checks keyword arguments against the names and annotations of `factory` and returns them converted.

    Args:
        factory: the function they are for.
        given: name → value, as in the file.
        origin: names the file in errors.
        path: dotted path of the section they stand in.
        skip: leading parameters that do not come from the file.
        taken: further parameters that do not.
        takes_names: a list may also be a mapping by names, of sources or arms, that are put in order later.
    """
    known = [name for name in list(inspect.signature(factory).parameters)[skip:] if name not in taken]
    hints = type_hints(factory)
    result = {}
    for key, value in given.items():
        if key not in known:
            raise ConfigError(f"unknown key {key!r}", where=origin(_join(path, key)), fix=nearest(key, known))
        hint = hints.get(key, Any)
        element = _element_of(hint) if takes_names and isinstance(value, Mapping) else None
        if element is not None:
            hint = Mapping[str, _with_names(element)]  # type: ignore[misc]
        result[key] = convert(value, hint, origin, _join(path, key))
    return result


def _element_of(hint: Any) -> Any:
    """What the list holds that a value of type `hint` may be; None where it may be no list, or a mapping anyway."""
    members = members_of(hint)
    if any(typing.get_origin(member) in (dict, Mapping) for member in members):
        return None
    lists = [typing.get_args(m)[0] for m in members if typing.get_origin(m) in (tuple, list, Sequence)]
    return lists[0] if lists else None


def _with_names(element: Any) -> Any:
    """The type of one value by name: the rows of a matrix have names too."""
    inner = _element_of(element)
    return element if inner is None else Sequence[inner] | Mapping[str, inner]


def to_plain(config: Any) -> Any:
    """The inverse of `read`: plain dicts, lists and scalars, every key written out."""
    plain = _plain(config)
    if dataclasses.is_dataclass(config):
        for key, inner in _places(type(config)).items():
            _put(plain, key, _take(plain, inner))
    return plain


def _plain(config: Any) -> Any:
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        fields = {f.name: f for f in dataclasses.fields(config)}
        result: dict[str, Any] = {}
        further: dict[str, Any] = {}
        for name in getattr(config, "relevant", None) or fields:
            value = _plain(getattr(config, name))
            value = map_paths(value, escape_path) if fields[name].metadata.get("is_path") else value
            if fields[name].metadata.get("rest"):
                further |= value
            else:
                result[name] = value
        return result | further
    if isinstance(config, Mapping):
        return {str(k): _plain(v) for k, v in config.items()}
    if isinstance(config, (list, tuple)):
        return [_plain(v) for v in config]
    return config


def list_settings(cls: type, path: str = "") -> list[tuple[str, str]]:
    """(dotted name, help with default) of every setting of `cls`, for a help page."""
    rows: list[tuple[str, str]] = []
    for f in dataclasses.fields(cls):
        here = f.metadata.get("place") or _join(path, f.name)
        members = members_of(type_hints(cls)[f.name])
        inner = next((m for m in members if dataclasses.is_dataclass(m)), None)
        if inner is not None:
            rows += list_settings(typing.cast(type, inner), here)
            continue
        if f.metadata.get("rest"):
            rows.append((f"{path}.…", f.metadata.get("help", "")))
        else:
            has_default = f.default is not dataclasses.MISSING and f.default is not None
            rows.append((here, f.metadata.get("help", "") + (f" [{_plain(f.default)}]" if has_default else "")))
        for member in members:
            if typing.get_origin(member) is dict and dataclasses.is_dataclass(value := typing.get_args(member)[1]):
                rows += list_settings(typing.cast(type, value), f"{here}.NAME")
    return rows
