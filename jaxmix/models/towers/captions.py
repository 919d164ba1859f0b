"""Captions as rows of tokens of one length, padded with 0."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Int32

from jaxmix.core.errors import ConfigError
from jaxmix.core.settings import check_value

Unit = Literal["byte", "trigram", "word"]
_BYTES = 256


def caption_tokens(
    texts: Sequence[str], length: int, *, unit: str = "byte", vocab_size: int = _BYTES
) -> Int32[np.ndarray, "b t"]:
    """Tokens of every text for `embed_text` of a `TwoTowers`, cut or padded with 0 to `length`.

    Args:
        texts: captions. What follows `length` tokens is left out.
        length: t, ≥ 1.
        unit: "byte": UTF-8 bytes, as `jaxmix.data.byte_tokenizer` (a NUL byte would read as padding and is refused).
            "word": maximal runs of letters and digits, in lower case, hashed to 1 … vocab_size − 1: fewer tokens and
            thus a cheaper tower, but words not seen in training carry no information, and words may collide.
            "trigram": every such word, then its runs of three characters with `<` before and `>` behind it, hashed
            alike: about six tokens a word; what words share is learned once, as in fastText.
        vocab_size: 256 for bytes; else a few times the number of frequent words or trigrams.

    Returns:
        i32[b, t], the same in every process and on every machine.

    Raises:
        ConfigError: unknown unit, a length below 1, a vocabulary that does not suit, a NUL byte in a text.

    >>> caption_tokens(["ab", "é"], 4).tolist()
    [[97, 98, 0, 0], [195, 169, 0, 0]]
    >>> rows = caption_tokens(["arrow-left", "Left arrow!"], 3, unit="word", vocab_size=4096)
    >>> rows[0, :2].tolist() == rows[1, 1::-1].tolist(), rows[:, 2].tolist()
    (True, [0, 0])
    """
    check_value("text.length", length, int, {"at_least": 1}, "model.text.length")
    check_value("text.unit", unit, Unit, {}, "model.text.unit")
    if (unit == "byte" and vocab_size != _BYTES) or vocab_size < 2:
        raise ConfigError(
            f"a vocabulary of {vocab_size} does not suit tokens of unit {unit!r}",
            where="model.text.vocab_size",
            fix="Bytes have 256; hashes need at least 2.",
        )
    rows = np.zeros((len(texts), length), np.int32)
    for row, text in zip(rows, texts, strict=True):
        if unit == "byte":
            ids = np.frombuffer(text.encode("utf-8")[:length], np.uint8)
            if (ids == 0).any():
                raise ConfigError(f"a caption has a NUL byte: {text!r}", where="texts", fix="Remove it.")
        else:
            parts = [part for word in _words(text) for part in ((word,) if unit == "word" else _trigrams(word))]
            ids = np.array([1 + zlib.crc32(p.encode("utf-8")) % (vocab_size - 1) for p in parts[:length]], np.int32)
        row[: len(ids)] = ids
    return rows


def _words(text: str) -> Sequence[str]:
    """Runs of letters and digits in lower case."""
    return "".join(c if c.isalnum() else " " for c in text.lower()).split()


def _trigrams(word: str) -> Sequence[str]:
    """cat → cat, <ca, cat, at>"""
    framed = f"<{word}>"
    return word, *(framed[i : i + 3] for i in range(len(word)))
