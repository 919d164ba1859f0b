"""Wrappers by name, as a configuration gives them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmix.core.errors import ConfigError
from jaxmix.mixers import Feedback, build, odm, wrap_with

KEY = jax.random.key(0)


class TestBuild:
    def test_order_is_inside_out(self):
        mixer = build("odm", {"variant": "repository"}, [{"ema": 0.5}, {"floor": {"minimum": 0.01}}])
        assert mixer.name == "floor(ema(odm))"
        assert build("static").name == "static"
        assert build("static", wrap=[{"floor": 0.0}]).name == "floor(static)"

    @pytest.mark.parametrize(
        ("name", "options", "wrap", "message"),
        [
            ("odmm", {}, [], r"unknown mixer 'odmm' \(mixer.name\). Did you mean 'odm'"),
            ("odm", {"discont": 0.5}, [], r"no argument 'discont' \(mixer.name\). Did you mean 'discount'"),
            ("odm", {}, [{"flor": 0.1}], r"unknown wrapper 'flor' \(mixer.wrap\[0\]\). Did you mean 'floor'"),
            ("odm", {}, [{"ema": 0.1}, {"floor": {"min": 0.1}}], r"no argument 'min' \(mixer.wrap\[1\]\)"),
            ("odm", {}, [{"floor": 0.1, "ema": 0.5}], r"one name with its argument.*mixer.wrap\[0\]"),
        ],
    )
    def test_errors_say_where(self, name, options, wrap, message):
        with pytest.raises(ConfigError, match=message):
            build(name, options, wrap)

    def test_wrappers_leave_the_inner_state_alone(self):
        feedback = Feedback(loss_sum=jnp.asarray([3.0, 1.0, 2.0]), token_count=jnp.ones(3))
        inner, wrapped = odm(), wrap_with(odm(), [{"floor": 0.2}, {"ema": 0.9}])
        a, b = inner.init(KEY, 3), wrapped.init(KEY, 3)
        for _ in range(5):
            a, _ = inner.update(KEY, a, feedback)
            b, _ = wrapped.update(KEY, b, feedback)
        np.testing.assert_array_equal(a.estimate, b.inner.inner.estimate)

    def test_a_wrapper_without_arguments_is_an_empty_mapping(self):
        assert build("static", wrap=[{"time_average": {}}]).name == "time_average(static)"
