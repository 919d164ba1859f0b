"""The documents of a discovery: a share of those in the sources, stored as Parquet files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jaxmix.data.files import write_whole
from jaxmix.data.hashing import split_words
from jaxmix.data.sources.readers import Trouble, Unit
from jaxmix.data.sources.specs import SourceSpec
from jaxmix.workflows.discover.config import DocumentsConfig
from jaxmix.workflows.train.data import source_specs

_TROUBLES = b"jaxmix.troubles"


def source_units(sources: Any) -> dict[str, tuple[SourceSpec, Unit]]:
    """Every unit of work of the sources by the name of its shard, such as `web-00003`, in order.

    Args:
        sources: the section `sources` of a configuration.
    """
    return {
        f"{name}-{number:05d}": (spec, unit)
        for name, spec in ((name, spec.listed()) for name, spec in source_specs(sources).items())
        for number, unit in enumerate(spec.units())
    }


def write_sample(folder: Path, units: Mapping[str, Any], config: DocumentsConfig) -> dict[str, Any]:
    """Writes the sampled documents of every unit that is not written yet; returns counts and troubles.

    A document is drawn, and held out, by hashes of its text: the same ones whatever the order of the files, and equal
    texts alike.
    """
    for name, (spec, unit) in units.items():
        path = folder / f"{name}.parquet"
        if path.is_file():
            continue
        trouble = Trouble()
        rows: list[tuple[int, str, bool]] = []
        for number, _, text in spec.texts(unit, trouble):
            drawn, held = _chances(text, config.seed)
            if drawn < config.share:
                rows.append((number, text, held < config.held_out))
        counts = [np.diff(split_words([t for _, t, _ in rows[i : i + 256]]).offsets) for i in range(0, len(rows), 256)]
        table = pa.table(
            {
                "document": pa.array([number for number, _, _ in rows], pa.int64()),
                "text": pa.array([text for _, text, _ in rows], pa.large_string()),
                "words": pa.array(np.concatenate([np.zeros(0, np.int64), *counts])),
                "held_out": pa.array([held for _, _, held in rows], pa.bool_()),
            }
        )
        write_parquet(path, table.replace_schema_metadata({_TROUBLES: json.dumps(trouble.to_json())}))
    files = [pq.ParquetFile(folder / f"{name}.parquet") for name in units]
    troubles = Trouble()
    for file in files:
        troubles.merge(json.loads(file.schema_arrow.metadata[_TROUBLES]))
    return {"documents": sum(file.metadata.num_rows for file in files), "troubles": troubles.to_json()}


def write_parquet(path: Path, table: Any) -> None:
    """Writes a table, replaced as a whole; equal tables give equal bytes."""
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="zstd", row_group_size=16_384)
    write_whole(path, buffer.getvalue().to_pybytes())


def _chances(text: str, seed: int) -> tuple[float, float]:
    """Two independent numbers in [0, 1) that depend on the text and the seed alone."""
    data = text.encode("utf-8", "surrogatepass")
    digest = hashlib.blake2b(data, digest_size=16, key=seed.to_bytes(8, "little"), person=b"jaxmix-discover").digest()
    return int.from_bytes(digest[:8], "little") / 2**64, int.from_bytes(digest[8:], "little") / 2**64


def read_shard(folder: Path, name: str, column: str = "text") -> list[Any]:
    """One column of a shard of the sample."""
    return list(pq.read_table(folder / f"{name}.parquet", columns=[column]).column(column).to_pylist())


class SampleTable(NamedTuple):
    """What is known of every document of the sample but its text, in the order of shards and documents.

    Attributes:
        shard: i32[n], number of the shard.
        row: i64[n], row within its Parquet file.
        document: i64[n], number within its unit.
        words: i64[n].
        held_out: bool[n].
    """

    shard: np.ndarray
    row: np.ndarray
    document: np.ndarray
    words: np.ndarray
    held_out: np.ndarray


def read_sample(folder: Path, names: list[str]) -> SampleTable:
    """Reads the table of a sample whose shards are `names`."""
    columns: dict[str, list[np.ndarray]] = {"document": [], "words": [], "held_out": []}
    for name in names:
        table = pq.read_table(folder / f"{name}.parquet", columns=list(columns))
        for key, parts in columns.items():
            parts.append(table.column(key).to_numpy())
    sizes = [len(part) for part in columns["words"]]
    joined = {key: np.concatenate(parts) for key, parts in columns.items()}
    shard = np.repeat(np.arange(len(names), dtype=np.int32), sizes)
    row = np.concatenate([np.arange(size, dtype=np.int64) for size in sizes])
    return SampleTable(shard, row, **joined)
