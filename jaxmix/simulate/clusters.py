"""Mixtures of von Mises–Fisher densities with known clusters, to compare a clustering with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64, Int32

from jaxmix.clustering.base import GemState
from jaxmix.core.validate import Count, Decay, NonNegative, Whole, check_count, checked


class Planted(NamedTuple):
    """Points drawn from known clusters.

    Attributes:
        x: rows of length 1.
        classes: the component of every row.
        state: the components, f64, with biases `log(K w_k)`: the labels it assigns are those of the best possible rule.
    """

    x: Float64[np.ndarray, "n d"]
    classes: Int32[np.ndarray, " n"]
    state: GemState


def zipf_sizes(num_clusters: int, exponent: float) -> np.ndarray:
    """f64[k], shares in proportion to `rank^-exponent`; 0 gives equal ones."""
    sizes = np.arange(1, num_clusters + 1, dtype=np.float64) ** -exponent
    return np.asarray(sizes / sizes.sum())


def sample_vmf(rng: np.random.Generator, mean_direction: np.ndarray, concentration: float, size: int) -> np.ndarray:
    """f64[size, d] draws of a von Mises–Fisher density, by Wood's rejection sampler for the cosine (1994)."""
    d = mean_direction.shape[0]
    half = (d - 1) / 2
    b = (d - 1) / (2 * concentration + np.sqrt(4 * concentration**2 + (d - 1) ** 2))
    x0 = (1 - b) / (1 + b)
    c = concentration * x0 + (d - 1) * np.log(1 - x0**2)
    cosine = np.zeros(0)
    while len(cosine) < size:
        z = rng.beta(half, half, size=2 * size + 16)
        w = (1 - (1 + b) * z) / (1 - (1 - b) * z)
        is_taken = concentration * w + (d - 1) * np.log(1 - x0 * w) - c >= np.log(rng.random(len(z)))
        cosine = np.concatenate([cosine, w[is_taken]])
    cosine = cosine[:size, None]
    across = rng.normal(size=(size, d))
    across -= (across @ mean_direction)[:, None] * mean_direction[None, :]
    across /= np.linalg.norm(across, axis=1, keepdims=True)
    return np.asarray(cosine * mean_direction[None, :] + np.sqrt(np.maximum(0, 1 - cosine**2)) * across)


@checked
def planted_mixture(
    seed: Whole,
    num_rows: Count,
    num_clusters: Count,
    dim: int,
    *,
    concentrations: Sequence[float],
    exponent: NonNegative = 0.0,
    cone: Decay = 0.0,
) -> Planted:
    """A mixture of von Mises–Fisher densities with known labels.

    Args:
        seed: ≥ 0.
        num_rows: N ≥ 1.
        num_clusters: K ≥ 1.
        dim: d ≥ 2.
        concentrations: lowest and highest κ; each component has one between, evenly drawn.
        exponent: of the Zipf law of the sizes, ≥ 0.
        cone: in [0, 1), cosine of every mean direction with one common direction: text encoders put documents in a
            cone.
    """
    check_count("planted_mixture", "dim", dim, 2)
    low, high = concentrations
    rng = np.random.default_rng(seed)
    axis = rng.normal(size=dim)
    axis /= np.linalg.norm(axis)
    directions = rng.normal(size=(num_clusters, dim))
    if cone:
        directions -= (directions @ axis)[:, None] * axis[None, :]
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    directions = cone * axis[None, :] + np.sqrt(1 - cone**2) * directions if cone else directions
    kappa = rng.uniform(low, high, num_clusters)
    sizes = zipf_sizes(num_clusters, exponent)
    classes = rng.choice(num_clusters, num_rows, p=sizes).astype(np.int32)
    x = np.zeros((num_rows, dim))
    for k in range(num_clusters):
        rows = np.flatnonzero(classes == k)
        x[rows] = sample_vmf(rng, directions[k], kappa[k], len(rows))
    parameters: tuple[Any, ...] = directions, kappa, np.log(num_clusters * sizes)
    return Planted(x, classes, GemState(*parameters))
