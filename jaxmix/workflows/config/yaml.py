"""YAML 1.2 text to plain values and back, and dotted overrides (`--train.steps 100`) laid over a file's values."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from jaxmix.core.errors import ConfigError, nearest

_MOST_NESTED, _MOST_VALUES = 100, 200_000
_DEEP = f"{_MOST_NESTED} values in each other"
_NUMBER = r"[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
_TAG = "tag:yaml.org,2002:"
_SCALARS: dict[str, tuple[str, Any]] = {
    "str": (r"(?s:.*)", str),
    "null": (r"|~|null|Null|NULL", lambda text: None),
    "bool": (r"true|True|TRUE|false|False|FALSE", lambda text: text.lower() == "true"),
    "int": (r"[-+]?[0-9][0-9_]*", lambda text: int(text.replace("_", ""))),
    "float": (
        rf"{_NUMBER}|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        lambda text: float(re.sub(r"_|\.(?=[a-zA-Z])", "", text)),
    ),
}
"""Pattern and conversion of every kind of scalar of YAML 1.2.

YAML 1.1 reads `1e-3` as text and `no`, `on`, `off` as booleans; a learning rate and a source called `no`
(Norwegian) are both what people write here.
"""
_FIRST = {"int": "-+0123456789", "float": "-+0123456789.", "bool": "tTfF"}


class _Loader(yaml.SafeLoader):
    """PyYAML's reader of text, with the numbers and booleans of YAML 1.2."""

    def fetch_flow_collection_start(self, kind: Any) -> None:
        if self.flow_level > _MOST_NESTED:  # PyYAML's time is quadratic in the depth
            raise yaml.scanner.ScannerError(None, None, f"more than {_DEEP}", self.get_mark())
        super().fetch_flow_collection_start(kind)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in pairs if tag in (f"{_TAG}null", f"{_TAG}merge")]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _kind, _first in _FIRST.items():
    _Loader.add_implicit_resolver(_TAG + _kind, re.compile(rf"^(?:{_SCALARS[_kind][0]})$"), list(_first))


class _Values:
    """Plain values of the nodes of a document. An alias counts as what it stands for, which can be very much."""

    def __init__(self) -> None:
        self._left = _MOST_VALUES

    def of(self, node: Any, depth: int = 0) -> Any:
        """Raises `yaml.YAMLError` with the place of what is not a plain value, or too much."""
        self._left -= 1
        if self._left < 0 or depth > _MOST_NESTED:
            limit = f"{_MOST_VALUES:,} values" if self._left < 0 else _DEEP
            raise _wrong(f"more than {limit}", node)
        kind = node.tag.removeprefix(_TAG)
        if kind == "map" and isinstance(node, yaml.MappingNode):
            return self._mapping(node, depth + 1)
        if kind == "seq" and isinstance(node, yaml.SequenceNode):
            return [self.of(item, depth + 1) for item in node.value]
        if kind not in _SCALARS or not isinstance(node, yaml.ScalarNode):
            raise _wrong(f"the tag {node.tag!r} means nothing here", node)
        pattern, convert = _SCALARS[kind]
        if not re.fullmatch(pattern, node.value):
            raise _wrong(f"{describe(node.value)} cannot be read as {kind}", node)
        if kind == "int" and (len(node.value) > 100 or abs(convert(node.value)) >= 2**63):
            raise _wrong(f"{describe(node.value)} is too large for 64 bits", node)
        if kind == "float" and "n" not in node.value.lower() and not math.isfinite(convert(node.value)):
            raise _wrong(f"the number {describe(node.value)} is out of range", node)
        # From U+DC80 to U+DCFF they stand for the bytes of a path that is not UTF-8.
        if kind == "str" and re.search("[\0\ud800-\udc7f\udd00-\udfff]", node.value):
            raise _wrong("text with a NUL or half a surrogate pair, which is not UTF-8", node)
        return convert(node.value)

    def _mapping(self, node: Any, depth: int) -> dict[Any, Any]:
        result: dict[Any, Any] = {}
        merged: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            if key_node.tag == f"{_TAG}merge":
                value = self.of(value_node, depth)
                for part in value if isinstance(value, list) else [value]:
                    if not isinstance(part, dict):
                        raise _wrong("<< takes a mapping, or a list of them", value_node)
                    merged = part | merged
                continue
            key = self.of(key_node, depth)
            if isinstance(key, (list, dict)):
                raise _wrong("a key must be a name", key_node)
            if key in result:
                raise _wrong(f"key {describe(key)} is given twice", key_node)
            result[key] = self.of(value_node, depth)
        return merged | result


def _wrong(problem: str, node: Any) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


def dump_yaml(value: Any) -> str:
    """YAML text that `parse_yaml` reads back to the same value; keys keep their order."""

    class Dumper(yaml.SafeDumper):
        yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers  # quotes what would be read as a number

        def ignore_aliases(self, data: Any) -> bool:
            return True

        def represent_str(self, data: str) -> Any:  # other line ends than \n are lost unless they are escaped
            style = '"' if re.search("[\r\x85\u2028\u2029]", data) else None
            return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)

    Dumper.add_representer(str, Dumper.represent_str)
    return yaml.dump(value, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=100)


def parse_yaml(text: str, *, where: str) -> Any:
    """Parses YAML text. Raises `ConfigError` with line and column for text that is not YAML."""
    try:
        node = yaml.compose(text, Loader=_Loader)
        return None if node is None else _Values().of(node)
    except RecursionError:
        raise ConfigError(f"not valid YAML: more than {_DEEP}", where=where, fix="See the form in configs/.") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{where}, line {mark.line + 1}, column {mark.column + 1}" if mark else where
        problem = getattr(error, "problem", None) or " ".join(str(error).split())
        raise ConfigError(f"not valid YAML: {problem}", where=place, fix="See the form in configs/.") from None


def read_yaml(path: str, what: str, *, where: str = "command line") -> Any:
    """The parsed content of a YAML file. `what` it is, and `where` its name was given, are for errors."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        folder = Path(path).parent
        others = sorted(p.name for p in folder.glob("*.yaml")) if folder.is_dir() else []
        fix = nearest(Path(path).name, others) if others else "Name an existing YAML file."
        raise ConfigError(f"there is no {what} {path!r}", where=where, fix=fix) from None
    except (OSError, UnicodeDecodeError) as error:
        reason = "it is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else (error.strerror or str(error))
        raise ConfigError(f"cannot read {path!r}: {reason}", where=where, fix="Name a YAML file.") from None
    return parse_yaml(text, where=path)


def apply_overrides(mapping: Mapping[Any, Any], overrides: Sequence[tuple[str, str]]) -> dict[Any, Any]:
    """Returns `mapping` with dotted overrides laid over it. Values are YAML; empty text means null.

    Example:
        >>> apply_overrides({"train": {"steps": 10}}, [("train.steps", "20"), ("mixer.name", "odm")])
        {'train': {'steps': 20}, 'mixer': {'name': 'odm'}}
    """
    result = _copy(mapping)
    for index, (path, text) in enumerate(overrides):
        value = parse_yaml(text, where=f"command line, --{path}")
        if undone := next((name for name, _ in overrides[:index] if name.startswith(f"{path}.")), None):
            raise ConfigError(f"--{path} would undo --{undone}", where="command line", fix="Give one of them.")
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
                    fix=f"Set it as a whole: --{here} '{{{last}: {text}}}'.",
                )
        section[last] = value
    return result


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _copy(v) for k, v in value.items()}
    return [_copy(v) for v in value] if isinstance(value, list) else value


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
