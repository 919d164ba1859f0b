"""Shards of a labeling, and how one is labeled.

A *shard* is one input file (all pieces of it), or a group of small text files. Its labels are one Parquet file:

    document    i64   number within the shard
    place       text  where the document is: file and line, row or byte
    label       i32   number of the domain; −1 where there is nothing to read
    domain      text  its name
    confidence  f32   posterior probability of the label
    bytes       i64   length of the document in UTF-8

and its metadata say what it was made from and by. A shard that has its labels is skipped, so that the same command, run
again or on more machines, only does what is missing; files appear whole or not at all. Engines differ in
where `label_shard` runs, and in nothing else: the bytes are the same.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jaxmix.core.errors import ConfigError
from jaxmix.data.files import write_whole
from jaxmix.data.sources.readers import Trouble, Unit
from jaxmix.data.sources.specs import LABELS, SourceSpec
from jaxmix.workflows.discover.domains import Domains
from jaxmix.workflows.label.config import LabelConfig
from jaxmix.workflows.train.data import source_specs

_ABOUT = b"jaxmix"
_SAMPLE = 65_536


@dataclasses.dataclass(frozen=True)
class LabelShard:
    """A piece of a labeling; picklable, so that any worker can do it.

    Attributes:
        name: of source and number, for messages.
        spec: of the source.
        units: what to read, in order.
        target: the file to write.
        key: hash of what the labels depend on: the documents' files, the models, the method.
    """

    name: str
    spec: SourceSpec
    units: tuple[Unit, ...]
    target: Path
    key: str

    def result(self) -> dict[str, Any] | None:
        """The metadata of the labels, or None where there are no labels.

        Raises:
            ConfigError: the labels were made of other documents or by other models.
        """
        if not self.target.is_file():
            return None
        about = json.loads((pq.read_schema(self.target).metadata or {}).get(_ABOUT, b"{}"))
        if about.get("key") != self.key:
            raise ConfigError(
                f"{self.target.name} has labels of other documents or by other models",
                where=str(self.target),
                fix="Remove it, or set labels to another folder.",
            )
        return dict(about)


def label_shards(config: LabelConfig, domains: Domains) -> list[LabelShard]:
    """The work of a labeling, in order. Looks at the files and reads none but their ends."""
    identity = domains.identity(config.method)
    shards = []
    for source, spec in source_specs(config.sources).items():
        groups: dict[Any, list[Unit]] = {}
        for unit in spec.units():
            is_group = unit.kind == "text" or not unit.paths
            groups.setdefault((unit.paths, unit.start) if is_group else unit.paths, []).append(unit)
        for number, units in enumerate(groups.values()):
            target = _target(config, source, number, units)
            key = _key(identity, config, spec, units)
            shards.append(LabelShard(f"{source}-{number:05d}", spec, tuple(units), target, key))
    targets = [shard.target for shard in shards]
    if len(set(targets)) < len(targets):
        twice = next(target for target in targets if targets.count(target) > 1)
        raise ConfigError(
            f"two sources read {twice.name.removesuffix(LABELS)}", where="sources", fix="Name every file once."
        )
    return shards


def _target(config: LabelConfig, source: str, number: int, units: list[Unit]) -> Path:
    if config.labels is not None:
        name = units[0].paths[0].name if len(units[0].paths) == 1 else units[0].kind
        return Path(config.labels) / source / f"{number:05d}-{name}{LABELS}"
    first = units[0].paths[0]
    if units[0].kind == "text":  # a group of small files: one table for all of them
        return first.parent / f"{source}-{number:05d}{LABELS}"
    return first.with_name(first.name + LABELS)


def _key(identity: str, config: LabelConfig, spec: SourceSpec, units: list[Unit]) -> str:
    """Hash over models, method and the documents: by size and ends of every file, or by the data set's name."""
    digest = hashlib.blake2b(digest_size=16)
    settings: list[Any] = [identity, spec.text_field, spec.format, spec.split, spec.tfds, spec.hf]
    if spec.config_name is not None:
        settings.append(spec.config_name)
    if config.method == "teacher":  # the last bits of a vector depend on the texts encoded with it
        settings.append(config.batch_documents)
    digest.update(json.dumps(settings).encode())
    if spec.documents is not None:
        digest.update(spec.fingerprint().encode())
    for unit in units:
        digest.update(f"\0{unit.kind} {unit.start} {unit.stop}".encode())
        for path in unit.paths:
            size = path.stat().st_size
            digest.update(f"\0{path.name} {size} ".encode())
            with path.open("rb") as file:
                digest.update(file.read(_SAMPLE))
                file.seek(max(size - _SAMPLE, 0))
                digest.update(file.read(_SAMPLE))
    return digest.hexdigest()


def label_shard(shard: LabelShard, domains: Domains, *, method: str, batch_documents: int) -> dict[str, Any]:
    """Labels one shard unless that is done, and returns the metadata of its labels.

    This is what every engine runs. Nothing is visible of a shard before its labels are whole.

    Returns:
        `{"key", "documents", "bytes", "counts": documents by domain, "bytes_by_domain", "unlabeled", "troubles"}`.
    """
    done = shard.result()
    if done is not None:
        return done
    trouble = Trouble()
    names = [*domains.names, None]  # −1 is the last: no domain
    counts, sizes = np.zeros(len(names), np.int64), np.zeros(len(names), np.int64)
    tables, number = [], 0
    for places, texts in _batches(shard, batch_documents, trouble):
        found = domains.label(texts, method)
        lengths = np.asarray([len(text.encode("utf-8", "surrogatepass")) for text in texts], np.int64)
        counts += np.bincount(found.labels % len(names), minlength=len(names))
        sizes += np.bincount(found.labels % len(names), lengths, minlength=len(names)).astype(np.int64)
        tables.append(
            {
                "document": pa.array(np.arange(number, number + len(texts))),
                "place": pa.array(places, pa.string()),
                "label": pa.array(found.labels),
                "domain": pa.array([names[label] for label in found.labels], pa.string()),
                "confidence": pa.array(found.confidence),
                "bytes": pa.array(lengths),
            }
        )
        number += len(texts)
    about = {
        "key": shard.key,
        "method": method,
        "models": domains.identity(method),
        "documents": number,
        "bytes": int(sizes.sum()),
        "counts": dict(zip(domains.names, counts[:-1].tolist(), strict=True)),
        "bytes_by_domain": dict(zip(domains.names, sizes[:-1].tolist(), strict=True)),
        "unlabeled": int(counts[-1]),
        "troubles": trouble.to_json(),
    }
    schema = pa.schema(
        [("document", pa.int64()), ("place", pa.string()), ("label", pa.int32()), ("domain", pa.string()),
         ("confidence", pa.float32()), ("bytes", pa.int64())],
        metadata={_ABOUT: json.dumps(about, ensure_ascii=False)},
    )  # fmt: skip
    buffer = pa.BufferOutputStream()
    with pq.ParquetWriter(buffer, schema, compression="zstd") as writer:
        for table in tables:
            writer.write_table(pa.table(table, schema=schema))
    write_whole(shard.target, buffer.getvalue().to_pybytes())
    return about


def _batches(shard: LabelShard, size: int, trouble: Trouble) -> Iterator[tuple[list[str], list[str]]]:
    """Places and texts of a shard's documents in batches of `size`; empty documents keep their place."""
    places: list[str] = []
    texts: list[str] = []
    for unit in shard.units:
        for where, text in shard.spec.decoded(unit, trouble):
            texts.append(text)
            places.append(where)
            if len(texts) == size:
                yield places, texts
                places, texts = [], []
    if texts:
        yield places, texts
