"""One set of weights for every patch size (FlexiViT): resizing of patch kernels and of position embeddings.

The matrices are NumPy constants of static sizes, made while a function is traced; nothing here calls an image library.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float64

from jaxmix.core.errors import ConfigError
from jaxmix.core.types import Array, Float


def bilinear_matrix(old: int, new: int) -> Float64[np.ndarray, "new old"]:
    """The matrix R of bilinear resizing along one axis: `resized = R @ signal`.

    Pixel i of the result lies at (i + 1/2) · old / new − 1/2 of the signal (half-pixel centers), between two pixels
    whose weights are one minus their distances; beyond the first and last pixel the signal is constant. There is no
    low-pass filter when new < old, as in FlexiViT (`tf.image.resize` with its defaults).

    Args:
        old: pixels of the signal, ≥ 1.
        new: pixels of the result, ≥ 1.

    Returns:
        float64[new, old], each row sums to 1. An image is resized by the Kronecker product of two of these.

    Raises:
        ConfigError: a size is below 1.

    >>> bilinear_matrix(4, 2)
    array([[0.5, 0.5, 0. , 0. ],
           [0. , 0. , 0.5, 0.5]])
    """
    if old < 1 or new < 1:
        raise ConfigError(f"sizes of a resize must be at least 1, got {old} to {new}", where="patch_size")
    place = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    below = np.minimum(np.floor(place).astype(int), max(old - 2, 0))
    matrix = np.zeros((new, old))
    matrix[np.arange(new), below] = 1 - (place - below)
    if old > 1:
        matrix[np.arange(new), below + 1] += place - below
    return matrix


def patch_matrix(old: int, new: int) -> Float64[np.ndarray, "new old"]:
    """The matrix P = (Rᵀ)⁺ that takes a patch kernel along one axis from `old` to `new` pixels.

    A resized patch R x should meet the resized kernel ŵ as the patch x met w: ⟨R x, ŵ⟩ = ⟨x, w⟩ for all x asks for
    Rᵀ ŵ = w. For new ≥ old P w solves it exactly (R has full column rank); for new < old it is the least-squares
    solution, which minimizes E(⟨R x, ŵ⟩ − ⟨x, w⟩)² over white x. In two dimensions R is R₁ ⊗ R₁, and the
    pseudo-inverse of a Kronecker product is that of its factors: the small matrix is applied to both axes.

    R: `bilinear_matrix(old, new)`.

    References:
        Beyer et al., "FlexiViT: One Model for All Patch Sizes", arXiv 2212.08013, section 3.4 (PI-resize).
    """
    return np.linalg.pinv(bilinear_matrix(old, new).T)


def resize_kernel(kernel: Float[Array, "p p c d"], patch_size: int) -> Float[Array, "q q c d"]:
    """The patch kernel for patches of q = `patch_size` pixels, from the one stored for patches of p; p = q: itself.

    Differentiable: the gradient for the stored kernel is the transpose of the resize. Same dtype as the kernel.

    >>> resize_kernel(jnp.ones((2, 2, 3, 5)), 4).shape
    (4, 4, 3, 5)
    """
    if patch_size == kernel.shape[0]:
        return kernel
    matrix = jnp.asarray(patch_matrix(kernel.shape[0], patch_size), kernel.dtype)
    return _on_both_axes(matrix, matrix, kernel)


def resize_positions(positions: Float[Array, "g g d"], grid: tuple[int, int]) -> Float[Array, "h w d"]:
    """Position embeddings for a grid of h × w tokens, bilinear in those stored for g × g; the same grid: themselves."""
    base = positions.shape[0]
    if grid == (base, base):
        return positions
    rows, columns = (jnp.asarray(bilinear_matrix(base, size), positions.dtype) for size in grid)
    return _on_both_axes(rows, columns, positions[:, :, None])[:, :, 0]


def _on_both_axes(rows: Array, columns: Array, x: Array) -> Array:
    """Small, once per batch, and the base of all that follows: full precision costs nothing."""
    return jnp.einsum("pi,qj,ijcd->pqcd", rows, columns, x, precision=jax.lax.Precision.HIGHEST)
