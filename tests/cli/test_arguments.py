import shlex

import pytest

from jaxmix.cli.app import COMMANDS
from jaxmix.cli.arguments import Command, Flag, help_text, parse
from jaxmix.core.errors import ConfigError

COMMAND = Command(
    "go",
    "Goes somewhere",
    positional=(("PLACE", "where to"),),
    flags=(
        Flag("--fast", "run"),
        Flag("--out", "folder", "FOLDER"),
        Flag("--times", "how often", "N", int),
        Flag("--secret", "hidden", "X", is_hidden=True),
        Flag("--start", "whole section", "FILE", is_override=True),
    ),
    sections=("train", "out", "start"),
)


def test_flags_overrides_and_places_mix_in_any_order():
    words = [
        "--train.steps",
        "-5",
        "home",
        "--fast",
        "--times=3",
        "--train.mesh={data: 2}",
        "--out",
        "x",
        "--train",
        "{}",
        "--start",
        "file",
    ]
    parsed = parse(COMMAND, words)
    assert (parsed.place, parsed.fast, parsed.times, parsed.out, parsed.secret) == ("home", True, 3, "x", None)
    assert parsed.overrides == (("train.steps", "-5"), ("train.mesh", "{data: 2}"), ("train", "{}"), ("start", "file"))
    assert parsed.argv == ("go", *words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "PLACE is missing: where to"),
        (["a", "b"], "unexpected argument 'b'"),
        (["a", "train.steps=5"], "Write --train.steps 5"),
        (["a", "--fats"], "Did you mean '--fast'"),
        (["a", "--trian.steps", "5"], "Did you mean '--train'"),
        (["a", "--fas"], "unknown option '--fas'"),
        (["a", "-f"], "unknown option '-f'"),
        (["a", "--fast=1"], "takes no value"),
        (["a", "--out"], "--out needs a value"),
        (["a", "--out", "--fast"], "--out needs a value"),
        (["a", "--times", "many"], "needs a whole number: got 'many'"),
        (["a", "--train.steps"], "--train.steps needs a value"),
    ],
)
def test_a_wrong_word_is_named(words, message):
    with pytest.raises(ConfigError) as caught:
        parse(COMMAND, words)
    assert message in str(caught.value)
    assert "secret" not in str(caught.value)


def test_help_needs_nothing_else_and_hides_what_is_hidden():
    assert parse(COMMAND, ["--help"]).help
    assert parse(COMMAND, ["-h"]).help
    text = help_text(COMMAND, [("train.steps", "length of the run")])
    for word in ("PLACE", "--times N", "--debug", "train.steps", "length of the run"):
        assert word in text
    assert "--secret" not in text
    assert max(len(line) for line in text.splitlines()) <= 100


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: c.name)
def test_what_writes_has_a_dry_run(command):
    names = {flag.name for flag in command.flags}
    assert "--json" in names
    assert ("--dry-run" in names) == (command.name not in ("plan", "doctor"))


def test_paths_are_expanded_and_the_command_is_quoted_for_a_shell(monkeypatch):
    monkeypatch.setenv("BASE", "/base")
    words = ["$BASE/my file.yaml", "--out", "${BASE}/it's", "--data.prepared", "$BASE"]
    parsed = parse(next(c for c in COMMANDS if c.name == "train"), words)
    assert (parsed.config, parsed.out) == ("/base/my file.yaml", "/base/it's")
    assert parsed.overrides == (("data.prepared", "$BASE"),), "the configuration expands its own"
    assert shlex.split(parsed.command) == ["jaxmix", "train", *words]
    with pytest.raises(ConfigError, match=r"'NOT_SET' is not set.*jaxmix train --out"):
        parse(next(c for c in COMMANDS if c.name == "train"), ["x.yaml", "--out", "$NOT_SET"])
