"""RegMix's proposal: the average of the best of many simulated mixtures.

Liu et al.: "RegMix: Data Mixture as Regression for Language Model Pre-training", arXiv 2407.01492.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmix.core.errors import ConfigError
from jaxmix.core.simplex import kl_divergence, kl_project_capped_simplex
from jaxmix.core.validate import Positive, checked
from jaxmix.laws.design import sample_mixtures
from jaxmix.laws.fit import LawFit, on_host
from jaxmix.laws.proposals.base import Proposal, check_constraints, not_finite, weighted_mean
from jaxmix.laws.proposals.repetition import REPEAT_DECAY, effective_mixture
from jaxmix.laws.proposals.simulate import simulate


@checked
def propose_regmix(
    fit: LawFit,
    *,
    model_size: Positive,
    tokens: Positive,
    prior: Any = None,
    metric_weights: Any = None,
    max_weights: Any = None,
    min_weights: Any = 0.0,
    kl_strength: float = 0.0,
    available_tokens: Any = None,
    repeat_decay: Positive = REPEAT_DECAY,
    num_candidates: int = 100_000,
    num_best: int = 128,
    concentration: tuple[float, float] | None = None,
    key: Any = None,
) -> Proposal:
    """Returns the average of the best of many simulated mixtures, as RegMix proposes; for every law.

    Args:
        fit, model_size, tokens, metric_weights, max_weights, min_weights, kl_strength, available_tokens,
            repeat_decay: as in `propose`.
        prior: [m], what candidates are drawn around; None: uniform.
        num_candidates: ≥ num_best.
        num_best: averaged; the average keeps all bounds since they are convex.
        concentration: of the Dirichlet distributions that candidates are drawn from (log-uniform in this range); None:
            from 1 to 4 m.
        key: typed JAX key; None: the same candidates every time.

    Returns:
        The proposal; `objective` is that of the average.

    Raises:
        ConfigError: as `propose`.

    Differs from the paper: RegMix draws all candidates with one concentration; here they vary from sparse to close to
    the prior, and those out of bounds are projected on them.

    References:
        Liu et al., arXiv 2407.01492, section 3.3.
    """
    m = fit.shape.num_domains
    if not 1 <= num_best <= num_candidates:
        raise ConfigError(
            f"num_best must be from 1 to num_candidates ({num_candidates}), got {num_best}",
            where="propose_regmix(num_best)",
        )
    shares, prior, caps, floors, available = check_constraints(
        fit.shape,
        metric_weights=metric_weights,
        prior=prior,
        max_weights=max_weights,
        min_weights=min_weights,
        kl_strength=kl_strength,
        available_tokens=available_tokens,
    )
    candidates = sample_mixtures(
        jax.random.key(0) if key is None else key,
        prior,
        num_candidates,
        concentration=(1.0, 4.0 * m) if concentration is None else concentration,
    )
    about: dict[str, Any] = {"model_size": model_size, "tokens": tokens, "metric_weights": shares}
    about["repeat_decay"] = repeat_decay

    def average(mixtures: np.ndarray, strength: float, limit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scores = simulate(fit, mixtures, available_tokens=limit, **about)
        if strength > 0:
            scores = scores + strength * _divergence(mixtures, prior)
        best = np.argsort(scores, kind="stable")[:num_best]
        return mixtures[best].mean(axis=0), scores[best]

    free, _ = average(candidates, 0.0, np.full(m, np.inf))
    weights, scores = average(_projected(candidates, caps, floors), kl_strength, available)
    if not np.isfinite(scores).all():
        raise not_finite(fit.law)
    with on_host():
        found = effective_mixture(jnp.asarray(weights), jnp.asarray(tokens), jnp.asarray(available), repeat_decay)
        effective, worth = (np.asarray(value) for value in found)
    predicted = fit.predict(effective, model_size, float(worth))[0]
    wanted = fit.predict(free, model_size, tokens)[0]
    penalty = kl_strength * float(_divergence(weights[None], prior)[0]) if kl_strength > 0 else 0.0
    return Proposal(
        weights=weights,
        predicted=predicted,
        objective=float(weighted_mean(shares, predicted)) + penalty,
        unconstrained_weights=free,
        unconstrained_predicted=wanted,
        unconstrained_objective=float(weighted_mean(shares, wanted)),
        converged=False,
        gap=float("nan"),
        start_objectives=scores,
    )


def _divergence(weights: np.ndarray, prior: np.ndarray) -> np.ndarray:
    with on_host():
        return np.asarray(kl_divergence(jnp.asarray(weights), jnp.broadcast_to(jnp.asarray(prior), weights.shape)))


def _projected(candidates: np.ndarray, caps: np.ndarray, floors: np.ndarray) -> np.ndarray:
    if (caps >= 1).all() and (floors <= 0).all():
        return candidates
    with on_host():
        project = jax.jit(jax.vmap(kl_project_capped_simplex, in_axes=(0, None, None)))
        return np.asarray(project(jnp.asarray(candidates), jnp.asarray(caps), jnp.asarray(floors)))
