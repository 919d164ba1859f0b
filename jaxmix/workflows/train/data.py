"""From the sections `sources` and `data` of a configuration to opened token sources."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils

from jaxmix.core.errors import ConfigError
from jaxmix.data.prepared.prepare import prepare_corpus
from jaxmix.data.prepared.store import PreparedSource, open_prepared, read_index, verify_prepared
from jaxmix.data.sources.corpora import bundled_corpus
from jaxmix.data.sources.readers import trouble_lines
from jaxmix.data.sources.specs import SourceSpec
from jaxmix.data.tokenizers import load_tokenizer
from jaxmix.train.run.progress import Progress
from jaxmix.workflows.config.resolve import Sizes
from jaxmix.workflows.config.sections import RunConfig


@dataclasses.dataclass(frozen=True)
class RunData:
    """The opened data of a run.

    Attributes:
        train, validation: token sources by domain, in the order of the configuration.
        sizes: tokens of the training part by domain.
        counts: records (documents, long ones in pieces) of the training part by domain.
        vocab_size: of the tokenizer.
        tokenizer_hash: its fingerprint.
        data_hash: by domain, the hash of the source as it was read.
    """

    train: dict[str, PreparedSource]
    validation: dict[str, PreparedSource]
    sizes: dict[str, int]
    counts: dict[str, int]
    vocab_size: int
    tokenizer_hash: str
    data_hash: dict[str, str]

    @property
    def known(self) -> Sizes:
        """The sizes, for `resolve_run`."""
        return Sizes(self.sizes, self.counts, self.vocab_size)


def prepare_and_open(config: RunConfig) -> RunData:
    """Prepares the sources unless they are prepared (on process 0, the others wait), and opens them."""
    if config.sources is not None and jax.process_index() == 0:
        prepare_sources(config)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("jaxmix: data prepared")
    folder = _prepared(config)
    index = read_index(folder)
    _check_domains(config, index)
    train = open_prepared(folder, "train")
    return RunData(
        train=train,
        validation=open_prepared(folder, "validation"),
        sizes={name: source.num_tokens for name, source in train.items()},
        counts={name: len(source) for name, source in train.items()},
        vocab_size=index["settings"]["vocab_size"],
        tokenizer_hash=index["settings"]["tokenizer"],
        data_hash={name: entry["source_hash"] for name, entry in index["domains"].items()},
    )


def prepare_sources(config: RunConfig) -> dict[str, Any]:
    """Tokenizes the sources into `data.prepared`, with progress; returns the index, and `was_ready`.

    Raises:
        ConfigError: the configuration has no sources, or they do not fit what the folder holds.
    """
    specs = _specs(config)
    tokenizer = load_tokenizer(config.data.tokenizer, end_of_document=config.data.end_of_document)
    with contextlib.closing(_PrepareProgress()) as progress:
        summary = prepare_corpus(
            specs,
            _prepared(config),
            tokenizer=tokenizer,
            validation_fraction=config.data.validation_fraction,
            workers=config.data.workers,
            progress=progress,
        )
    if summary.dropped:
        print(f"prepare: {summary.folder} no longer lists {', '.join(summary.dropped)}", file=sys.stderr)
    for name in summary.changed:
        print(f"prepare: {name} has changed and was tokenized again", file=sys.stderr)
    for name, kinds in summary.troubles().items():
        for line in trouble_lines(kinds):
            print(f"prepare: {name}: {line}", file=sys.stderr)
    return {"prepared": str(summary.folder), "was_ready": summary.was_ready, **summary.index}


def verify_preparation(config: RunConfig) -> dict[str, Any]:
    """What is wrong with the prepared files, by source; reads all of them.

    Raises:
        ConfigError: nothing is prepared there, or not the sources of the configuration.
    """
    folder = _prepared(config)
    index = read_index(folder)
    _check_domains(config, index)
    sources = {}
    for name, damage in verify_prepared(folder).items():
        shards = [shard for split in index["domains"][name]["splits"].values() for shard in split["shards"]]
        size = sum(shard["bytes"] for shard in shards)
        sources[name] = {"files": len(shards), "bytes": size, "damage": damage}
    return {"prepared": str(folder), "sources": sources}


def _check_domains(config: RunConfig, index: Mapping[str, Any]) -> None:
    """Raises `ConfigError` unless the prepared folder holds the sources of the configuration, in their order."""
    names = list(index["domains"])
    if config.source_names is not None and list(config.source_names) != names:
        raise ConfigError(
            f"{_prepared(config)} holds the domains {', '.join(names)}, the configuration names "
            f"{', '.join(config.source_names)}",
            where="sources",
            fix="Choose another data.prepared, or leave sources out to use the prepared data.",
        )


def preparation_table(summary: Mapping[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Columns and rows that show what `prepare_sources` returned."""
    columns = (
        "domain",
        "documents",
        "train tokens",
        "validation tokens",
        "bytes on disk",
        "near-duplicates",
        "troubles",
    )
    rows: list[tuple[str, ...]] = [
        (
            name,
            f"{entry['documents']:,}",
            f"{entry['splits']['train']['tokens']:,}",
            f"{entry['splits']['validation']['tokens']:,}",
            f"{entry['bytes']:,}",
            f"{near['count']:,} of {near['of']:,}" if (near := entry.get("near_duplicates")) else "not counted",
            str(sum(kind["count"] for kind in entry["troubles"].values())),
        )
        for name, entry in summary["domains"].items()
    ]
    return columns, rows


def describe_preparation(config: RunConfig) -> dict[str, Any]:
    """What `prepare` would read and write. Looks for the files and opens none."""
    about = {}
    for name, spec in _specs(config).items():
        files = spec.files()
        size = sum(path.stat().st_size for path in files)
        known = f"{len(files)} file{'s' if len(files) != 1 else ''}, {size:,} bytes"
        about[name] = known if files else f"{'tfds' if spec.tfds else 'hf'} {spec.tfds or spec.hf}, split {spec.split}"
    return {"prepared": str(_prepared(config)), "tokenizer": config.data.tokenizer, "sources": about}


def known_sizes(config: RunConfig) -> tuple[Sizes, list[str]]:
    """What is known without opening data: from the index of a prepared folder, else from the configuration.

    Returns:
        The sizes, and sentences on what is not known.
    """
    try:
        index = read_index(_prepared(config))
    except ConfigError:
        index = None
    domains = {} if index is None else index["domains"]
    train = {n: domains[n]["splits"]["train"] for n in config.source_names or domains if n in domains}
    tokens: dict[str, float | None] = {name: float(part["tokens"]) for name, part in train.items()}
    counts: dict[str, float | None] = {name: float(part["records"]) for name, part in train.items()}
    if index is not None and set(train) == set(config.source_names or domains):
        return Sizes(tokens, counts, index["settings"]["vocab_size"]), []
    vocab_size = 256 if config.data.tokenizer == "byte" else None
    unknown = [] if vocab_size else [f"the vocabulary of {config.data.tokenizer}: the preset's is taken"]
    if config.sources == "bundled":
        unknown.append("sizes are bytes less the held-out share, until `jaxmix prepare` has run")
        kept = 1 - config.data.validation_fraction
        tokens = {name: tokens.get(name, domain.num_bytes * kept) for name, domain in bundled_corpus().items()}
    elif isinstance(config.sources, Mapping):
        for spec in source_specs(config.sources).values():
            try:
                spec.files()
            except ConfigError as error:
                unknown.append(f"{error.what} (from {Path.cwd()})")
        tokens = {name: tokens.get(name, source.tokens) for name, source in config.sources.items()}
        missing = [name for name, size in tokens.items() if size is None]
        if missing:
            unknown.append(f"the size of {', '.join(missing)}: run `jaxmix prepare`, or give `tokens:`")
    else:
        unknown.append(f"everything about {_prepared(config)}: it is not prepared yet")
    uncounted = [name for name in tokens if name not in counts]
    if config.data.unit != "tokens" and (uncounted or not tokens):
        listed = ", ".join(uncounted) if counts else "every source"
        unknown.append(f"the number of {config.data.unit} of {listed}: run `jaxmix prepare`")
    return Sizes(tokens, {name: counts.get(name) for name in tokens}, vocab_size), unknown


def _prepared(config: RunConfig) -> Path:
    assert config.data.prepared is not None
    return Path(config.data.prepared)


def _specs(config: RunConfig) -> dict[str, SourceSpec]:
    if config.sources is None:
        raise ConfigError("there are no sources to prepare", where="sources", fix="Name them, or write `bundled`.")
    return source_specs(config.sources)


def source_specs(sources: Any) -> dict[str, SourceSpec]:
    """The section `sources` of a configuration, "bundled" or a mapping of `SourceConfig`, as specifications by name."""
    if sources == "bundled":
        return {name: SourceSpec(name=name, path=str(domain.path)) for name, domain in bundled_corpus().items()}
    assert isinstance(sources, Mapping)
    return {name: source.spec(name) for name, source in sources.items()}


class _PrepareProgress:
    """The progress of `prepare`, whose number of parts is known when the first is done."""

    def __init__(self) -> None:
        self._progress: Progress | None = None

    def __call__(self, done: int, total: int, tokens: int) -> None:
        if self._progress is None:
            self._progress = Progress(total, label="prepare", noun="part")
        self._progress.show(done, f"{tokens:,} tokens")

    def close(self) -> None:
        if self._progress is not None:
            self._progress.close()
