"""One error style and three exit codes."""

import pytest

from jaxmix.core.errors import ConfigError, EnvironmentProblem, JaxmixError, RunError, nearest


def test_message_says_what_where_and_what_to_do():
    error = ConfigError("'code' has -0.2", where="web.yaml, mixture.weights", fix="Use 0.")
    assert str(error) == "'code' has -0.2 (web.yaml, mixture.weights). Use 0."
    assert str(ConfigError("a")) == "a"
    assert str(ConfigError("a", where="b")) == "a (b)"
    assert str(ConfigError("a", fix="C.")) == "a. C."


@pytest.mark.parametrize(
    ("kind", "base", "code"),
    [(RunError, JaxmixError, 1), (ConfigError, ValueError, 2), (EnvironmentProblem, RuntimeError, 3)],
)
def test_kinds(kind, base, code):
    assert issubclass(kind, base)
    assert issubclass(kind, JaxmixError)
    assert kind("x").exit_code == code


def test_nearest():
    assert nearest("stattic", ["odm", "static"]) == "Did you mean 'static'? Known: odm, static."
    assert nearest("zzz", ["odm", "static"]) == "Known: odm, static."
    assert nearest("x", []) == "Known: (none)."
