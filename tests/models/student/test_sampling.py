"""Which documents are chosen, and the metrics of a comparison, against slow counts."""

from types import SimpleNamespace

import numpy as np
import pytest

from jaxmix.core.errors import ConfigError
from jaxmix.models.student.sampling import choose_rows, compare_labels, rule_scores

RNG = np.random.default_rng(0)
LABELS = np.array([2, 0, 2, 2, 0, 2, 4, 2])


def test_the_highest_scores_of_every_cluster():
    scores = np.array([0.1, 0.5, 0.9, 0.3, 0.4, 0.8, -1.0, 0.2])
    assert choose_rows(LABELS, scores, num_clusters=5, per_cluster=2, seed=0).tolist() == [1, 2, 4, 5, 6]


def test_random_rows_are_even_and_repeatable():
    counts = np.zeros(8)
    for seed in range(300):
        chosen = choose_rows(LABELS, None, num_clusters=5, per_cluster=2, seed=seed)
        assert len(chosen) == 5
        counts[chosen] += 1
    assert (counts[[1, 4, 6]] == 300).all()
    np.testing.assert_allclose(counts[LABELS == 2] / 300, 0.4, atol=0.1)
    one, two = (choose_rows(LABELS, None, num_clusters=5, per_cluster=1, seed=3) for _ in range(2))
    np.testing.assert_array_equal(one, two)


def test_scores_of_rules():
    x = RNG.normal(size=(8, 4)).astype(np.float32)
    means = RNG.normal(size=(5, 4)).astype(np.float32)
    confidence = RNG.normal(size=8).astype(np.float32)
    given = {"state": SimpleNamespace(mean_directions=means), "x": x, "confidence": confidence, "labels": LABELS}
    assert rule_scores("random", **given) is None
    for i, label in enumerate(LABELS):
        assert rule_scores("confidence", **given)[i] == confidence[i]
        np.testing.assert_allclose(rule_scores("center", **given)[i], x[i] @ means[label], rtol=1e-4, atol=1e-5)
    with pytest.raises(ConfigError, match="rule"):
        rule_scores("best", **given)


def test_metrics_of_a_comparison():
    teacher, student = RNG.integers(0, 3, 200), RNG.integers(0, 4, 200)
    weights = RNG.random(200)
    found = compare_labels(teacher, student, num_clusters=4, weights=weights)
    total = weights.sum()
    assert found.accuracy == pytest.approx(weights[teacher == student].sum() / total)
    recalls = [weights[(teacher == k) & (student == k)].sum() / weights[teacher == k].sum() for k in range(3)]
    assert found.macro_recall == pytest.approx(np.mean(recalls))
    shares = [[weights[labels == k].sum() / total for k in range(4)] for labels in (teacher, student)]
    assert found.mass_drift == pytest.approx(sum(abs(a - b) for a, b in zip(*shares, strict=True)))
    assert found.confusion[1, 2] == pytest.approx(weights[(teacher == 1) & (student == 2)].sum() / total)
    with pytest.raises(ConfigError):
        compare_labels(teacher[:0], student[:0], num_clusters=4)
