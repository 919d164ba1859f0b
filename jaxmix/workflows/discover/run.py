"""`jaxmix discover`: documents → vectors → clusters → student → named domains that other commands train on.

Every stage has a folder below `out`, is done once and goes on after a kill:

    documents/   the documents that clusters are found on, a Parquet file per piece of the sources
    encoder/     the encoder, for labeling
    embeddings/  vectors of the documents
    clusters/    the clusters with their biases, and the labels of the documents
    student/     the classifier of raw text, and how it compares with the clusters
    taxonomy/    what each cluster is about; taxonomy.json
    sources/     all documents of the sources, one folder per domain
    sources.yaml, domains.json, discovery.json, report.html
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow as pa

from jaxmix.clustering import cluster_sizes, fit, fit_stream, make, size_entropy
from jaxmix.core.errors import ConfigError, RunError
from jaxmix.data.embeddings import write_embedding_store
from jaxmix.data.files import write_whole
from jaxmix.data.sources.readers import Trouble
from jaxmix.models.encoders.base import ENCODER_FILE
from jaxmix.models.encoders.load import load_encoder
from jaxmix.models.student.sampling import choose_rows, compare_labels, rule_scores
from jaxmix.models.student.training import train_student
from jaxmix.report.pages.discover import write_discovery_page
from jaxmix.workflows.config.build import to_plain
from jaxmix.workflows.config.yaml import dump_yaml
from jaxmix.workflows.discover.artifacts import Findings
from jaxmix.workflows.discover.config import DiscoverConfig
from jaxmix.workflows.discover.documents import (
    read_shard,
    source_units,
    write_parquet,
    write_sample,
)
from jaxmix.workflows.discover.domains import (
    DOMAINS,
    Domains,
    accelerators,
    label_rows,
    load_clusters,
    open_encoder,
    save_clusters,
)
from jaxmix.workflows.discover.stages import run_stage
from jaxmix.workflows.discover.taxonomy_stage import POOL, describe_findings
from jaxmix.workflows.provenance import made_by, now, write_json

__all__ = ["DISCOVERY", "SOURCES", "run_discovery"]

DISCOVERY, SOURCES = "discovery.json", "sources.yaml"
_SHARD_ROWS = 65_536


def run_discovery(config: DiscoverConfig, *, command: str, say: Callable[[str], None]) -> dict[str, Any]:
    """Runs all stages that are not done and returns the summary, which is also discovery.json.

    Args:
        config: from `load_discovery`.
        command: what was typed.
        say: receives one line per stage.

    Raises:
        ConfigError: a stage was made with other settings, or the sources cannot be read.
        RunError: there is too little to cluster.
    """
    assert config.out is not None
    return _Discovery(config, Path(config.out), say).run(command)


class _Discovery:
    """One discovery: its folder, and the stages as methods."""

    def __init__(self, config: DiscoverConfig, out: Path, say: Callable[[str], None]):
        self._config, self._out, self._say = config, out, say
        self._units = source_units(config.sources)
        self._k = config.clusterer.num_clusters
        self._found = Findings(out, list(self._units))

    def run(self, command: str) -> dict[str, Any]:
        plain = to_plain(self._config)
        specs = {spec.name: spec for spec, _ in self._units.values()}
        inputs = {name: spec.fingerprint() for name, spec in specs.items()}
        write_whole(self._out / "config.yaml", dump_yaml(plain))
        documents = self._stage(
            "documents", {"sources": inputs, "documents": plain["documents"]},
            lambda folder: write_sample(folder, self._units, self._config.documents),
        )  # fmt: skip
        if documents["documents"] < 2 * self._k:
            raise RunError(
                f"{documents['documents']} documents are too few for {self._k} clusters",
                where=str(self._out / "documents"),
                fix="Use more documents or fewer clusters.",
            )
        embeddings = self._stage("embeddings", {"encoder": plain["encoder"], "after": documents["key"]}, self._embed)
        clusters = self._stage(
            "clusters",
            {"clusterer": plain["clusterer"], "fit": plain["fit"], "after": embeddings["key"]},
            self._cluster,
        )
        student = self._stage("student", {"student": plain["student"], "after": clusters["key"]}, self._teach)
        taxonomy = self._stage(
            "taxonomy",
            {"taxonomy": plain["taxonomy"], "after": clusters["key"]},
            lambda folder: describe_findings(self._found, self._config, folder),
        )
        identities = {
            "encoder": embeddings["encoder"], "clusters": clusters["identity"], "student": student["identity"]
        }  # fmt: skip
        names = [cluster["name"] for cluster in taxonomy["clusters"]]
        domains = Domains(self._out, tuple(names), identities)
        sources = self._stage(
            "sources",
            {
                "label_with": self._config.label_with,
                "names": names,
                "after": clusters["key"],
                "student": student["key"],
            },
            lambda folder: self._sort(folder, domains),
        )
        self._write_sources(names, sources)
        summary = {
            "out": str(self._out),
            "documents": documents,
            "embeddings": embeddings,
            "clusters": clusters,
            "student": student,
            "taxonomy": taxonomy,
            "sources": sources,
        }
        provenance = {**made_by(command), "finished": now(), "sources": inputs, "identities": identities}
        about = {**summary, "provenance": provenance, "config": plain}
        write_json(self._out / DISCOVERY, about)
        page = write_discovery_page(self._out, about)
        write_json(self._out / DOMAINS, {"format": 1, "names": names, "identities": identities})
        return {**summary, "report": str(page)}

    def _stage(self, name: str, settings: Mapping[str, Any], work: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
        folder = self._out / name
        return run_stage(folder, settings, lambda: work(folder), say=self._say)

    # ── stages ───────────────────────────────────────────────────────────────────────────────────

    def _embed(self, folder: Path) -> dict[str, Any]:
        section, home = self._config.encoder, self._out / "encoder"
        if not (home / ENCODER_FILE).is_file():
            sample = self._encoder_sample(section.sample) if section.name == "builtin" else None
            encoder = load_encoder(section.name, sample=sample, **section.options)
            if encoder.save is None:
                raise ConfigError(f"the encoder {section.name!r} cannot be saved", where="encoder.name")
            encoder.save(home)
        encoder = open_encoder(home)
        texts = {name: self._reader(name) for name in self._units}
        step = max(1, len(texts) // 10)

        def report(done: int, total: int, shard: Any) -> None:
            if done % step == 0 or done == total:
                self._say(f"  embeddings: {done} of {total} shards")

        store = write_embedding_store(
            folder / "store", texts_by_shard=texts, encoder=encoder, dtype=section.dtype, report=report
        )
        assert store is not None
        dropped = sum(len(numbers) for numbers in store.dropped().values())
        return {"rows": len(store), "dim": store.dim, "encoder": store.identity, "dropped": dropped}

    def _reader(self, name: str) -> Callable[[], list[str]]:
        return lambda: read_shard(self._out / "documents", name)

    def _encoder_sample(self, most: int) -> list[str]:
        """Evenly spaced documents of all shards, so many in all."""
        table = self._found.table
        chosen = np.unique(np.linspace(0, len(table.row) - 1, min(most, len(table.row))).round().astype(np.int64))
        return self._found.texts(chosen)

    def _cluster(self, folder: Path) -> dict[str, Any]:
        section, how = self._config.clusterer, self._config.fit
        store, table = self._found.store, self._found.table
        clusterer = make(section.name, section.num_clusters, **section.options)
        places = self._found.places
        words = np.maximum(table.words[places], 1).astype(np.float32)
        weights = words / words.mean() if how.weigh_by == "words" else None
        key = jax.random.key(how.seed)
        if len(store) * store.dim * 4 <= how.memory:
            rows = store.read(0, len(store))
            result = fit(clusterer, rows, key=key, sample_weight=weights, mesh=accelerators(), **how.options)
        else:
            options = {name: value for name, value in how.options.items() if name != "restarts"}
            if how.options.get("restarts", 1) != 1:
                raise ConfigError(
                    "a fit larger than fit.memory has one start", where="fit.restarts", fix="Leave it out."
                )
            result = fit_stream(
                clusterer,
                lambda: _blocks(store, weights),
                key=key,
                mesh=accelerators(),
                checkpoint=folder / "fit",
                **options,
            )
        identity = save_clusters(
            folder,
            result.state,
            clusterer=section.name,
            num_clusters=section.num_clusters,
            options=section.options,
            encoder=store.identity,
        )
        labels, confidence, soft = np.full(len(table.row), -1, np.int32), np.zeros(len(table.row), np.float32), 0.0
        clusterer, state = load_clusters(folder)
        for start in range(0, len(store), _SHARD_ROWS):
            here = places[start : start + _SHARD_ROWS]
            labels[here], posterior = label_rows(clusterer, state, store.read(start, start + len(here)))
            confidence[here] = posterior.max(axis=1)
            soft = soft + np.exp(posterior.astype(np.float64)).sum(axis=0)
        np.savez(folder / "labels.npz", labels=labels, confidence=confidence)
        sizes = cluster_sizes(labels, self._k)
        by_words = cluster_sizes(labels, self._k, np.maximum(table.words, 1))
        mass = np.asarray(soft) / np.sum(soft)
        return {
            "identity": identity,
            "objective": [float(value) for value in result.objective],
            "converged": bool(result.converged),
            "iterations": int(result.iterations),
            "largest_bias": float(np.abs(np.asarray(state.biases)).max()),
            "size_entropy": {
                "documents": float(size_entropy(sizes)),
                "words": float(size_entropy(by_words)),
                "posterior": float(size_entropy(mass)),
            },
            "largest_share": float(sizes.max()),
            "smallest_share": float(sizes.min()),
        }

    def _teach(self, folder: Path) -> dict[str, Any]:
        section, table = self._config.student, self._found.table
        labels, confidence = self._found.labels
        usable = np.flatnonzero((labels >= 0) & ~table.held_out)
        pool = usable[choose_rows(labels[usable], None, num_clusters=self._k, per_cluster=POOL, seed=section.seed)]
        scores = None
        if section.rule != "random":
            rows, (_, state) = self._found.vectors(pool), self._found.clusters
            scores = rule_scores(section.rule, state=state, x=rows, confidence=confidence[pool], labels=labels[pool])
        chosen = pool[
            choose_rows(labels[pool], scores, num_clusters=self._k, per_cluster=section.per_cluster, seed=section.seed)
        ]
        targets: np.ndarray = labels[chosen]
        if section.soft:
            rows, (clusterer, state) = self._found.vectors(chosen), self._found.clusters
            targets = np.exp(label_rows(clusterer, state, rows)[1])
            targets /= targets.sum(axis=1, keepdims=True)
        counts = np.bincount(labels[usable], minlength=self._k)
        student = train_student(
            self._found.texts(chosen),
            targets,
            num_clusters=self._k,
            key=jax.random.key(section.seed),
            mass=np.maximum(counts, 0.5) / len(usable) if section.match_mass else None,
            **section.options,
        )
        student.save(folder / "model")
        held = np.flatnonzero((labels >= 0) & table.held_out)
        result: dict[str, Any] = {"identity": student.identity, "trained_on": len(chosen), "held_out": len(held)}
        if len(held):
            found, _ = student.predict(self._found.texts(held))
            quality = compare_labels(labels[held], found, num_clusters=self._k)
            result |= {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in quality._asdict().items()}
        return result

    def _sort(self, folder: Path, domains: Domains) -> dict[str, Any]:
        """Writes every document of the sources to its domain, piece by piece; returns documents and bytes by domain."""
        table, (labels, _) = self._found.table, self._found.labels
        counts = {name: [0, 0] for name in domains.names}
        for number, (shard, (spec, unit)) in enumerate(self._units.items()):
            known = dict(zip(table.document[table.shard == number].tolist(), labels[table.shard == number].tolist(),
                             strict=True))  # fmt: skip
            found = [(document, text) for document, _, text in spec.texts(unit, Trouble())]
            own = np.asarray([known.get(document, -1) for document, _ in found], np.int32)
            if self._config.label_with == "student":
                own[:] = -1
            missing = np.flatnonzero(own < 0)
            own[missing] = domains.label([found[i][1] for i in missing], "student").labels
            for label, name in enumerate(domains.names):
                texts = [found[i][1] for i in np.flatnonzero(own == label)]
                path = folder / name / f"{shard}.parquet"
                if texts and not path.is_file():
                    write_parquet(path, pa.table({"text": pa.array(texts, pa.large_string())}))
                counts[name][0] += len(texts)
                counts[name][1] += sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)
        return {"domains": {name: {"documents": d, "bytes": b} for name, (d, b) in counts.items()}}

    def _write_sources(self, names: list[str], sources: Mapping[str, Any]) -> None:
        """The section `sources` of other configurations: the domains that have documents."""
        there = [name for name in names if sources["domains"][name]["documents"]]
        section = dump_yaml({"sources": {name: {"path": f"sources/{name}"} for name in there}})
        write_whole(self._out / SOURCES, f"# Paths are relative to this folder, which may be moved.\n{section}")


def _blocks(store: Any, weights: np.ndarray | None) -> Iterator[Any]:
    for start, block in zip(range(0, len(store), _SHARD_ROWS), store.blocks(_SHARD_ROWS), strict=True):
        yield block if weights is None else (block, weights[start : start + len(block)])
