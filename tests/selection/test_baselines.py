"""Selection by the difference of two losses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dense import fast, gumbel

from jaxmix.core.errors import ConfigError
from jaxmix.selection import top_learnability

KEY = jax.random.key(5)
LEARNER, REFERENCE = np.random.default_rng(0).gamma(2.0, size=(2, 50)).astype(np.float32)
LOSSES = jnp.asarray(LEARNER), jnp.asarray(REFERENCE)
SCORES = {"learnability": LEARNER - REFERENCE, "easy_reference": -REFERENCE, "hard_learner": LEARNER}


@pytest.mark.parametrize("score", SCORES)
def test_rho_loss_takes_the_best(score):
    found = fast(top_learnability(8, greedy=True, score=score))(KEY, *LOSSES)
    assert found.indices.tolist() == np.argsort(-SCORES[score])[:8].tolist()
    np.testing.assert_allclose(found.info.positive, np.sort(SCORES[score])[-8:].mean(), rtol=1e-5)
    assert found.info.negative == 0
    assert found.info.overlap == 1


def test_draws_by_gumbel():
    selector = fast(top_learnability(8, gain=2.0))
    found = selector(KEY, *LOSSES)
    expected = np.argsort(-(2.0 * SCORES["learnability"] + gumbel(KEY, 0, 50)))[:8]
    assert found.indices.tolist() == expected.tolist()


def test_domains_are_counted_without_a_quota():
    domain = np.arange(50) % 3
    found = fast(top_learnability(8, num_domains=3))(KEY, *LOSSES, domain=jnp.asarray(domain))
    assert found.info.domain_count.tolist() == np.bincount(domain[np.asarray(found.indices)], minlength=3).tolist()


def test_errors():
    with pytest.raises(ConfigError, match="needs the reference's loss of every candidate, got nothing"):
        top_learnability(4)(KEY, LOSSES[0], None)
    with pytest.raises(ConfigError, match=r"got an array of shape \(5, 10\)"):
        top_learnability(4)(KEY, LOSSES[0].reshape(5, 10), LOSSES[1])
    with pytest.raises(ConfigError, match="losses of 50 and 9 candidates"):
        top_learnability(4)(KEY, LOSSES[0], LOSSES[1][:9])
    with pytest.raises(ConfigError, match="50 candidates are fewer than the 51 to select"):
        top_learnability(51)(KEY, *LOSSES)
    with pytest.raises(ConfigError, match="Did you mean 'hard_learner'"):
        top_learnability(4, score="hard")
