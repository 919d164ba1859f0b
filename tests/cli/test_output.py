import json

import pytest

from jaxmix.cli.arguments import Arguments
from jaxmix.cli.output import answer, table
from jaxmix.cli.session import continuable, do_action
from jaxmix.core.errors import ConfigError


def typed(**values):
    return Arguments(values, (), ("swarm", "a file.yaml"))


def test_an_answer_is_one_json_object_or_lines_and_tables(capsys):
    items = ("Above.", table((("name", "loss"), [("web[1]", "2.5")]), title="Losses"), "Below.")
    assert answer(typed(json=True), {"loss": 2.5}, *items) == 0
    assert json.loads(capsys.readouterr().out) == {"loss": 2.5}
    assert answer(typed(json=False), {"loss": 2.5}, *items) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert (lines[0], lines[1], lines[-1]) == ("Above.", "Losses", "Below.")
    assert any(line.split() == ["web[1]", "2.5"] for line in lines)


def test_an_unknown_action_is_answered_with_the_nearest():
    actions = {"run": lambda arguments: 7, "status": lambda arguments: 0}
    assert do_action(typed(action="run"), actions) == 7
    with pytest.raises(ConfigError, match=r"unknown action 'stats'.*jaxmix swarm.*Did you mean 'status'"):
        do_action(typed(action="stats"), actions)


def test_ctrl_c_says_how_to_continue_unless_the_loop_has_said_it():
    with pytest.raises(KeyboardInterrupt, match=r"Continue with: jaxmix swarm 'a file.yaml'"), continuable(typed()):
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt, match=r"^Saved step 3\.$"), continuable(typed()):
        raise KeyboardInterrupt("Saved step 3.")
