"""Special functions of the von Mises–Fisher distribution against their power series, summed with 60 digits."""

import functools
from decimal import Decimal, localcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import ive

from jaxmix.core import special

DIMS = [2, 8, 34, 64, 768, 8192]
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

    @pytest.mark.parametrize("dim", DIMS)
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
