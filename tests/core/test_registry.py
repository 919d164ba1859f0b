"""Names to factories."""

import pytest

from jaxmix.core.errors import ConfigError
from jaxmix.core.registry import Registry


@pytest.fixture
def colours():
    registry = Registry("colour")

    @registry.register
    def red(shade=1):
        return ("red", shade)

    @registry.register
    def anything(**options):
        return options

    return registry


def test_make(colours):
    assert colours.make("red", shade=2) == ("red", 2)
    assert colours.make("red", 3) == ("red", 3)
    assert colours.make("anything", where="here", other=1) == {"other": 1}
    assert list(colours) == ["anything", "red"]
    assert "red" in colours
    assert "blue" not in colours


def test_unknown_name_lists_the_nearest(colours):
    with pytest.raises(ConfigError, match=r"unknown colour 'rad' \(a.yaml, colour\). Did you mean 'red'"):
        colours.make("rad", where="a.yaml, colour")


def test_unknown_argument_lists_the_nearest(colours):
    with pytest.raises(ConfigError, match=r"colour 'red' has no argument 'shde'. Did you mean 'shade'"):
        colours.make("red", shde=2)


def test_a_name_is_taken_once(colours):
    def red():
        return None

    red.__module__ = "somewhere.else"
    with pytest.raises(ValueError, match="registered twice"):
        colours.register(red)


def test_a_module_loaded_again_replaces_its_own(colours):
    def red():
        return "a newer red"

    colours.register(red)
    assert colours.make("red") == "a newer red"


def test_an_argument_that_is_needed_is_named(colours):
    @colours.register
    def mixed(first, second, *, third=0):
        return first, second, third

    assert colours.make("mixed", 1, second=2) == (1, 2, 0)
    with pytest.raises(ConfigError, match=r"colour 'mixed' needs the argument 'second' \(here\)"):
        colours.make("mixed", 1, where="here")
