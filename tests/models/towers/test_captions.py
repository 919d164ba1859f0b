"""Captions as rows of bytes or hashed words."""

import subprocess
import sys

import numpy as np
import pytest

from jaxmix.core.errors import ConfigError
from jaxmix.data import byte_tokenizer
from jaxmix.models import caption_tokens


def test_bytes_are_those_of_the_byte_tokenizer_cut_and_padded():
    texts = ["arrow-left", "", "häuser und mehr", "☃"]
    rows = caption_tokens(texts, 8)
    assert rows.dtype == np.int32
    assert rows.shape == (4, 8)
    for row, ids in zip(rows, byte_tokenizer().encode_batch(texts), strict=True):
        kept = min(len(ids), 8)
        np.testing.assert_array_equal(row[:kept], ids[:kept])
        assert not row[kept:].any()


def test_words_are_the_same_whatever_parts_them():
    rows = caption_tokens(["arrow-left", "ARROW  left!", "arrow_left", "left", "…"], 3, unit="word", vocab_size=1000)
    np.testing.assert_array_equal(rows[0], rows[1])
    np.testing.assert_array_equal(rows[0], rows[2])
    assert rows[3, 0] == rows[0, 1]
    assert not rows[4].any()
    names = caption_tokens([f"word{i}" for i in range(3000)], 1, unit="word", vocab_size=100)
    np.testing.assert_array_equal(np.unique(names), np.arange(1, 100))
    assert np.bincount(names[:, 0]).max() < 3 * 3000 / 99


def test_trigrams_are_the_word_and_its_runs_of_three_characters():
    def ids(text, length, unit="trigram"):
        return caption_tokens([text], length, unit=unit, vocab_size=50_000)[0].tolist()

    cats, cat = ids("cats", 6), ids("Cat!", 6)
    assert cats[5] == 0  # the word, <ca, cat, ats, ts>
    assert cats[0] == ids("cats", 1, "word")[0] != cat[0]
    assert (cats[1], cats[2]) == (cat[1], cat[2])  # <ca and cat; as three letters, "cat" is the word of that name
    assert cat[2] == cat[0]
    assert cats[3] != cat[3]
    assert ids("a cats", 8) == [*ids("a", 2), *cats[:5], 0]


def test_words_do_not_depend_on_the_process():
    code = (
        "from jaxmix.models import caption_tokens as c; print(c(['tea cup'], 2, unit='word', vocab_size=9999).tolist())"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert other.strip() == str(caption_tokens(["tea cup"], 2, unit="word", vocab_size=9999).tolist())


def test_errors():
    with pytest.raises(ConfigError, match="vocabulary of 300 does not suit tokens of unit 'byte'"):
        caption_tokens(["a"], 4, vocab_size=300)
    with pytest.raises(ConfigError, match=r"text.length must be at least 1"):
        caption_tokens(["a"], 0)
    with pytest.raises(ConfigError, match=r"unknown text.unit 'words'.*Did you mean 'word'"):
        caption_tokens(["a"], 4, unit="words", vocab_size=99)
    with pytest.raises(ConfigError, match="NUL byte"):
        caption_tokens(["a\0b"], 4)
