import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Literal

import pytest

from jaxmix.cli.arguments import path_text
from jaxmix.core.errors import ConfigError
from jaxmix.core.settings import escape_path, setting
from jaxmix.workflows.config.build import Origin, arguments, list_settings, read, to_plain
from jaxmix.workflows.config.load import from_mapping
from jaxmix.workflows.config.sections import RunConfig
from jaxmix.workflows.config.yaml import apply_overrides, dump_yaml, parse_yaml
from jaxmix.workflows.discover.config import discovery_from
from jaxmix.workflows.finetune.config import FinetuneConfig
from jaxmix.workflows.label.config import label_from


@dataclasses.dataclass(frozen=True)
class Inner:
    size: int = setting(1, at_least=1, at_most=8)
    rate: float = setting(0.5, above=0)


@dataclasses.dataclass(frozen=True)
class Outer:
    name: str = setting(help="Give it a name.")
    inner: Inner = setting(factory=Inner)
    kind: Literal["red", "green"] = setting("red")
    items: tuple[int, ...] = setting(())
    is_on: bool = setting(False)
    either: Literal["auto"] | dict[str, float] | None = setting(None)
    rest: dict[str, object] = setting(factory=dict, rest=True)


def error_of(mapping, overrides=()):
    origin = Origin("f.yaml", frozenset(name for name, _ in overrides))
    with pytest.raises(ConfigError) as caught:
        read(Outer, apply_overrides(mapping, overrides), origin=origin)
    return caught.value


def test_numbers_and_words_are_those_of_yaml_1_2():
    text = "{a: 1e-3, b: 1_000, c: 1E4, d: .5, e: -.inf, no: no, on: off, yes: true, v: 1.2.3, date: 2026-01-02}"
    loaded = parse_yaml(text, where="f")
    assert loaded == {
        "a": 0.001,
        "b": 1000,
        "c": 10_000.0,
        "d": 0.5,
        "e": -math.inf,
        "no": "no",
        "on": "off",
        "yes": True,
        "v": "1.2.3",
        "date": "2026-01-02",
    }
    assert isinstance(loaded["b"], int)
    assert parse_yaml("x: 0o17", where="f") == {"x": "0o17"}


@pytest.mark.parametrize("number", ["1e999", "-1.5e400"])
def test_a_number_out_of_range_is_no_infinity(number):
    with pytest.raises(ConfigError, match=rf"the number '{number}' is out of range.* \(f, line 2, column 4\)"):
        parse_yaml(f"a: 1\nb: {number}", where="f")


@pytest.mark.parametrize(
    "value",
    [
        *("1e-3", "true", "no", "12", ".5", "1_0", "", "null", "~", "a: b", "- x", "2026-01-02", "naïve $x"),
        *(1e-05, 1e22, 0.1, None, [], {}),
    ],
)
def test_what_is_dumped_is_read_back_unchanged(value):
    again = parse_yaml(dump_yaml({"key": value}), where="f")["key"]
    assert again == value
    assert type(again) is type(value)


def test_broken_yaml_and_double_keys_are_named_by_line():
    with pytest.raises(ConfigError, match="line 2"):
        parse_yaml("a: 1\nb: [1, 2", where="f.yaml")
    with pytest.raises(ConfigError, match=r"'a' is given twice.*f.yaml, line 3"):
        parse_yaml("a: 1\nb: 2\na: 3\n", where="f.yaml")


@pytest.mark.parametrize(
    ("mapping", "where", "what"),
    [
        ({}, "f.yaml", "name is missing"),
        ({"name": 3}, "f.yaml, name", "name must be text, got 3"),
        ({"name": "x", "inner": {"size": 0}}, "f.yaml, inner.size", "at least 1"),
        ({"name": "x", "inner": {"size": 9}}, "f.yaml, inner.size", "at most 8"),
        ({"name": "x", "inner": {"rate": 0}}, "f.yaml, inner.rate", "above 0"),
        ({"name": "x", "inner": {"size": 1.5}}, "f.yaml, inner.size", "a whole number"),
        ({"name": "x", "inner": {"size": True}}, "f.yaml, inner.size", "a whole number"),
        ({"name": "x", "inner": {"rate": math.nan}}, "f.yaml, inner.rate", "a number"),
        ({"name": "x", "inner": [1]}, "f.yaml, inner", "a mapping"),
        ({"name": "x", "kind": "gren"}, "f.yaml, kind", "unknown kind 'gren'"),
        ({"name": "x", "items": [1, "b"]}, "f.yaml, items[1]", "a whole number"),
        ({"name": "x", "is_on": 1}, "f.yaml, is_on", "true or false"),
        ({"name": "x", "either": {"a": "b"}}, "f.yaml, either.a", "a number"),
        ({"name": "x", "either": 3}, "f.yaml, either", "'auto' or a mapping or empty"),
        ({1: "x"}, "f.yaml, 1", "key 1 is not text"),
    ],
)
def test_a_wrong_value_is_named_with_its_place(mapping, where, what):
    error = error_of(mapping)
    assert error.where == where
    assert what in error.what


def test_whole_floats_are_whole_numbers_and_free_keys_are_kept():
    built = read(Outer, {"name": "x", "inner": {"size": 4.0, "rate": 1}, "items": [1e1], "free": [1]}, origin=Origin())
    assert built == Outer("x", Inner(4, 1.0), items=(10,), rest={"free": [1]})
    assert isinstance(built.inner.size, int)
    assert isinstance(built.inner.rate, float)


def test_plain_form_builds_the_same_again():
    built = read(Outer, {"name": "x", "either": {"a": 1}, "free": {"b": 2}}, origin=Origin())
    assert read(Outer, parse_yaml(dump_yaml(to_plain(built)), where="f"), origin=Origin()) == built


def test_an_overridden_value_is_blamed_on_the_command_line():
    error = error_of({"name": "x", "inner": {"rate": 1}}, [("inner.size", "big")])
    assert error.where == "command line, --inner.size"
    assert error_of({"name": "x"}, [("items", "[a]")]).where == "command line, --items[0]"


def test_overrides_do_not_touch_their_input_and_refuse_to_enter_a_value():
    mapping = {"inner": {"size": 1}, "name": "x"}
    assert apply_overrides(mapping, [("inner.size", "2"), ("new.deep", "[1]")])["inner"] == {"size": 2}
    assert mapping == {"inner": {"size": 1}, "name": "x"}
    with pytest.raises(ConfigError, match=r"name is 'x', so 'name.first' cannot be set in it.*--name '\{first: y\}'"):
        apply_overrides(mapping, [("name.first", "y")])
    with pytest.raises(ConfigError, match="not a dotted name"):
        apply_overrides(mapping, [("inner.", "y")])


def test_arguments_follow_the_signature():
    def factory(first, size: int, *, mode: Literal["a", "b"] = "a"):
        raise AssertionError("only its signature is read")

    given = {"size": 2.0, "mode": "b"}
    assert arguments(factory, given, origin=Origin("f"), path="m", skip=1) == {"size": 2, "mode": "b"}
    with pytest.raises(ConfigError, match=r"unknown key 'first' \(f, m.first\)"):
        arguments(factory, {"first": 1}, origin=Origin("f"), path="m", skip=1)
    with pytest.raises(ConfigError, match=r"Did you mean 'mode'"):
        arguments(factory, {"mood": "a"}, origin=Origin("f"), path="m", skip=1)


def test_every_setting_of_a_run_has_a_line_of_help():
    rows = dict(list_settings(RunConfig))
    assert all(rows.values())
    assert rows["data.seq_len"].endswith("[256]")
    assert "mixer.…" in rows


def test_the_resolved_configuration_of_a_run_loads_to_itself():
    mapping = {
        "sources": {"no": {"path": ["a", "b"], "max_epochs": 2}, "1e3": {"path": "c"}},
        "mixture": {"weights": {"no": 3, "1e3": 1}},
        "mixer": {"name": "odm", "discount": 0.5, "wrap": [{"floor": 0.01}]},
        "train": {"steps": 1e2, "learning_rate": 1e-5},
    }
    loaded = from_mapping(mapping, file="a.yaml")
    again = from_mapping(parse_yaml(dump_yaml(to_plain(loaded)), where="f"), file="b.yaml")
    assert again == loaded


ODD = ["a b'c\"d", "tab\there", "ünï/😀", "line\x85\u2028end", "bad\udcff", "a$b", "~x", "# no comment", "a: b", "x\\y"]


@pytest.mark.parametrize("path", ODD)
def test_any_path_survives_the_file_of_a_run_and_the_command_line(path):
    sources = {"a": {"path": [escape_path(path)]}}
    given = from_mapping({"sources": sources, "train": {"steps": 1}}, [("out", path_text(path))])
    assert given.sources["a"].path == (escape_path(path) if path.startswith("~") else path,)
    written = parse_yaml(dump_yaml(to_plain(given)), where="config.yaml")
    assert from_mapping(written) == given
    assert given.out.removeprefix("./") == path


def test_every_path_of_a_configuration_is_expanded(monkeypatch):
    monkeypatch.setenv("BASE", "/base")
    config = from_mapping(
        {
            "sources": {"a": {"path": ["$BASE/a", "${BASE}/b"]}, "b": {"hf": "$BASE/set"}},
            "data": {"prepared": "$BASE/p", "tokenizer": "$BASE/t.json"},
            "reference": {"run": "$BASE/r"},
            "train": {"steps": 1},
            "out": "$BASE/o",
        }
    )
    found = (config.sources["a"].path, config.sources["b"].hf, config.data.prepared, config.data.tokenizer)
    assert found == (("/base/a", "/base/b"), "/base/set", "/base/p", "/base/t.json")
    assert (config.reference.run, config.out) == ("/base/r", "/base/o")
    tasks = {"name": "gsm8k", "path": "$BASE/t", "evaluation": {"path": "$BASE/e"}, "tokenizer": "$BASE/j"}
    plain = {"tasks": tasks, "train": {"steps": 1}, "start": {"run": "$BASE/s"}}
    tuned = read(FinetuneConfig, plain, origin=Origin())
    found = (tuned.tasks.options["path"], tuned.tasks.evaluation["path"], tuned.tasks.tokenizer, tuned.start.run)
    assert found == ("/base/t", "/base/e", "/base/j", "/base/s")
    labels = {"domains": "$BASE/d", "labels": "$BASE/l", "sources": {"a": {"path": "$BASE/a"}}}
    label = label_from(labels, file="l.yaml")
    assert (label.domains, label.labels, label.sources["a"].path) == ("/base/d", "/base/l", "/base/a")
    found = discovery_from({"sources": "bundled", "encoder": {"name": "$BASE/e"}, "out": "$BASE/o"}, file="d.yaml")
    assert (found.encoder.name, found.out) == ("/base/e", "/base/o")
    with pytest.raises(ConfigError, match=r"'NOT_SET' is not set.*sources\.a\.path"):
        from_mapping({"sources": {"a": {"path": "$NOT_SET/a"}}, "train": {"steps": 1}})


def test_a_help_page_lists_the_keys_of_a_source():
    listed = dict(list_settings(RunConfig))
    assert "file, folder or glob pattern" in listed["sources.NAME.path"]
    assert listed["sources.NAME.text_field"].endswith("[text]")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: " + "[" * 3000, "more than 100 values in each other"),
        ("- " * 3000, "more than 100 values in each other"),
        ("{a: " * 3000, "more than 100 values in each other"),
        (
            "x: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 30)),
            "more than 200,000 values",
        ),
        ("a: &a [*a]", "more than 100 values in each other"),
        ("a: " + "9" * 5000, "too large for 64 bits"),
        ("a: 9223372036854775808", "'9223372036854775808' is too large for 64 bits"),
        ("a: !!int x", "'x' cannot be read as int"),
        ("a: !!bool x", "'x' cannot be read as bool"),
        ("a: !!float ''", "cannot be read as float"),
        ("a: !!timestamp x", "'tag:yaml.org,2002:timestamp' means nothing here"),
        ("a: !!python/object:os.system x", "means nothing here"),
        ('a: "\\0"', "NUL"),
        ('a: "\\ud800"', "half a surrogate pair"),
        ("? [a]\n: b", "a key must be a name"),
        ("<<: 3", "<< takes a mapping"),
    ],
)
def test_what_is_no_plain_value_is_named_by_line(text, message):
    with pytest.raises(ConfigError, match=f"not valid YAML: .*{message}.*f.yaml"):
        parse_yaml(text, where="f.yaml")


def test_keys_of_a_mapping_win_over_merged_ones():
    text = "one: &one {a: 1, b: 2}\ntwo: &two {b: 3, c: 4}\nx: {<<: [*one, *two], a: 0}\ny: {a: 5, <<: *one}"
    read = parse_yaml(text, where="f")
    assert (read["x"], read["y"]) == ({"a": 0, "b": 2, "c": 4}, {"a": 5, "b": 2})


def test_a_list_of_fixed_length_and_a_number_beyond_64_bits():
    def factory(pair: tuple[float, float], steps: int = 1): ...

    where = {"origin": Origin("f.yaml"), "path": "design"}
    assert arguments(factory, {"pair": [1, 2]}, **where) == {"pair": (1.0, 2.0)}

    def optional(points: Sequence[Mapping[str, float]] | None = None): ...

    with pytest.raises(ConfigError, match=r"design.points\[0\] must be a mapping, got a list"):
        arguments(optional, {"points": [[0, {"a": 1}]]}, **where)
    with pytest.raises(ConfigError, match=r"design.pair must be a list of 2, got a list"):
        arguments(factory, {"pair": [1]}, **where)
    with pytest.raises(ConfigError, match=r"design.steps must be a whole number, got 1e\+30"):
        arguments(factory, {"pair": [1, 2], "steps": 1e30}, **where)
