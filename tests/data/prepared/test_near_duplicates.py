import json

import numpy as np
import pytest

from jaxmix.core.errors import RunError
from jaxmix.data import SourceSpec, byte_tokenizer, open_prepared, prepare_corpus
from jaxmix.data.prepared import near_duplicates
from jaxmix.data.prepared.near_duplicates import count_near_duplicates, sketches, write_sketches


def shared(first, second):
    """Whether two texts have a band in common."""
    a, b = sketches([first, second])
    return bool((a == b).any()) and a.any()


def words(seed, count):
    return [f"w{n}" for n in np.random.default_rng(seed).integers(0, 5000, count)]


def test_case_punctuation_and_space_do_not_count():
    text = "The cat, which was old, sat (as ever) on the mat; it did not move."
    assert shared(text, "the cat which was old   sat as ever\non the mat it did NOT move")
    assert shared("Yes!", "yes")
    chinese = "".join(chr(0x4E00 + n) for n in np.random.default_rng(0).integers(0, 5000, 100))
    assert shared(chinese, f"{chinese[:50]}的{chinese[51:]}")
    assert not shared(chinese[:50], chinese[50:])
    assert not shared("Yes!", "no")
    assert not sketches(["", "?! …", "\n"])[[0, 2]].any()


def test_a_sketch_does_not_depend_on_the_texts_beside_it():
    texts = ["a b", "", "one two three four five six", " ".join(words(0, 300)), "数学の本", "x" * 300_000, "\udcff a"]
    alone = np.concatenate([sketches([text]) for text in texts])
    np.testing.assert_array_equal(sketches(texts), alone)
    np.testing.assert_array_equal(sketches(texts[::-1]), alone[::-1])


def test_a_sketch_is_the_same_everywhere():
    bands = sketches(["the cat sat on the mat"])[0, :2]
    assert [f"{band:016x}" for band in bands] == ["01fb21ef2c696f01", "03d61fdee5f9b430"]


@pytest.mark.parametrize(
    ("changed", "least", "most"), [(0.005, 0.97, 1), (0.02, 0.75, 0.97), (0.1, 0, 0.15), (1, 0, 0)]
)
def test_near_duplicates_are_found_as_often_as_promised(changed, least, most):
    rng = np.random.default_rng(1)
    base = [words(seed, 300) for seed in range(200)]
    edited = [[f"x{rng.integers(10**6)}" if rng.random() < changed else word for word in text] for text in base]
    first, second = (sketches([" ".join(text) for text in texts]) for texts in (base, edited))
    assert least <= (first == second).any(axis=1).mean() <= most


def test_short_texts_of_one_form_are_told_apart():
    texts = [f"Write a short story about {a} and {b} in {c}" for a, b, c in (words(seed, 3) for seed in range(200))]
    rows = sketches(texts)
    assert all(len(np.unique(rows[:, band])) > 195 for band in range(rows.shape[1]))


def documents(count, copies):
    """So many texts, of which some stand again in capitals."""
    texts = [" ".join(words(seed, 100)) for seed in range(count)]
    return texts + [text.upper() for text in texts[:copies]]


def test_prepare_counts_near_duplicates_across_the_split(tmp_path):
    texts = documents(60, 30)
    spec = SourceSpec("a", documents=texts)
    summary = prepare_corpus({"a": spec}, tmp_path, tokenizer=byte_tokenizer(), validation_fraction=0.3)
    entry = summary.index["domains"]["a"]
    store = open_prepared(tmp_path, "validation")["a"]
    held = {byte_tokenizer().decode(store[i]) for i in range(len(store))}
    twin = dict(zip(texts[:30] + texts[60:], texts[60:] + texts[:30], strict=True))
    expected = sum(twin[text] not in held for text in held if text in twin)
    assert expected > 5
    assert entry["near_duplicates"] == {"count": expected, "of": len(held)}
    assert summary.troubles() == {}


def test_a_split_of_near_duplicates_alone_is_said(tmp_path):
    texts = ["A first text of some words!", "a first text of some words"]
    summary = prepare_corpus({"a": SourceSpec("a", documents=texts)}, tmp_path, tokenizer=byte_tokenizer())
    kind = "held-out documents, all of them near-duplicates of training documents"
    assert summary.troubles()["a"][kind]["count"] == 1


def test_equal_documents_are_never_divided_which_is_said_where_there_are_no_others(tmp_path):
    spec = SourceSpec("a", documents=["the same text, word for word"] * 5)
    summary = prepare_corpus({"a": spec}, tmp_path, tokenizer=byte_tokenizer())
    assert summary.troubles() == {"a": {"documents, all alike, of which none is held out": {"count": 5, "first": []}}}


def test_what_an_earlier_version_prepared_is_not_counted_and_damage_is_named(tmp_path):
    spec = {"a": SourceSpec("a", documents=documents(20, 5))}
    prepare_corpus(spec, tmp_path, tokenizer=byte_tokenizer())
    (path,), (unit,) = tmp_path.rglob("*.sketches.npy"), tmp_path.rglob("unit-*.json")
    record = json.loads(unit.read_text())
    unit.write_text(json.dumps({key: value for key, value in record.items() if key not in ("sketches", "checksum")}))
    path.write_bytes(path.read_bytes()[:-3])
    (tmp_path / "index.json").unlink()
    with pytest.raises(RunError, match=r"sketches.npy cannot be read.*Delete unit-00000.json"):
        prepare_corpus(spec, tmp_path, tokenizer=byte_tokenizer())
    path.unlink()
    again = prepare_corpus(spec, tmp_path, tokenizer=byte_tokenizer())
    assert again.index["domains"]["a"]["near_duplicates"] is None


def test_more_held_out_documents_than_memory_holds_are_sampled(tmp_path, monkeypatch):
    rows = sketches(documents(20, 0))
    record = {"splits": {"train": {"documents": 10}, "validation": {"documents": 20}}}
    write_sketches(tmp_path / "unit-00000.json", [rows[:10], rows])
    units = [(tmp_path / "unit-00000.json", record)]
    assert count_near_duplicates(units) == {"count": 10, "of": 20}
    monkeypatch.setattr(near_duplicates, "MOST_COMPARED", 4)
    assert count_near_duplicates(units) == {"count": 2, "of": 4}
