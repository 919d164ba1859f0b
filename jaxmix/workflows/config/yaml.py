"""YAML 1.2 text to plain values and back, and dotted overrides (`--train.steps 100`) laid over a file's values."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from jaxmix.core.errors import ConfigError, nearest


def _loader() -> Any:
    """PyYAML's safe loader with the numbers and booleans of YAML 1.2.

    YAML 1.1 reads `1e-3` as text and `no`, `on`, `off` as booleans; a learning rate and a source called `no`
    (Norwegian) are both what people write here.
    """

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
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", key_node.start_mark)
            result[key] = loader.construct_object(value_node, deep=True)
        return result

    def number_of(loader: Any, node: Any) -> int | float:
        text = loader.construct_scalar(node).replace("_", "")
        if not text.lower().endswith((".inf", ".nan")) and not math.isfinite(float(text)):
            message = f"the number {text[:20]}{'…' if len(text) > 20 else ''} is out of range"
            raise yaml.constructor.ConstructorError(None, None, message, node.start_mark)
        is_whole = node.tag.endswith(":int")
        return int(text) if is_whole else loader.construct_yaml_float(node)

    Loader.add_constructor("tag:yaml.org,2002:map", mapping)
    for tag in ("int", "float"):
        Loader.add_constructor(f"tag:yaml.org,2002:{tag}", number_of)
    return Loader


def dump_yaml(value: Any) -> str:
    """YAML text that `parse_yaml` reads back to the same value; keys keep their order."""

    class Dumper(yaml.SafeDumper):
        yaml_implicit_resolvers = _loader().yaml_implicit_resolvers  # quotes what would be read as a number

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
        return yaml.load(text, Loader=_loader())
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{where}, line {mark.line + 1}, column {mark.column + 1}" if mark else where
        problem = getattr(error, "problem", None) or str(error)
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
