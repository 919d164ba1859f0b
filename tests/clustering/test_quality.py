import itertools

import numpy as np
import pytest

from jaxmix.clustering import (
    adjusted_rand_index,
    cluster_sizes,
    normalized_mutual_information,
    purity,
    size_entropy,
)
from jaxmix.clustering.quality import contingency, coverage
from jaxmix.core.errors import ConfigError

RNG = np.random.default_rng(0)
LABELS, CLASSES = RNG.integers(0, 4, 40), RNG.integers(0, 3, 40)
CLASSES[:25] = LABELS[:25] % 3
PAIRS = list(zip(LABELS, CLASSES, strict=True))


def test_the_rand_index_counts_pairs():
    pairs = list(itertools.combinations(range(40), 2))
    one = np.array([LABELS[i] == LABELS[j] for i, j in pairs])
    other = np.array([CLASSES[i] == CLASSES[j] for i, j in pairs])
    chance = one.sum() * other.sum() / len(pairs)
    expected = ((one & other).sum() - chance) / ((one.sum() + other.sum()) / 2 - chance)
    assert adjusted_rand_index(LABELS, CLASSES) == pytest.approx(expected)
    assert adjusted_rand_index(LABELS + 7, LABELS) == 1
    assert adjusted_rand_index([0, 0, 0], [0, 0, 0]) == 1
    assert adjusted_rand_index([0, 1, 2], [0, 0, 0]) == 0


def test_mutual_information_from_its_definition():
    joint = {pair: np.mean([(a, b) == pair for a, b in PAIRS]) for pair in PAIRS}
    information = sum(p * np.log(p / (np.mean(a == LABELS) * np.mean(b == CLASSES))) for (a, b), p in joint.items())
    entropy = lambda x: -sum(np.mean(x == v) * np.log(np.mean(x == v)) for v in set(x))
    expected = information / ((entropy(LABELS) + entropy(CLASSES)) / 2)
    assert normalized_mutual_information(LABELS, CLASSES) == pytest.approx(expected)
    assert normalized_mutual_information(LABELS, LABELS) == pytest.approx(1)
    assert normalized_mutual_information([1, 1], [2, 2]) == 1


def test_purity_and_coverage():
    majority = [np.bincount(CLASSES[k == LABELS]).max() for k in range(4)]
    assert purity(LABELS, CLASSES) == pytest.approx(sum(majority) / 40)
    winners = {int(np.bincount(CLASSES[k == LABELS], minlength=3).argmax()) for k in range(4)}
    assert coverage(LABELS, CLASSES) == pytest.approx(len(winners) / 3)


def test_sizes_and_their_entropy():
    np.testing.assert_allclose(cluster_sizes([0, 2, 2, -1], 4), [1 / 3, 0, 2 / 3, 0])
    np.testing.assert_allclose(cluster_sizes([0, 2, 2, -1], 4, [6.0, 1.0, 1.0, 9.0]), [0.75, 0, 0.25, 0])
    assert size_entropy([0.25] * 4) == pytest.approx(1)
    assert size_entropy([3.0, 1.0]) == pytest.approx(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25)) / np.log(2))
    assert size_entropy([1.0]) == 1
    assert size_entropy([1.0, 0.0, 0.0]) == 0


@pytest.mark.parametrize(
    "call",
    [
        lambda: cluster_sizes([0, 4], 4),
        lambda: cluster_sizes([0, 1], 4, [1.0]),
        lambda: cluster_sizes([-1, -1], 4),
        lambda: cluster_sizes([0], 0),
        lambda: contingency([0, 1], [0]),
        lambda: contingency([], []),
    ],
)
def test_what_does_not_fit_is_refused(call):
    with pytest.raises(ConfigError):
        call()
