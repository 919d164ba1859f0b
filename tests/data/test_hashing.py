"""Hashed n-grams against a slow reading of the same rules in Python integers."""

import hashlib
import subprocess
import sys
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from jaxmix.core.errors import ConfigError
from jaxmix.data.hashing import hashed_ngrams, split_words

TEXTS = [
    "The cat sat on the mat; the CAT sat.",
    "",
    "   \n\t ",
    "Ça déjà-vu: e\u0301tude, ÉTUDE 42 x2",
    "机器学习 is 学习",
    "ภาษาไทย ok",
    "a\u0000b\ud800c \U0001f600 \U000e0001 \U0003ffff",
    "one",
    "don't stop",
]
MASK = 2**64 - 1
GOLDEN = [2007667, 1753944, 1463539, 1212460, 177505, 555181, 1229083, 1703033, 1168607, 1021167, 1844167, 1239936]


def mix(value):
    value &= MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
    return value ^ (value >> 31)


def is_unspaced(point):
    ranges = [(0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x2E80, 0x2FDF), (0x3040, 0x30FF)]
    ranges += [(0x31F0, 0x31FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x2FFFF)]
    return any(low <= point <= high for low, high in ranges)


def oracle_words(text):
    """The words of a text, character by character."""
    old = unicodedata.ucd_3_2_0
    words, open_word = [], ""
    for character in unicodedata.normalize("NFC", text):
        name = old.category(character)
        is_letter = name[0] in "LMN" or name == "Cn" or ord(character) >= 0x20000
        if name in ("Lu", "Lt") and ord(character) < 0x20000 and len(character.lower()) == 1:
            character = character.lower()
        if is_letter and not is_unspaced(ord(character)):
            open_word += character
            continue
        words += [open_word] if open_word else []
        words += [character] if is_letter else []
        open_word = ""
    return words + ([open_word] if open_word else [])


def oracle(text, buckets, orders, seed):
    """The buckets of a text, n-gram by n-gram."""
    base = 0x9E3779B97F4A7C15
    hashes = []
    for word in oracle_words(text):
        total = 0
        for place, character in enumerate(word):
            total += mix(ord(character) + 1) * pow(base, place + 1, 2**64)
        hashes.append(mix(total))
    ids = []
    for order in orders:
        for first in range(len(hashes) - order + 1):
            value = mix(hashes[first] + seed + order * 0x632BE59BD9B4E019)
            for other in hashes[first + 1 : first + order]:
                value = mix(value * 0xD6E8FEB86659FD93 + other)
            ids.append(value % buckets)
    return ids


def check(texts, buckets=1 << 21, orders=(1, 2), seed=0):
    grams = hashed_ngrams(texts, buckets=buckets, orders=orders, seed=seed)
    assert (grams.ids.dtype, grams.offsets.dtype) == (np.int32, np.int64)
    assert len(grams.offsets) == len(texts) + 1
    for i, text in enumerate(texts):
        assert grams.ids[grams.offsets[i] : grams.offsets[i + 1]].tolist() == oracle(text, buckets, orders, seed)


@pytest.mark.parametrize(("buckets", "orders", "seed"), [(1 << 21, (1, 2), 0), (997, (1,), 3), (1, (3, 1), 2**64 - 1)])
def test_it_equals_the_oracle(buckets, orders, seed):
    check(TEXTS, buckets, orders, seed)


@settings(max_examples=60)
@given(st.lists(st.text(alphabet=st.characters(exclude_categories=()), max_size=20), max_size=5))
def test_it_equals_the_oracle_on_any_text(texts):
    check(texts)


def test_a_text_is_hashed_alike_in_any_batch():
    whole = hashed_ngrams(TEXTS, buckets=1 << 20)
    for i, text in enumerate(TEXTS):
        alone = hashed_ngrams([text], buckets=1 << 20)
        np.testing.assert_array_equal(alone.ids, whole.ids[whole.offsets[i] : whole.offsets[i + 1]])


def test_max_words_keeps_the_first():
    words = split_words(["a b c d", "", "e", "f g h"], max_words=2)
    assert [words.word(i) for i in range(len(words.hashes))] == ["a", "b", "e", "f", "g"]
    assert words.offsets.tolist() == [0, 2, 2, 3, 5]
    assert len(split_words(["x" * 100 + " y"], max_words=3).hashes) == 1, "what lies beyond 16 characters a word"


def test_words_can_be_read_back():
    words = split_words(TEXTS)
    expected = [word for text in TEXTS for word in oracle_words(text)]
    assert [words.word(i) for i in range(len(words.hashes))] == expected


def test_buckets_are_filled_evenly():
    counts = np.bincount(hashed_ngrams([f"w{i}" for i in range(20_000)], buckets=64, orders=(1,)).ids, minlength=64)
    expected = counts.sum() / 64
    assert ((counts - expected) ** 2 / expected).sum() < 110, "chi-squared, 63 degrees: 1 - p = 2e-4"


def test_no_texts():
    assert hashed_ngrams([], buckets=8).offsets.tolist() == [0]


def test_it_is_the_same_in_another_process():
    code = (
        "import hashlib; from jaxmix.data.hashing import hashed_ngrams;"
        "ids = hashed_ngrams(['The cat \u00c9tude', '\u5b66\u4e60 a b'], buckets=1 << 21).ids;"
        "print(hashlib.sha256(ids.tobytes()).hexdigest())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    ids = hashed_ngrams(["The cat Étude", "学习 a b"], buckets=1 << 21).ids
    assert done.stdout.strip() == hashlib.sha256(ids.tobytes()).hexdigest()
    assert ids.tolist() == GOLDEN, "of the first release: on disk in every student"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"buckets": 0}, "buckets"),
        ({"buckets": 2**31}, "buckets"),
        ({"orders": (0,)}, "orders"),
        ({"seed": -1}, "seed"),
    ],
)
def test_errors(wrong, message):
    with pytest.raises(ConfigError, match=message):
        hashed_ngrams(["a"], **{"buckets": 8, **wrong})
