"""The files of an embedding store: their names, checksums, and the index."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from jaxmix.core.errors import RunError
from jaxmix.data.files import read_json

FORMAT = 1
DTYPES = ("float16", "bfloat16")
INDEX, SETTINGS = "index.json", "store.json"


@dataclasses.dataclass(frozen=True)
class Shard:
    """The entry of a shard in the index.

    Attributes:
        source: name of the shard of texts it was made from.
        file: its rows.
        rows: number of rows.
        documents: number of texts; rows + dropped.
        dropped: numbers of the texts without a row, ascending.
        texts: hash of all its texts.
        checksum: hash of `file`.
    """

    source: str
    file: str
    rows: int
    documents: int
    dropped: tuple[int, ...]
    texts: str
    checksum: str

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> Shard:
        return cls(**{**plain, "dropped": tuple(plain["dropped"])})


def stored_dtype(name: str) -> Any:
    """The NumPy dtype of "float16" or "bfloat16", little-endian."""
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype("<f2")


def checksum(path: Path) -> str:
    """Hash of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def read_store_index(folder: Path) -> dict[str, Any]:
    """The index of a complete store. RunError: there is none, or shards are missing."""
    index = read_json(folder / INDEX)
    if index is None:
        done = len(list(folder.glob("shard-*.json"))) if folder.is_dir() else 0
        is_begun = (folder / SETTINGS).is_file()
        raise RunError(
            f"the embedding store is not whole: {done} shards are written" if is_begun else "there are no embeddings",
            where=str(folder),
            fix="Call write_embedding_store with the same arguments to continue."
            if is_begun
            else "Embed a corpus first.",
        )
    if index.get("format") != FORMAT:
        raise RunError(
            f"the embedding store has format {index.get('format')}, this jaxmix reads {FORMAT}", where=str(folder)
        )
    return dict(index)
