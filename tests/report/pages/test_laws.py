import jax
import numpy as np
import pytest

from jaxmix.laws import LawFit, RunTable, Shape, cross_validate, make
from jaxmix.report.charts import scatters
from jaxmix.report.pages.laws import law_page, laws_table, sensitivity, verdict


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(0)
    weights = rng.dirichlet(np.ones(3), 20)
    losses = 1.0 + weights @ np.array([[1.0, 0.2], [2.0, 0.5], [3.0, 0.1]])
    return RunTable(weights, losses, np.ones(20), np.ones(20), ["a", "b", "<c>"], ["a", "other"])


@pytest.fixture(scope="module")
def found(table):
    return cross_validate(make("linear"), table, key=jax.random.key(0))


def test_the_mean_predictor_stands_last(found):
    shown = laws_table({"linear": found})
    assert [row[0] for row in shown.rows] == ["linear", "(mean of the other runs)"]
    assert all(len(row) == len(shown.columns) for row in shown.rows)
    assert float(shown.rows[1][2]) == pytest.approx(100 * found.mean_mre, abs=1e-3)


def test_a_law_no_better_than_the_mean_is_called_so(found):
    import dataclasses

    assert "no better than the mean" not in " ".join(verdict("linear", found))
    bad = dataclasses.replace(found, mre=2 * found.mean_mre)
    assert "no better than the mean" in " ".join(verdict("linear", bad))


def test_sensitivity_moves_one_weight_and_keeps_the_ratios_of_the_others(table):
    asked = []

    def predict(weights, model_size, tokens):
        asked.append(weights)
        return weights[:, :2] * np.array([2.0, 7.0])

    fit = LawFit({}, 0.0, 1, True, make("linear"), Shape(3, (0, -1)), np.zeros(1), _predict=predict)
    grid, losses = sensitivity(fit, table, np.array([1.0, 0.0]))
    assert grid.shape == losses.shape
    np.testing.assert_allclose(losses[0], 2.0 * grid[0], rtol=1e-12)
    average = table.weights.mean(axis=0)
    first = asked[0][: grid.shape[1]]
    np.testing.assert_allclose(first.sum(axis=1), 1, rtol=1e-12)
    np.testing.assert_allclose(first[:, 1] / first[:, 2], average[1] / average[2], rtol=1e-9)


def test_the_page_is_whole_and_escapes_names(table, found):
    from jaxmix.laws import fit

    fitted = fit(make("linear"), table, key=jax.random.key(0))
    page = law_page(
        fitted, table, {"linear": found}, "linear", title="A & B", shares=np.full(2, 0.5), origin={"command": "x <y>"}
    )
    assert page.startswith("<!doctype html>")
    assert "A &amp; B" in page
    assert "x &lt;y&gt;" in page
    assert "<c>" not in page
    assert page.count("<svg") == 3


def test_scatters_leave_out_what_is_not_finite():
    svg = scatters({"t": ([1.0, np.nan, 2.0], [1.0, 2.0, np.inf])}, name="s", x_label="x", y_label="y")
    assert svg.startswith("<svg")
    assert scatters({"t": ([], [])}, name="s", x_label="x", y_label="y", line="zero").startswith("<svg")
