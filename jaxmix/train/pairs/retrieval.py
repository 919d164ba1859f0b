"""Recall of image–text retrieval: is the right partner among the k nearest?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxmix.core.errors import ConfigError


def recall(image: np.ndarray, text: np.ndarray, *, at: Sequence[int] = (1, 10), block: int = 2048) -> dict[str, float]:
    """Share of queries whose partner is among the k most similar, mean of both directions.

        recall@k = 1/2n Σ_i [ #{j: ⟨u_i, v_j⟩ ≥ ⟨u_i, v_i⟩} ≤ k ] + [ #{j: ⟨u_j, v_i⟩ ≥ ⟨u_i, v_i⟩} ≤ k ]

    Ties count against the model: embeddings that have all become the same find nothing.

    Args:
        image: u, [n, d].
        text: v, [n, d]; row i belongs to image i. Two rows with the same caption are hard on each other: keep captions
            of a test set distinct.
        at: the values of k, from 1 to n.
        block: queries compared at a time.

    Returns:
        `{"recall@1": …, "recall@10": …, "image_to_text@1": …, "text_to_image@1": …, …}`, each in [0, 1].

    Example:
        >>> recall(np.eye(3), np.eye(3), at=(1,))["recall@1"]
        1.0
    """
    if image.shape != text.shape or image.ndim != 2:
        raise ConfigError(f"embeddings of shapes {image.shape} and {text.shape} are not pairs", where="recall")
    if not all(1 <= k <= len(image) for k in at):
        raise ConfigError(f"k must be from 1 to {len(image)}, got {list(at)}", where="recall(at)")
    image, text = np.asarray(image, np.float32), np.asarray(text, np.float32)
    found: dict[str, float] = {}
    ranks = {"image_to_text": _ranks(image, text, block), "text_to_image": _ranks(text, image, block)}
    for k in at:
        each = {f"{name}@{k}": float(np.mean(rank <= k)) for name, rank in ranks.items()}
        found |= {f"recall@{k}": float(np.mean(list(each.values()))), **each}
    return found


def _ranks(queries: np.ndarray, others: np.ndarray, block: int) -> np.ndarray:
    """The number of candidates at least as similar as the partner, which counts itself."""
    ranks = []
    for start in range(0, len(queries), block):
        similar = queries[start : start + block] @ others.T
        own = np.diagonal(similar, offset=start)
        ranks.append(np.sum(similar >= own[:, None], axis=1))
    return np.concatenate(ranks)
