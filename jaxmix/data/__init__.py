"""The host side of the data: documents in, batches of one domain per row out."""

from __future__ import annotations

from jaxmix.core.lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
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
    },
)
