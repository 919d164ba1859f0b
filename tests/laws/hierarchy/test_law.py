"""The hierarchical law against a slow NumPy oracle, planted laws, odd tables and the RegMix tables."""

import functools
import os
from pathlib import Path

import hierarchy_oracle as oracle
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from law_forms import draw, mixtures, on_host, predict, scales

from jaxmix.data.run_tables import read_regmix
from jaxmix.laws import RunTable, Shape, bootstrap, fit, make, propose
from jaxmix.laws.hierarchy.evidence import DEVIATION, GROUPS, MEAN, learn_noise, learn_prior
from jaxmix.laws.hierarchy.posterior import Mode, Prior, Runs, find_mode, log_losses

KEY = jax.random.key(0)
VARYING = Shape(3, (0, -1), model_size_varies=True, tokens_vary=True, model_size=50.0, tokens=3.0)
DATA = Path(os.environ.get("JAXMIX_DATA") or Path(__file__).parents[4] / "shared" / "data") / "regmix"


@functools.cache
def law(**options):
    return make("hierarchical", **options)


def table_of(h, losses, metric_domain=None, size=1.0, tokens=1.0):
    runs, metrics = losses.shape
    return RunTable(
        h, losses, np.broadcast_to(size, runs), np.broadcast_to(tokens, runs),
        [f"d{i}" for i in range(h.shape[1])], [f"m{i}" for i in range(metrics)],
        np.arange(metrics) if metric_domain is None else metric_domain,
    )  # fmt: skip


def world(runs=24, seed=0, noise=0.003, metric_domain=(0, 1, 2)):
    """Transfer from every domain to every metric."""
    rng = np.random.default_rng(seed)
    h = rng.dirichlet(np.full(3, 0.7), runs)
    h[h < 0.01] = 0
    h /= h.sum(axis=1, keepdims=True)
    rates = np.array([[1.0, 0.2, 0.1], [0.3, 1.0, 0.1], [0.1, 0.2, 1.0]])[list(metric_domain)]
    losses = 1.5 + (h @ rates.T + 0.05) ** -0.3
    return table_of(h, losses * np.exp(noise * rng.normal(size=losses.shape)), metric_domain)


def coordinates(params, i, m, *, shape):
    """Those of metric i, the lowest loss taken as 10."""
    logit = lambda p: np.log(p) - np.log1p(-p)
    of = lambda name, other: params[name][i] if name in params else other
    scalars = [
        logit(params["irreducible"][i] / 10.0),
        np.log(params["reducible"][i]),
        np.log(params["exponent"][i]),
        of("exponent_growth", 0.09),
        logit(of("floor_share", oracle.sigmoid(0.4))),
        np.log(of("size_exponent", 0.2)),
        np.log(of("token_exponent", 0.7)),
    ]
    taken = of("competition", np.zeros(m))
    return np.concatenate([scalars, np.log(params["rates"][i]), np.log(params["weight_exponents"][i]), taken])


@pytest.mark.parametrize("competition", [True, False])
@pytest.mark.parametrize("shape", [VARYING, Shape(3, (0, -1), model_size=2.0, tokens=5.0)])
def test_prediction_against_the_oracle(shape, competition):
    """Sizes and tokens that do not vary in the table are asked for too: the prior's mean speaks there."""
    form = law(competition=competition).build(shape)
    params, h = draw(form), mixtures(9, 3)
    h[4] = [1e-12, 0.5, 0.5 - 1e-12]
    size, tokens = scales(9, VARYING)
    found = predict(form, params, h, size, tokens)
    for r in range(9):
        for i in range(2):
            theta = coordinates(params, i, 3, shape=shape)
            wanted = oracle.log_loss(
                theta, 10.0, np.where(h[r] < 1e-9, 0, h[r]), np.log(size[r] / shape.model_size),
                np.log(tokens[r] / shape.tokens), competition=competition,
            )  # fmt: skip
            # A weight of 1e-12 counts as next to nothing, by the chord.
            np.testing.assert_allclose(found[r, i], np.exp(wanted), rtol=1e-4 if r == 4 else 1e-12)


def problem(seed=3, e=2, n=7, m=3):
    rng = np.random.default_rng(seed)
    p = oracle.SCALARS + 3 * m
    h = mixtures(n, m)
    nu, d = rng.normal(size=n), rng.normal(size=n)
    theta = np.array([MEAN[GROUPS[g]] for g in oracle.groups([0] * e, m)[0]]) + 0.2 * rng.normal(size=(e, p))
    rows = Runs(jnp.asarray(h), jnp.asarray(h), jnp.asarray(nu), jnp.asarray(d))
    return rng, h, nu, d, theta, rows


def test_derivatives_against_finite_differences():
    with on_host():
        _, h, nu, d, theta, rows = problem()
        value, columns = jax.jit(log_losses)(jnp.asarray(theta[0]), jnp.float64(2.0), rows)
    numeric = np.empty(columns.shape)
    one = lambda theta: np.array([oracle.log_loss(theta, 2.0, h[r], nu[r], d[r]) for r in range(len(h))])
    for p in range(theta.shape[1]):
        step = 1e-5 * np.eye(theta.shape[1])[p]
        numeric[:, p] = (one(theta[0] + step) - one(theta[0] - step)) / 2e-5
    # The oracle knows no chord; the run with a weight of 1e-12 differs by what that weight is worth.
    np.testing.assert_allclose(value, one(theta[0]), rtol=1e-9, atol=1e-6)
    np.testing.assert_allclose(columns, numeric, rtol=1e-5, atol=2e-7)


def test_mode_is_stationary_for_the_oracles_objective():
    with on_host():
        rng, h, nu, d, theta, rows = problem()
        logs = np.log(rng.uniform(1.5, 3.0, (2, len(h))))
        counts = np.where(rng.random((2, len(h))) < 0.2, 0.0, 1.5)
        noise, precision = np.array([0.1, 0.3]), 1 / rng.uniform(0.2, 1.0, theta.shape) ** 2
        arrays = [jnp.asarray(x) for x in (np.full(2, 2.0), logs, counts, noise)]
        run = jax.jit(
            lambda steps: find_mode(
                jnp.asarray(theta),
                arrays[0],
                rows,
                *arrays[1:],
                Prior(jnp.asarray(theta), jnp.asarray(precision)),
                steps,
            )
        )
        start, end = (jax.device_get(run(jnp.int32(steps))) for steps in (0, 500))
    assert end.is_converged
    for i in range(2):
        value = lambda x, i=i: oracle.objective(x, 2.0, h, nu, d, logs[i], counts[i], noise[i], theta[i], precision[i])
        np.testing.assert_allclose(start.objective[i], value(theta[i]), rtol=1e-6)
        np.testing.assert_allclose(end.objective[i], value(end.theta[i]), rtol=1e-6)
        assert end.objective[i] < 0.9 * start.objective[i]
        slope = lambda x, value=value: np.array([(value(x + s) - value(x - s)) / 2e-5 for s in 1e-5 * np.eye(len(x))])
        # Not zero: the search ends when steps gain less than a 1e-5th.
        assert np.abs(slope(end.theta[i])).max() < 2e-2 * np.abs(slope(theta[i])).max()


@pytest.mark.parametrize("robust", [True, False])
@pytest.mark.parametrize("structure", [True, False])
@pytest.mark.parametrize("own", [(0, 1, 2), (0, 2, -1, 2), (-1,)])
def test_one_round_against_the_oracle(own, structure, robust):
    rng, e, m, n = np.random.default_rng(1), len(own), 3, 9
    is_own = np.asarray(own)[:, None] == np.arange(m)
    p = oracle.SCALARS + 3 * m
    theta, variance = rng.normal(size=(e, p)), rng.uniform(0, 0.1, (e, p))
    residual, pull = 0.1 * rng.normal(size=(e, n)), rng.uniform(10, 400, (e, n))
    counts, effective = rng.integers(0, 2, (e, n)).astype(float), rng.uniform(1, 9, e)
    counts[:, 0] = 1.0
    noise, deviation = rng.uniform(0.02, 0.1, e), rng.uniform(0.1, 1.0, 12)
    wanted = oracle.update(
        theta, variance, effective, residual * (counts > 0), pull * counts, counts, own, m, noise, deviation,
        structure=structure, robust=robust,
    )  # fmt: skip
    with on_host():
        array = jnp.asarray
        left = Mode(
            theta=array(theta),
            objective=array(noise),
            information=array(noise),
            slope=array(theta),
            residual=array(residual * (counts > 0)),
            pull=array(pull * counts),
        )
        start = array([DEVIATION[name] for name in GROUPS])
        found = learn_prior(array(theta), array(variance), array(deviation), start, is_own, array(structure))
        found_noise = learn_noise(left, array(noise), array(counts), array(effective), array(robust))
    np.testing.assert_allclose(found[0], wanted[0], rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(found[1], wanted[1], rtol=1e-10)
    np.testing.assert_allclose(found_noise, wanted[2], rtol=1e-10)


def test_power_one_is_the_transfer_power_law():
    """Since weights add up to 1, E + R (1 + Σ C h)^−g is E + (Σ R^(−1/g) (1 + C) h)^−g."""
    shape, rng = Shape(3, (0, 2)), np.random.default_rng(0)
    form = law(competition=False).build(shape)
    params = {**draw(form), "weight_exponents": np.ones((2, 3))}
    g = params["exponent"]
    other = {
        "irreducible": params["irreducible"],
        "rates": params["reducible"][:, None] ** (-1 / g[:, None]) * (1 + params["rates"]),
        "exponent": g,
    }
    h = rng.dirichlet(np.ones(3), 20)
    ones = np.ones(20)
    np.testing.assert_allclose(
        predict(form, params, h, ones, ones), predict(make("transfer").build(shape), other, h, ones, ones), rtol=1e-11
    )


def test_exponent_one_without_competition_is_the_additive_law():
    """As R grows with C / R held, E + R / (1 + Σ C h^γ) becomes E + 1 / Σ (C / R) h^γ."""
    shape, rng = Shape(3, (0, 2)), np.random.default_rng(0)
    plain = draw(make("additive").build(shape))
    large = 1e10
    params = {
        "irreducible": plain["irreducible"],
        "reducible": np.full(2, large),
        "exponent": np.ones(2),
        "rates": large * plain["rates"],
        "weight_exponents": plain["exponents"],
        "competition": np.zeros((2, 3)),
    }
    h, ones = rng.dirichlet(np.ones(3), 20), np.ones(20)
    np.testing.assert_allclose(
        predict(law().build(shape), params, h, ones, ones),
        predict(make("additive").build(shape), plain, h, ones, ones),
        rtol=1e-8,
    )


@pytest.mark.parametrize("kind", ["additive", "transfer"])
def test_planted_laws_are_recovered(kind):
    """Without noise, 40 runs of 5 domains: 0.05 % on mixtures it has not seen."""
    rng, k = np.random.default_rng(7), 5
    h = np.stack([rng.dirichlet(np.full(k, s)) for s in rng.choice([0.3, 1.0, 3.0], 100)])
    h[h < 0.003] = 0
    h /= h.sum(axis=1, keepdims=True)
    if kind == "additive":
        rates = np.exp(rng.normal(-1.5, 1, (k, k)))
        rates[np.arange(k), np.arange(k)] = 2.0
        powers = np.exp(rng.normal(np.log(0.5), 0.3, (k, k)))
        losses = rng.uniform(1, 2.5, k) + 1 / (0.05 + np.sum(rates * h[:, None, :] ** powers, axis=2))
    else:
        rates = np.eye(k) + 0.3 * rng.gamma(0.5, 1, (k, 2)) @ rng.gamma(0.5, 1, (2, k))
        losses = rng.uniform(0.8, 2, k) + rng.uniform(0.3, 1.2, k) * (h @ rates.T + 0.003) ** -rng.uniform(0.15, 0.5, k)
    found = fit(law(), table_of(h[:40], losses[:40]), key=KEY)
    error = np.abs(found.predict(h[40:], 1, 1) / losses[40:] - 1)
    assert error.mean() < 5e-4, error.mean()


def test_report_of_a_fit():
    table = world()
    found = fit(law(), table, key=KEY)
    assert found.num_params == 3 * (3 + 3 * 3)
    assert 9 < found.effective_params < found.num_params
    assert found.converged
    assert found.at_bounds == ()
    error = found.predict(table.weights, 1, 1) / table.losses - 1
    np.testing.assert_allclose(found.objective, np.mean(error**2), rtol=1e-9)
    plain = fit(law(competition=False), table, key=KEY)
    assert plain.num_params == 3 * (3 + 2 * 3)
    assert "competition" not in plain.params
    other = fit(law(), table, key=jax.random.key(9))
    np.testing.assert_array_equal(other.params["rates"], found.params["rates"])


def test_order_of_metrics_and_domains():
    table = world(metric_domain=(0, 1, 2))
    domains, metrics = np.array([2, 0, 1]), np.array([1, 2, 0])
    inverse = np.argsort(domains)
    moved = table_of(table.weights[:, domains], table.losses[:, metrics], inverse[table.metric_domain[metrics]])
    asked = np.random.default_rng(5).dirichlet(np.ones(3), 20)
    a = fit(law(), table, key=KEY).predict(asked, 1, 1)
    b = fit(law(), moved, key=KEY).predict(asked[:, domains], 1, 1)
    np.testing.assert_allclose(b, a[:, metrics], rtol=1e-6)


def test_cells_of_nan_and_runs_of_weight_zero_are_as_if_left_out():
    table = world()
    losses = np.array(table.losses)
    losses[20:] = 50.0
    spoiled = table_of(table.weights, losses)
    rows = np.arange(24) < 20
    kept = fit(law(), table.take(rows), key=KEY)
    weighted = fit(law(), spoiled, key=KEY, row_weights=rows.astype(float))
    losses[20:] = np.nan
    holes = fit(law(), table_of(table.weights, losses), key=KEY)
    for other in (weighted, holes):
        np.testing.assert_allclose(other.objective, kept.objective, rtol=1e-6)
        for name, value in kept.params.items():
            np.testing.assert_allclose(other.params[name], value, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "table",
    [
        world(runs=3),
        world(metric_domain=(-1, -1)),
        world(metric_domain=(0, 0, 1)),
        table_of(np.ones((4, 1)), np.array([[2.0], [2.1], [1.9], [2.0]])),
        table_of(world().weights, np.full((24, 3), 2.5)),
    ],
    ids=["three runs", "no own domains", "two metrics of one domain", "one domain and metric", "constant"],
)
@pytest.mark.parametrize("options", [{}, {"competition": False, "structure": False}, {"robust": True}])
def test_odd_tables(table, options):
    found = fit(law(**options), table, key=KEY)
    predicted = found.predict(table.weights, 1, 1)
    assert np.isfinite(found.objective)
    assert np.abs(predicted / table.losses - 1).mean() < 0.1
    if np.ptp(table.losses) == 0:
        np.testing.assert_allclose(predicted, table.losses, rtol=1e-3)


def test_a_metric_that_no_counted_run_measures_spoils_nothing():
    table = world()
    losses = np.array(table.losses)
    losses[5:, 2] = np.nan
    found = fit(law(), table_of(table.weights, losses), key=KEY, row_weights=(np.arange(24) >= 5).astype(float))
    predicted = found.predict(table.weights, 1, 1)
    assert np.isfinite(predicted).all()
    assert np.abs(predicted[:, :2] / table.losses[:, :2] - 1).mean() < 0.02


@pytest.mark.parametrize("gamma", [0.5, 1.0, 1.5])
def test_slope_at_a_weight_of_zero(gamma):
    """Exact for powers of 1 and more; for smaller ones that of the chord to 1e-9, steep and finite."""
    shape = Shape(2, (0,))
    form = law(competition=False).build(shape)
    params = {
        "irreducible": np.array([2.0]), "reducible": np.array([3.0]), "exponent": np.array([0.5]),
        "rates": np.array([[4.0, 5.0]]), "weight_exponents": np.array([[0.7, gamma]]),
    }  # fmt: skip
    amount = 1 + 4.0
    by_amount = -0.5 * 3.0 * amount**-1.5
    with on_host():
        arrays = {name: jnp.asarray(value) for name, value in params.items()}
        loss = lambda h: form.predict(arrays, h[None], jnp.ones(1), jnp.ones(1))[0, 0]
        slope = jax.grad(loss)(jnp.array([1.0, 0.0]))
        by_params = jax.grad(lambda p: form.predict(p, jnp.array([[1.0, 0.0]]), jnp.ones(1), jnp.ones(1))[0, 0])(arrays)
    wanted = {0.5: 5.0 * 1e-9**-0.5, 1.0: 5.0, 1.5: 0.0}[gamma]
    np.testing.assert_allclose(slope[1], by_amount * wanted, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(slope[0], by_amount * 4.0 * 0.7, rtol=1e-12)
    assert all(np.isfinite(value).all() for value in by_params.values())


def test_sizes_and_tokens_are_learned():
    rng = np.random.default_rng(3)
    h = rng.dirichlet(np.ones(3), 30)
    size, tokens = np.tile([100.0, 300.0, 800.0], 10), np.tile([10.0, 40.0], 15)
    level = lambda h, n, d: 1.5 + (3 * np.sqrt(h) + 0.3) ** -1.0 * ((d / 20) ** -0.25)[:, None] + 3 * (n**-0.3)[:, None]
    table = table_of(h, level(h, size, tokens), size=size, tokens=tokens)
    found = fit(law(), table, key=KEY)
    assert found.num_params == 3 * (3 + 3 * 3 + 4)
    asked = rng.dirichlet(np.ones(3), 40)
    wanted = level(asked, np.full(40, 500.0), np.full(40, 20.0))
    assert np.abs(found.predict(asked, 500.0, 20.0) / wanted - 1).mean() < 0.01


def test_proposal_and_bootstrap():
    table = world()
    found = fit(law(), table, key=KEY)
    proposal = propose(found, model_size=1, tokens=1)
    grid = np.random.default_rng(0).dirichlet(np.ones(3), 5000)
    assert proposal.objective <= found.predict(grid, 1, 1).mean(axis=1).min() + 1e-6
    again = bootstrap(found, table, key=KEY, num_resamples=8)
    low, high = again.predicted_interval(proposal.weights, 1, 1, level=0.8)
    assert (low < high).all()
    assert (high - low < 0.2).all()
    assert np.ptp(again.params["rates"], axis=0).min() > 0


@pytest.mark.skipif(not DATA.is_dir(), reason="the RegMix tables are not here: set JAXMIX_DATA to their folder")
@pytest.mark.parametrize("competition", [True, False])
def test_regmix_1b(competition):
    """Split 0 of 24 runs: the prototype's held-out error, zero own weights included."""
    table = read_regmix(DATA / "test_mixture_1B.csv", DATA / "test_pile_loss_1B.csv", model_size=1000.0, tokens=25.0)
    order = np.random.default_rng(100).permutation(64)
    found = fit(law(competition=competition), table.take(order[16:40]), key=KEY)
    test = table.take(order[:16])
    error = 100 * np.abs(found.predict(test.weights, 1000.0, 25.0) / test.losses - 1).mean()
    assert 1.34 <= error <= 1.36
