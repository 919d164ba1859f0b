"""Passages of known domains: the bundled corpus, and JSON-lines files of other text."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

PASSAGE = 320  # characters; about 64 tokens of English prose
SHORTEST = 80
PER_DOMAIN = 1300


def passages(extra: str | None, per_domain: int = PER_DOMAIN) -> dict[str, list[str]]:
    """By domain, up to `per_domain` passages drawn without replacement from all documents of the domain.

    Args:
        extra: folder of DOMAIN.jsonl files with a field `text`; None: the bundled corpus alone.
        per_domain: at most so many of each.
    """
    found = {}
    for name, documents in _documents(extra).items():
        pieces = sorted({piece for text in documents for piece in cut(text)})
        random.Random(name).shuffle(pieces)
        found[name] = pieces[:per_domain]
    return found


def cut(text: str) -> Iterator[str]:
    """Pieces of at most `PASSAGE` characters that end between words where the script has spaces."""
    start = 0
    while start < len(text):
        stop = start + PASSAGE
        if stop < len(text):
            space = max(text.rfind(" ", start + PASSAGE // 2, stop), text.rfind("\n", start + PASSAGE // 2, stop))
            stop = space if space > 0 else stop
        piece = text[start:stop].strip()
        if len(piece) >= SHORTEST:
            yield piece
        start = stop


def _documents(extra: str | None) -> dict[str, list[str]]:
    import pyarrow.parquet as parquet

    from jaxmix.data.sources.corpora import bundled_corpus

    found = {
        name: parquet.read_table(domain.path, columns=["text"])["text"].to_pylist()
        for name, domain in bundled_corpus().items()
    }
    for path in sorted(Path(extra).glob("*.jsonl")) if extra else ():
        with path.open(encoding="utf-8") as lines:
            found[path.stem] = [json.loads(line)["text"] for line in lines]
    return found
