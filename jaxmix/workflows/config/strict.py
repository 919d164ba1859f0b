"""Strict loading: YAML text and command-line overrides into frozen dataclasses.

Nothing is guessed and nothing is dropped: an unknown key names its nearest neighbor, a value of the wrong type says
where it stands and what is expected, a key written twice is an error. Dotted overrides (`--train.steps 100`) are laid
over the file before it is built, so that both go through the same checks.

Overrides are parsed here and not by tyro: `mixer` and `model` take free keys (the options of the mixer or preset that
is named), which a parser generated from a fixed class rejects; and importing tyro takes 0.2 s (measured), two thirds
of what `jaxmix --help` may take.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeVar, Union

from jaxmix.core.errors import ConfigError, nearest

T = TypeVar("T")


def setting(
    default: Any = dataclasses.MISSING,
    *,
    help: str = "",
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    rest: bool = False,
    factory: Any = dataclasses.MISSING,
) -> Any:
    """A dataclass field with a range and a line of help.

    Args:
        default: default value; without one the key is required.
        help: what the key means, with its unit.
        at_least, above, at_most: the range of a number.
        rest: this field, a mapping, takes all keys of its section that no other field takes.
        factory: `default_factory` of the field.
    """
    metadata = {"help": help, "at_least": at_least, "above": above, "at_most": at_most, "rest": rest}
    if factory is not dataclasses.MISSING:
        return dataclasses.field(default_factory=factory, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where values come from, for error messages.

    Attributes:
        file: the configuration file as the user named it.
        overrides: dotted paths that the command line set.
    """

    file: str = "configuration"
    overrides: frozenset[str] = frozenset()

    def __call__(self, path: str) -> str:
        """The `where` of an error about the key at `path`."""
        if any(path == o or path.startswith((o + ".", o + "[")) for o in self.overrides):
            return f"command line, --{path}"
        return f"{self.file}, {path}" if path else self.file

    def explain(self, error: ConfigError) -> ConfigError:
        """The same error, its bare dotted path completed by the file or the command line."""
        where = error.where or ""
        is_complete = where.startswith((self.file, "command line"))
        return ConfigError(error.what, where=where if is_complete else self(where), fix=error.fix)


# ── YAML ─────────────────────────────────────────────────────────────────────────────────────────


def _loader() -> Any:
    """PyYAML's safe loader with the numbers and booleans of YAML 1.2.

    YAML 1.1 reads `1e-3` as text and `no`, `on`, `off` as booleans; a learning rate and a source called `no`
    (Norwegian) are both what people write here.
    """
    import re

    import yaml

    class Loader(yaml.SafeLoader):
        pass

    Loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in pairs if not tag.endswith((":bool", ":float", ":timestamp", ":int"))]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    number = r"[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
    for tag, pattern, first in (
        ("int", r"[-+]?[0-9][0-9_]*", "-+0123456789"),
        ("float", rf"{number}|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", "-+0123456789."),
        ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ):
        Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(rf"^(?:{pattern})$"), list(first))

    def mapping(loader: Any, node: Any) -> dict[Any, Any]:
        loader.flatten_mapping(node)
        result: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            key = loader.construct_object(key_node, deep=True)
            if isinstance(key, (list, dict)):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a name", key_node.start_mark)
            if key in result:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is there twice", key_node.start_mark)
            result[key] = loader.construct_object(value_node, deep=True)
        return result

    def integer(loader: Any, node: Any) -> int:
        return int(loader.construct_scalar(node).replace("_", ""))

    Loader.add_constructor("tag:yaml.org,2002:map", mapping)
    Loader.add_constructor("tag:yaml.org,2002:int", integer)
    return Loader


def dump_yaml(value: Any) -> str:
    """YAML text that `parse_yaml` reads back to the same value; keys keep their order."""
    import yaml

    class Dumper(yaml.SafeDumper):
        yaml_implicit_resolvers = _loader().yaml_implicit_resolvers  # quotes what would be read as a number

        def ignore_aliases(self, data: Any) -> bool:
            return True

    return yaml.dump(value, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=100)


def parse_yaml(text: str, *, where: str) -> Any:
    """Parses YAML text. Raises `ConfigError` with line and column for text that is not YAML."""
    import yaml

    try:
        return yaml.load(text, Loader=_loader())
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{where}, line {mark.line + 1}, column {mark.column + 1}" if mark else where
        problem = getattr(error, "problem", None) or str(error)
        raise ConfigError(f"not valid YAML: {problem}", where=place, fix="See the form in configs/.") from None


def apply_overrides(mapping: Mapping[Any, Any], overrides: Sequence[tuple[str, str]]) -> dict[Any, Any]:
    """Returns `mapping` with dotted overrides laid over it. Values are YAML; empty text means null.

    Example:
        >>> apply_overrides({"train": {"steps": 10}}, [("train.steps", "20"), ("mixer.name", "odm")])
        {'train': {'steps': 20}, 'mixer': {'name': 'odm'}}
    """
    result = _copy(mapping)
    for path, text in overrides:
        value = parse_yaml(text, where=f"command line, --{path}")
        *parents, last = path.split(".")
        if not last or not all(parents):
            raise ConfigError(f"--{path} is not a dotted name", where="command line", fix="Write e.g. --train.steps.")
        section = result
        for depth, name in enumerate(parents):
            if section.get(name) is None:
                section[name] = {}
            section = section[name]
            if not isinstance(section, dict):
                here = ".".join(parents[: depth + 1])
                raise ConfigError(
                    f"{here} is {describe(section)}, so {path!r} cannot be set in it",
                    where=f"command line, --{path}",
                    fix=f"Give it whole: --{here} '{{{last}: {text}}}'.",
                )
        section[last] = value
    return result


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _copy(v) for k, v in value.items()}
    return [_copy(v) for v in value] if isinstance(value, list) else value


# ── mapping → dataclass ──────────────────────────────────────────────────────────────────────────


def describe(value: Any) -> str:
    """A value in words, short enough for an error message."""
    if value is None:
        return "empty"
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, (list, tuple)):
        return "a list"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


def build(cls: type[T], mapping: Any, *, origin: Origin, path: str = "") -> T:
    """Builds the dataclass `cls` from a mapping, strictly.

    Args:
        cls: a dataclass; its annotations and the ranges of `setting` are the rules.
        mapping: what the file holds at `path`. `None` counts as an empty mapping.
        origin: names the file or the command line in errors.
        path: dotted path of this section.

    Raises:
        ConfigError: for an unknown or missing key, a wrong type, a value out of range.
    """
    mapping = {} if mapping is None else mapping
    if not isinstance(mapping, Mapping):
        raise _mismatch("a mapping", mapping, origin, path)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    rest = next((name for name, f in fields.items() if f.metadata.get("rest")), None)
    hints = typing.get_type_hints(cls)
    values: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    for key, value in mapping.items():
        here = _join(path, key)
        if not isinstance(key, str):
            raise ConfigError(
                f"key {key!r} is not text", where=origin(here), fix="Put it in quotes if it is meant as a name."
            )
        if key in fields and key != rest:
            values[key] = _value(value, hints[key], fields[key].metadata, origin, here)
        elif rest is not None:
            extra[key] = value
        else:
            known = [name for name in fields if name != rest]
            raise ConfigError(f"unknown key {key!r}", where=origin(here), fix=nearest(key, known))
    if rest is not None:
        values[rest] = extra
    for name, f in fields.items():
        if name not in values and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            here = _join(path, name)
            raise ConfigError(
                f"{here} is missing", where=origin(path), fix=f.metadata.get("help", "") or f"Set {here}."
            )
    return cls(**values)


def _join(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)


def _value(value: Any, hint: Any, metadata: Mapping[str, Any], origin: Origin, path: str) -> Any:
    """One value, converted to `hint` and checked against the field's range."""
    result = convert(value, hint, origin, path)
    if isinstance(result, (int, float)) and not isinstance(result, bool):
        low, above, high = metadata.get("at_least"), metadata.get("above"), metadata.get("at_most")
        rules = [
            (low is not None and not result >= low, f"at least {low}"),
            (above is not None and not result > above, f"above {above}"),
            (high is not None and not result <= high, f"at most {high}"),
        ]
        for is_broken, rule in rules:
            if is_broken:
                raise ConfigError(f"{path} must be {rule}: it is {result!r}", where=origin(path))
    return result


_NAMES = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


def _expected(hint: Any) -> str:
    """A type in words."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        words = dict.fromkeys(_expected(a) for a in args if a is not type(None))
        return " or ".join(words) + (" or empty" if type(None) in args else "")
    if origin is Literal:
        return " or ".join(repr(a) for a in args)
    if origin in (tuple, list, Sequence):
        return "a list"
    if origin in (dict, Mapping) or hint in (dict, Mapping) or dataclasses.is_dataclass(hint):
        return "a mapping"
    return _NAMES.get(hint, getattr(hint, "__name__", str(hint)))


def _mismatch(expected: str, value: Any, origin: Origin, path: str) -> ConfigError:
    name = path or "the configuration"
    is_unquoted = expected.startswith("text") and isinstance(value, (int, float))
    fix = "Put it in quotes if it is meant as text." if is_unquoted else None
    return ConfigError(f"{name} must be {expected}: it is {describe(value)}", where=origin(path), fix=fix)


def convert(value: Any, hint: Any, origin: Origin, path: str) -> Any:
    """`value` as the annotation `hint` asks, or `ConfigError`. A whole float is a whole number (`1e4`)."""
    kind, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or hint is object:
        return value
    if kind in (Union, types.UnionType):
        return _convert_union(value, args, hint, origin, path)
    if kind is Literal:
        if value in args and not isinstance(value, bool):
            return value
        if isinstance(value, str):
            fix = nearest(value, [str(a) for a in args])
            raise ConfigError(f"{path} cannot be {value!r}", where=origin(path), fix=fix)
        raise _mismatch(_expected(hint), value, origin, path)
    if kind in (tuple, list, Sequence):
        if not isinstance(value, (list, tuple)):
            raise _mismatch("a list", value, origin, path)
        return tuple(convert(v, args[0] if args else Any, origin, f"{path}[{i}]") for i, v in enumerate(value))
    if kind in (dict, Mapping) or hint in (dict, Mapping) or getattr(kind, "__name__", "") == "Mapping":
        if not isinstance(value, Mapping):
            raise _mismatch("a mapping", value, origin, path)
        for key in value:
            if not isinstance(key, str):
                raise ConfigError(f"key {key!r} is not text", where=origin(path), fix="Put it in quotes.")
        return {k: convert(v, args[1] if args else Any, origin, _join(path, k)) for k, v in value.items()}
    if dataclasses.is_dataclass(hint):
        return build(typing.cast(type, hint), value, origin=origin, path=path)
    return _convert_scalar(value, hint, origin, path)


def _convert_scalar(value: Any, hint: Any, origin: Origin, path: str) -> Any:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is bool and isinstance(value, bool):
        return value
    if hint is int and is_number and math.isfinite(value) and value == int(value):  # 1e4 is a whole number
        return int(value)
    if hint is float and is_number and not math.isnan(value):
        return float(value)
    if hint is str and isinstance(value, str):
        return value
    if hint not in (bool, int, float, str) and isinstance(hint, type) and isinstance(value, hint):
        return value
    raise _mismatch(_expected(hint), value, origin, path)


def _convert_union(value: Any, args: Iterable[Any], hint: Any, origin: Origin, path: str) -> Any:
    """The first member that takes the value; the error of the one whose shape fits, else of the union."""
    members = list(args)
    if value is None and type(None) in members:
        return None
    for member in members:
        is_structure = dataclasses.is_dataclass(member) or typing.get_origin(member) in (dict, Mapping)
        if isinstance(value, Mapping) and is_structure:
            return convert(value, member, origin, path)  # keep the inner error: it names the key
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
    factory: Callable[..., Any], given: Mapping[str, Any], *, origin: Origin, path: str, skip: int = 0
) -> dict[str, Any]:
    """Checks keyword arguments against the names and annotations of `factory` and returns them converted.

    Args:
        factory: the function they are for.
        given: name → value, as in the file.
        origin: names the file in errors.
        path: dotted path of the section they stand in.
        skip: leading parameters that do not come from the file.
    """
    known = list(inspect.signature(factory).parameters)[skip:]
    hints = typing.get_type_hints(factory)
    result = {}
    for key, value in given.items():
        if key not in known:
            raise ConfigError(f"unknown key {key!r}", where=origin(_join(path, key)), fix=nearest(key, known))
        result[key] = convert(value, hints.get(key, Any), origin, _join(path, key))
    return result


def to_plain(config: Any) -> Any:
    """The inverse of `build`: plain dicts, lists and scalars, every key written out."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        result: dict[str, Any] = {}
        for f in dataclasses.fields(config):
            value = to_plain(getattr(config, f.name))
            if f.metadata.get("rest"):
                result.update(value)
            else:
                result[f.name] = value
        return result
    if isinstance(config, Mapping):
        return {str(k): to_plain(v) for k, v in config.items()}
    if isinstance(config, (list, tuple)):
        return [to_plain(v) for v in config]
    return config


def list_settings(cls: type, path: str = "") -> list[tuple[str, str]]:
    """(dotted name, help with default) of every setting of `cls`, for a help page."""
    rows: list[tuple[str, str]] = []
    hints = typing.get_type_hints(cls)
    for f in dataclasses.fields(cls):
        here, hint = _join(path, f.name), hints[f.name]
        if dataclasses.is_dataclass(hint):
            rows += list_settings(typing.cast(type, hint), here)
        elif f.metadata.get("rest"):
            rows.append((f"{path}.…", f.metadata.get("help", "")))
        else:
            has_default = f.default is not dataclasses.MISSING and f.default is not None
            default = f" [{to_plain(f.default)}]" if has_default else ""
            rows.append((here, f.metadata.get("help", "") + default))
    return rows
