"""The student: a linear classifier over hashed word n-grams that labels raw text without embeddings.

A teacher (a clustering of embeddings) labels a seed corpus; the student learns its labels from the words alone and
then labels any corpus in linear time. With buckets v(j) of the n-grams j = 1…J of a text:

    h = (1/J) Σ_j E[v(j)],    logits = h V + c          FastText's form, `width` numbers per bucket
    logits = (1/J) Σ_j W[v(j)] + c                      `width=None`: W = E V itself
    loss = −Σ_k y_k log softmax(logits)_k               y: the teacher's label (one-hot) or its posterior row

Both write the same functions where `width` ≥ the number of clusters, and the second has a fifth of the numbers at 24
clusters and 128 wide; it is the default. E and W start at 0 (V at random), so that buckets never seen say nothing.
Adagrad on the rows that a batch touches, with a learning rate that falls linearly to 0.

Symbols: E, W = `table`, V = `head`, c = `bias`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32

from jaxmix.core.errors import ConfigError
from jaxmix.data.files import write_whole
from jaxmix.models.student.features import Features, hash_texts

FORMAT = 1
_JSON, _ARRAYS = "student.json", "student.npz"
_TEXTS_AT_ONCE = 4096


@dataclasses.dataclass(frozen=True)
class StudentConfig:
    """What turns a text into features, and the sizes of the model.

    Attributes:
        num_clusters: k.
        buckets: number of hash buckets.
        orders: lengths of the word n-grams.
        max_words: words of a document that are read.
        hash_seed: of the hash.
        width: numbers per bucket between features and logits; None: the logits themselves.
    """

    num_clusters: int
    buckets: int = 1 << 21
    orders: tuple[int, ...] = (1, 2)
    max_words: int = 512
    hash_seed: int = 0
    width: int | None = None


@dataclasses.dataclass(frozen=True)
class Student:
    """A trained student.

    Attributes:
        config: see `StudentConfig`.
        buckets: those in the table, ascending.
        table: w is `width`, or k without it.
        head: None without `width`.
        bias: added to the logits.
    """

    config: StudentConfig
    buckets: Int32[np.ndarray, " u"]
    table: Float32[np.ndarray, "u w"]
    head: Float32[np.ndarray, "w k"] | None
    bias: Float32[np.ndarray, " k"]

    def predict(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Labels i32[n] and probabilities f32[n, k] of raw texts; a text without known words gets the bias's.

        Runs on the host: what is left after hashing is one product of a sparse and a dense matrix. A text's result
        does not depend on the others of the batch.
        """
        parts = [self._logits(texts[i : i + _TEXTS_AT_ONCE]) for i in range(0, len(texts), _TEXTS_AT_ONCE)]
        logits = np.concatenate(parts) if parts else np.zeros((0, self.config.num_clusters), np.float32)
        shifted = np.exp(logits - logits.max(axis=1, keepdims=True, initial=-np.inf))
        labels = np.argmax(logits, axis=1).astype(np.int32)
        return labels, shifted / shifted.sum(axis=1, keepdims=True)

    def features(self, texts: Sequence[str]) -> Features:
        """The n-grams of texts as rows of `table`, −1 where the table has none."""
        config = self.config
        ids, offsets = hash_texts(
            texts, buckets=config.buckets, orders=config.orders, seed=config.hash_seed, max_words=config.max_words
        )
        return Features(self._slots[ids], offsets)

    def _logits(self, texts: Sequence[str]) -> np.ndarray:
        from scipy.sparse import csr_array

        columns, offsets = self.features(texts)
        counts = np.diff(offsets)
        share = np.repeat(1.0 / np.maximum(counts, 1), counts).astype(np.float32)
        weights, head = self._folded
        columns = np.where(columns < 0, len(self.table), columns)
        hidden = csr_array((share, columns, offsets), shape=(len(texts), len(self.table) + 1)) @ weights
        if head is not None:  # row by row, so that a text's result does not depend on the batch
            hidden = np.stack([row @ head for row in hidden]) if len(hidden) else hidden @ head
        return (hidden + self.bias).astype(np.float32)

    @cached_property
    def _slots(self) -> np.ndarray:
        slots = np.full(self.config.buckets, -1, np.int32)
        slots[self.buckets] = np.arange(len(self.buckets), dtype=np.int32)
        return slots

    @cached_property
    def _folded(self) -> tuple[np.ndarray, np.ndarray | None]:
        """The table with a row of zeros for unknown buckets, the head multiplied in where that makes it smaller."""
        weights, head = self.table, self.head
        if head is not None and head.shape[1] <= head.shape[0]:
            weights, head = self.table @ head, None
        return np.concatenate([weights, np.zeros((1, weights.shape[1]), np.float32)]), head

    @cached_property
    def identity(self) -> str:
        """Hash of everything that can change a prediction."""
        digest = hashlib.blake2b(digest_size=16)
        digest.update(json.dumps({"format": FORMAT, **dataclasses.asdict(self.config)}, sort_keys=True).encode())
        for array in self._arrays().values():
            digest.update(str(array.shape).encode())
            digest.update(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes())
        return digest.hexdigest()

    def save(self, folder: str | Path) -> Path:
        """Writes the student; equal students give equal bytes."""
        folder = Path(folder)
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **self._arrays())
        write_whole(folder / _ARRAYS, buffer.getvalue())
        about = {"format": FORMAT, "identity": self.identity, "config": dataclasses.asdict(self.config)}
        write_whole(folder / _JSON, json.dumps(about, indent=1) + "\n")  # last: without it there is no student
        return folder

    def _arrays(self) -> dict[str, np.ndarray]:
        head = {} if self.head is None else {"head": self.head}
        return {"buckets": self.buckets, "table": self.table, **head, "bias": self.bias}


def load_student(folder: str | Path) -> Student:
    """Reads what `Student.save` wrote; raises `ConfigError` where there is none or it is damaged."""
    folder = Path(folder)
    try:
        about: dict[str, Any] = json.loads((folder / _JSON).read_text(encoding="utf-8"))
        with np.load(folder / _ARRAYS, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"there is no student in {folder}: {error}", where="student", fix="Name a folder of `Student.save`."
        ) from error
    if about["format"] != FORMAT:
        raise ConfigError(
            f"{folder} holds a student of format {about['format']}", where="student", fix="Train it again."
        )
    config = StudentConfig(**{**about["config"], "orders": tuple(about["config"]["orders"])})
    student = Student(config, found["buckets"], found["table"], found.get("head"), found["bias"])
    if student.identity != about["identity"]:
        raise ConfigError(f"the student in {folder} is damaged", where="student", fix="Copy or train it again.")
    return student
