"""Results that later stages of a discovery read from earlier ones: documents, labels, vectors."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from jaxmix.data.embeddings import open_embedding_store
from jaxmix.workflows.discover.documents import SampleTable, read_sample, read_shard
from jaxmix.workflows.discover.domains import load_clusters


class Findings:
    """The results in the folder of a discovery, each readable once its stage is done.

    Args:
        out: the folder.
        shards: names of all shards of documents, in order.
    """

    def __init__(self, out: Path, shards: Sequence[str]):
        self.out, self.shards = out, list(shards)

    @cached_property
    def table(self) -> SampleTable:
        """What is known of every document; after the stage `documents`."""
        return read_sample(self.out / "documents", self.shards)

    @cached_property
    def store(self) -> Any:
        """The vectors; after the stage `embeddings`."""
        return open_embedding_store(self.out / "embeddings" / "store")

    @cached_property
    def labels(self) -> tuple[np.ndarray, np.ndarray]:
        """Label (−1: none) and log posterior of every document; after the stage `clusters`."""
        with np.load(self.out / "clusters" / "labels.npz") as stored:
            return stored["labels"], stored["confidence"]

    @cached_property
    def clusters(self) -> tuple[Any, Any]:
        """Clusterer and state; after the stage `clusters`."""
        return load_clusters(self.out / "clusters")

    def texts(self, rows: np.ndarray) -> list[str]:
        """Texts of documents, in the order asked."""
        texts: dict[int, str] = {}
        for shard in np.unique(self.table.shard[rows]).tolist():
            own = read_shard(self.out / "documents", self.shards[shard])
            texts |= {int(row): own[self.table.row[row]] for row in rows[self.table.shard[rows] == shard]}
        return [texts[int(row)] for row in rows]

    @cached_property
    def places(self) -> np.ndarray:
        """The document of every vector."""
        starts = np.searchsorted(self.table.shard, np.arange(len(self.shards)))
        shard, number = self.store.documents()
        return np.asarray(starts[shard] + number)

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """Vectors f32[n, d] of documents that have one."""
        vector = np.full(len(self.table.row), -1, np.int64)
        vector[self.places] = np.arange(len(self.store))
        return np.asarray(self.store.take(vector[rows]))
