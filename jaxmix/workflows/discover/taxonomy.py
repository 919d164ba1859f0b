"""What a cluster is about: sizes, top terms, nearest and representative documents, a name."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from jaxmix.core.validate import check_count
from jaxmix.data.hashing import split_words

_EXCERPT = 240


class TermCounts(NamedTuple):
    """How often words occur in the clusters.

    Attributes:
        hashes: u64[w], ascending.
        words: w words as text.
        counts: i64[k, w].
        documents: i64[w], documents that have the word.
    """

    hashes: np.ndarray
    words: list[str]
    counts: np.ndarray
    documents: np.ndarray


def count_terms(
    batches: Iterable[tuple[Sequence[str], np.ndarray]], num_clusters: int, *, max_words: int = 512, least: int = 3
) -> TermCounts:
    """Counts the words of texts by cluster.

    Args:
        batches: (texts, their labels i32[n] in [0, k)).
        num_clusters: k.
        max_words: words of a text that are read.
        least: words in fewer documents are left out, as are digits and single characters.
    """
    check_count("count_terms", "least", least)
    totals: dict[int, np.ndarray] = {}
    in_documents: dict[int, int] = {}
    spelled: dict[int, str] = {}
    for texts, labels in batches:
        words = split_words(texts, max_words=max_words)
        lengths = np.diff(words.offsets)
        document = np.repeat(np.arange(len(texts)), lengths)
        hashes, first, inverse = np.unique(words.hashes, return_index=True, return_inverse=True)
        table = np.zeros((len(hashes), num_clusters), np.int64)
        np.add.at(table, (inverse, np.asarray(labels)[document]), 1)
        pairs = np.unique(inverse * len(texts) + document) // max(len(texts), 1)
        spread = np.bincount(pairs, minlength=len(hashes))
        for place, value in enumerate(hashes.tolist()):
            if value in totals:
                totals[value] += table[place]
                in_documents[value] += int(spread[place])
            else:
                totals[value], in_documents[value] = table[place], int(spread[place])
                spelled[value] = words.word(int(first[place]))
    kept = sorted(h for h, word in spelled.items() if in_documents[h] >= least and len(word) > 1 and not word.isdigit())
    counts = np.stack([totals[h] for h in kept], axis=1) if kept else np.zeros((num_clusters, 0), np.int64)
    return TermCounts(
        np.asarray(kept, np.uint64), [spelled[h] for h in kept], counts, np.asarray([in_documents[h] for h in kept])
    )


def top_terms(terms: TermCounts, *, count: int, least_lift: float = 1.5) -> list[list[str]]:
    """The most characteristic words of each cluster, by class TF-IDF: `tf_wk · log(1 + A / f_w)`.

    tf_wk is the share of word w in the words of cluster k, f_w its number in all, A the mean number of words of a
    cluster. Of words that all clusters use (the, and) none is taken: a word must be at least `least_lift` times as
    frequent in the cluster as in all.

    References:
        Grootendorst, "BERTopic", arXiv 2203.05794.
    """
    total = terms.counts.sum(axis=1, keepdims=True).astype(np.float64)
    frequency = terms.counts.sum(axis=0).astype(np.float64)
    share = terms.counts / np.maximum(total, 1)
    everywhere = frequency / max(frequency.sum(), 1)
    score = share * np.log1p(total.mean() / np.maximum(frequency, 1)) if len(terms.words) else share
    score = np.where(share >= least_lift * everywhere, score, 0.0)
    found = []
    for row in score:
        order = np.lexsort((terms.hashes, -row))[:count]
        found.append([terms.words[i] for i in order if row[i] > 0])
    return found


def nearest_rows(scores: np.ndarray, labels: np.ndarray, *, num_clusters: int, count: int) -> list[np.ndarray]:
    """The rows of the highest score in every cluster, best first; ties by row."""
    order = np.lexsort((np.arange(len(labels)), -np.asarray(scores, np.float64), labels))
    sizes = np.bincount(labels, minlength=num_clusters)
    starts = np.cumsum(sizes) - sizes
    return [order[start : start + min(size, count)] for start, size in zip(starts, sizes, strict=True)]


def excerpt(text: str) -> str:
    """The beginning of a document on one line."""
    line = " ".join(text[: 4 * _EXCERPT].split())
    return line if len(line) <= _EXCERPT else line[: _EXCERPT - 1].rstrip() + "…"


def suggest_name(terms: Sequence[str]) -> str:
    """A name made of the first terms."""
    return "-".join(terms[:3])


def name_clusters(
    suggested: Sequence[str],
    *,
    representatives: Sequence[Sequence[str]],
    terms: Sequence[Sequence[str]],
    namer: Callable[..., str] | None = None,
) -> tuple[list[str], list[str]]:
    """Titles for people, and names that can be folders and keys, all different.

    Args:
        suggested: a name for each cluster, taken where `namer` is None or gives nothing.
        representatives: texts of each cluster, the most typical first.
        terms: top terms of each cluster.
        namer: `(representatives, terms) -> name`, such as a question to a language model.

    Returns:
        (titles, names).
    """
    titles, names = [], []
    for number, given in enumerate(suggested):
        title = " ".join(str(namer(list(representatives[number]), list(terms[number]))).split()) if namer else ""
        title = title or given or f"cluster {number}"
        slug = re.sub(r"[^\w]+", "-", title.lower()).strip("-_")[:40] or "cluster"
        titles.append(title)
        names.append(f"{number:02d}-{slug}")
    return titles, names
