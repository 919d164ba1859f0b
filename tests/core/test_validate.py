"""Checks of weights and mesh shapes: what is accepted, and errors that name the source, the axis and the value."""

import math
from typing import Literal

import pytest

from jaxmix.core.errors import ConfigError
from jaxmix.core.validate import (
    Count,
    Share,
    check_mesh_shape,
    check_number,
    check_simplex,
    check_weights,
    checked,
    values_in_order,
)


def test_rounded_decimals_are_accepted_and_made_exact():
    assert sum(check_simplex([0.333, 0.333, 0.333], where="w")) == pytest.approx(1, abs=1e-15)


def test_weights_by_name():
    assert values_in_order({"b": 0.2, "a": 0.8}, ["a", "b"], where="w") == [0.8, 0.2]
    assert values_in_order([0.2, 0.8], ["a", "b"], where="w") == [0.2, 0.8]
    with pytest.raises(ConfigError, match=r"unknown source 'cod' \(w\). Did you mean 'code'"):
        values_in_order({"cod": 1.0}, ["code", "web"], where="w")
    with pytest.raises(ConfigError, match="no weight for source 'web'"):
        check_weights({"code": 1.0}, ["code", "web"], "w")
    with pytest.raises(ConfigError, match=r"1 weights for 2 sources.*code, web"):
        check_weights([1.0], ["code", "web"], "w")


@pytest.mark.parametrize("check", [lambda w: check_weights(w, "abc", "w"), lambda w: check_simplex(w, "w")])
def test_weights_whose_sum_is_no_number_are_refused(check):
    with pytest.raises(ConfigError, match=r"add to infinity \(w\)\. Divide each by the largest"):
        check([1e308] * 3)


def test_weights_keep_their_sum():
    assert check_weights({"web": 3, "code": 1}, ["code", "web"], "w") == (1.0, 3.0)
    with pytest.raises(ConfigError, match="'web' has nan"):
        check_weights([1.0, math.nan], ["code", "web"], "w")


def test_a_bound_that_is_not_reached():
    check_number("ema", "decay", 0.0, 0.0, below=1.0)
    for wrong in (1.0, -0.1, math.nan):
        with pytest.raises(ConfigError, match=r"decay must be finite and at least 0 and below 1.0.*ema\(decay\)"):
            check_number("ema", "decay", wrong, 0.0, below=1.0)


def test_mesh_shapes():
    check_mesh_shape({"data": -1, "tensor": 2}, "train.mesh")
    with pytest.raises(ConfigError, match=r"unknown mesh axis 'date' \(train.mesh.date\). Did you mean 'data'"):
        check_mesh_shape({"date": 2}, "train.mesh")
    with pytest.raises(ConfigError, match=r"at least 1 device.*'fsdp' has 0 \(train.mesh.fsdp\)"):
        check_mesh_shape({"fsdp": 0}, "train.mesh")
    with pytest.raises(ConfigError, match="data and fsdp are"):
        check_mesh_shape({"data": -1, "fsdp": -1}, "train.mesh")


def test_arguments_are_checked_by_their_annotations():
    @checked
    def brew(cups: Count, *, share: Share | None = None, kind: Literal["mocha", "latte"] = "latte") -> tuple:
        return cups, share, kind

    assert brew(2) == (2, None, "latte")
    assert brew(cups=1, share=0.5, kind="mocha") == (1, 0.5, "mocha")
    for arguments, message in (
        ({"cups": 0}, r"cups must be a whole number ≥ 1, got 0 \(brew\(cups\)\)"),
        ({"cups": 1, "share": 1.5}, "share must be finite and at least 0 and at most 1, got 1.5"),
        ({"cups": 1, "kind": "late"}, r"unknown kind 'late' \(brew\(kind\)\).*Did you mean 'latte'"),
    ):
        with pytest.raises(ConfigError, match=message):
            brew(**arguments)
