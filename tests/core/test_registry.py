"""Names to factories."""

import pytest

from jaxmix.core.errors import ConfigError
from jaxmix.core.registry import Registry


@pytest.fixture
def colors():
    registry = Registry("color")

    @registry.register
    def red(shade=1):
        return ("red", shade)

    @registry.register
    def anything(**options):
        return options

    return registry


def test_make(colors):
    assert colors.make("red", shade=2) == ("red", 2)
    assert colors.make("red", 3) == ("red", 3)
    assert colors.make("anything", where="here", other=1) == {"other": 1}
    assert list(colors) == ["anything", "red"]
    assert "red" in colors
    assert "blue" not in colors


def test_unknown_name_lists_the_nearest(colors):
    with pytest.raises(ConfigError, match=r"unknown color 'rad' \(a.yaml, color\). Did you mean 'red'"):
        colors.make("rad", where="a.yaml, color")


def test_unknown_argument_lists_the_nearest(colors):
    with pytest.raises(ConfigError, match=r"color 'red' has no argument 'shde'. Did you mean 'shade'"):
        colors.make("red", shde=2)


def test_a_name_is_taken_once(colors):
    def red():
        return None

    red.__module__ = "somewhere.else"
    with pytest.raises(ValueError, match="registered twice"):
        colors.register(red)


def test_a_module_loaded_again_replaces_its_own(colors):
    def red():
        return "a newer red"

    colors.register(red)
    assert colors.make("red") == "a newer red"


def test_an_argument_that_is_needed_is_named(colors):
    @colors.register
    def mixed(first, second, *, third=0):
        return first, second, third

    assert colors.make("mixed", 1, second=2) == (1, 2, 0)
    with pytest.raises(ConfigError, match=r"color 'mixed' needs the argument 'second' \(here\)"):
        colors.make("mixed", 1, where="here")
