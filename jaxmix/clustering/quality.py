"""Metrics of a clustering: the sizes of its clusters, and its agreement with given classes. On the host."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxmix.core.errors import ConfigError
from jaxmix.core.validate import check_count


def cluster_sizes(labels: Any, num_clusters: int, sample_weight: Any = None) -> np.ndarray:
    """f64[k], share of the rows (of their weight: of the tokens) in each cluster; sums to 1. Labels below 0 are none.

    Raises:
        ConfigError: a label ≥ `num_clusters`, weights of another length, or nothing that counts.

    Example:
        >>> cluster_sizes([0, 0, 1, -1], 3).round(3).tolist()
        [0.667, 0.333, 0.0]
    """
    check_count("cluster_sizes", "num_clusters", num_clusters)
    found = np.asarray(labels)
    weights = np.ones(found.shape) if sample_weight is None else np.asarray(sample_weight, np.float64)
    if found.ndim != 1 or weights.shape != found.shape or (found.size and found.max() >= num_clusters):
        raise ConfigError(
            f"labels {list(found.shape)} up to {found.max(initial=-1)} with weights {list(weights.shape)} do not fit "
            f"{num_clusters} clusters",
            where="cluster_sizes(labels)",
            fix="Give one label below num_clusters, and one weight, a row.",
        )
    counted = found >= 0
    sums = np.bincount(found[counted], weights[counted], minlength=num_clusters)
    if not sums.sum() > 0:
        raise ConfigError("no row has a label", where="cluster_sizes(labels)", fix="Give at least one label ≥ 0.")
    return np.asarray(sums / sums.sum())


def size_entropy(sizes: Any) -> float:
    """Entropy of the shares over log K: 1 for equal sizes, 0 if one cluster has every row.

    Example:
        >>> size_entropy([0.5, 0.5]), size_entropy([1.0, 0.0])
        (1.0, 0.0)
    """
    shares = np.asarray(sizes, np.float64)
    shares = shares / shares.sum()
    if shares.size == 1:
        return 1.0
    return float(-(shares[shares > 0] * np.log(shares[shares > 0])).sum() / np.log(shares.size)) + 0.0


def contingency(labels: Any, classes: Any, sample_weight: Any = None) -> np.ndarray:
    """f64[clusters that occur, classes that occur], weight of the rows with each pair."""
    one, other = np.asarray(labels), np.asarray(classes)
    if one.shape != other.shape or one.ndim != 1 or one.size == 0:
        raise ConfigError(
            f"labels {list(one.shape)} and classes {list(other.shape)} are not two vectors of one length",
            where="contingency(classes)",
            fix="Give a class for every label.",
        )
    rows, row = np.unique(one, return_inverse=True)
    columns, column = np.unique(other, return_inverse=True)
    weights = None if sample_weight is None else np.asarray(sample_weight, np.float64)
    table = np.bincount(row * columns.size + column, weights, minlength=rows.size * columns.size)
    return table.reshape(rows.size, columns.size).astype(np.float64)


def adjusted_rand_index(labels: Any, classes: Any) -> float:
    """Agreement of two partitions over pairs of rows: 1 if they are the same, about 0 by chance.

    Example:
        >>> adjusted_rand_index([0, 0, 1, 1], [1, 1, 0, 0])
        1.0
    """
    table = contingency(labels, classes)
    pairs = lambda counts: float((counts * (counts - 1)).sum() / 2)
    both, one, other = pairs(table), pairs(table.sum(1)), pairs(table.sum(0))
    whole = pairs(np.array(table.sum()))
    chance = one * other / whole if whole else 0.0
    most = (one + other) / 2
    return 1.0 if most == chance else (both - chance) / (most - chance)


def normalized_mutual_information(labels: Any, classes: Any) -> float:
    """Mutual information over the mean of the two entropies, in [0, 1].

    Example:
        >>> round(normalized_mutual_information([0, 0, 1, 1], [0, 1, 0, 1]), 6)
        0.0
    """
    joint = contingency(labels, classes)
    joint = joint / joint.sum()
    entropy = lambda p: float(-(p[p > 0] * np.log(p[p > 0])).sum())
    one, other = entropy(joint.sum(1)), entropy(joint.sum(0))
    if one == 0 and other == 0:
        return 1.0
    return max(0.0, (one + other - entropy(joint.ravel())) / ((one + other) / 2))


def purity(labels: Any, classes: Any) -> float:
    """Share of rows whose class is the majority of their cluster; grows with the number of clusters.

    Example:
        >>> purity([0, 0, 0, 1], [5, 5, 6, 6])
        0.75
    """
    table = contingency(labels, classes)
    return float(table.max(1).sum() / table.sum())


def coverage(labels: Any, classes: Any) -> float:
    """Share of the classes that are the majority of some cluster.

    Example:
        >>> coverage([0, 0, 0, 1], [5, 5, 6, 5])
        0.5
    """
    table = contingency(labels, classes)
    return float(np.unique(table.argmax(1)).size / table.shape[1])
