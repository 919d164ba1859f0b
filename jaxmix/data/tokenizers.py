"""Tokenizers: UTF-8 bytes, or any `tokenizer.json`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from jaxmix.core.errors import ConfigError, RunError


class Losses(NamedTuple):
    """What a tokenizer could not keep of a text: unknown tokens in its place, and characters without any token."""

    unknown: int
    lost: int


_END_NAMES = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|eot_id|>", "[SEP]")


@runtime_checkable
class Tokenizer(Protocol):
    """The tokenizer that `prepare` and the report need.

    One that cannot keep every text may also have `losses(text, tokens) -> Losses`, which `prepare` counts, and one
    whose model makes control tokens of their names in a text may have `control`, their ids, which `prepare` takes out.

    Attributes:
        vocab_size: ids are below it.
        end_of_document: the id that ends every document.
        fingerprint: the same for tokenizers that give the same ids.
    """

    vocab_size: int
    end_of_document: int
    fingerprint: str

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Token ids i32[n] of every text, without the end of the document."""
        ...

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str: ...


class _Bytes:
    """UTF-8 bytes as tokens. 0xFF, which never occurs in UTF-8, ends a document: 256 ids in all."""

    vocab_size = 256
    end_of_document = 0xFF
    fingerprint = "bytes-1"

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int32) for text in texts]

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        ids = np.asarray(tokens)
        return ids[ids != self.end_of_document].astype(np.uint8).tobytes().decode("utf-8", errors="replace")


class _File:
    """A `tokenizer.json`. Nothing is put in front of a document, and special tokens in its text are plain text."""

    def __init__(self, path: Path, end_of_document: str | None):
        from tokenizers import Tokenizer as Fast

        data = path.read_bytes()
        try:
            self._fast: Any = Fast.from_str(data.decode("utf-8"))
        except Exception as error:  # the library raises its own kinds for every fault of the file
            raise ConfigError(
                f"{path} is not a tokenizer file: {str(error).splitlines()[0]}",
                where="data.tokenizer",
                fix="Name a tokenizer.json of the `tokenizers` library, or `byte`.",
            ) from error
        self._fast.no_padding()
        self._fast.no_truncation()
        self._fast.encode_special_tokens = True
        vocabulary = self._fast.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values(), default=-1) + 1  # ids may have gaps
        content = json.loads(data)
        model = content["model"]
        unknown = model.get("unk_token")
        if unknown is None and isinstance(model.get("unk_id"), int):  # Unigram names it by its place
            unknown = model["vocab"][model["unk_id"]][0]
        self._unknown = None if unknown is None else vocabulary.get(unknown)
        steps = json.dumps([content.get("normalizer"), content.get("pre_tokenizer")])
        is_byte_level = '"ByteLevel"' in steps and model.get("type", "BPE") == "BPE"
        has_fallback = model.get("byte_fallback") and all(f"<0x{byte:02X}>" in vocabulary for byte in range(256))
        # A character without a token is lost, unless there is a token for it as unknown, or for each of its bytes.
        self._may_lose = self._unknown is None and not is_byte_level and not has_fallback
        self._lost_bytes = np.zeros(256, bool)
        if self._unknown is None and is_byte_level:
            self._lost_bytes[[byte for byte, letter in _byte_letters().items() if letter not in vocabulary]] = True
        names = _END_NAMES if end_of_document is None else (end_of_document,)
        ids = [self._fast.token_to_id(name) for name in names]
        found = [i for i in ids if i is not None]
        if not found:
            raise ConfigError(
                f"{path} has none of the tokens {', '.join(names)} to end a document with",
                where="data.tokenizer",
                fix="Name the token in data.end_of_document.",
            )
        self.end_of_document = int(found[0])
        special = {i for i, token in self._fast.get_added_tokens_decoder().items() if token.special}
        # T5's are pieces of its model too, and come out of it whatever `encode_special_tokens` says.
        self.control = tuple(sorted(special - {self._unknown, self.end_of_document}))
        self.fingerprint = hashlib.blake2b(data + str(self.end_of_document).encode(), digest_size=16).hexdigest()

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        try:
            encodings = self._fast.encode_batch(list(texts), add_special_tokens=False)
        except Exception as error:  # the library raises its own kinds
            raise RunError(
                f"the tokenizer cannot encode a text: {str(error).splitlines()[0]}",
                where="data.tokenizer",
                fix="Use a tokenizer with an unknown token, or one on bytes.",
            ) from error
        return [np.asarray(encoding.ids, np.int32) for encoding in encodings]

    def losses(self, text: str, tokens: np.ndarray) -> Losses:
        """What was not kept of `text`, whose tokens are given."""
        unknown = 0 if self._unknown is None else int(np.count_nonzero(tokens == self._unknown))
        if self._lost_bytes.any():
            data = np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8)
            letters = np.cumsum((data & 0xC0) != 0x80)  # the number of the character that each byte belongs to
            return Losses(unknown, len(np.unique(letters[self._lost_bytes[data]])))
        if not self._may_lose:
            return Losses(unknown, 0)
        spans = self._fast.encode(text, add_special_tokens=False).offsets
        kept = sum(len("".join(text[start:stop].split())) for start, stop in spans)
        return Losses(unknown, max(len("".join(text.split())) - kept, 0))

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        return self._fast.decode(np.asarray(tokens).tolist(), skip_special_tokens=True)


def _byte_letters() -> dict[int, str]:
    """The letter of each byte in vocabularies of bytes (GPT-2): itself where it is printable in Latin-1."""
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in own]
    return {**{byte: chr(byte) for byte in own}, **{byte: chr(256 + place) for place, byte in enumerate(others)}}


def byte_tokenizer() -> Tokenizer:
    """UTF-8 bytes as tokens; 256 ids, 0xFF ends a document."""
    return _Bytes()


def load_tokenizer(name: str, *, end_of_document: str | None = None) -> Tokenizer:
    """Returns the tokenizer called `byte`, or reads a `tokenizer.json`.

    No token is put in front of a document, whatever the file's post-processor says: a document begins where another one
    has ended. Names of special tokens within a document are text as any other.

    Args:
        name: "byte", or the path of a file of the `tokenizers` library.
        end_of_document: the token that ends a document; by default the first of the usual names that the file has.

    Raises:
        ConfigError: no such file, not a tokenizer, or nothing in it to end a document with.
    """
    if name == "byte":
        if end_of_document is not None:
            what = f"the tokenizer `byte` has no token {end_of_document!r}: the byte 0xFF ends a document"
            raise ConfigError(what, where="data.end_of_document", fix="Leave it out, or name a tokenizer.json.")
        return byte_tokenizer()
    path = Path(name)
    if not path.is_file():
        raise ConfigError(
            f"there is no tokenizer file {name!r}", where="data.tokenizer", fix="Name a tokenizer.json, or `byte`."
        )
    return _File(path, end_of_document)
