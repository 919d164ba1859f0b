"""Proposals against printed optima, SciPy, closed-form limits, and bounds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from jaxmix.core.errors import ConfigError, RunError
from jaxmix.laws.base import Shape
from jaxmix.laws.fit import LawFit, regressor
from jaxmix.laws.forms.capacity_law import capacity
from jaxmix.laws.proposals.propose import propose, scale_path
from jaxmix.laws.proposals.regmix import propose_regmix
from jaxmix.laws.proposals.repetition import effective_mixture

# The parameters printed in the demo that Dai and Zheng released; order arxiv, book, c4, github, commoncrawl,
# stackexchange, wikipedia.
DEMO = {
    "exponent": [1.2931, 0.2504, 0.7759, 4.2533, 0.8209, 2.1420, 0.9245],
    "scale": [6.1217, 3.3571, 7.8612, 7.3098, 2.3083, 3.8489, 2.3059],
    "head": [4.877181],
    "irreducible": [0.9448, 0.8770, 0.5612, 0.0, 2.4074, 0.0001, 1.3406],
    "noise_scale": [0.3931, 0.4080, 0.7319, 1.2868, 0.7130, 2.0230, 0.8802],
    "noise_exponent": [0.9685, 1.6999, 0.3088, 0.0827, 1.0596, 0.0777, 0.5132],
}
OPTIMA = {
    (1300, 30): ([0.12144, 0.11359, 0.15030, 0.10730, 0.15752, 0.15440, 0.19546], 1.580306503, 1.01e-5, 1e-9),
    (122, 10): ([0.1509, 0.1653, 0.1364, 0.0643, 0.1994, 0.0989, 0.1849], 1.98594, 1e-4, 1e-5),
    (7000, 150): ([0.0769, 0.0651, 0.1595, 0.1748, 0.0950, 0.2542, 0.1743], 1.37700, 1e-4, 1e-5),
    (70000, 1500): ([0.0337, 0.0319, 0.1451, 0.2550, 0.0392, 0.3761, 0.1189], 1.22995, 1e-4, 1e-5),
}
LAW = capacity("none")


def fitted(params, law=LAW, **shape):
    params = {name: np.asarray(value, float) for name, value in params.items()}
    m = len(params["irreducible"])
    outline = Shape(m, tuple(range(m)), True, True, **shape)
    return LawFit(params, 0.0, 0, True, law, outline, np.zeros(1))


@pytest.fixture(scope="module")
def demo():
    return fitted(DEMO)


@pytest.mark.parametrize(("scale", "optimum"), OPTIMA.items(), ids=str)
def test_the_printed_optima(demo, scale, optimum):
    weights, objective, weight_error, error = optimum
    found = propose(demo, model_size=scale[0], tokens=scale[1])
    np.testing.assert_allclose(found.weights, weights, atol=weight_error / 2 * 1.02)
    assert found.objective == pytest.approx(objective, abs=error / 2 * 1.02)
    assert found.converged
    assert np.ptp(found.start_objectives) < 1e-9
    np.testing.assert_array_equal(found.weights, found.unconstrained_weights)
    np.testing.assert_allclose(found.predicted.mean(), found.objective, rtol=1e-12)


def softmax(z):
    e = np.exp(z - z.max())
    return e / e.sum()


def by_scipy(fit, size, tokens, shares, extra=lambda h: 0.0, seeds=3):
    """Softmax logits and L-BFGS with numerical derivatives, several starts."""

    def objective(z):
        h = softmax(z)
        return float(fit.predict(h, size, tokens)[0] @ shares) + extra(h)

    rng = np.random.default_rng(0)
    starts = [np.zeros(fit.shape.num_domains), *rng.normal(0, 0.5, (seeds - 1, fit.shape.num_domains))]
    ends = [scipy.optimize.minimize(objective, z, method="L-BFGS-B", options={"ftol": 1e-16}) for z in starts]
    return min(e.fun for e in ends)


@pytest.mark.parametrize("scale", [(1300.0, 30.0), (70000.0, 1500.0)])
def test_softmax_and_lbfgs_find_the_same_loss(demo, scale):
    shares = np.array([3.0, 1, 1, 0.5, 1, 1, 2])
    found = propose(demo, model_size=scale[0], tokens=scale[1], metric_weights=shares)
    wanted = by_scipy(demo, *scale, shares / shares.sum())
    assert found.objective == pytest.approx(wanted, abs=1e-8)


def test_a_domain_that_nothing_asks_for_is_not_drawn(demo):
    shares = np.array([3.0, 1, 1, 0, 1, 1, 2])
    found = propose(demo, model_size=1300, tokens=30, metric_weights=shares)
    assert found.weights[3] == 0.0
    assert found.objective <= by_scipy(demo, 1300.0, 30.0, shares / shares.sum()) + 1e-9


def test_the_divergence_pulls_to_the_prior_as_scipy_says(demo):
    prior = np.array([0.3, 0.1, 0.1, 0.1, 0.1, 0.1, 0.2])
    divergence = lambda h: 0.05 * float((h * np.log(h / prior)).sum())
    found = propose(demo, model_size=1300, tokens=30, kl_strength=0.05, prior=10 * prior)
    assert found.objective == pytest.approx(by_scipy(demo, 1300.0, 30.0, np.full(7, 1 / 7), divergence), abs=1e-8)
    near = propose(demo, model_size=1300, tokens=30, kl_strength=1e3, prior=prior)
    np.testing.assert_allclose(near.weights, prior, atol=1e-4)
    np.testing.assert_allclose(near.unconstrained_weights, OPTIMA[1300, 30][0], atol=1e-5)
    others = np.array([1, 1, 1, 1, 1, 1, 0])
    zero = propose(demo, model_size=1300, tokens=30, kl_strength=0.01, prior=others, metric_weights=others)
    assert zero.weights[6] == 0.0


def test_caps_and_floors_hold_and_the_result_is_stationary(demo):
    caps = np.array([0.1, 1, 1, 1, 1, 0.12, 0.15])
    floors = np.array([0, 0, 0, 0.2, 0, 0, 0])
    found = propose(demo, model_size=1300, tokens=30, max_weights=caps, min_weights=floors)
    assert (found.weights <= caps + 1e-12).all()
    assert (found.weights >= floors - 1e-12).all()
    np.testing.assert_allclose(found.weights[[0, 3, 5, 6]], [0.1, 0.2, 0.12, 0.15], atol=1e-9)
    assert found.converged
    constrained = scipy.optimize.minimize(
        lambda h: float(demo.predict(h / h.sum(), 1300.0, 30.0)[0].mean()),
        found.weights,
        bounds=[(max(f, 1e-6), c) for f, c in zip(floors, caps, strict=True)],
        constraints={"type": "eq", "fun": lambda h: h.sum() - 1},
        method="SLSQP",
        options={"ftol": 1e-14},
    )
    assert found.objective <= constrained.fun + 1e-8
    np.testing.assert_allclose(found.unconstrained_weights, OPTIMA[1300, 30][0], atol=1e-5)
    assert found.unconstrained_objective < found.objective


def test_repetition_is_counted_in(demo):
    available = np.array([0.5, 1e9, 1e9, 1e9, 1e9, 1e9, 1e9])
    found = propose(demo, model_size=1300, tokens=30, available_tokens=available, repeat_decay=3.0)
    free = propose(demo, model_size=1300, tokens=30)
    assert found.objective > free.objective
    assert found.weights[0] < free.weights[0]
    with jax.enable_x64(True):
        mixture, tokens = effective_mixture(jnp.asarray(found.weights), 30.0, jnp.asarray(available), 3.0)
        np.testing.assert_allclose(demo.predict(mixture, 1300.0, float(tokens))[0], found.predicted, rtol=1e-10)
    plenty = propose(demo, model_size=1300, tokens=30, available_tokens=np.full(7, 1e3))
    assert plenty.objective == pytest.approx(free.objective, abs=1e-12)
    none = propose(demo, model_size=1300, tokens=30, available_tokens=np.where(np.arange(7) == 4, 0.0, 1e9),
                   metric_weights=np.arange(7) != 4)  # fmt: skip
    assert none.weights[4] == 0.0


def limit_law(**changes):
    rng = np.random.default_rng(1)
    m = 5
    params = {
        "exponent": rng.uniform(0.2, 0.6, m),
        "scale": rng.uniform(0.5, 3, m),
        "head": [0.01],
        "irreducible": rng.uniform(0.5, 1, m),
        "noise_scale": rng.uniform(0.5, 2, m),
        "noise_exponent": np.full(m, 0.4),
    }
    return fitted(params | changes)


TARGET = np.array([0.1, 0.3, 0.2, 0.25, 0.15])


def test_without_noise_the_best_mixture_is_the_target():
    law = limit_law(noise_scale=np.full(5, 1e-300))
    found = propose(law, model_size=100, tokens=10, metric_weights=TARGET)
    np.testing.assert_allclose(found.weights, TARGET, atol=1e-5)


def test_with_endless_data_the_best_mixture_is_the_target():
    found = propose(limit_law(), model_size=100, tokens=1e18, metric_weights=TARGET)
    np.testing.assert_allclose(found.weights, TARGET, atol=1e-4)


def test_with_an_endless_model_the_noise_alone_decides():
    law = limit_law()
    found = propose(law, model_size=1e30, tokens=10, metric_weights=TARGET)
    wanted = (TARGET * law.params["noise_scale"]) ** (1 / 1.4)
    np.testing.assert_allclose(found.weights, wanted / wanted.sum(), atol=1e-6)


def test_a_path_over_scales_is_the_proposals_along_it(demo):
    path = scale_path(demo, [122, 1300], [10, 30])
    assert path.weights.shape == (2, 7)
    np.testing.assert_allclose(path.weights[1], OPTIMA[1300, 30][0], atol=1e-5)
    np.testing.assert_allclose(path.objective, [1.98594, 1.580306503], atol=1e-5)
    assert scale_path(demo, [122, 1300], 10).tokens.tolist() == [10.0, 10.0]
    with pytest.raises(ConfigError, match="do not fit"):
        scale_path(demo, [1, 2, 3], [1, 2])


def bowl(target):
    """A law without a gradient: every metric is lowest at `target`."""

    def regress(table):
        raise AssertionError("not fitted here")

    def predict(weights, model_size, tokens):
        return 1.0 + ((weights - target) ** 2).sum(axis=1, keepdims=True) * np.ones((1, 2))

    shape = Shape(3, (0, 1))
    return LawFit({}, 0.0, 7, True, regressor("bowl", regress), shape, np.zeros(1), _predict=predict)


def test_laws_without_a_gradient_are_simulated():
    target = np.array([0.5, 0.2, 0.3])
    found = propose(bowl(target), model_size=1, tokens=1, num_candidates=20_000)
    np.testing.assert_allclose(found.weights, target, atol=0.01)
    assert not found.converged
    capped = propose(bowl(target), model_size=1, tokens=1, num_candidates=20_000, max_weights=[0.4, 1, 1])
    np.testing.assert_allclose(capped.weights, [0.4, 0.25, 0.35], atol=0.01)
    assert capped.weights[0] <= 0.4 + 1e-12
    np.testing.assert_allclose(capped.unconstrained_weights, target, atol=0.01)


def test_regmix_averages_the_best_of_what_it_draws(demo):
    found = propose_regmix(demo, model_size=1300, tokens=30, num_candidates=20_000, num_best=64)
    best = propose(demo, model_size=1300, tokens=30)
    assert best.objective <= found.objective < best.objective + 0.003
    assert found.start_objectives.shape == (64,)
    assert found.objective <= found.start_objectives.mean()
    again = propose_regmix(demo, model_size=1300, tokens=30, num_candidates=20_000, num_best=64)
    np.testing.assert_array_equal(found.weights, again.weights)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"model_size": 0.0}, "model_size must be finite and above 0"),
        ({"tokens": np.nan}, "tokens must be finite"),
        ({"metric_weights": [1.0, 2.0]}, "must be 7 finite numbers"),
        ({"prior": np.zeros(7)}, "not all 0"),
        ({"max_weights": 0.1}, "max_weights add up to 0.7"),
        ({"min_weights": 0.2}, "min_weights add up to 1.4"),
        ({"min_weights": 0.1, "max_weights": [0.05, 1, 1, 1, 1, 1, 1]}, "floor 0.1 above cap 0.05"),
        ({"max_weights": [0.5, 0.6]}, "one number >= 0 or 7"),
        ({"available_tokens": [1.0]}, "must be 7 numbers"),
        ({"kl_strength": -1.0}, "kl_strength must be finite and at least 0"),
        ({"num_starts": 0}, r"must be a whole number ≥ 1, got 0 \(propose\(num_starts\)\)"),
    ],
)
def test_arguments_out_of_range_are_refused(demo, options, complaint):
    with pytest.raises(ConfigError, match=complaint):
        propose(demo, **{"model_size": 1300.0, "tokens": 30.0} | options)


def test_a_law_that_is_infinite_within_the_bounds_says_so(demo):
    with pytest.raises(RunError, match="no finite loss"):
        propose(demo, model_size=1300, tokens=30, max_weights=[0, 1, 1, 1, 1, 1, 1])
