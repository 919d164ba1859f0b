"""Terms, representatives and names of clusters against slow counts."""

import collections
import math

import numpy as np
import pytest

from jaxmix.workflows.discover.taxonomy import (
    count_terms,
    excerpt,
    name_clusters,
    nearest_rows,
    suggest_name,
    top_terms,
)

TEXTS = [
    "The cat and the dog sat", "a dog ran, the dog barked", "cat food for the cat", "the the the dog 42 x",
    "The stock fell", "the stock rose and the bond fell", "bond and stock", "the bond",
]  # fmt: skip
LABELS = np.array([0, 0, 0, 0, 1, 1, 1, 1])


def counted():
    half = len(TEXTS) // 2
    return count_terms([(TEXTS[:half], LABELS[:half]), (TEXTS[half:], LABELS[half:])], 2, least=2)


def slow_counts():
    counts, documents = collections.defaultdict(lambda: [0, 0]), collections.Counter()
    for text, label in zip(TEXTS, LABELS, strict=True):
        words = "".join(c if c.isalnum() else " " for c in text.lower()).split()
        for word in words:
            counts[word][label] += 1
        documents.update(set(words))
    return {w: c for w, c in counts.items() if documents[w] >= 2 and len(w) > 1 and not w.isdigit()}, documents


def test_words_are_counted_by_cluster():
    terms, (expected, documents) = counted(), slow_counts()
    assert {w: terms.counts[:, i].tolist() for i, w in enumerate(terms.words)} == expected
    assert {w: terms.documents[i] for i, w in enumerate(terms.words)} == {w: documents[w] for w in expected}


def test_top_terms_are_the_class_tf_idf():
    expected, _ = slow_counts()
    totals = [sum(c[k] for c in expected.values()) for k in (0, 1)]
    mean, everything = sum(totals) / 2, sum(totals)
    for k, found in enumerate(top_terms(counted(), count=3, least_lift=1.5)):
        scores = {
            w: c[k] / totals[k] * math.log(1 + mean / sum(c))
            for w, c in expected.items()
            if c[k] / totals[k] >= 1.5 * sum(c) / everything and c[k]
        }
        assert [scores[w] for w in found] == pytest.approx(sorted(scores.values(), reverse=True)[:3])
        assert "the" not in found
    assert top_terms(count_terms([(["a b"], np.array([0]))], 2), count=3) == [[], []]


def test_nearest_rows_are_the_best_of_each_cluster():
    rng = np.random.default_rng(0)
    labels, scores = rng.integers(0, 4, 60) % 3, rng.normal(size=60)
    for k, rows in enumerate(nearest_rows(scores, labels, num_clusters=4, count=5)):
        own = sorted(np.flatnonzero(labels == k), key=lambda i: -scores[i])[:5]
        assert rows.tolist() == own


def test_names_can_be_folders_and_differ():
    suggested = [suggest_name(["rock", "pop", "jazz", "folk"]), "", "rock-pop-jazz"]
    titles, names = name_clusters(suggested, representatives=[[], [], []], terms=[[], [], []])
    assert titles == ["rock-pop-jazz", "cluster 1", "rock-pop-jazz"]
    assert names == ["00-rock-pop-jazz", "01-cluster-1", "02-rock-pop-jazz"]
    titles, names = name_clusters(
        suggested,
        representatives=[["t"]] * 3,
        terms=[["w"]] * 3,
        namer=lambda texts, terms: f" ../Ö {texts}\n{terms}/ ",
    )
    assert titles[0] == "../Ö ['t'] ['w']/"
    assert names[2] == "02-ö-t-w"


def test_an_excerpt_is_one_short_line():
    assert excerpt(" a\n b\tc ") == "a b c"
    assert len(excerpt("word " * 500)) == 240
