"""Clean text of the bundled corpus, a disjoint part of it for the reference, and three kinds of planted noise."""

from __future__ import annotations

import json
import random
import re
import string
from collections.abc import Iterable
from pathlib import Path

CLEAN = {
    "prose": ("drama", "novel", "scripture", "speeches", "mail"),
    "glossary": ("glosses", "jargon"),
    "technical": ("nodejs_docs", "postgresql_docs", "python_code", "python_docs"),
}
"""Domains of the bundled corpus by the source they are joined into."""

NOISE = ("shuffled", "boilerplate", "foreign")
WEIGHTS = {"prose": 0.30, "glossary": 0.15, "technical": 0.25, "shuffled": 0.10, "boilerplate": 0.10, "foreign": 0.10}
PIECE = 1024  # characters: eight rows, so that few rows hold more than one kind of text
REFERENCE_SHARE = 0.2
NOISE_PIECES = 1000


def write_texts(folder: Path) -> None:
    """Writes pool/NAME.jsonl and reference/NAME.jsonl; does nothing where they are."""
    done = folder / "done"
    if done.is_file():
        return
    rng = random.Random(0)
    pool: dict[str, list[str]] = {}
    for name, domains in CLEAN.items():
        pieces = [piece for domain in domains for piece in _pieces(domain)]
        rng.shuffle(pieces)
        cut = int(len(pieces) * REFERENCE_SHARE)
        _write(folder / "reference" / f"{name}.jsonl", pieces[:cut])
        pool[name] = pieces[cut:]
        _write(folder / "pool" / f"{name}.jsonl", pool[name])
    everything = [piece for pieces in pool.values() for piece in pieces]
    _write(folder / "pool" / "shuffled.jsonl", [_shuffled(p, rng) for p in rng.sample(everything, NOISE_PIECES)])
    _write(folder / "pool" / "foreign.jsonl", [_foreign(p, rng) for p in rng.sample(everything, NOISE_PIECES)])
    notices = _notices()
    repeated = ["\n\n".join(rng.choices(notices, k=3)) for _ in range(NOISE_PIECES)]
    _write(folder / "pool" / "boilerplate.jsonl", repeated)
    done.write_text("")


def _pieces(domain: str) -> Iterable[str]:
    import pyarrow.parquet as parquet

    from jaxmix.data.sources.corpora import bundled_corpus

    for text in parquet.read_table(bundled_corpus()[domain].path, columns=["text"])["text"].to_pylist():
        for start in range(0, len(text), PIECE):
            yield text[start : start + PIECE]


def _shuffled(text: str, rng: random.Random) -> str:
    """The same words in random order."""
    words = text.split()
    rng.shuffle(words)
    return " ".join(words)


def _foreign(text: str, rng: random.Random) -> str:
    """A language that nobody speaks: letters exchanged by a permutation of each piece's own."""
    letters = list(string.ascii_lowercase)
    rng.shuffle(letters)
    lower = "".join(letters)
    return text.translate(str.maketrans(string.ascii_letters, lower + lower.upper()))


def _notices(count: int = 30, shortest: int = 200, longest: int = 500) -> list[str]:
    """Paragraphs of license notices, each of which comes back many times."""
    from jaxmix.data.sources.corpora import bundled_corpus

    path = next(iter(bundled_corpus().values())).path.parent / "notices.txt"
    paragraphs = re.split(r"\n\s*\n", path.read_text(encoding="utf-8"))
    found = dict.fromkeys(p.strip() for p in paragraphs if shortest <= len(p.strip()) <= longest)
    return list(found)[:count]


def _write(path: Path, texts: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts if text.strip()))
