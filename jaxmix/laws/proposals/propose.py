"""The mixture of the lowest predicted loss, within bounds and the available data."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float64

from jaxmix.core.errors import ConfigError
from jaxmix.core.simplex import kl_divergence, kl_project_capped_simplex
from jaxmix.core.types import Array
from jaxmix.core.validate import Count, Positive, checked
from jaxmix.laws.base import Law, Shape
from jaxmix.laws.design import sample_mixtures
from jaxmix.laws.fit import LawFit, compiled, on_host
from jaxmix.laws.proposals.base import Proposal, check_constraints, not_finite, weighted_mean
from jaxmix.laws.proposals.regmix import propose_regmix
from jaxmix.laws.proposals.repetition import REPEAT_DECAY, effective_mixture
from jaxmix.laws.solve.mirror_descent import Minimum, mirror_descent

_LEAST = 1e-12
_NEGLIGIBLE = 1e-9


class ScalePath(NamedTuple):
    """Best mixtures over scales.

    Attributes:
        model_size: millions.
        tokens: billions.
        weights, predicted, objective: as in `Proposal`.
    """

    model_size: Float64[np.ndarray, " s"]
    tokens: Float64[np.ndarray, " s"]
    weights: Float64[np.ndarray, "s m"]
    predicted: Float64[np.ndarray, "s e"]
    objective: Float64[np.ndarray, " s"]


class _Problem(NamedTuple):
    """The objective and its constraints, as arrays: other values do not make the solver compile again."""

    params: dict[str, Array]
    model_size: Float64[Array, ""]
    tokens: Float64[Array, ""]
    metric_weights: Float64[Array, " e"]
    prior: Float64[Array, " m"]
    kl_strength: Float64[Array, ""]
    caps: Float64[Array, " m"]
    floors: Float64[Array, " m"]
    available: Float64[Array, " m"]
    decay: Float64[Array, ""]
    tolerance: Float64[Array, ""]


class _Found(NamedTuple):
    """The best end of a solve on the host; `values` are those of all starts."""

    weights: Float64[np.ndarray, " m"]
    predicted: Float64[np.ndarray, " e"]
    objective: float
    is_converged: bool
    gap: float
    values: Float64[np.ndarray, " s"]


@checked
def propose(
    fit: LawFit,
    *,
    model_size: Positive,
    tokens: Positive,
    metric_weights: Any = None,
    max_weights: Any = None,
    kl_strength: float = 0.0,
    prior: Any = None,
    min_weights: Any = 0.0,
    available_tokens: Any = None,
    repeat_decay: Positive = REPEAT_DECAY,
    num_starts: Count = 8,
    max_steps: Count = 3000,
    tolerance: Positive = 1e-8,
    num_candidates: int = 100_000,
    key: Any = None,
) -> Proposal:
    r"""Returns the mixture of the lowest predicted loss at a model size and number of tokens.

        minimize  J(h) = Σ_i w_i L_i(h, N, D) + κ KL(h ‖ prior)    subject to    floors ≤ h ≤ caps,  Σ h = 1

    With `available_tokens` the law is asked about the effective mixture and tokens
    (`jaxmix.laws.effective_mixture`) instead of h and D.
    Symbols: w `metric_weights`, N `model_size`, D `tokens`, κ `kl_strength`.

    Args:
        fit: of any law.
        model_size: of the run to come, millions of parameters, > 0.
        tokens: billions, > 0.
        metric_weights: [e], ≥ 0, divided by their sum; None: all equal.
        max_weights: caps, [m] or a number; see `caps_from_tokens` for those that a limit of epochs sets.
        kl_strength: κ ≥ 0, nats of loss per nat of divergence.
        prior: [m], ≥ 0, divided by its sum; None: uniform. Also the third start. With κ > 0 a domain of prior 0 stays
            out.
        min_weights: floors, [m] or a number, ≥ 0.
        available_tokens: [m], billions there are of each domain; None: no limit, nothing is repeated.
        repeat_decay: R* of `effective_tokens`.
        num_starts: ≥ 1: uniform, the metric weights carried over to their domains, the prior, then random ones.
        max_steps: most steps per start.
        tolerance: of the gap, relative to the objective.
        num_candidates: for laws without a gradient (trees, Gaussian processes), see `propose_regmix`.
        key: typed JAX key for the random starts; None: the same ones every time.

    Returns:
        The proposal. Weights that end at the numerical floor of 1e-12 are 0 where that is no worse.

    Raises:
        ConfigError: numbers out of range or of the wrong shape, bounds that no mixture keeps.
        RunError: the law predicts no finite loss at any start.

    Numerics: float64 on the host's CPU, entropic mirror descent with the exact gradient (the allocation of capacity
    has an implicit derivative), see `jaxmix.laws.solve.mirror_descent`. All starts run as one program, compiled once
    per law object and outline of the table.

    Example:
        >>> import jaxmix.laws as laws
        >>> h = np.array([[0.9, 0.1], [0.1, 0.9], [0.5, 0.5], [0.7, 0.3], [0.3, 0.7], [0.2, 0.8]])
        >>> ones = np.ones(6)
        >>> table = laws.RunTable(h, 2 + 0.5 * (h + 0.1) ** -0.3, ones, ones, ["a", "b"], ["a", "b"])
        >>> fitted = laws.fit(laws.make("capacity", competition=False), table, key=jax.random.key(0), num_starts=8)
        >>> propose(fitted, model_size=1.0, tokens=1.0).weights.round(2).tolist()
        [0.5, 0.5]

    References:
        arXiv 2606.08167, the bilevel problem and mirror descent; arXiv 2602.12237 for the divergence and caps.
    """
    m = fit.shape.num_domains
    given: dict[str, Any] = {
        "metric_weights": metric_weights,
        "prior": prior,
        "max_weights": max_weights,
        "min_weights": min_weights,
        "kl_strength": kl_strength,
        "available_tokens": available_tokens,
    }
    shares, prior, caps, floors, available = check_constraints(fit.shape, **given)
    if fit.law.build is None:
        return propose_regmix(
            fit,
            model_size=model_size,
            tokens=tokens,
            repeat_decay=repeat_decay,
            num_candidates=num_candidates,
            key=key,
            **given,
        )
    key = jax.random.key(0) if key is None else key
    starts = _starts(key, num_starts, shares, prior, fit.shape)
    with on_host():
        array = lambda value: jnp.asarray(value, jnp.float64)
        bounded = _Problem(
            params={name: array(value) for name, value in fit.params.items()},
            model_size=array(model_size),
            tokens=array(tokens),
            metric_weights=array(shares),
            prior=array(prior if kl_strength > 0 else np.full(m, 1 / m)),
            kl_strength=array(kl_strength),
            caps=array(caps),
            floors=array(np.maximum(floors, np.minimum(_LEAST, caps))),
            available=array(available),
            decay=array(repeat_decay),
            tolerance=array(tolerance),
        )
        free = bounded._replace(
            kl_strength=array(0.0),
            prior=array(np.full(m, 1 / m)),
            caps=array(np.ones(m)),
            floors=array(np.full(m, _LEAST)),
            available=array(np.full(m, np.inf)),
        )
        found, wanted = (_solve(fit, problem, starts, max_steps) for problem in (bounded, free))
    return Proposal(
        weights=found.weights,
        predicted=found.predicted,
        objective=found.objective,
        unconstrained_weights=wanted.weights,
        unconstrained_predicted=wanted.predicted,
        unconstrained_objective=wanted.objective,
        converged=found.is_converged,
        gap=found.gap,
        start_objectives=found.values,
    )


def scale_path(fit: LawFit, model_sizes: Any, tokens: Any, **options: Any) -> ScalePath:
    """Returns the best mixture as a curve over scales, h*(N, D).

    Args:
        fit: of a law with terms in what varies here, or all its mixtures are the same.
        model_sizes: [s] or a number, millions.
        tokens: [s] or a number, billions.
        **options: of `propose`, the same at every scale.

    Raises:
        ConfigError: as `propose`, and for sizes and tokens of different lengths.
    """
    try:
        sizes, amounts = np.broadcast_arrays(
            np.atleast_1d(np.asarray(model_sizes, np.float64)), np.atleast_1d(np.asarray(tokens, np.float64))
        )
    except ValueError:
        raise ConfigError(
            f"{np.size(model_sizes)} model sizes and {np.size(tokens)} amounts of tokens do not fit each other",
            where="scale_path(tokens)",
        ) from None
    found = [propose(fit, model_size=float(n), tokens=float(d), **options) for n, d in zip(sizes, amounts, strict=True)]
    stack = lambda name: np.stack([getattr(p, name) for p in found])
    return ScalePath(sizes.copy(), amounts.copy(), stack("weights"), stack("predicted"), stack("objective"))


@functools.partial(jax.jit, static_argnames=("law", "shape"))
def _objective(law: Law, shape: Shape, problem: _Problem, weights: Array) -> tuple[Array, Array]:
    """J and the predicted losses [e] of one mixture."""
    effective, worth = effective_mixture(weights, problem.tokens, problem.available, problem.decay)
    predict = compiled(law, shape).form.predict
    losses = predict(problem.params, effective[None], problem.model_size[None], worth[None])[0]
    value = weighted_mean(problem.metric_weights, losses) + problem.kl_strength * kl_divergence(weights, problem.prior)
    return value, losses


@functools.partial(jax.jit, static_argnames=("law", "shape"))
def _descend(law: Law, shape: Shape, problem: _Problem, starts: Array, max_steps: Array) -> Minimum:
    """A descent from every start [s, m]."""

    def one(start: Array) -> Minimum:
        # Bounds come last: a start outside of them is carried to the nearest mixture within.
        inside = kl_project_capped_simplex(start, problem.caps, problem.floors)
        objective = lambda weights: _objective(law, shape, problem, weights)[0]
        return mirror_descent(
            objective, inside, problem.caps, problem.floors, max_steps=max_steps, tolerance=problem.tolerance
        )

    return jax.vmap(one)(starts)


def _solve(fit: LawFit, problem: _Problem, starts: np.ndarray, max_steps: int) -> _Found:
    """The best of all starts, cleared of negligible weights."""
    law, shape = fit.law, fit.shape
    ends = jax.device_get(_descend(law, shape, problem, jnp.asarray(starts), jnp.int32(max_steps)))
    value = np.where(np.isfinite(ends.value), ends.value, np.inf)
    best = int(np.argmin(value))
    if not np.isfinite(value[best]):
        raise not_finite(law)
    weights = ends.weights[best]
    is_small = (weights < _NEGLIGIBLE) & (np.asarray(problem.floors) <= _LEAST)
    cleared = np.where(is_small, 0.0, weights)
    cleared = cleared / cleared.sum()
    objective, predicted = jax.device_get(_objective(law, shape, problem, jnp.asarray(cleared)))
    if (cleared <= np.asarray(problem.caps)).all() and objective <= value[best] * (1 + 1e-12):
        weights = cleared
    else:
        objective, predicted = jax.device_get(_objective(law, shape, problem, jnp.asarray(weights)))
    return _Found(
        weights, predicted, float(objective), bool(ends.is_converged[best]), float(ends.gap[best]), np.array(ends.value)
    )


def _starts(key: Any, num_starts: int, shares: np.ndarray, prior: np.ndarray, shape: Shape) -> np.ndarray:
    """float64[s, m], all positive: uniform, the metrics' domains, the prior, random."""
    m = shape.num_domains
    uniform = np.full(m, 1 / m)
    own = np.zeros(m)
    for share, domain in zip(shares, shape.metric_domain, strict=True):
        if domain >= 0:
            own[domain] += share
    named = [uniform, own if own.sum() > 0 else uniform, prior]
    count = max(num_starts - len(named), 0)
    drawn = sample_mixtures(key, uniform, count, concentration=(float(m), float(m))) if count else np.zeros((0, m))
    starts = np.concatenate([np.stack(named)[:num_starts], drawn])
    starts = starts / starts.sum(axis=1, keepdims=True)
    return 0.99 * starts + 0.01 * uniform
