"""Two-dimensional map of rows: exact t-SNE (van der Maaten and Hinton 2008) in NumPy, for a few thousand points."""

from __future__ import annotations

import numpy as np


def tsne(rows: np.ndarray, *, perplexity: float = 30.0, steps: int = 500, seed: int = 0) -> np.ndarray:
    """f32[n, d] → f32[n, 2]. Gradient descent with momentum and early exaggeration, as in the paper."""
    joint = _affinities(rows, perplexity)
    rng = np.random.default_rng(seed)
    y = (1e-4 * rng.standard_normal((len(rows), 2))).astype(np.float32)
    speed, gains = np.zeros_like(y), np.ones_like(y)
    for step in range(steps):
        square = np.sum(y * y, axis=1)
        heavy = 1 / (1 + np.maximum(square[:, None] + square - 2 * y @ y.T, 0))
        np.fill_diagonal(heavy, 0)
        pull = ((12 if step < 100 else 1) * joint - heavy / heavy.sum()) * heavy
        slope = 4 * (pull.sum(1)[:, None] * y - pull @ y)
        gains = np.maximum(np.where(slope * speed > 0, gains * 0.8, gains + 0.2), 0.01).astype(np.float32)
        speed = (0.5 if step < 100 else 0.8) * speed - 200 * gains * slope
        y = y + speed
        y -= y.mean(0)
    return y


def _affinities(rows: np.ndarray, perplexity: float) -> np.ndarray:
    """Symmetric p_ij whose rows have the perplexity, by bisection on the precision of each point."""
    distance = 2 - 2 * rows @ rows.T
    np.fill_diagonal(distance, np.inf)
    low, high = np.zeros(len(rows)), np.full(len(rows), np.inf)
    precision = np.ones(len(rows))
    for _ in range(40):
        shifted = distance - distance.min(1, keepdims=True)
        weight = np.exp(-shifted * precision[:, None])
        total = weight.sum(1)
        finite = np.where(np.isfinite(shifted), shifted, 0)
        entropy = np.log(total) + precision * np.sum(weight * finite, axis=1) / total
        is_wide = entropy > np.log(perplexity)
        low, high = np.where(is_wide, precision, low), np.where(is_wide, high, precision)
        precision = np.where(np.isinf(high), 2 * precision, (low + high) / 2)
    one_sided = weight / total[:, None]
    return ((one_sided + one_sided.T) / (2 * len(rows))).astype(np.float32)
