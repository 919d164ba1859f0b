import numpy as np
import pytest

from jaxmix.core.errors import ConfigError
from jaxmix.laws.base import Shape
from jaxmix.laws.fit import LawFit, regressor
from jaxmix.laws.forms.capacity_law import capacity
from jaxmix.laws.proposals.repetition import effective_mixture
from jaxmix.laws.proposals.simulate import simulate

PARAMS = {
    "exponent": np.array([0.3, 0.5, 0.2]),
    "scale": np.array([1.0, 2.0, 0.5]),
    "head": np.array([0.01]),
    "irreducible": np.array([1.0, 0.5, 2.0]),
    "noise_scale": np.array([0.3, 0.6, 0.2]),
    "noise_exponent": np.array([0.4, 0.2, 0.3]),
    "offset": np.array([0.05]),
}
FIT = LawFit(PARAMS, 0.0, 17, True, capacity(), Shape(3, (0, 1, 2)), np.zeros(1))
MIXTURES = np.random.default_rng(0).dirichlet(np.ones(3), 5000)
SHARES = np.array([0.5, 0.5, 0.0])


@pytest.mark.parametrize("count", [1, 2048, 5000])
def test_scores_are_the_weighted_predictions_whatever_their_number(count):
    found = simulate(FIT, MIXTURES[:count], model_size=2.0, tokens=3.0, metric_weights=SHARES)
    np.testing.assert_allclose(found, FIT.predict(MIXTURES[:count], 2.0, 3.0) @ SHARES, rtol=1e-13)


def test_repetition_is_counted_in():
    available = np.array([0.5, 100.0, 1.0])
    found = simulate(FIT, MIXTURES[:100], model_size=2.0, tokens=3.0, available_tokens=available)
    effective, tokens = effective_mixture(MIXTURES[:100].astype(np.float32), np.float32(3.0), available)
    wanted = FIT.predict(np.asarray(effective, np.float64), 2.0, np.asarray(tokens, np.float64)).mean(axis=1)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    assert not np.allclose(found, simulate(FIT, MIXTURES[:100], model_size=2.0, tokens=3.0), rtol=1e-3)


def test_regressors_predict_block_by_block():
    sizes = []

    def predict(weights, model_size, tokens):
        sizes.append(len(weights))
        return np.stack([weights[:, 0] * model_size, weights[:, 1] * tokens], axis=1)

    law = regressor("host", lambda table: (predict, 1))
    fit = LawFit({}, 0.0, 1, True, law, Shape(3, (0, 1)), np.zeros(1), _predict=predict)
    many = np.tile(MIXTURES, (10, 1))
    found = simulate(fit, many, model_size=2.0, tokens=3.0)
    np.testing.assert_allclose(found, many[:, 0] + 1.5 * many[:, 1], rtol=1e-13)
    assert len(sizes) > 1
    assert sum(sizes) == len(many)


def test_candidates_of_another_width_are_refused():
    with pytest.raises(ConfigError, match="fitted to 3 domains"):
        simulate(FIT, np.full((2, 4), 0.25), model_size=1, tokens=1)
