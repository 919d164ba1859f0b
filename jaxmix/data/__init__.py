"""The host side of the data: documents in, batches of one domain per row out."""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "EmbeddingStore": "embeddings",
    "MixtureStream": "mixture.stream",
    "PreparedSource": "prepared.store",
    "SourceSpec": "sources.specs",
    "bundled_corpus": "sources.corpora",
    "byte_tokenizer": "tokenizers",
    "hashed_ngrams": "hashing",
    "load_tokenizer": "tokenizers",
    "open_embedding_store": "embeddings",
    "open_prepared": "prepared.store",
    "prepare_corpus": "prepared.prepare",
    "read_regmix": "run_tables",
    "read_run_table": "run_tables",
    "write_embedding_store": "embeddings",
    "write_run_table": "run_tables",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"jaxmix.data.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'jaxmix.data' has no attribute {name!r}")
