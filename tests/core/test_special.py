"""Special functions of the von Mises–Fisher distribution against their power series, summed with 60 digits."""

import functools
from decimal import Decimal, localcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy.special import ive

from jaxmix.core import special
from jaxmix.core.errors import ConfigError

DIMS = [2, 34, 64, 768, 8192]
THREE_ROUNDINGS = 3 * float(np.finfo(np.float32).eps)
KAPPAS = [1e-6, 1e-3, 0.3, 1.0, 4.0, 17.0, 45.0, 130.0, 900.0, 5e3]
LARGE = 1e5


@functools.cache
def oracle(kappa, dim):
    """g, A, A' and A'' with about 40 right digits; all terms of the two series are positive.

    I_ν(κ) = (κ/2)^ν / Γ(ν+1) · Σ_j x^j / (j! (ν+1)_j), x = κ²/4; the other derivatives from
    A' = 1 − A² − (d−1) A/κ, which loses twice the digits of κ.
    """
    with localcontext() as context:
        context.prec = 60
        kappa, nu = Decimal(kappa), Decimal(dim) / 2 - 1
        term, rest, above, j = Decimal(1), Decimal(0), 1 / (nu + 1), 0
        x = kappa * kappa / 4
        while j * (nu + j) <= x or term > rest * Decimal("1e-58"):
            j += 1
            term = term * x / (j * (nu + j))
            rest, above = rest + term, above + term / (nu + j + 1)
        ratio = kappa / 2 * above / (1 + rest)
        slope = 1 - ratio * ratio - (dim - 1) * ratio / kappa
        curvature = -2 * ratio * slope - (dim - 1) * (slope - ratio / kappa) / kappa
        return -(1 + rest).ln(), ratio, slope, curvature


def relative_error(got, want):
    """The largest |got / want − 1|, with the division done in decimals."""
    got = np.asarray(got, np.float64).tolist()
    return max(abs(float(Decimal(g) / w - 1)) for g, w in zip(got, want, strict=True))


@functools.partial(jax.jit, static_argnums=1)
def everything(kappa, dim):
    """g, A, A', A'' and the inverse of A."""
    ones = jnp.ones_like(kappa)
    ratio = functools.partial(special.bessel_ratio, dim=dim)
    slope = lambda k: jax.jvp(ratio, (k,), (ones,))[1]
    slope_here, curvature = jax.jvp(slope, (kappa,), (ones,))
    a = ratio(kappa)
    return special.log_vmf_normalizer(kappa, dim), a, slope_here, curvature, special.inverse_bessel_ratio(a, dim)


# Printed by `python -c` with mpmath 1.4.1, mp.dps = 60:
#   nu = mpf(dim) / 2 - 1; besseli(nu + 1, kappa) / besseli(nu, kappa)
#   nu * log(mpf(kappa) / 2) - loggamma(nu + 1) - log(besseli(nu, kappa))
MPMATH = [
    (2, 0.5, -0.061549719185481304, 0.24249961258080195),
    (2, 1e5, -99993.324599984316, 0.99999499998749987),
    (33, 20.0, -5.3063147347634561, 0.47468309656079394),
    (64, 64.0, -24.234147778860277, 0.62043043654834949),
    (768, 900.0, -374.46117618237599, 0.66075715538974677),
    (8192, 1e4, -4259.5777827774536, 0.67105435300914806),
]


@pytest.mark.parametrize(("dim", "kappa", "normalizer", "ratio"), MPMATH)
def test_the_oracle_equals_mpmath(dim, kappa, normalizer, ratio):
    got = oracle(kappa, dim)
    np.testing.assert_allclose([float(v) for v in got[:2]], [normalizer, ratio], rtol=4e-16)


def test_the_oracle_equals_closed_forms():
    for kappa in (0.3, 4.0, 45.0):
        g, a, slope, _ = (float(v) for v in oracle(kappa, 3))
        np.testing.assert_allclose([g, a], [np.log(kappa / np.sinh(kappa)), 1 / np.tanh(kappa) - 1 / kappa], rtol=1e-13)
        np.testing.assert_allclose(slope, 1 / kappa**2 - 1 / np.sinh(kappa) ** 2, rtol=1e-11)
        np.testing.assert_allclose(float(oracle(kappa, 2)[1]), ive(1, kappa) / ive(0, kappa), rtol=1e-13)


class TestAccuracy:
    @pytest.mark.parametrize("dim", DIMS)
    def test_in_float64(self, dim):
        with jax.enable_x64(True):
            kappa = np.array([*KAPPAS, LARGE])
            *got, inverse = map(np.asarray, everything(jnp.asarray(kappa), dim))
        g, a, slope, curvature = zip(*[oracle(k, dim) for k in kappa.tolist()], strict=True)
        # At small orders the expansion ends at 1e-13, from d = 64 on at the last digits.
        is_small = dim < 64
        assert relative_error(got[0], g) < (1e-13 if is_small else 2e-15)
        assert relative_error(got[1], a) < (2e-13 if is_small else 2e-15)
        assert relative_error(got[2], slope) < (3e-12 if is_small else 2e-15)
        assert relative_error(got[3], curvature) < (1e-10 if is_small else 1e-14)
        # The rounding of A alone moves its inverse by 2κ/(d−1) units in the last place.
        np.testing.assert_array_less(np.abs(inverse / kappa - 1), 1e-12 + 4e-16 * kappa / dim)

    @pytest.mark.parametrize("dim", DIMS[::2])
    def test_in_float32(self, dim):
        kappa = np.array([*KAPPAS, LARGE], np.float32)
        *got, inverse = everything(jnp.asarray(kappa), dim)
        assert all(v.dtype == jnp.float32 for v in (*got, inverse))
        g, a, slope, curvature = zip(*[oracle(k, dim) for k in kappa.tolist()], strict=True)
        assert relative_error(got[0], g) < 1e-6
        assert relative_error(got[1], a) < 5e-7
        assert relative_error(got[2], slope) < (1e-4 if dim < 34 else 1e-6)
        assert relative_error(got[3], curvature) < (2e-4 if dim < 34 else 2e-6)
        np.testing.assert_array_less(np.abs(inverse / kappa - 1), (1e-4 if dim < 34 else 1e-6) + 2e-7 * kappa / dim)


class TestAtZero:
    @pytest.mark.parametrize(("dim", "highest"), [(2, 2), (768, 4)])
    def test_values_and_derivatives(self, dim, highest):
        # g = −κ²/(2d) + κ⁴/(4d²(d+2)) − …, of which A is minus the derivative.
        @jax.jit
        def derivatives(zero):
            functions = [lambda k: special.log_vmf_normalizer(k, dim)]
            for _ in range(highest):
                functions.append(jax.jacfwd(functions[-1]))
            inverse = lambda r: special.inverse_bessel_ratio(r, dim)
            return [f(zero) for f in functions], [inverse(zero), jax.grad(inverse)(zero)]

        normalizer, inverse = derivatives(jnp.float32(0))
        expected = [0, 0, -1 / dim, 0, 6 / (dim**2 * (dim + 2))]
        np.testing.assert_allclose(normalizer, expected[: highest + 1], rtol=1e-5)
        np.testing.assert_allclose(inverse, [0, dim], rtol=1e-6)

    def test_tiny_arguments_keep_their_relative_precision(self):
        tiny = jnp.asarray([1e-30, 1e-12, 1e-6], jnp.float32)
        np.testing.assert_allclose(special.bessel_ratio(tiny, 64) * 64, tiny, rtol=THREE_ROUNDINGS)
        np.testing.assert_allclose(special.inverse_bessel_ratio(tiny, 64), tiny * 64, rtol=THREE_ROUNDINGS)
        np.testing.assert_allclose(
            special.log_vmf_normalizer(tiny[1:], 64), -(tiny[1:] ** 2) / 128, rtol=THREE_ROUNDINGS
        )


class TestAtTheOtherEnd:
    @pytest.mark.parametrize("dim", [2, 768])
    def test_huge_concentrations(self, dim):
        huge = jnp.asarray([1e12, 1e30, np.inf], jnp.float32)
        np.testing.assert_array_equal(special.bessel_ratio(huge, dim), 1)
        np.testing.assert_allclose(special.log_vmf_normalizer(huge, dim), -huge, rtol=1e-6)
        slopes = jax.jit(jax.grad(lambda k: jnp.sum(special.bessel_ratio(k, dim))))(huge)
        np.testing.assert_array_less(np.abs(slopes), 1e-15)

    @pytest.mark.parametrize("dim", [2, 768])
    def test_ratios_near_one(self, dim):
        gaps = np.array([1e-6, 2.0**-24])
        got = special.inverse_bessel_ratio(jnp.asarray(1 - gaps, jnp.float32), dim)
        exact = 1 - np.asarray(1 - gaps, np.float32).astype(np.float64)
        np.testing.assert_allclose(got, (dim - 1) / (2 * exact), rtol=1e-3)

    def test_from_one_on_infinite_and_without_effect(self):
        ratio = jnp.asarray([0.0, 0.5, 1.0, 1.0000001])
        np.testing.assert_array_equal(special.inverse_bessel_ratio(ratio, 768)[2:], np.inf)
        clipped = lambda r: jnp.sum(jnp.clip(special.inverse_bessel_ratio(r, 768), 1e-3, 1e5))
        gradient = jax.jit(jax.grad(clipped))(ratio)
        assert np.isfinite(gradient).all()
        np.testing.assert_array_equal(gradient[2:], 0)

    def test_nan_stays_nan(self):
        for function in (special.bessel_ratio, special.log_vmf_normalizer, special.inverse_bessel_ratio):
            assert np.isnan(function(jnp.asarray([np.nan, 0.5]), 768)).tolist() == [True, False]


@pytest.mark.parametrize("dim", [2, 64])
def test_reverse_mode(dim):
    @jax.jit
    def gradients(kappa):
        ratio = special.bessel_ratio(kappa, dim)
        functions = special.log_vmf_normalizer, special.bessel_ratio
        by_kappa = [jax.grad(lambda k, f=f: jnp.sum(f(k, dim)))(kappa) for f in functions]
        inverse = jax.grad(lambda r: jnp.sum(special.inverse_bessel_ratio(r, dim)))
        return [*by_kappa, *jax.jvp(inverse, (ratio,), (jnp.ones_like(ratio),))]

    kappas = [0.5, 7.0, 40.0]
    _, ratio, slope, curvature = np.array([[float(v) for v in oracle(k, dim)] for k in kappas]).T
    got = gradients(jnp.asarray(kappas, jnp.float32))
    # Last, the second derivative of an inverse function.
    for value, expected in zip(got, [-ratio, slope, 1 / slope, -curvature / slope**3], strict=True):
        np.testing.assert_allclose(value, expected, rtol=3e-5)


def test_shapes_dtypes_and_vmap():
    kappa = jnp.asarray(np.geomspace(0.01, 1e4, 6), jnp.float32)
    for function in (special.bessel_ratio, special.log_vmf_normalizer):
        one_by_one = jax.vmap(lambda k, f=function: f(k, 64))(kappa)
        np.testing.assert_array_equal(function(kappa.reshape(2, 3), 64), one_by_one.reshape(2, 3))
        assert function(3.0, 64).shape == ()
    with jax.enable_x64(True):
        assert special.inverse_bessel_ratio(kappa / 1e5, 64).dtype == jnp.float32


class TestProperties:
    """On vectors of one length, so that each width is compiled once."""

    kappas = st.lists(st.floats(1e-4, 1e5), min_size=8, max_size=8, unique=True).map(sorted)

    @given(kappas, st.sampled_from([2, 64]))
    @settings(max_examples=40)
    def test_of_the_ratio(self, kappas, dim):
        with jax.enable_x64(True):
            kappa = np.asarray(kappas)
            a = special.bessel_ratio(jnp.asarray(kappa), dim)
            g = np.asarray(special.log_vmf_normalizer(jnp.asarray(kappa), dim))
            back = np.asarray(special.inverse_bessel_ratio(a, dim))
            a = np.asarray(a)
        assert (a > 0).all()
        assert (a < 1).all()
        assert (np.diff(a) >= 0).all()
        assert (np.diff(g) <= 0).all()
        # Amos 1974: the ratio lies between two square roots.
        order = dim / 2 - 0.5
        bound = lambda add: kappa / (order + np.hypot(kappa, order + add))
        assert (a >= bound(1) * (1 - 1e-13)).all()
        assert (a <= bound(0) * (1 + 1e-13)).all()
        np.testing.assert_array_less(np.abs(back / kappa - 1), 1e-12 + 4e-16 * kappa / dim)

    @given(st.lists(st.floats(0, 1, exclude_max=True), min_size=8, max_size=8), st.sampled_from([2, 64]))
    @settings(max_examples=40)
    def test_of_its_inverse(self, ratios, dim):
        with jax.enable_x64(True):
            ratio = jnp.asarray(ratios)
            kappa = special.inverse_bessel_ratio(ratio, dim)
            back = special.bessel_ratio(kappa, dim)
            kappa = np.asarray(kappa)
        assert (kappa >= 0).all()
        assert np.isfinite(kappa).all()
        np.testing.assert_allclose(back, ratio, rtol=1e-14, atol=1e-300)


class TestErrors:
    @pytest.mark.parametrize("dim", [1, 0, -3])
    def test_dim_is_a_whole_number_from_two(self, dim):
        with pytest.raises(ConfigError, match=f"dim must be a whole number ≥ 2, got {dim}"):
            special.bessel_ratio(1.0, dim)
        with pytest.raises(ConfigError, match="dim"):
            special.inverse_bessel_ratio(0.5, dim)

    def test_half_precision_is_refused(self):
        with pytest.raises(ConfigError, match="concentration must be float32 or float64, got bfloat16"):
            special.log_vmf_normalizer(jnp.ones(3, jnp.bfloat16), 64)
