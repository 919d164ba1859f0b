"""Selection of the teacher's documents that the student learns from, and comparison of their labels."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64

from jaxmix.core.errors import ConfigError
from jaxmix.core.validate import Count, check_choice, checked

RULES = ("random", "confidence", "center", "gis")


def rule_scores(
    rule: str,
    *,
    state: Any,
    x: np.ndarray,
    confidence: np.ndarray,
    labels: np.ndarray,
    form: str = "standardized",
) -> np.ndarray | None:
    """How much each document should be taken for its cluster, f32[n]; None for "random".

    | rule | score |
    |---|---|
    | random | none: all documents of a cluster alike |
    | confidence | log γ_ik, the teacher's log posterior of the document's own cluster |
    | center | μ_k·x_i, the cosine to its cluster's mean direction |
    | gis | the geometric influence score, see `jaxmix.clustering.geometric_influence` |

    Where labels are few, "random" teaches best or next to best (`experiments/student_rules/`, natural held-out
    documents): the documents that stand for a cluster leave out its borders, where a student errs. Scores choose what
    people look at.

    Args:
        rule: one of `RULES`.
        state: the teacher's state: mean_directions f32[k, d] and whatever its influence score needs.
        x: f32[n, d] unit rows.
        confidence: f32[n], log posterior of each document's own cluster.
        labels: i32[n].
        form: of the influence score.
    """
    check_choice("rule_scores", "rule", rule, RULES)
    if rule == "random":
        return None
    if rule == "confidence":
        return np.asarray(confidence, np.float32)
    if rule == "center":
        means = np.asarray(state.mean_directions, np.float32)
        return np.einsum("nd,nd->n", np.asarray(x, np.float32), means[labels])
    from jaxmix.clustering import geometric_influence

    return np.asarray(geometric_influence(state, x, labels, form=form), np.float32)


@checked
def choose_rows(
    labels: np.ndarray, scores: np.ndarray | None, *, num_clusters: Count, per_cluster: Count, seed: int
) -> np.ndarray:
    """Rows of the `per_cluster` documents of the highest score in every cluster, or of random ones; ascending.

    A cluster with fewer documents gives all it has. Equal scores are ordered at random.

    Args:
        labels: i32[n] in [0, num_clusters).
        scores: f32[n]; None draws at random.
        num_clusters: k.
        per_cluster: ≥ 1.
        seed: of what is random.

    Returns:
        i64[s], s ≤ k · per_cluster.
    """
    chance = np.random.default_rng(seed).random(len(labels))
    order = np.lexsort((chance, chance if scores is None else -np.asarray(scores, np.float64), labels))
    sizes = np.bincount(labels, minlength=num_clusters)
    if len(sizes) > num_clusters:
        raise ConfigError(f"labels must be below {num_clusters}, got {labels.max()}", where="choose_rows(labels)")
    rank = np.arange(len(labels)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.sort(order[rank < per_cluster])


class StudentQuality(NamedTuple):
    """How a student's labels compare with its teacher's, on documents as they come (never on chosen ones).

    Attributes:
        accuracy: weighted share of equal labels.
        macro_recall: mean over the teacher's clusters of the share the student finds.
        confusion: weight of documents by teacher's (row) and student's (column) label; sums to 1.
        mass_teacher, mass_student: shares of the clusters.
        mass_drift: Σ_k |mass_student − mass_teacher|, in [0, 2].
        documents: how many.
    """

    accuracy: float
    macro_recall: float
    confusion: Float64[np.ndarray, "k k"]
    mass_teacher: Float64[np.ndarray, " k"]
    mass_student: Float64[np.ndarray, " k"]
    mass_drift: float
    documents: int


def compare_labels(
    teacher: np.ndarray, student: np.ndarray, *, num_clusters: int, weights: np.ndarray | None = None
) -> StudentQuality:
    """Compares a student's labels with the teacher's.

    Args:
        teacher: i32[n] in [0, num_clusters).
        student: i32[n].
        num_clusters: k.
        weights: float[n] ≥ 0, such as tokens; None: every document counts 1.

    Raises:
        ConfigError: there are no documents.

    Example:
        >>> compare_labels(np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1]), num_clusters=2).macro_recall
        0.75
    """
    if not len(teacher) or len(teacher) != len(student):
        raise ConfigError(f"{len(teacher)} labels against {len(student)}", where="compare_labels")
    confusion = np.zeros((num_clusters, num_clusters))
    np.add.at(confusion, (teacher, student), 1.0 if weights is None else np.asarray(weights, np.float64))
    confusion /= confusion.sum()
    true, found = confusion.sum(axis=1), confusion.sum(axis=0)
    is_there = true > 0
    return StudentQuality(
        accuracy=float(np.trace(confusion)),
        macro_recall=float((np.diag(confusion)[is_there] / true[is_there]).mean()),
        confusion=confusion,
        mass_teacher=true,
        mass_student=found,
        mass_drift=float(np.abs(true - found).sum()),
        documents=len(teacher),
    )
