"""A softmax of the last validation losses."""

import numpy as np
import pytest
from driving import PRECISIONS, drive, evaluations, softmax

from jaxmix.core.errors import ConfigError
from jaxmix.mixers.methods.loss_proportional import loss_proportional

M = 5


@pytest.mark.parametrize(("is_double", "tolerance"), PRECISIONS)
@pytest.mark.parametrize(("temperature", "smoothing"), [(1.0, 0.0), (0.1, 0.05), (20.0, 0.0)])
def test_equals_the_softmax_of_held_losses(is_double, tolerance, temperature, smoothing):
    losses = evaluations(8, 40, M, missing=0.3)
    mixer = loss_proportional(temperature=temperature, smoothing=smoothing)
    weights, _, _ = drive(mixer, M, [{"validation_loss": row} for row in losses], is_double=is_double)
    held, expected = np.full(M, np.nan), []
    for row in losses:
        held = np.where(np.isnan(row), held, row)
        known = np.where(np.isnan(held), np.nanmean(held), held)
        expected.append((1 - smoothing) * softmax(known / temperature) + smoothing / M)
    # At τ = 0.1 the losses' own rounding, of 2e-7 at 4 nats, comes back tenfold.
    np.testing.assert_allclose(weights, expected, rtol=0, atol=tolerance * max(1.0, 0.2 / temperature))


def test_the_prior_holds_until_something_is_measured():
    records = [{"validation_loss": [np.nan, np.nan]}, {"validation_loss": [1.0, 1.0]}]
    weights, _, _ = drive(loss_proportional(), 2, records, prior=[0.9, 0.1])
    np.testing.assert_allclose(weights, [[0.9, 0.1], [0.5, 0.5]], atol=1e-6)


def test_errors():
    with pytest.raises(ConfigError, match=r"loss_proportional\(temperature\)"):
        loss_proportional(temperature=0.0)
    with pytest.raises(ConfigError, match=r"loss_proportional\(every\)"):
        loss_proportional(every=0)
    with pytest.raises(ConfigError, match=r"loss_proportional\(smoothing\)"):
        loss_proportional(smoothing=-0.1)
