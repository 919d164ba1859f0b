"""From a corpus to a store of embeddings: raw files by unit of work, or a prepared folder by records."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from jaxmix.core.errors import ConfigError
from jaxmix.data.embeddings import write_embedding_store
from jaxmix.data.prepared.store import open_prepared, read_index
from jaxmix.data.sources.readers import Trouble
from jaxmix.data.sources.specs import SourceSpec
from jaxmix.data.tokenizers import Tokenizer, byte_tokenizer

_RECORDS = 20_000
_DECODED = 256

Texts = dict[str, Callable[[], Iterable[str]]]


def embed_corpus(
    corpus: Mapping[str, SourceSpec] | str | Path,
    out: str | Path,
    *,
    encoder: Any,
    tokenizer: Tokenizer | None = None,
    dtype: str = "float16",
    block: int = 4096,
    part: tuple[int, int] = (0, 1),
    show_progress: bool = True,
) -> Any:
    """Embeds every document of a corpus. After an interruption, the same call continues with the next shard.

    `out` becomes an embedding store, with the encoder in `out/encoder` (where it can be saved). Shards are called
    after the source and the number of the unit, such as `web-00003`; documents keep their number within the unit,
    also beside blank ones, which have no row.

    Args:
        corpus: sources by domain, or a folder that `jaxmix prepare` wrote (its training part).
        out: folder; made when missing.
        encoder: from `load_encoder`.
        tokenizer: that of a prepared folder; bytes by default.
        dtype, block, part: see `write_embedding_store`. Processes with different parts may run side by side.
        show_progress: one line for every shard on standard error.

    Returns:
        The opened `EmbeddingStore`; None where other parts are not finished yet.

    Raises:
        ConfigError: the corpus is not there, the tokenizer is not its own, or `out` holds something else.
    """
    texts = source_texts(corpus) if isinstance(corpus, Mapping) else prepared_texts(corpus, tokenizer)
    report = _Lines() if show_progress else None
    store = write_embedding_store(
        out, texts_by_shard=texts, encoder=encoder, dtype=dtype, block=block, part=part, report=report
    )
    if encoder.save is not None:
        encoder.save(Path(out) / "encoder")
    return store


def source_texts(sources: Mapping[str, SourceSpec]) -> Texts:
    """For every unit of work of every source, a function that reads its documents; invalid UTF-8 is replaced."""
    if not sources:
        raise ConfigError("there are no sources to embed", where="sources", fix="Name at least one.")

    def reader(spec: Any, unit: Any) -> Callable[[], Iterable[str]]:
        return lambda: (text for _, text in spec.decoded(unit, Trouble()))

    return {
        f"{name}-{number:05d}": reader(spec, unit)
        for name, spec in sources.items()
        for number, unit in enumerate(spec.units())
    }


def prepared_texts(folder: str | Path, tokenizer: Tokenizer | None = None, split: str = "train") -> Texts:
    """For every 20,000 records of a domain of a prepared folder, a function that decodes them.

    A record is a document, or a piece of one that is longer than the records of the preparation.

    Raises:
        ConfigError: nothing is prepared there, or with another tokenizer.
    """
    decoder = byte_tokenizer() if tokenizer is None else tokenizer
    fingerprint = read_index(folder)["settings"]["tokenizer"]
    if decoder.fingerprint != fingerprint:
        raise ConfigError(
            f"the folder was prepared with the tokenizer {fingerprint}, not {decoder.fingerprint}",
            where=str(folder),
            fix="Pass the tokenizer that it was prepared with.",
        )

    def reader(source: Any, start: int, stop: int) -> Callable[[], Iterable[str]]:
        def read() -> Iterable[str]:
            for first in range(start, stop, _DECODED):
                for tokens in source.read(range(first, min(first + _DECODED, stop))):
                    yield decoder.decode(tokens)

        return read

    return {
        f"{name}-{number:05d}": reader(source, start, min(start + _RECORDS, len(source)))
        for name, source in open_prepared(folder, split).items()
        for number, start in enumerate(range(0, len(source), _RECORDS))
    }


class _Lines:
    """What `embed_corpus` prints: shards and documents done, documents per second, names of what was dropped."""

    def __init__(self) -> None:
        self._started, self._documents = time.monotonic(), 0

    def __call__(self, done: int, total: int, shard: Any) -> None:
        self._documents += shard.documents
        seconds = max(time.monotonic() - self._started, 1e-9)
        left = seconds / done * (total - done)
        pace = f"{self._documents:,} documents, {self._documents / seconds:,.1f}/s, {left:.0f} s left"
        print(f"embed: {done}/{total} shards, {pace}", file=sys.stderr, flush=True)
        if shard.dropped:
            first = ", ".join(map(str, shard.dropped[:5])) + (", …" if len(shard.dropped) > 5 else "")
            what = f"{len(shard.dropped)} of {shard.documents:,} documents have nothing to encode: {first}"
            print(f"embed: {shard.source}: {what}", file=sys.stderr, flush=True)
