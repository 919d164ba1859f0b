"""The stage `taxonomy` of a discovery: terms, nearest and representative documents, names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from jaxmix.models.student.sampling import choose_rows, rule_scores
from jaxmix.workflows.discover.artifacts import Findings
from jaxmix.workflows.discover.config import DiscoverConfig, find_namer
from jaxmix.workflows.discover.taxonomy import (
    count_terms,
    excerpt,
    name_clusters,
    nearest_rows,
    suggest_name,
    top_terms,
)
from jaxmix.workflows.provenance import write_json

POOL = 50_000
"""Documents of a cluster that are looked at for scores; of larger clusters so many at random."""
_PER_TERMS = 2_000


def describe_findings(found: Findings, config: DiscoverConfig, folder: Path) -> dict[str, Any]:
    """Writes taxonomy.json into `folder` and returns it."""
    section, table, num_clusters = config.taxonomy, found.table, config.clusterer.num_clusters
    labels, confidence = found.labels
    usable = np.flatnonzero(labels >= 0)
    seed = config.documents.seed

    def drawn(count: int) -> np.ndarray:
        return usable[choose_rows(labels[usable], None, num_clusters=num_clusters, per_cluster=count, seed=seed)]

    some = drawn(_PER_TERMS)
    parts = (some[i : i + 512] for i in range(0, len(some), 512))
    terms = top_terms(
        count_terms(((found.texts(part), labels[part]) for part in parts), num_clusters), count=section.terms
    )
    pool = drawn(POOL)
    rows, (_, state) = found.vectors(pool), found.clusters
    kinds = {}
    for kind, rule in (("nearest", "center"), ("representatives", "gis")):
        scores = rule_scores(rule, state=state, x=rows, confidence=confidence[pool], labels=labels[pool])
        assert scores is not None
        best = nearest_rows(scores, labels[pool], num_clusters=num_clusters, count=section.documents)
        kinds[kind] = [pool[places] for places in best]
    texts = {kind: [found.texts(rows) for rows in own] for kind, own in kinds.items()}
    titles, names = name_clusters(
        [suggest_name(words) for words in terms],
        representatives=texts["representatives"],
        terms=terms,
        namer=find_namer(section.namer, "taxonomy.namer"),
    )
    words = np.bincount(labels[usable], table.words[usable], minlength=num_clusters)
    shards = found.shards

    def shown(kind: str) -> list[list[dict[str, Any]]]:
        return [
            [
                {"shard": shards[table.shard[row]], "document": int(table.document[row]), "text": excerpt(text)}
                for row, text in zip(rows, own, strict=True)
            ]
            for rows, own in zip(kinds[kind], texts[kind], strict=True)
        ]

    columns = {
        "name": names,
        "title": titles,
        "documents": np.bincount(labels[usable], minlength=num_clusters).tolist(),
        "words": [int(value) for value in words],
        "concentration": [float(value) for value in np.asarray(state.concentrations)],
        "bias": [float(value) for value in np.asarray(state.biases)],
        "terms": terms,
        "nearest": shown("nearest"),
        "representatives": shown("representatives"),
    }
    clusters = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    write_json(folder / "taxonomy.json", {"clusters": clusters})
    return {"clusters": clusters}
