"""The built-in encoder: hashed word n-grams, TF-IDF, randomized SVD. It needs no download and no accelerator.

    a_dj = (1 + log tf_dj) · idf_j,   idf_j = 1 + log((1 + n) / (1 + df_j)),   rows of A scaled to length 1
    A ≈ U Σ Vᵀ  (of the sample, k largest singular values);      encode(x) = a(x) V / |a(x) V|

Features are hashed n-grams that occur in at least two documents of the sample. This is latent semantic analysis.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Int32

from jaxmix.core.errors import ConfigError, RunError
from jaxmix.core.validate import Count, Whole, checked
from jaxmix.data.files import write_whole
from jaxmix.data.hashing import hashed_ngrams
from jaxmix.models.encoders.base import BUILTIN, ENCODER_FILE, Encoder

_ARRAYS = "encoder.npz"
_CHUNK = 512
_OVERSAMPLED = 16


class _Fitted(NamedTuple):
    """A fitted encoder.

    Attributes:
        settings: `buckets`, `orders`, `max_words`.
        features: buckets that are used, ascending.
        idf: of each.
        projection: V.
    """

    settings: dict[str, Any]
    features: Int32[np.ndarray, " f"]
    idf: Float32[np.ndarray, " f"]
    projection: Float32[np.ndarray, "f k"]


@checked
def fit_hashed_encoder(
    sample: Sequence[str],
    *,
    dim: Count = 256,
    buckets: int = 1 << 20,
    orders: Sequence[int] = (1, 2),
    max_features: Count = 1 << 16,
    max_words: Count = 1024,
    power_iterations: Whole = 3,
    seed: int = 0,
) -> Encoder:
    """Fits the built-in encoder to a sample of texts.

    The same sample and arguments give the same encoder, up to the last bits of the linear-algebra library. Save it
    and load it again rather than fitting twice: `identity` is a hash of the fitted numbers.

    Args:
        sample: n texts, better some ten thousand; words that are not in it are unknown.
        dim: k ≥ 1, width of the embeddings; less where the sample does not have so many directions.
        buckets: of the hash, in [1, 2³¹).
        orders: lengths of the n-grams.
        max_features: f, at most so many buckets: those in the most documents.
        max_words: the first so many words of a text are read.
        power_iterations: of the randomized SVD, ≥ 0.
        seed: of its random start.

    Raises:
        ConfigError: an argument is out of range, or the sample is empty or has no n-gram in two of its documents.

    >>> texts = ["the cat sat", "a cat ran", "stocks fell today", "stocks rose today"]
    >>> rows = fit_hashed_encoder(texts, dim=2).encode([*texts, "unheard-of"])
    >>> bool(rows[0] @ rows[1] > 0.9), bool(abs(rows[0] @ rows[2]) < 0.1), float(rows[4] @ rows[4])
    (True, True, 0.0)

    References:
        Deerwester et al., "Indexing by latent semantic analysis" (1990). Halko, Martinsson and Tropp, "Finding
        structure with randomness", arXiv 0909.4061, algorithms 4.4 and 5.1.
    """
    settings = {"buckets": buckets, "orders": list(orders), "max_words": max_words}
    rows, columns, counts = _term_counts(sample, settings)
    documents = np.bincount(columns, minlength=1)
    candidates = np.flatnonzero(documents >= 2)
    if not len(candidates):
        raise ConfigError(
            f"no word occurs in two of the {len(sample)} texts of the sample",
            where="fit_hashed_encoder(sample)",
            fix="Give more texts.",
        )
    by_frequency = np.argsort(-documents[candidates], kind="stable")[:max_features]
    features = np.sort(candidates[by_frequency]).astype(np.int32)
    idf = 1 + np.log((1 + len(sample)) / (1 + documents[features]))
    fitted = _Fitted(settings, features, idf.astype(np.float32), np.zeros((len(features), 0), np.float32))
    matrix = _weighted(fitted, rows, columns, counts, len(sample))
    projection = _right_singular_vectors(matrix, min(dim, *matrix.shape), power_iterations, seed)
    return _encoder(fitted._replace(projection=projection))


def load_hashed_encoder(folder: str | Path) -> Encoder:
    """The encoder that `Encoder.save` wrote to `folder`.

    Raises:
        RunError: files are missing, or their content is not what was written.
    """
    folder = Path(folder)
    try:
        plain = json.loads((folder / ENCODER_FILE).read_text(encoding="utf-8"))
        with np.load(folder / _ARRAYS) as arrays:
            fitted = _Fitted(plain["settings"], *(arrays[name] for name in _Fitted._fields[1:]))
    except (OSError, ValueError, KeyError) as error:
        raise RunError(f"the built-in encoder cannot be read: {error}", where=str(folder)) from error
    encoder = _encoder(fitted)
    if encoder.identity != plain["identity"]:
        raise RunError("the built-in encoder's files are not what was written", where=str(folder))
    return encoder


def _encoder(fitted: _Fitted) -> Encoder:
    dim = fitted.projection.shape[1]
    digest = hashlib.blake2b(json.dumps(fitted.settings, sort_keys=True).encode(), digest_size=16)
    for array in fitted[1:]:
        digest.update(f"{array.dtype} {array.shape} ".encode() + np.ascontiguousarray(array).tobytes())
    identity = digest.hexdigest()
    about = {"kind": BUILTIN, "dim": dim, "features": len(fitted.features), **fitted.settings}

    def encode(texts: Sequence[str]) -> np.ndarray:
        rows = np.zeros((len(texts), dim), np.float32)
        for start in range(0, len(texts), _CHUNK):
            chunk = texts[start : start + _CHUNK]
            projected = _weighted(fitted, *_term_counts(chunk, fitted.settings), len(chunk)) @ fitted.projection
            length = np.linalg.norm(projected, axis=1, keepdims=True)
            rows[start : start + _CHUNK] = projected / np.where(length > 0, length, 1)
        return rows

    def save(folder: Path) -> None:
        buffer = io.BytesIO()
        np.savez(buffer, features=fitted.features, idf=fitted.idf, projection=fitted.projection)
        write_whole(Path(folder) / _ARRAYS, buffer.getvalue())
        plain = {"kind": BUILTIN, "settings": fitted.settings, "identity": identity}
        write_whole(Path(folder) / ENCODER_FILE, json.dumps(plain, indent=1) + "\n")

    return Encoder(encode, dim, identity, save, about)


def _term_counts(texts: Sequence[str], settings: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Number of the text, bucket and count of every n-gram that a text has; sorted by text, then bucket."""
    buckets = settings["buckets"]
    rows, columns, counts = [], [], []
    for start in range(0, len(texts), _CHUNK):
        grams = hashed_ngrams(
            texts[start : start + _CHUNK],
            buckets=buckets,
            orders=tuple(settings["orders"]),
            max_words=settings["max_words"],
        )
        lengths = np.diff(grams.offsets)
        keys = np.repeat(np.arange(start, start + len(lengths)), lengths) * buckets + grams.ids
        keys, count = np.unique(keys, return_counts=True)
        rows.append(keys // buckets)
        columns.append(keys % buckets)
        counts.append(count)
    if not rows:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64)
    return np.concatenate(rows), np.concatenate(columns), np.concatenate(counts)


def _weighted(fitted: _Fitted, rows: np.ndarray, columns: np.ndarray, counts: np.ndarray, num_rows: int) -> Any:
    """The matrix A of these texts, a `scipy.sparse.csr_array` f32[n, f] with rows of length 1 (or 0)."""
    from scipy.sparse import csr_array

    places = np.minimum(np.searchsorted(fitted.features, columns), len(fitted.features) - 1)
    is_known = fitted.features[places] == columns
    rows, places = rows[is_known], places[is_known]
    values = (1 + np.log(counts[is_known])) * fitted.idf[places]
    square = np.bincount(rows, values**2, minlength=num_rows)
    values = (values / np.sqrt(square[rows])).astype(np.float32)
    starts = np.searchsorted(rows, np.arange(num_rows + 1))
    return csr_array((values, places, starts), shape=(num_rows, len(fitted.features)))


def _right_singular_vectors(matrix: Any, count: int, power_iterations: int, seed: int) -> np.ndarray:
    """V f32[f, count] of the largest singular values; the largest entry of each vector is positive."""
    width = min(count + _OVERSAMPLED, *matrix.shape)
    random = np.random.Generator(np.random.Philox(seed)).standard_normal((matrix.shape[1], width), np.float32)
    left = np.linalg.qr(matrix @ random)[0]
    for _ in range(power_iterations):
        right = np.linalg.qr(matrix.T @ left)[0]
        left = np.linalg.qr(matrix @ right)[0]
    # Aᵀ Q = Q' R with small R: the right singular vectors of Qᵀ A are Q' times the left ones of R.
    right, small = np.linalg.qr(matrix.T @ left)
    vectors = (right @ np.linalg.svd(small)[0])[:, :count]
    signs = np.sign(vectors[np.argmax(np.abs(vectors), axis=0), np.arange(count)])
    return np.ascontiguousarray(vectors * signs, np.float32)
