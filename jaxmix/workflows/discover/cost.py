"""Estimates of the time and disk space of a discovery, from file sizes alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from jaxmix.core.errors import ConfigError
from jaxmix.workflows.discover.config import DiscoverConfig
from jaxmix.workflows.discover.documents import source_units

_BYTES_PER_DOCUMENT = 4_000
_BUILTIN_DIM, _BUILTIN_FEATURES = 256, 1 << 16
_PACKED = 0.45
"""Bytes of zstd-compressed text per byte of plain text (0.35 to 0.5 on the bundled texts)."""


def estimate(config: DiscoverConfig) -> dict[str, Any]:
    """Documents, bytes on disk and operations, each a rough estimate.

    Documents of Parquet files are counted; of others one is reckoned for 4,000 bytes. The width of a checkpoint's
    vectors is read from its config.json.
    """
    documents, size, packed = 0.0, 0, 0.0
    seen: set[Any] = set()
    for spec, unit in source_units(config.sources).values():
        files = [path for path in unit.paths if path not in seen]
        seen |= set(files)
        own = sum(path.stat().st_size for path in files)
        size += own
        is_plain = unit.kind == "text" or any(path.suffix in (".jsonl", ".ndjson") for path in files)
        packed += own * (_PACKED if is_plain else 1.0)
        documents += _documents(unit, own, spec)
    share, k = config.documents.share, config.clusterer.num_clusters
    vectors = documents * share
    dim = _dim(config)
    iterations = int(config.fit.options.get("max_iters", 100))
    return {
        "documents": round(documents),
        "input_bytes": size,
        "sampled_documents": round(vectors),
        "dim": dim,
        "disk_bytes": {
            "documents": round(packed * share),
            "encoder": 4 * _BUILTIN_FEATURES * dim if config.encoder.name == "builtin" else 1_000,
            "embeddings": round(vectors * dim * 2),
            "student": 4 * (k + 1) * min(int(config.student.options.get("buckets", 1 << 21)), round(vectors * 400)),
            "sources": round(packed),
        },
        "fit_operations": 4 * vectors * k * dim * iterations,
        "memory_bytes": round(min(vectors * dim * 4, config.fit.memory) + vectors * k * 4),
    }


def _documents(unit: Any, size: int, spec: Any) -> float:
    if unit.kind == "parquet":
        metadata = pq.ParquetFile(unit.paths[0]).metadata
        stop = metadata.num_row_groups if unit.stop < 0 else unit.stop
        return float(sum(metadata.row_group(group).num_rows for group in range(unit.start, stop)))
    if unit.kind == "text":
        return float(len(unit.paths))
    if unit.kind in ("tfds", "hf", "memory", "array_record") and unit.stop >= 0:
        return float(unit.stop - unit.start)
    return size / _BYTES_PER_DOCUMENT


def _dim(config: DiscoverConfig) -> int:
    if config.encoder.name == "builtin":
        return int(config.encoder.options.get("dim", _BUILTIN_DIM))
    path = Path(config.encoder.name) / "config.json"
    try:
        return int(json.loads(path.read_text(encoding="utf-8"))["hidden_size"])
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"there is no encoder in {config.encoder.name!r}", where="encoder.name", fix="Name a checkpoint's folder."
        ) from error
