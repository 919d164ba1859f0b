"""The log-linear law fitted to tables of runs, planted ones and RegMix's."""

import csv
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import spearmanr

from jaxmix.mixers import odm
from jaxmix.simulate.mixers import run_static, simulate
from jaxmix.simulate.replay import fit_log_linear, replay_world

KEY = jax.random.key(0)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def planted(seed=0, m=4, runs=60):
    """A law and a table of its runs."""
    rng = np.random.default_rng(seed)
    p, a = rng.dirichlet(np.ones(m), runs), rng.uniform(0, 2, (m, m))
    b, c = rng.uniform(1, 3, m), rng.uniform(0.5, 3, m)
    return p, c + b * np.exp(-p @ a.T), c, b, a


def law(fit, p):
    return np.asarray(fit.irreducible) + np.asarray(fit.scale) * np.exp(-p @ np.asarray(fit.interaction).T)


def test_fit_recovers_a_planted_law(x64):
    p, losses, floor, b, a = planted()
    fit = fit_log_linear(p, losses)
    np.testing.assert_allclose(fit.irreducible, floor, rtol=1e-5)
    unseen = np.random.default_rng(1).dirichlet(np.ones(4), 20)
    np.testing.assert_allclose(law(fit, unseen), floor + b * np.exp(-unseen @ a.T), rtol=1e-5)
    np.testing.assert_allclose(np.mean(fit.interaction, axis=1), np.zeros(4), atol=1e-12)


def test_replay_starts_and_ends_where_it_should(x64):
    p, losses, *_ = planted()
    steps = 50
    world = replay_world(p, losses, num_steps=steps, start_loss=9.0)
    np.testing.assert_allclose(world.losses(world.init(KEY)), np.full(4, 9.0), rtol=1e-12)
    fit = fit_log_linear(p, losses)
    got = run_static(world, p[7], key=KEY, num_steps=steps)
    np.testing.assert_allclose(got, law(fit, p[7:8])[0], rtol=1e-10)


def test_replay_answers_to_the_mean_mixture():
    p, losses, *_ = planted()
    world = replay_world(p, losses, num_steps=50, start_loss=9.0)
    run = simulate(odm("repository"), world, key=KEY, num_steps=50)
    mean = np.asarray(run.weights, np.float64).mean(axis=0)
    np.testing.assert_allclose(run.final_losses, law(fit_log_linear(p, losses), mean[None])[0], rtol=1e-5)


def test_a_domain_that_nobody_measures():
    p, losses, *_ = planted()
    losses[:, 2] = np.nan
    world = replay_world(p, losses, num_steps=10, start_loss=9.0)
    assert np.isnan(world.losses(world.init(KEY))).tolist() == [False, False, True, False]
    run = simulate(odm(), world, key=KEY, num_steps=10)
    assert np.isfinite(run.weights).all()
    assert np.isfinite(run.final_losses).tolist() == [True, True, False, True]


@pytest.fixture(scope="module")
def regmix():
    """RegMix's tables of 1M-parameter models: names, 512 training and 256 test runs; unmeasured losses are nan."""
    folder = os.environ.get("JAXMIX_REGMIX")
    if folder is None:
        pytest.skip("set JAXMIX_REGMIX to the folder `data` of github.com/sail-sg/regmix")

    def table(name):
        with open(Path(folder) / f"{name}.csv", newline="") as file:
            rows = sorted(csv.DictReader(file), key=lambda row: int(row["index"]))
        return {column: np.asarray([float(row[column]) for row in rows]) for column in rows[0] if column != "index"}

    def part(split):
        mixture, loss = table(f"{split}_mixture_1m"), table(f"{split}_pile_loss_1m")
        names = [column.removeprefix("train_the_pile_") for column in mixture]
        p = np.stack(list(mixture.values()), axis=1)
        losses = [loss.get(f"metric/the_pile_{name}_val_loss", np.full(len(p), np.nan)) for name in names]
        return names, p / p.sum(1, keepdims=True), np.stack(losses, axis=1)

    names, *train = part("train")
    return names, *train, *part("test")[1:]


def test_regmix_tables_are_predicted_as_published(regmix):
    # Specification 13.3, log-linear law: Spearman 96.4 (Pile-CC) and 97.4 (mean over targets), R² 0.911 (Pile-CC).
    names, p, losses, p_test, losses_test = regmix
    measured = ~np.isnan(losses[0])
    assert measured.sum() == 13
    fit = fit_log_linear(p, losses[:, measured])
    predicted, truth = law(fit, p_test), losses_test[:, measured]
    rank = [spearmanr(a, b).statistic for a, b in zip(predicted.T, truth.T, strict=True)]
    pile_cc = np.asarray(names)[measured].tolist().index("pile_cc")
    error, spread = np.mean((predicted - truth) ** 2, 0), np.var(truth, axis=0)
    assert rank[pile_cc] == pytest.approx(0.964, abs=0.005)
    assert np.mean(rank) == pytest.approx(0.974, abs=0.005)
    assert 1 - error[pile_cc] / spread[pile_cc] == pytest.approx(0.911, abs=0.02)


def test_mixers_run_on_the_regmix_tables(regmix):
    _, p, losses, *_ = regmix
    world = replay_world(p, losses, num_steps=100, start_loss=10.8)
    run = simulate(odm("repository"), world, key=KEY, num_steps=100, batch_size=256)
    assert np.isfinite(run.weights).all()
    assert (np.asarray(run.final_losses)[~np.isnan(losses[0])] < 10.8).all()
    np.testing.assert_allclose(jnp.sum(run.weights, axis=1), 1.0, rtol=1e-5)
