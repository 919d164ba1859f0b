"""A wrong setting is described alike, whether it comes from Python or from a file."""

import dataclasses
import math
from typing import Literal

import pytest

from jaxmix.core.errors import ConfigError
from jaxmix.core.settings import check_fields, escape_path, expand_path, setting
from jaxmix.workflows.config.build import Origin, list_settings, read, to_plain


@dataclasses.dataclass(frozen=True)
class Loop:
    size: int = setting(1, at_least=1, at_most=8, required=True, help="Set loop.size.")
    rate: float = setting(0.5, above=0, below=math.inf)
    share: float = setting(0.5, at_least=0, below=1)
    kind: Literal["red", "green"] = setting("red")
    limit: int | None = setting(None, at_least=1)
    every: int = setting(10, at_least=1, place="checkpoint.every", help="steps")

    def __post_init__(self):
        check_fields(self, "loop")


@dataclasses.dataclass(frozen=True)
class File:
    loop: Loop
    mesh: dict[str, int] = setting(factory=dict, place="loop.mesh")


@pytest.mark.parametrize(
    ("name", "value", "what"),
    [
        ("size", 0, "size must be at least 1 and at most 8, got 0"),
        ("rate", 0.0, "rate must be finite and above 0, got 0.0"),
        ("rate", math.inf, "rate must be finite and above 0, got inf"),
        ("share", 1.0, "share must be at least 0 and below 1, got 1.0"),
        ("kind", "gren", "unknown kind 'gren'"),
        ("limit", 0, "limit must be at least 1, got 0"),
    ],
)
def test_python_and_a_file_say_the_same(name, value, what):
    with pytest.raises(ConfigError) as python:
        Loop(**{name: value})
    with pytest.raises(ConfigError) as file:
        read(File, {"loop": {"size": 1, name: value}}, origin=Origin("f.yaml"))
    assert python.value.what == file.value.what == what
    assert python.value.fix == file.value.fix
    assert (python.value.where, file.value.where) == (f"loop.{name}", f"f.yaml, loop.{name}")


def test_whole_numbers_and_missing_values():
    assert Loop(limit=None).limit is None
    for value in (True, 1.5):
        with pytest.raises(ConfigError, match="size must be a whole number"):
            Loop(size=value)
    with pytest.raises(ConfigError, match=r"Set loop\.size"):
        read(File, {"loop": {}}, origin=Origin())


def test_a_field_is_read_and_written_at_its_place():
    plain = {"loop": {"size": 2, "mesh": {"data": 2}}, "checkpoint": {"every": 5}}
    built = read(File, plain, origin=Origin())
    assert (built.loop.every, built.mesh) == (5, {"data": 2})
    written = to_plain(built)
    assert (written["checkpoint"], written["loop"]["mesh"]) == ({"every": 5}, {"data": 2})
    assert "every" not in written["loop"]
    assert read(File, written, origin=Origin()) == built
    assert ("checkpoint.every", "steps [10]") in list_settings(File)


@pytest.mark.parametrize(
    ("changes", "where", "what"),
    [
        ({"checkpoint": {"every": 0}}, "f.yaml, checkpoint.every", "every must be at least 1, got 0"),
        (
            {"checkpoint": {"every": "x"}},
            "f.yaml, checkpoint.every",
            "checkpoint.every must be a whole number, got 'x'",
        ),
        ({"checkpoint": {"evry": 1}}, "f.yaml, checkpoint.evry", "unknown key 'evry'"),
        ({"checkpoint": 3}, "f.yaml, checkpoint", "checkpoint must be a mapping, got 3"),
        ({"loop": {"size": 1, "every": 3}}, "f.yaml, loop.every", "loop.every is set as checkpoint.every"),
        ({"mesh": {}}, "f.yaml, mesh", "mesh is set as loop.mesh"),
        ({"loop": {"size": 1, "mehs": {}}}, "f.yaml, loop.mehs", "unknown key 'mehs'"),
    ],
)
def test_mistakes_at_another_place(changes, where, what):
    with pytest.raises(ConfigError) as caught:
        read(File, {"loop": {"size": 1}, **changes}, origin=Origin("f.yaml"))
    assert caught.value.where == where
    assert caught.value.what.startswith(what)


def test_the_nearest_key_is_one_that_the_section_takes():
    with pytest.raises(ConfigError, match=r"Did you mean 'mesh'\? Known: kind, limit, mesh, rate, share, size\."):
        read(File, {"loop": {"size": 1, "mehs": {}}}, origin=Origin())


@pytest.mark.parametrize(
    ("path", "expanded"),
    [
        ("data/$CORPUS/${PART}.txt", "data/web/a b.txt"),
        ("~/data", "/home/someone/data"),
        ("~", "/home/someone"),
        ("a/~/b", "a/~/b"),
        ("$$CORPUS costs 5$, $5, ${-}", "$CORPUS costs 5$, $5, ${-}"),
        ("", ""),
    ],
)
def test_home_and_variables_are_expanded_in_a_path(path, expanded, monkeypatch):
    for name, value in {"HOME": "/home/someone", "CORPUS": "web", "PART": "a b"}.items():
        monkeypatch.setenv(name, value)
    assert expand_path(path, "here") == expanded
    assert expand_path(escape_path(expanded), "here") == expanded


@pytest.mark.parametrize("path", ["$MISSING/a", "${MISSING}", "~nobody-of-this-name/a"])
def test_what_cannot_be_expanded_is_named(path, monkeypatch):
    monkeypatch.delenv("MISSING", raising=False)
    with pytest.raises(ConfigError, match=r"MISSING' is not set.*here|no home folder '~nobody-of-this-name'.*here"):
        expand_path(path, "here")
    monkeypatch.setenv("MISSING", "")
    with pytest.raises(ConfigError, match=r"MISSING' is empty|no home folder"):
        expand_path(path, "here")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("a/${SC", r"the brace of '\$\{SC' is not closed \(here\).*\$\$ for a dollar sign"),
        ("${-}/${SC", r"the brace of '\$\{SC' is not closed"),
        ("x" * 5000, "a path of 5,000 bytes"),
        ("x/" * 2500, "a path of 5,000 bytes"),
        ("a/" + "ä" * 128, "a path of 258 bytes"),
    ],
)
def test_a_path_that_no_file_can_have_is_refused(path, message):
    with pytest.raises(ConfigError, match=message) as caught:
        expand_path(path, "here")
    assert len(str(caught.value)) < 300
    assert expand_path("a/" + "ä" * 127, "here") == "a/" + "ä" * 127
