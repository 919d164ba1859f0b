"""Resizing of patch kernels and position embeddings against NumPy: interpolation and the 2-D pseudo-inverse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerance import float32_tolerance

from jaxmix.core.errors import ConfigError
from jaxmix.models.towers.flexi import bilinear_matrix, patch_matrix, resize_kernel, resize_positions

SIZES = [(4, 8), (8, 4), (4, 6), (7, 3), (5, 5), (1, 3), (3, 1)]


def interpolated(signal, new):
    """Pixel by pixel with NumPy's own interpolation, constant beyond the ends."""
    old = len(signal)
    return np.array([np.interp((i + 0.5) * old / new - 0.5, np.arange(old), signal) for i in range(new)])


@pytest.mark.parametrize(("old", "new"), SIZES)
def test_bilinear_matrix_is_interpolation(old, new):
    matrix = bilinear_matrix(old, new)
    signal = np.random.default_rng(0).normal(size=old)
    np.testing.assert_allclose(matrix @ signal, interpolated(signal, new), atol=1e-12)
    np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-15)
    if old == new:
        np.testing.assert_array_equal(matrix, np.eye(old))


@pytest.mark.parametrize(("old", "new"), [size for size in SIZES if size[0] > 1])
def test_kernel_is_that_of_the_two_dimensional_pseudo_inverse(old, new):
    kernel = np.random.default_rng(1).normal(size=(old, old, 3, 5))
    joint = np.linalg.pinv(np.kron(bilinear_matrix(old, new), bilinear_matrix(old, new)).T)
    expected = (joint @ kernel.reshape(old * old, -1)).reshape(new, new, 3, 5)
    result = resize_kernel(jnp.asarray(kernel, jnp.float32), new)
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_own_size_is_the_kernel_itself():
    kernel = jax.random.normal(jax.random.key(0), (6, 6, 3, 4))
    assert resize_kernel(kernel, 6) is kernel


@pytest.mark.parametrize(("old", "new"), [(4, 8), (4, 6), (2, 7)])
def test_larger_kernel_meets_the_resized_patch_exactly(old, new):
    rng = np.random.default_rng(2)
    kernel, patch = rng.normal(size=(old, old)), rng.normal(size=(old, old))
    enlarge, grow = bilinear_matrix(old, new), patch_matrix(old, new)
    np.testing.assert_allclose(
        np.sum((enlarge @ patch @ enlarge.T) * (grow @ kernel @ grow.T)), np.sum(patch * kernel), rtol=1e-10
    )


@pytest.mark.parametrize(("old", "new"), [(8, 4), (8, 3), (32, 16)])
def test_smaller_kernel_leaves_the_least_squares_residual(old, new):
    """The residual Rᵀ ŵ − w is orthogonal to everything that a smaller kernel could have expressed."""
    kernel = np.random.default_rng(3).normal(size=old)
    resize = bilinear_matrix(old, new)
    residual = resize.T @ (patch_matrix(old, new) @ kernel) - kernel
    np.testing.assert_allclose(resize @ residual, 0, atol=1e-12)
    assert np.linalg.norm(residual) > 0.1


@pytest.mark.parametrize("size", [4, 16])
def test_tokens_of_a_resized_smooth_image_stay(size):
    """An image of 64 pixels at patch 8, and the same image at `size`/8 of its size at patches of `size`."""
    x, y = np.meshgrid(np.linspace(0, 1, 64), np.linspace(0, 1, 64))
    image = np.sin(2 * x + 1) * np.cos(3 * y) + x * y
    kernel = np.random.default_rng(4).normal(size=(8, 8, 1, 16))
    scale = bilinear_matrix(64, 8 * size)

    def tokens(image, kernel, patch):
        patches = image.reshape(8, patch, 8, patch).transpose(0, 2, 1, 3)
        return np.einsum("hwpq,pqcd->hwd", patches, np.asarray(kernel, np.float64))

    before = tokens(image, kernel, 8)
    resized = resize_kernel(jnp.asarray(kernel, jnp.float32), size)
    after = tokens(scale @ image @ scale.T, resized, size)
    # Away from the border, where bilinear interpolation repeats the last pixel instead of going on.
    error = np.abs(after - before)[1:-1, 1:-1].max() / np.abs(before).max()
    assert error < 0.06
    bilinear = bilinear_matrix(8, size)
    plain = np.einsum("pi,qj,ijcd->pqcd", bilinear, bilinear, kernel)
    naive = tokens(scale @ image @ scale.T, plain, size)
    assert np.abs(naive - before).max() / np.abs(before).max() > 10 * error


def test_positions_are_interpolated_along_both_sides():
    positions = np.random.default_rng(5).normal(size=(4, 4, 3))
    expected = np.apply_along_axis(interpolated, 1, np.apply_along_axis(interpolated, 0, positions, 6), 2)
    result = resize_positions(jnp.asarray(positions, jnp.float32), (6, 2))
    assert result.shape == (6, 2, 3)
    # Bilinear: four neighbors, each times two weights that are rounded.
    np.testing.assert_allclose(result, expected, rtol=0, atol=float32_tolerance(positions, 4 * 3))
    same = jnp.asarray(positions, jnp.float32)
    assert resize_positions(same, (4, 4)) is same


def test_impossible_sizes_are_refused():
    with pytest.raises(ConfigError, match="at least 1, got 4 to 0"):
        bilinear_matrix(4, 0)
