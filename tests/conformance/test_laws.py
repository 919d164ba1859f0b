"""What every law must do, one table for all: a law is tested by being registered."""

from __future__ import annotations

import functools
import importlib.util

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from law_forms import draw, mixtures, predict, scales

import jaxmix.laws as laws
from jaxmix.core.errors import ConfigError
from jaxmix.laws import RunTable, Shape
from jaxmix.laws.fit import on_host

CONSTANT = Shape(3, (0, 2, 1))
VARYING = Shape(3, (0, 2, 1), model_size_varies=True, tokens_vary=True, model_size=50.0, tokens=3.0)
SHAPES = {"constant": CONSTANT, "varying": VARYING}
KEY = jax.random.key(0)
FIT = {"num_starts": 4, "restarts": 0, "max_steps": 40}
FASTER = {
    "lightgbm": {"rounds": 60, "learning_rate": 0.1},
    "auto": {"candidates": ("loglinear", "hierarchical:competition=False", "mean"), "folds": 3},
}
OWN_WEIGHT_ONLY = {"bimix", "capacity", "capacity_only", "dcpt", "power"}
"""Laws that can say nothing of a metric of no domain, with their usual settings."""

BLIND = {"mean"}
"""Laws that do not look at the mixture."""

NAMES = sorted(laws.registry)


@functools.cache  # one law object, so that fits of the same outline share a compiled solver
def make(name):
    if name == "lightgbm" and importlib.util.find_spec("lightgbm") is None:
        pytest.skip("the extra `trees` is not installed")
    return laws.make(name, **FASTER.get(name, {}))


FORMS = [name for name in NAMES if laws.make(name).build is not None]


def planted(shape, count=40, seed=0):
    """Losses of an own part, a part of transfer, and terms in size and tokens that belong to no law alone."""
    rng = np.random.default_rng(seed)
    h = mixtures(count, shape.num_domains, seed)
    size, tokens = scales(count, shape)
    rates = rng.uniform(0.05, 0.3, (shape.num_metrics, shape.num_domains))
    for i, j in enumerate(shape.metric_domain):
        rates[i, j] = 1.0
    losses = 1.0 + (h @ rates.T + 0.02) ** -0.2
    losses = losses + 0.3 * (size / shape.model_size)[:, None] ** -0.3 * shape.model_size_varies
    losses = losses + 0.2 * (tokens / shape.tokens)[:, None] ** -0.4 * shape.tokens_vary
    domains = [f"d{i}" for i in range(shape.num_domains)]
    return RunTable(h, losses, size, tokens, domains, [f"m{i}" for i in shape.metric_domain], shape.metric_domain)


@functools.cache
def fitted(name, outline):
    table = planted(SHAPES[outline])
    return table, laws.fit(make(name), table, key=KEY, **FIT)


@pytest.mark.parametrize("outline", SHAPES)
@pytest.mark.parametrize("name", FORMS)
def test_finite_with_finite_derivatives(name, outline):
    shape = SHAPES[outline]
    form = make(name).build(shape)
    h = mixtures(9, 3)
    arguments = (draw(form), h, *scales(9, shape))
    assert form.num_params == sum(value.size for value in arguments[0].values()) > 0
    found = predict(form, *arguments)
    assert found.shape == (9, 3)
    assert np.isfinite(found).all()
    with on_host():
        slopes = jax.jit(jax.grad(lambda *a: jnp.sum(form.predict(*a)), argnums=(0, 1)))
        by_params, by_weights = slopes(*jax.tree.map(jnp.asarray, arguments))
    chex.assert_tree_all_finite((by_params, by_weights))


@pytest.mark.parametrize("name", FORMS)
def test_order_of_metrics_does_not_matter(name):
    form = make(name).build(VARYING)
    order = np.array([2, 0, 1])
    other = make(name).build(VARYING._replace(metric_domain=tuple(VARYING.metric_domain[i] for i in order)))
    params = draw(form)
    rows = (mixtures(9, 3), *scales(9, VARYING))
    moved = {n: value[order] if form.parameters[n].per_metric else value for n, value in params.items()}
    np.testing.assert_allclose(predict(other, moved, *rows), predict(form, params, *rows)[:, order], rtol=1e-9)


@pytest.mark.parametrize("name", FORMS)
def test_order_of_domains_does_not_matter(name):
    """Every array is permuted along the axes that run over domains, which are those not over metrics."""
    shape = Shape(4, (0, 2, 1), model_size_varies=True, tokens_vary=True, model_size=50.0, tokens=3.0)
    order = np.array([3, 1, 0, 2])
    form = make(name).build(shape)
    other = make(name).build(shape._replace(metric_domain=tuple(int(np.argmax(order == j)) for j in (0, 2, 1))))
    params, h = draw(form), mixtures(9, 4)
    moved = {n: v[..., order] if v.shape[-1] == 4 else v for n, v in params.items()}
    rows = scales(9, shape)
    np.testing.assert_allclose(predict(other, moved, h[:, order], *rows), predict(form, params, h, *rows), rtol=1e-9)


@pytest.mark.parametrize("name", FORMS)
def test_metric_of_no_domain(name):
    """Handled, or refused in words."""
    shape = CONSTANT._replace(metric_domain=(0, -1))
    if name in OWN_WEIGHT_ONLY:
        with pytest.raises(ConfigError, match="metric 1 validates no domain"):
            make(name).build(shape)
        return
    form = make(name).build(shape)
    h = mixtures(9, 3)
    found = predict(form, draw(form), h, *scales(9, shape))
    assert np.isfinite(found).all()
    assert np.ptp(found[:, 1]) > 0


@pytest.mark.parametrize("name", FORMS)
def test_one_domain_and_one_metric(name):
    shape = Shape(1, (0,))
    form = make(name).build(shape)
    assert np.isfinite(predict(form, draw(form), np.ones((2, 1)), np.ones(2), np.ones(2))).all()


@pytest.mark.parametrize("outline", SHAPES)
@pytest.mark.parametrize("name", NAMES)
def test_beats_the_mean(name, outline):
    table, found = fitted(name, outline)
    predicted = found.predict(table.weights, table.model_size, table.tokens)
    assert predicted.shape == table.losses.shape
    assert predicted.dtype == np.float64
    assert isinstance(found.num_params, int)
    assert found.num_params > 0
    error = np.mean((predicted / table.losses - 1.0) ** 2)
    floor = np.mean((table.losses.mean(axis=0) / table.losses - 1.0) ** 2)
    assert error <= floor * (1 + 1e-12) if name in BLIND else error < 0.5 * floor


@pytest.mark.parametrize("name", NAMES)
def test_same_key_same_fit_and_the_table_is_left_alone(name):
    _, first = fitted(name, "constant")
    table = planted(CONSTANT)
    inputs = lambda: [getattr(table, field) for field in ("weights", "losses", "model_size", "tokens")]
    before = [np.array(value) for value in inputs()]
    again = laws.fit(make(name), table, key=KEY, **FIT)
    rows = (mixtures(9, 3, seed=8), *scales(9, CONSTANT))
    np.testing.assert_array_equal(first.predict(*rows), again.predict(*rows))
    chex.assert_trees_all_equal(inputs(), before)


@pytest.mark.parametrize("name", NAMES)
def test_cells_of_nan_are_left_out(name):
    table = planted(CONSTANT)
    losses = np.array(table.losses)
    losses[5:15, 0] = np.nan
    holes = RunTable(
        table.weights, losses, table.model_size, table.tokens, table.domain_names, table.metric_names,
        table.metric_domain,
    )  # fmt: skip
    found = laws.fit(make(name), holes, key=KEY, **FIT)
    predicted = found.predict(table.weights, table.model_size, table.tokens)
    assert np.isfinite(found.objective)
    assert np.isfinite(predicted).all()
    if name not in BLIND:
        error = np.nanmean((predicted / losses - 1.0) ** 2)
        assert error < 0.5 * np.nanmean((np.nanmean(losses, axis=0) / losses - 1.0) ** 2)
