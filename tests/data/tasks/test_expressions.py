"""Answers compared by math-verify. The slow test installs it into an environment of its own."""

import importlib.util
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from jaxmix.core.errors import ConfigError, EnvironmentProblem
from jaxmix.data.tasks import expressions, gsm8k
from jaxmix.data.tasks.answers import is_same_answer
from jaxmix.workflows.finetune.load import finetune_of

ROOT = Path(__file__).parents[3]


def documented():
    """(answer, reference, by the small verifier, by math-verify) of the table in docs/data.md."""
    rows = re.findall(r"^\| `(.+?)` \| `(.+?)` \| (yes|no) \| (yes|no) \|$", (ROOT / "docs/data.md").read_text(), re.M)
    assert len(rows) > 9
    return [(given, expected, small == "yes", large == "yes") for given, expected, small, large in rows]


@pytest.mark.parametrize(("given", "expected", "small", "large"), documented())
def test_the_small_verifier_does_what_the_table_says(given, expected, small, large):
    assert is_same_answer(given, expected) is small
    assert small is not large


def test_a_missing_package_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentProblem, match=r"needs the package 'math-verify'.*jaxmix\[math\]"):
        gsm8k(tmp_path / "none.jsonl", verifier="math_verify")


def test_a_misspelled_verifier_is_named_before_a_file_is_opened():
    tasks = {"name": "gsm8k", "path": "none", "evaluation": {"path": "none"}, "verifier": "math_verfy"}
    with pytest.raises(ConfigError, match=r"unknown verifier 'math_verfy' \(f.yaml, tasks.verifier\).*'math_verify'"):
        finetune_of({"tasks": tasks, "train": {"steps": 1}}, file="f.yaml")


def test_a_worker_that_does_not_answer_is_replaced(monkeypatch):
    echo = "import sys, time\nprint('ready', flush=True)\nfor l in sys.stdin:\n time.sleep(99 * ('slow' in l))\n"
    monkeypatch.setattr(expressions, "_WORKER", echo + " if 'crash' in l: sys.exit(1)\n print(1, flush=True)\n")
    monkeypatch.setattr(expressions, "SECONDS", 0.5)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    same = expressions.SameExpression()
    assert [same(word, "1") for word in ("slow", None, "crash")] == [False, False, False]
    monkeypatch.setattr(expressions, "SECONDS", 60.0)
    assert same("fine", "1")


@pytest.mark.slow
def test_the_package_itself_does_what_the_table_says(tmp_path, monkeypatch):
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "env"], check=True)
    install = [python, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", "math-verify"]
    subprocess.run(install, check=True)
    monkeypatch.setattr(expressions, "_PYTHON", str(python))
    same, found = expressions.SameExpression(), {}

    def compare():
        found.update({(given, expected): same(given, expected) for given, expected, _, _ in documented()})

    thread = threading.Thread(target=compare)  # signals would not work here
    thread.start()
    thread.join()
    assert found == {(given, expected): large for given, expected, _, large in documented()}
    monkeypatch.setattr(expressions, "SECONDS", 2.0)
    assert not same("9^{9^{9^{9}}}", "3")  # a number that is never computed
    monkeypatch.setattr(expressions, "SECONDS", 60.0)
    assert same("x+1", "1+x")
    for wrong in (("5", "5k-3"), ("6", "y=6z"), ("6p", "6q"), ("3", "3 million"), ("", "3"), ("}{", "3")):
        assert not same(*wrong)
