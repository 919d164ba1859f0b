"""Special functions of the von Mises–Fisher distribution on the unit sphere of R^d.

Its density is `C_d(κ) exp(κ μ·x)`, with `log C_d(κ) = ν log κ − (ν+1) log 2π − log I_ν(κ)` and `ν = d/2 − 1`.

| symbol | name |
|---|---|
| d | `dim`, the static width of the vectors |
| κ | `concentration` |
| A_d(κ) = I_{ν+1}(κ) / I_ν(κ), the mean of μ·x | `bessel_ratio`, and `ratio` as an argument |
| g(κ) = log C_d(κ) − log C_d(0) | `log_vmf_normalizer` |

No Bessel function is evaluated. At an order ν ≥ 16 both A and g have an expansion in `1/s`, `s = √(ν² + κ²)`, that
holds for every κ ≥ 0 at once; a smaller order is reached from ν + M ≥ 16 by the downward recurrence
`A_d(κ) = κ / (d + κ A_{d+2}(κ))`, which shrinks the errors of A. Everything is elementwise.

Cost per element, for d ≥ 34: one square root, two or three divisions and a polynomial in p, of degree 35 at d = 34,
at d = 768 of degree 24 to 29 in float64 and 8 to 13 in float32. Below d = 34, also a scan of ⌈17 − d/2⌉ steps with a
division each (and a logarithm for g). The inverse takes four times the ratio and its slope.

The expansion (Debye's, in the form of a Riccati equation). `h = κ I'_ν(κ) / I_ν(κ) = ν + κ A` solves
`κ h' + h² = s²`. Put `h = Σ_n s^{1−n} a_n(t)`, `t = p²`, `p = ν/s` in (0, 1]:

    a_0 = 1,   a_{n+1} = −½ { (1−t) [(1−n) a_n − 2 t a_n'] + Σ_{i=1..n} a_i a_{n+1−i} }.

Each a_n with n ≥ 1 has the factor `1 − t = κ²/s²`, say `a_n = (1−t) q_n`. With `T(p) = p/(1+p) + P(p)`:

    A  = (κ/ν) T(p),                            P(p) = Σ_n ν^{−n} p^{n+1} q_n(p²)                     (1)
    A' = (1/ν) [p²/(1+p) + P(p) − (1−p²) p P'(p)]                                                     (2)
    g  = ν [log1p(Δ/2) − Δ] + ½ log1p(Δ) + Δ p Q(p),   Δ = (s−ν)/ν = (κ/ν)² / (1 + s/ν)                (3)
    Q(p) = [E(p) − E(1)] / (p − 1),             E'(p) = −ν p^{−3} [P(p) + p²/(2ν)]

so that nothing cancels as κ → 0 (both are a power of κ times a smooth function) nor as κ → ∞ (A' ~ ν/κ² has no
difference of terms of order 1). ν is a Python number, hence P and Q are polynomials with constant coefficients.

References: DLMF 10.41(ii) (the expansion), 10.29 (the recurrence); Amos 1974, "Computation of modified Bessel
functions and their ratios"; Banerjee et al. 2005 (first guess of the inverse); Sra 2012 (its Newton steps).
"""

from __future__ import annotations

import functools
import itertools
import math
from fractions import Fraction

import jax
import jax.numpy as jnp

from jaxmix.core.errors import ConfigError
from jaxmix.core.types import Array, Float

MIN_ORDER = 16
"""Orders below this are raised to it by whole steps."""
NUM_TERMS = 12
"""Terms of the expansion: at orders from 16 to 17 the rest is below 1e-13 of g and A, from 31 on below rounding."""
NEWTON_STEPS = 4


def log_vmf_normalizer(concentration: float | Float[Array, "*s"], dim: int) -> Float[Array, "*s"]:
    """`g(κ) = log C_d(κ) − log C_d(0)`: what the normalizer loses against the uniform density, elementwise.

    Decreasing and concave from g(0) = 0, `g ≈ −κ²/(2d)` for small and `−κ + (d−1)/2 · log κ + const` for large κ.
    The log-density of a cluster against the uniform one is `κ μ·x + g(κ)`.

    Args:
        concentration: κ ≥ 0, float32 or float64 of any shape. (A negative one gives the even continuation.)
        dim: d ≥ 2, static.

    Returns:
        f[*s] ≤ 0, of the dtype of `concentration`; nan where it is nan.

    Raises:
        ConfigError: `dim` is not a whole number ≥ 2, or the dtype is neither float32 nor float64.

    Numerics: relative error below 1e-13 in float64 (1e-15 for d ≥ 64) and 1e-6 in float32, for d from 2 to 8192 and
        κ from 0 to 1e5, at small κ too. Differentiable to any order by the exact rule g' = −A_d.

    Differs from the specification's (23): twelve terms of the expansion instead of three, which leave 3e-8 at d = 64;
        and the last term has its factor Δ taken out, because a difference loses its digits as κ → 0 (an error of
        0.2 % at κ = 1e-6).

    >>> import jax.numpy as jnp
    >>> from jaxmix.core.special import log_vmf_normalizer
    >>> print(log_vmf_normalizer(jnp.array([0.0, 1.0, 900.0]), 768))
    [ 0.0000000e+00 -6.5104116e-04 -3.7446121e+02]
    """
    return _normalizer(_as_float("concentration", concentration), _check_dim(dim))


def bessel_ratio(concentration: float | Float[Array, "*s"], dim: int) -> Float[Array, "*s"]:
    """`A_d(κ) = I_{d/2}(κ) / I_{d/2−1}(κ)`: the mean resultant length at concentration κ, elementwise.

    Increasing and concave from A(0) = 0 to 1: `A ≈ κ/d` for small and `1 − (d−1)/(2κ)` for large κ.

    Args:
        concentration: κ ≥ 0, float32 or float64 of any shape. (A negative one gives the odd continuation.)
        dim: d ≥ 2, static.

    Returns:
        f[*s] in [0, 1), 1 where rounding leaves no room; of the dtype of `concentration`; nan where it is nan.

    Raises:
        ConfigError: `dim` is not a whole number ≥ 2, or the dtype is neither float32 nor float64.

    Numerics: relative error below 2e-13 in float64 (1e-15 for d ≥ 64) and 5e-7 in float32, for d from 2 to 8192 and
        κ from 0 to 1e5. The derivative is (2) carried through the recurrence, not `1 − A² − (d−1) A/κ`, which
        cancels: relative error below 1e-11 in float64, and in float32 1e-6 for d ≥ 34, 1e-4 for the smallest d at
        the largest κ. Differentiable to any order.

    >>> import jax.numpy as jnp
    >>> from jaxmix.core.special import bessel_ratio
    >>> print(bessel_ratio(jnp.array([0.0, 1.0, 900.0]), 768))
    [0.         0.00130208 0.6607572 ]
    """
    return _ratio(_as_float("concentration", concentration), _check_dim(dim))


def inverse_bessel_ratio(ratio: float | Float[Array, "*s"], dim: int) -> Float[Array, "*s"]:
    """The concentration κ with `A_d(κ) = ratio`, elementwise: the maximum likelihood estimate from a mean length.

    Args:
        ratio: R in [0, 1), float32 or float64 of any shape. From 1 on (where the rounding of unit rows leads) the
            answer is infinity, with derivative 0: clip it to the largest concentration you allow.
        dim: d ≥ 2, static.

    Returns:
        f[*s] ≥ 0, of the dtype of `ratio`; nan where it is nan.

    Raises:
        ConfigError: `dim` is not a whole number ≥ 2, or the dtype is neither float32 nor float64.

    Numerics: Newton's method from Banerjee's `R (d − R²) / (1 − R²)`, a fixed number of steps. The residual is
        `(1 − R) − (1 − A)` for R ≥ ½, with 1 − A computed without cancellation, so κ is accurate for ratios near 1
        as well; what the rounding of R itself costs is `ΔR / A'(κ)`, at large κ `ΔR · 2κ²/(d−1)`. The derivative is
        the exact 1/A'(κ).

    >>> import jax.numpy as jnp
    >>> from jaxmix.core.special import inverse_bessel_ratio
    >>> [round(float(k), 2) for k in inverse_bessel_ratio(jnp.array([0.0, 0.5, 1.0]), 768)]
    [0.0, 511.73, inf]
    """
    return _inverse(_as_float("ratio", ratio), _check_dim(dim))


def _as_float(name: str, value: float | Array) -> Array:
    array = jnp.asarray(value)
    if array.dtype not in (jnp.float32, jnp.float64):
        raise ConfigError(
            f"{name} must be float32 or float64, got {array.dtype}",
            where=name,
            fix="Convert it with .astype(jnp.float32)",
        )
    return array


def _check_dim(dim: int) -> int:
    if isinstance(dim, bool) or not isinstance(dim, int) or dim < 2:
        raise ConfigError(
            f"dim must be a whole number ≥ 2, got {dim!r}",
            where="dim",
            fix="Pass the width of the unit vectors as a Python int",
        )
    return dim


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
@functools.partial(jax.jit, static_argnums=1)
def _normalizer(concentration: Array, dim: int) -> Array:
    inside = jnp.minimum(concentration, _saturated(concentration.dtype))
    order, widths = _start_and_steps(dim)
    delta, p = _debye_variables(inside, order)
    start = order * (jnp.log1p(delta / 2) - delta) + jnp.log1p(delta) / 2
    start = start + delta * p * _horner(_normalizer_coefficients(order), p)

    def lower(carry: tuple[Array, Array, Array], width: Array) -> tuple[tuple[Array, Array, Array], None]:
        value, ratio, complement = carry
        # I_ν / I_{ν+1}, each over its leading power of κ, is 1 + κ A_{d+2} / d.
        return (value - jnp.log1p(inside * ratio / width), *_lower_pair(inside, ratio, complement, width)), None

    steps = jnp.asarray(widths, inside.dtype)
    (value, _, _), _ = jax.lax.scan(lower, (start, *_debye_pair(inside, order)), steps)
    return value - (concentration - inside)


@_normalizer.defjvp
def _normalizer_jvp(dim: int, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    """g' = −A."""
    (concentration,), (tangent,) = primals, tangents
    return _normalizer(concentration, dim), -_ratio(concentration, dim) * tangent


@functools.partial(jax.jit, static_argnums=1)
def _ratio(concentration: Array, dim: int) -> Array:
    ratio, complement = _pair(concentration, dim)
    return jnp.where(complement < 0.5, 1 - complement, ratio)


def _pair(concentration: Array, dim: int) -> tuple[Array, Array]:
    """A and 1 − A, both to full relative precision."""
    inside = jnp.minimum(concentration, _saturated(concentration.dtype))
    order, widths = _start_and_steps(dim)
    lower = lambda pair, width: (_lower_pair(inside, *pair, width), None)
    return jax.lax.scan(lower, _debye_pair(inside, order), jnp.asarray(widths, inside.dtype))[0]


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
@functools.partial(jax.jit, static_argnums=1)
def _inverse(ratio: Array, dim: int) -> Array:
    is_inside = jnp.abs(ratio) < 1
    target = jnp.where(is_inside, ratio, 0.0)
    left = 1 - target

    def newton(step: int | Array, value: Array) -> Array:
        (below, above), (slope, _) = _pair_and_slope(value, dim)
        return value - jnp.where(target < 0.5, below - target, left - above) / slope

    start = target * (dim - target * target) / (left * (1 + target))
    value: Array = jax.lax.fori_loop(0, NEWTON_STEPS, newton, start)
    return jnp.where(is_inside, value, ratio * jnp.inf)


@_inverse.defjvp
def _inverse_jvp(dim: int, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    """κ' = 1 / A'(κ), and 0 where κ is infinite."""
    (ratio,), (tangent,) = primals, tangents
    value = _inverse(ratio, dim)
    is_inside = jnp.abs(ratio) < 1
    _, (slope, _) = _pair_and_slope(jnp.where(is_inside, value, 0.0), dim)
    return value, jnp.where(is_inside, tangent, 0.0) / slope


def _pair_and_slope(concentration: Array, dim: int) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """(A, 1 − A) and (A', −A')."""
    return jax.jvp(lambda k: _pair(k, dim), (concentration,), (jnp.ones_like(concentration),))


def _saturated(dtype: jnp.dtype) -> float:
    """The largest concentration whose square is a finite number, with room: A is 1 there to rounding."""
    return float(jnp.finfo(dtype).max) ** 0.5 / 16


def _start_and_steps(dim: int) -> tuple[float, list[int]]:
    """The order ≥ `MIN_ORDER` to start from, and the d of each step down to the wanted one (none for d ≥ 34)."""
    num_steps = max(0, math.ceil(MIN_ORDER - (dim / 2 - 1)))
    return dim / 2 - 1 + num_steps, [dim + 2 * step for step in reversed(range(num_steps))]


def _debye_variables(concentration: Array, order: float) -> tuple[Array, Array]:
    """Δ = (s − ν)/ν and p = ν/s."""
    scaled = concentration / order
    root = jnp.sqrt(1 + scaled * scaled)
    return scaled * (scaled / (1 + root)), 1 / root


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _debye_pair(concentration: Array, order: float) -> tuple[Array, Array]:
    """A by (1), and 1 − A with the same terms: 1 − x/(1+w) = (1 + w − x)/(1+w), x = κ/ν, w = s/ν, w − x = 1/(w+x)."""
    _, p = _debye_variables(concentration, order)
    scaled, root = concentration / order, 1 / p
    rest = scaled * _horner(_ratio_coefficients(order), p)
    # |x| keeps the odd continuation exact.
    gap = jnp.where(scaled < 0, root - scaled, 1 / (root + jnp.abs(scaled)))
    return scaled / (1 + root) + rest, (1 + gap) / (1 + root) - rest


@_debye_pair.defjvp
def _debye_pair_jvp(
    order: float, primals: tuple[Array], tangents: tuple[Array]
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """A' by (2)."""
    (concentration,), (tangent,) = primals, tangents
    _, p = _debye_variables(concentration, order)
    slope = (p * p / (1 + p) + _horner(_slope_coefficients(order), p)) / order * tangent
    return _debye_pair(concentration, order), (slope, -slope)


@jax.custom_jvp
def _lower_pair(concentration: Array, ratio: Array, complement: Array, width: Array) -> tuple[Array, Array]:
    """A and 1 − A at d = `width`, from those at d + 2."""
    below = width + concentration * ratio
    return concentration / below, (width - concentration * complement) / below


@_lower_pair.defjvp
def _lower_pair_jvp(
    primals: tuple[Array, Array, Array, Array], tangents: tuple[Array, Array, Array, Array]
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """Of κ / (d + κ A₊): (d dκ − κ² dA₊) / (d + κ A₊)²; at large κ the second term is about half of the first."""
    (concentration, ratio, complement, width), (tangent, d_ratio, _, _) = primals, tangents
    below = width + concentration * ratio
    slope = (width * tangent - concentration * (concentration * d_ratio)) / (below * below)
    return _lower_pair(concentration, ratio, complement, width), (slope, -slope)


def _horner(coefficients: tuple[float, ...], p: Array) -> Array:
    """`Σ_m c_m p^m`, without the last terms that are below rounding (p ≤ 1)."""
    negligible = float(jnp.finfo(p.dtype).eps) / 64
    degree = max(m for m, c in enumerate(coefficients) if abs(c) > negligible or m == 0)
    value = jnp.zeros_like(p)
    for coefficient in reversed(coefficients[: degree + 1]):
        value = value * p + coefficient
    return value


@functools.cache
def _ratio_coefficients(order: float) -> tuple[float, ...]:
    """P of (1)."""
    return tuple(map(float, _ratio_polynomial(order)))


@functools.cache
def _slope_coefficients(order: float) -> tuple[float, ...]:
    """P − (1 − p²) p P' of (2)."""
    terms = _ratio_polynomial(order)
    slope = [(1 - m) * c for m, c in enumerate(terms)] + [Fraction(0)] * 2
    for m, c in enumerate(terms):
        slope[m + 2] += m * c
    return tuple(map(float, slope))


@functools.cache
def _normalizer_coefficients(order: float) -> tuple[float, ...]:
    """Q of (3): the coefficient of p^i in (p^m − 1)/(p − 1) is 1 for i < m."""
    terms = _ratio_polynomial(order, first=2)
    integral = [-Fraction(order) * c / (m + 1) for m, c in enumerate(terms[3:])]  # of p^(m + 1)
    return tuple(float(sum(integral[i:])) for i in range(len(integral)))


def _ratio_polynomial(order: float, first: int = 1) -> list[Fraction]:
    """`Σ_{n ≥ first} ν^{−n} p^{n+1} q_n(p²)`."""
    total = [Fraction(0)] * (3 * NUM_TERMS)
    for n, q in enumerate(_expansion(), start=1):
        for j, c in enumerate(q):
            if n >= first:
                total[n + 1 + 2 * j] += c / Fraction(order) ** n
    return total


@functools.cache
def _expansion() -> tuple[tuple[Fraction, ...], ...]:
    """q_1 … q_N, as coefficients of powers of t."""
    terms = [[Fraction(1)]]
    for n in range(NUM_TERMS):
        new = [Fraction(0)] * (n + 2)
        for j, c in enumerate(terms[n]):
            scaled = (1 - n - 2 * j) * c
            new[j] += scaled
            new[j + 1] -= scaled
        for i in range(1, n + 1):
            for j, b in enumerate(terms[i]):
                for k, c in enumerate(terms[n + 1 - i]):
                    new[j + k] += b * c
        terms.append([-c / 2 for c in new])
    # Division by 1 − t turns coefficients into their partial sums; the last one is the remainder, 0.
    return tuple(tuple(itertools.accumulate(a))[:-1] for a in terms[1:])
