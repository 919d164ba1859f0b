"""Designs: the mixtures to train small proxy models on.

Liu et al.: "RegMix: Data Mixture as Regression for Language Model Pre-training", arXiv 2407.01492.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmix.core.errors import ConfigError
from jaxmix.core.types import Array
from jaxmix.core.validate import Count, Positive, checked
from jaxmix.laws.checks import on_simplex, per_domain
from jaxmix.laws.fit import LawFit, compiled, on_host

_NUM_STRENGTHS = 15
_MAX_ROUNDS = 200
_SOBOL_BITS = 32


@checked
def dirichlet_designs(
    key: Any,
    prior: Any,
    num_runs: Count,
    *,
    temperature: Positive = 0.5,
    concentration: tuple[float, float] = (0.1, 5.0),
    min_weight: float = 2e-4,
    max_weights: Any = None,
    min_distance: float = 1e-3,
) -> np.ndarray:
    r"""Returns mixtures for proxies by RegMix's procedure, float64[r, m].

    Each is drawn from Dirichlet(s · prior^temperature / Σ prior^temperature), with s one of 15 concentrations evenly
    spaced in the logarithm; drawn again if it is over a cap; weights below `min_weight` are set to 0 and the rest
    divided by its sum; near-duplicates of earlier ones are rejected.

    Args:
        key: typed JAX key.
        prior: [m], ≥ 0, divided by its sum: usually the domains' shares of all tokens. A domain of 0 is never drawn.
        num_runs: r ≥ 1.
        temperature: > 0; below 1 flattens the prior.
        concentration: smallest and largest s; small ones give mixtures of few domains.
        min_weight: in [0, 1 / m): RegMix takes what gives 100 rows in a proxy's training.
        max_weights: caps, [m] or a number; RegMix takes 15 epochs' worth, see `caps_from_tokens`.
        min_distance: mixtures are at least so far apart, Σ |difference|.

    Raises:
        ConfigError: numbers out of range, caps that (almost) no draw keeps.

    Differs from the paper: its code rounds weights to multiples of `min_weight` without restoring the sum; here rows
    add up to 1. Duplicates are looked for among all pairs, not neighbors in a sorted list.

    Example:
        >>> designs = dirichlet_designs(jax.random.key(0), [0.7, 0.2, 0.1], 16)
        >>> designs.shape, bool(np.allclose(designs.sum(axis=1), 1))
        ((16, 3), True)

    References:
        arXiv 2407.01492, section 3.1; github.com/sail-sg/regmix, mixture_config.
    """
    m = np.size(prior)
    prior = on_simplex(prior, m, "dirichlet_designs(prior)")
    if not 0 <= min_weight < 1 / m:
        raise ConfigError(f"min_weight must be in [0, 1/{m}), got {min_weight}", where="dirichlet_designs(min_weight)")
    caps = per_domain(1.0 if max_weights is None else max_weights, m, "dirichlet_designs(max_weights)")
    flat = np.where(prior > 0, prior, 1.0) ** temperature * (prior > 0)
    rng = _rng(key)
    kept = np.zeros((0, m))
    for _ in range(_MAX_ROUNDS):
        drawn = _dirichlet(rng, flat / flat.sum(), max(64, 2 * num_runs), concentration, num_strengths=_NUM_STRENGTHS)
        drawn = drawn[(drawn <= caps).all(axis=1)]
        drawn = np.where(drawn < min_weight, 0.0, drawn)
        drawn = drawn / drawn.sum(axis=1, keepdims=True)
        kept = distinct(np.concatenate([kept, drawn]), min_distance=min_distance)[:num_runs]
        if len(kept) == num_runs:
            return kept
    raise ConfigError(
        f"only {len(kept)} of {num_runs} mixtures keep the caps and are {min_distance} apart",
        where="dirichlet_designs(max_weights)",
        fix="Raise the caps or the largest concentration, or lower min_distance.",
    )


@checked
def sobol_designs(
    key: Any, num_domains: int, num_runs: Count, *, min_weights: Any = 0.0, max_weights: Any = None
) -> np.ndarray:
    """Returns mixtures spread evenly over the whole simplex, float64[r, m].

    Sobol points of `scipy.stats.qmc` (with a random digital shift) are broken into sticks by the inverse distribution
    functions of the uniform distribution on the simplex: h_j = (1 − Σ_{i<j} h_i) (1 − (1 − u_j)^{1/(m−j)}), for
    j = 1 … m − 1. With floors they fill the smaller simplex above the floors; those over a cap are left out and later
    points take their place.

    Args:
        key: typed JAX key, for the shift.
        num_domains: m, from 2 to 21202.
        num_runs: r ≥ 1.
        min_weights: floors, [m] or a number, adding up to less than 1.
        max_weights: caps, [m] or a number.

    Raises:
        ConfigError: too many domains, floors that leave no room, caps that almost no mixture keeps.
    """
    from scipy.stats.qmc import Sobol

    if not 2 <= num_domains <= Sobol.MAXDIM + 1:
        raise ConfigError(
            f"Sobol mixtures have from 2 to {Sobol.MAXDIM + 1} domains, got {num_domains}",
            where="sobol_designs(num_domains)",
        )
    floors = per_domain(min_weights, num_domains, "sobol_designs(min_weights)")
    caps = per_domain(1.0 if max_weights is None else max_weights, num_domains, "sobol_designs(max_weights)")
    if not ((floors >= 0).all() and floors.sum() < 1):
        raise ConfigError(
            f"floors must be >= 0 and add up to less than 1, got {floors.tolist()}", where="sobol_designs(min_weights)"
        )
    rng = np.random.default_rng(int(_rng(key).integers(2**63)))
    shift = rng.integers(0, 2**_SOBOL_BITS, num_domains - 1, dtype=np.uint64)
    count = num_runs
    while count <= max(64 * num_runs, 2**16):
        sequence = Sobol(num_domains - 1, scramble=False, bits=_SOBOL_BITS)
        points = sequence.random_base2((count - 1).bit_length())[:count] * 2.0**_SOBOL_BITS
        points = ((points.astype(np.uint64) ^ shift) + 0.5) / 2.0**_SOBOL_BITS
        weights = floors + (1.0 - floors.sum()) * _sticks(points)
        weights = weights[(weights <= caps).all(axis=1)]
        if len(weights) >= num_runs:
            return weights[:num_runs]
        count *= 2
    raise ConfigError(
        f"only {len(weights)} of {count // 2} mixtures keep the caps",
        where="sobol_designs(max_weights)",
        fix="Raise them.",
    )


def sample_mixtures(key: Any, prior: Any, num: int, *, concentration: tuple[float, float] = (1.0, 50.0)) -> np.ndarray:
    """Returns candidates float64[c, m] from Dirichlet(s · prior), s log-uniform between two concentrations.

    Args:
        key: typed JAX key.
        prior: [m], ≥ 0, divided by its sum.
        num: c ≥ 1.
        concentration: smallest and largest s.
    """
    prior = on_simplex(prior, np.size(prior), "sample_mixtures(prior)")
    return _dirichlet(_rng(key), prior, num, concentration)


def distinct(weights: np.ndarray, *, min_distance: float) -> np.ndarray:
    """The mixtures that are at least `min_distance` (Σ |difference|) from every one kept before them."""
    kept: list[int] = []
    for index, row in enumerate(weights):
        if not kept or np.abs(weights[kept] - row).sum(axis=1).min() >= min_distance:
            kept.append(index)
    return weights[kept]


@checked
def d_optimal(
    candidates: np.ndarray,
    num_runs: int,
    *,
    features: np.ndarray | None = None,
    existing: np.ndarray | None = None,
    ridge: Positive = 1e-6,
) -> np.ndarray:
    r"""Chooses the next runs greedily by D-optimality: indices i64[num_runs] into `candidates`, best first.

    Each choice maximizes log det(M + F_cᵀ F_c) with M the information of the runs there are and of those chosen, plus
    `ridge` · mean(Σ F²) · I: what is still least known comes next. A candidate is chosen once.

    Args:
        candidates: float[c, m].
        num_runs: from 1 to c.
        features: F, float[c, p], or float[c, e, p] for several measurements per run such as `law_features`; None: those
            of a quadratic in the weights (h_j and h_j h_k).
        existing: features of the runs there are, [r, p] or [r, e, p]; with features=None: their weights [r, m].
        ridge: > 0, relative.

    Raises:
        ConfigError: too many runs asked for, features that fit no candidates.

    Example:
        >>> candidates = np.array([[0.5, 0.5], [1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
        >>> d_optimal(candidates, 2, features=candidates).tolist()
        [1, 3]
    """
    candidates = np.asarray(candidates, np.float64)
    if not 1 <= num_runs <= len(candidates):
        raise ConfigError(
            f"num_runs must be from 1 to the {len(candidates)} candidates, got {num_runs}", where="d_optimal(num_runs)"
        )
    if features is None:
        features = _quadratic(candidates)
        existing = None if existing is None else _quadratic(np.asarray(existing, np.float64))
    features = np.asarray(features, np.float64)
    if features.ndim not in (2, 3) or len(features) != len(candidates):
        raise ConfigError(
            f"features have shape {features.shape} for {len(candidates)} candidates", where="d_optimal(features)"
        )
    rows = features.reshape(len(features), -1, features.shape[-1])
    size = rows.shape[-1]
    information = ridge * np.mean((rows**2).sum(axis=(1, 2))) * np.eye(size)
    if existing is not None:
        known = np.asarray(existing, np.float64).reshape(-1, size)
        information = information + known.T @ known
    inverse = np.linalg.inv(information)
    is_free = np.ones(len(rows), bool)
    chosen = []
    for _ in range(num_runs):
        # log det(I + F M⁻¹ Fᵀ), by the matrix determinant lemma.
        inner = np.eye(rows.shape[1]) + np.einsum("cep,pq,cfq->cef", rows, inverse, rows, optimize=True)
        gain = np.where(is_free, np.linalg.slogdet(inner)[1], -np.inf)
        best = int(np.argmax(gain))
        chosen.append(best)
        is_free[best] = False
        information = information + rows[best].T @ rows[best]
        inverse = np.linalg.inv(information)
    return np.asarray(chosen, np.int64)


def law_features(fit: LawFit, weights: Any, *, model_size: float, tokens: float) -> np.ndarray:
    """Features of runs for `d_optimal`: d log L_i / d log θ at the fit, float64[c, e, p].

    Parameters that are not searched in their logarithm are differentiated as they are.

    Raises:
        ConfigError: the law has no parameters (trees and other regressors).
    """
    if fit.law.build is None:
        raise ConfigError(
            f"law {fit.law.name!r} has no parameters",
            where="law_features(fit)",
            fix="Leave features out: d_optimal then takes those of a quadratic.",
        )
    with on_host():
        form = compiled(fit.law, fit.shape).form
        params = {name: jnp.asarray(value, jnp.float64) for name, value in fit.params.items()}
        mixtures = jnp.asarray(weights, jnp.float64)

        def log_losses(params: dict[str, Array], row: Array) -> Array:
            size, amount = jnp.full(1, float(model_size)), jnp.full(1, float(tokens))
            return jnp.log(form.predict(params, row[None], size, amount)[0])

        slopes = jax.jit(jax.vmap(jax.jacfwd(log_losses), in_axes=(None, 0)))(params, mixtures)
        parts = []
        for name in form.parameters:
            by = np.asarray(params[name]) if form.parameters[name].is_log else 1.0
            scaled = np.asarray(slopes[name]) * by
            parts.append(scaled.reshape(len(mixtures), fit.shape.num_metrics, -1))
    return np.concatenate(parts, axis=2)


def _rng(key: Any) -> np.random.Generator:
    """NumPy draws a million Dirichlet rows some ten times faster than JAX does on a host."""
    return np.random.default_rng([int(part) for part in np.asarray(jax.random.key_data(key)).ravel()])


def _dirichlet(
    rng: np.random.Generator,
    prior: np.ndarray,
    num: int,
    concentration: tuple[float, float],
    *,
    num_strengths: int | None = None,
) -> np.ndarray:
    """Rows of Dirichlet(s · prior), s log-uniform in a range or one of `num_strengths` values evenly spaced in it."""
    low, high = concentration
    if not (np.isfinite(high) and 0 < low <= high):
        raise ConfigError(
            f"concentration must be a range of finite numbers > 0, got {concentration}",
            where="sample_mixtures(concentration)",
        )
    if num_strengths is None:
        strength = np.exp(rng.uniform(np.log(low), np.log(high), num))
    else:
        strength = rng.choice(np.geomspace(low, high, num_strengths), num)
    alpha = strength[:, None] * prior[prior > 0]
    # Gamma(a) = Gamma(a + 1) U^(1/a), in logarithms: for small a the variates themselves would be 0.
    logs = np.log(rng.standard_gamma(alpha + 1.0)) + np.log1p(-rng.random(alpha.shape)) / alpha
    shares = np.exp(logs - logs.max(axis=1, keepdims=True))
    rows = np.zeros((num, len(prior)))
    rows[:, prior > 0] = shares / shares.sum(axis=1, keepdims=True)
    return rows


def _sticks(points: np.ndarray) -> np.ndarray:
    """Uniform points [n, m − 1] of the cube as uniform points [n, m] of the simplex."""
    num_domains = points.shape[1] + 1
    left = np.ones(len(points))
    weights = np.empty((len(points), num_domains))
    for j in range(num_domains - 1):
        weights[:, j] = left * -np.expm1(np.log1p(-points[:, j]) / (num_domains - 1 - j))
        left = left - weights[:, j]
    weights[:, -1] = np.maximum(left, 0.0)
    return weights


def _quadratic(weights: np.ndarray) -> np.ndarray:
    """h_j and h_j h_k, j < k."""
    first, second = np.triu_indices(weights.shape[1], 1)
    return np.concatenate([weights, weights[:, first] * weights[:, second]], axis=1)
