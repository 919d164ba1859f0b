"""The run-time type checker of the tests: beartype, with whole numbers allowed where a float is asked for."""

import dataclasses
import functools
import inspect

from beartype import BeartypeConf, beartype
from beartype.door import is_bearable
from jaxtyping import jaxtyped

_CONF = BeartypeConf(is_pep484_tower=True)
_checked = beartype(conf=_CONF)


def check(function):
    """Checks the arguments of a function; not those of a dataclass that checks itself, whose errors the tests read."""
    checked = _checked(function)
    if function.__name__ != "__init__":
        return checked

    @functools.wraps(function)
    def init(self, *args, **kwargs):
        return (function if hasattr(type(self), "__post_init__") else checked)(self, *args, **kwargs)

    return init


def assert_fields_hold(state):
    """The fields of a state, and of the states in it, are what their annotations say, with one size a letter.

    Constructors of states check nothing, because JAX calls them with shapes and shardings too.
    """
    hints = {}
    for cls in reversed(type(state).__mro__):
        hints |= inspect.get_annotations(cls, eval_str=True)
    with jaxtyped("context"):
        for field in dataclasses.fields(state):
            value = getattr(state, field.name)
            assert is_bearable(value, hints[field.name], conf=_CONF), (type(state).__name__, field.name, value)
    for field in dataclasses.fields(state):
        if hasattr(value := getattr(state, field.name), "__state_version__"):
            assert_fields_hold(value)
