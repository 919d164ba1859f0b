"""The student against NumPy: loss, gradient, a whole step; then what it learns, and that it comes back from disk."""

import functools

import jax
import numpy as np
import pytest
from tolerance import float32_tolerance

from jaxmix.core.errors import ConfigError
from jaxmix.core.sharding import build_mesh
from jaxmix.models.student.features import Features, StudentBatch, build_batch, hash_texts
from jaxmix.models.student.model import Student, StudentConfig, load_student
from jaxmix.models.student.training import batch_loss, train_student as train_on

BUCKETS, K = 512, 3
train_student = functools.partial(train_on, mesh=build_mesh(devices=jax.devices()[:1]))
"""On one device; several are in tests/sharding."""

WORDS = [[f"{topic}{i}" for i in range(12)] for topic in ("rock", "fish", "star")]


def corpus(n, seed=0, noise=0.5):
    """Texts of three topics; a `noise` share of the words is common to all."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, K, n).astype(np.int32)
    common = [f"the{i}" for i in range(30)]
    texts = []
    for label in labels:
        size = int(rng.integers(3, 25))
        texts.append(" ".join(str(rng.choice(common if rng.random() < noise else WORDS[label])) for _ in range(size)))
    return texts, labels


def oracle(ids, offsets, table, head, bias, targets):
    """Loss and gradients of every text in float64, text by text and n-gram by n-gram."""
    table, bias, targets = (np.asarray(a, np.float64) for a in (table, bias, targets))
    loss, d_table, d_bias = 0.0, np.zeros_like(table), np.zeros_like(bias)
    d_head = None if head is None else np.zeros(head.shape)
    all_logits = []
    for i, target in enumerate(targets):
        mine = ids[offsets[i] : offsets[i + 1]]
        hidden = sum((table[j] for j in mine), np.zeros(table.shape[1])) / max(len(mine), 1)
        logits = bias + (hidden if head is None else hidden @ np.asarray(head, np.float64))
        all_logits.append(logits)
        probability = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        loss -= (target * np.log(probability)).sum()
        slope = probability * target.sum() - target
        d_bias += slope
        back = slope if head is None else slope @ np.asarray(head, np.float64).T
        if d_head is not None:
            d_head += np.outer(hidden, slope)
        for j in mine:
            d_table[j] += back / len(mine)
    return loss, d_table, d_head, d_bias, np.array(all_logits)


def example(width, seed=1):
    texts = [*corpus(7, seed)[0], ""]
    ids, offsets = hash_texts(texts, buckets=BUCKETS, orders=(1, 2), seed=0, max_words=50)
    rng = np.random.default_rng(seed)
    targets = rng.dirichlet(np.ones(K), len(texts)).astype(np.float32)
    table = rng.normal(size=(BUCKETS, K if width is None else width)).astype(np.float32)
    head = None if width is None else rng.normal(size=(width, K)).astype(np.float32)
    return texts, ids, offsets, targets, table, head, rng.normal(size=K).astype(np.float32)


@pytest.mark.parametrize("width", [None, 5])
def test_loss_and_gradient_equal_the_oracle(width):
    _, ids, offsets, targets, table, head, bias = example(width)
    batch = build_batch(
        Features(ids, offsets), np.arange(8), targets, parts=1, table_rows=BUCKETS, scratch=np.zeros(BUCKETS, np.int32)
    )
    rows = np.concatenate([table, np.zeros((1, table.shape[1]), np.float32)])[batch.used]
    places = (0, 2) if head is None else (0, 1, 2)
    loss, gradient = jax.value_and_grad(batch_loss, places)(rows, head, bias, batch)
    expected, d_table, d_head, d_bias, logits = oracle(ids, offsets, table, head, bias, targets)
    # Over a text's n-grams, the width, the labels, then over texts; a probability's error is that of its logits.
    terms = np.diff(offsets).max() + (width or 0) + K + len(targets)
    rounding = float32_tolerance(np.abs(logits).max() * np.abs(d_table).max(), terms)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    is_row = batch.used < BUCKETS
    np.testing.assert_allclose(gradient[0][is_row], d_table[batch.used[is_row]], rtol=0, atol=rounding)
    assert not np.delete(d_table, batch.used[is_row], axis=0).any(), "rows that no text uses"
    assert not np.asarray(gradient[0])[~is_row].any()
    np.testing.assert_allclose(gradient[-1], d_bias, rtol=0, atol=rounding)
    if d_head is not None:
        np.testing.assert_allclose(gradient[1], d_head, rtol=0, atol=rounding)


@pytest.mark.parametrize("width", [None, 5, 2])
def test_prediction_equals_the_oracle(width):
    texts, ids, offsets, targets, table, head, bias = example(width)
    known = np.unique(ids)[::2].astype(np.int32)  # the other buckets were not seen in training
    kept = np.zeros_like(table)
    kept[known] = table[known]
    student = Student(StudentConfig(K, BUCKETS, max_words=50, width=width), known, table[known], head, bias)
    labels, probabilities = student.predict(texts)
    logits = oracle(ids, offsets, kept, head, bias, targets)[4]
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    terms = np.diff(offsets).max() + (width or 0) + K
    np.testing.assert_allclose(probabilities, expected, rtol=0, atol=float32_tolerance(logits, terms))
    np.testing.assert_array_equal(labels, expected.argmax(axis=1))
    assert (labels.dtype, probabilities.dtype) == (np.int32, np.float32)
    for i, text in enumerate(texts):
        np.testing.assert_array_equal(student.predict([text])[1][0], probabilities[i])
    assert student.predict([])[1].shape == (0, K)


def test_parts_of_a_batch_hold_the_batch():
    _, ids, offsets, targets, table, _, bias = example(None)
    chosen = np.array([5, 3, 0, 7, 1, -1, 2, -1])
    scratch = np.zeros(BUCKETS, np.int32)
    losses = []
    for parts in (1, 2, 4):
        batch = build_batch(Features(ids, offsets), chosen, targets, parts=parts, table_rows=BUCKETS, scratch=scratch)
        rows = np.concatenate([table, np.zeros((1, K), np.float32)])[batch.used]
        cut = [np.split(leaf, parts) for leaf in batch[1:]]
        of_parts = [StudentBatch(batch.used, *(leaf[p] for leaf in cut)) for p in range(parts)]
        losses.append(sum(float(batch_loss(rows, None, bias, one)) for one in of_parts))
    kept = chosen[chosen >= 0]
    expected = 0.0
    for i in kept:
        one = (ids[offsets[i] : offsets[i + 1]], np.array([0, offsets[i + 1] - offsets[i]]))
        expected += oracle(*one, table, None, bias, targets[i : i + 1])[0]
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


@pytest.fixture(scope="module")
def trained():
    texts, labels = corpus(240)
    student = train_student(texts, labels, num_clusters=K, key=jax.random.key(0), buckets=4096, batch_size=24)
    return texts, labels, student


def test_it_learns_and_generalizes(trained):
    texts, labels, student = trained
    assert (student.predict(texts)[0] == labels).mean() > 0.97
    others, truth = corpus(300, seed=9)
    assert (student.predict(others)[0] == truth).mean() > 0.93


def test_one_step_is_adagrad_on_the_oracles_gradient():
    texts, labels = corpus(6, seed=3)
    student = train_student(
        texts, labels, num_clusters=K, key=jax.random.key(1), buckets=BUCKETS, epochs=1, batch_size=6, learning_rate=0.5
    )
    ids, offsets = hash_texts(texts, buckets=BUCKETS, orders=(1, 2), seed=0, max_words=512)
    _, d_table, _, d_bias, _ = oracle(ids, offsets, np.zeros((BUCKETS, K)), None, np.zeros(K), np.eye(K)[labels])
    for got, slope in ((student.table, d_table[student.buckets] / 6), (student.bias, d_bias / 6)):
        clear = np.abs(slope) > 1e-5  # where the sign is not a rounding error: Adagrad's first step is the sign
        np.testing.assert_allclose(got[clear], -0.5 * np.sign(slope[clear]), rtol=2e-3)


def test_it_is_deterministic(trained):
    texts, labels, student = trained
    again = train_student(texts, labels, num_clusters=K, key=jax.random.key(0), buckets=4096, batch_size=24)
    assert again.identity == student.identity
    soft = np.eye(K, dtype=np.float32)[labels]
    same = train_student(texts, soft, num_clusters=K, key=jax.random.key(0), buckets=4096, batch_size=24)
    assert same.identity == student.identity, "hard labels are soft labels of one"


def test_mass_moves_the_bias_alone(trained):
    texts, labels, student = trained
    mass = np.array([0.1, 0.3, 0.6])
    other = train_student(texts, labels, num_clusters=K, key=jax.random.key(0), buckets=4096, batch_size=24, mass=mass)
    share = np.bincount(labels) / len(labels)
    np.testing.assert_allclose(other.bias - student.bias, np.log(mass / share), atol=1e-5)
    np.testing.assert_array_equal(other.table, student.table)


def test_it_comes_back_from_disk(trained, tmp_path):
    texts, _, student = trained
    folder = student.save(tmp_path / "a")
    loaded = load_student(folder)
    assert loaded.identity == student.identity
    np.testing.assert_array_equal(loaded.predict(texts[:20])[1], student.predict(texts[:20])[1])
    loaded.save(tmp_path / "b")
    for name in ("student.json", "student.npz"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    damaged = (tmp_path / "b" / "student.json").read_text().replace('"max_words": 512', '"max_words": 9')
    (tmp_path / "b" / "student.json").write_text(damaged)
    with pytest.raises(ConfigError, match="damaged"):
        load_student(tmp_path / "b")
    with pytest.raises(ConfigError, match="no student"):
        load_student(tmp_path / "c")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.array([0, 3])}, "from 0 to 2"),
        ({"labels": np.array([0])}, "2 texts with 1 labels"),
        ({"labels": np.ones((2, 3), np.float32)}, "simplex"),
        ({"labels": np.array([0.0, 1.0])}, "whole numbers"),
        ({"texts": ["", " ."]}, "no text has a word"),
        ({"epochs": 0}, "epochs"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"mass": np.array([1.0, 0.0, 1.0])}, "mass"),
        ({"width": 0}, "width"),
    ],
)
def test_errors(change, message):
    arguments = {"texts": ["a", "b"], "labels": np.array([0, 1]), **change}
    with pytest.raises(ConfigError, match=message):
        train_student(
            arguments.pop("texts"), arguments.pop("labels"), num_clusters=3, key=jax.random.key(0), **arguments
        )
