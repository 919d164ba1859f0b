"""Embeddings of a corpus on disk: shards of 16-bit rows with an index, written in parallel, read through memory maps.

A folder holds, during the work and afterwards:

    store.json         the settings: encoder, width, dtype
    shard-00000.bin    rows of one shard of texts, little-endian [rows, dim]
    shard-00000.json   its source, rows, dropped documents, hash of its texts, checksum; written after the rows
    index.json         all of these together; written last

Every file is written under another name, synced and renamed: a kill at any moment leaves whole shards, and the same
call continues with the rest. Several processes, on one machine or many, may each write a part of the shards.
"""

from __future__ import annotations

from jaxmix.data.embeddings.files import Shard as Shard
from jaxmix.data.embeddings.read import (
    EmbeddingStore as EmbeddingStore,
    TextEncoder as TextEncoder,
    open_embedding_store as open_embedding_store,
)
from jaxmix.data.embeddings.write import (
    EmbeddingWriter as EmbeddingWriter,
    write_embedding_store as write_embedding_store,
)
