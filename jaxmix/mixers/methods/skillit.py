"""Skill-It: a fixed graph of which domain helps which, times the current losses.

Chen, Roberts, Bhatia, Wang, Zhang, Sala, Ré: "Skill-it! A Data-Driven Skills Framework for Understanding and
Training Language Models", arXiv 2307.14430.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxmix.core.errors import ConfigError
from jaxmix.core.pytree import state
from jaxmix.core.simplex import TINY
from jaxmix.core.types import Array, DomainVector, Float, Int, PRNGKeyArray, Weights
from jaxmix.core.validate import Count, NonNegative, check_one_per_domain, checked
from jaxmix.mixers.base import Cadence, Feedback, Mixer, registry
from jaxmix.mixers.lmo import Estimate, LmoState, lmo
from jaxmix.mixers.missing import LARGEST, finite_or_nan, keep_last

_LARGEST_RATIO = 1e6


@state(version=1)
class SkillitEstimate:
    """Attributes:
    recent: f32[window, m], the last validation losses of each domain, newest last; 0 where there are fewer.
    seen: i32[m], how many of them there are.
    initial: f32[m], each domain's first validation loss; nan before.
    prior: f32[m] on the simplex, the weights before the first update.
    """

    recent: Float[Array, "window m"]
    seen: Int[Array, " m"]
    initial: DomainVector
    prior: Weights


def skill_graph(start_losses: DomainVector, end_losses: Float[Array, "m m"]) -> Float[Array, "m m"]:
    """The graph from m runs on one domain each: `G_ji = max((start_i − end_ji) / start_i, 0)`, rows are sources.

    Args:
        start_losses: f32[m], validation loss of each domain before the runs, ≥ 0.
        end_losses: f32[m, m], entry (j, i): validation loss of domain i after the run on domain j alone.

    Returns:
        f32[m, m] in [0, 1], for `skillit(graph.tolist())`. A domain whose loss starts at 0 has nothing to gain: 0.
    """
    start = jnp.broadcast_to(start_losses[None, :], end_losses.shape)
    is_positive = start > 0
    drop = (start - end_losses) / jnp.where(is_positive, start, 1.0)
    return jnp.where(is_positive, jnp.maximum(drop, 0.0), 0.0)


@registry.register
@checked
def skillit(
    graph: float | Sequence[Sequence[float]],
    *,
    step_size: NonNegative = 0.2,
    window: Count = 3,
    reduce: Literal["sum", "mean"] = "sum",
    relative: bool = False,
    schedule: Literal["constant", "loss_ratio"] = "constant",
    start: Literal["prior", "graph"] = "prior",
    anchored: bool = False,
    orientation: Literal["source_to_target", "lmo"] = "source_to_target",
    evaluate_every: Count = 250,
    update_every: Count = 500,
) -> Mixer:
    """Skill-It: draws more of what helps the domains whose losses are high.

        p_j ∝ exp(η Σ_i G_ji Σ_{last w evaluations} L_i)

    With L_i the validation loss of domain i (nats per token), G_ji = graph the relative drop of L_i in a run on
    domain j alone, η = step_size, w = window. There is no memory but the window.

    Args:
        graph: m rows of m finite numbers ≥ 0, see `skill_graph`; or one number for all entries off a diagonal of 1
            (0.5 is the released code's value for the edges of a hand-made graph).
        step_size: η ≥ 0; see `docs/mixers.md` for published values.
        window: w ≥ 1, in evaluations.
        reduce: "sum" (the paper) or "mean" (one fine-tuning variant of the code) of the window's losses. With "sum"
            the effective step grows while the window fills.
        relative: divide each domain's losses by its first one.
        schedule: "constant" η, or "loss_ratio": η · Σ first losses / Σ last losses, an option of the released code
            which lengthens the step as losses fall (by at most a factor of 1e6).
        start: the weights before the first update: "prior", or "graph" (released code: the rule with all losses 1).
        anchored: whether the prior stays as a factor of p at every update (an option of the released code).
        orientation: "source_to_target" (rows of the graph are sources) or "lmo" (rows are targets, as in A).
        evaluate_every: optimizer steps from one evaluation to the next, ≥ 1.
        update_every: optimizer steps from one change of the weights to the next, a multiple of `evaluate_every`.

    Returns:
        A mixer that needs `validation_loss`, served after every `evaluate_every` steps. `info.score` is the exponent,
        step size and anchor included; `info.extra` has `step_size`. `final(state)` is the mean of the weights over
        all evaluations.

    Raises:
        ConfigError: a word is unknown, a number out of range, the graph not square, or (in `init`) not m × m.

    Numerics: relative to the largest exponent; losses and exponents count as at most 1e30. A loss that is not finite
    counts as not measured: the domain's window stays as it is, and a domain that was never measured helps none.

    Differs from the paper: `start="prior"`, so that a run that is given a prior begins with it; the released code
    always begins from the graph, and takes a prior only as an anchor. The window's newest evaluation is the one after
    the last step, where the code's is `evaluate_every` steps older; it holds equally many. "First" losses are of the
    first evaluation that the mixer sees, after `evaluate_every` steps, which is also the code's.

    Example:
        >>> mixer = skillit([[0.758, 0.522], [0.668, 0.719]], evaluate_every=1, update_every=1)
        >>> key = jax.random.key(0)
        >>> feedback = Feedback(validation_loss=jnp.array([2.0, 4.0]))
        >>> state, info = mixer.update(key, mixer.init(key, 2), feedback)
        >>> bool(mixer.weights(state)[1] > 0.5)
        True

    References:
        arXiv 2307.14430, section 3.2 and Algorithm 1; github.com/HazyResearch/skill-it (trainer/mw_trainer.py).
    """
    entries = _check_graph(graph)
    if update_every % evaluate_every != 0:
        raise ConfigError(
            f"update_every must be a multiple of evaluate_every, got {update_every} and {evaluate_every}",
            where="skillit(update_every)",
        )
    evaluations_per_update = update_every // evaluate_every

    def exponent(losses: DomainVector, size: Float[Array, ""], prior: Weights) -> DomainVector:
        """The logarithm of p, up to a constant."""
        effect = _matrix(entries, losses.shape[0], losses.dtype)
        effect = effect if orientation == "source_to_target" else effect.T
        benefit = jnp.minimum(size * jnp.sum(effect * losses[None, :], axis=1), LARGEST)
        return benefit + jnp.log(jnp.maximum(prior, TINY)) if anchored else benefit

    def begin(weights: Weights) -> SkillitEstimate:
        _matrix(entries, weights.shape[0], weights.dtype)
        return SkillitEstimate(
            recent=jnp.zeros((window, *weights.shape), weights.dtype),
            seen=jnp.zeros(weights.shape, jnp.int32),
            initial=jnp.full_like(weights, jnp.nan),
            prior=weights,
        )

    def learn(state: LmoState, feedback: Feedback) -> tuple[SkillitEstimate, Estimate]:
        estimator = _remember(state.estimator, finite_or_nan(feedback.validation_loss, state.weights.dtype))
        losses = jnp.sum(estimator.recent, axis=0)
        if reduce == "mean":
            losses = losses / jnp.maximum(estimator.seen, 1).astype(losses.dtype)
        if relative:
            losses = jnp.minimum(
                losses / jnp.maximum(keep_last(jnp.ones_like(losses), estimator.initial), TINY), LARGEST
            )
        size = jnp.asarray(step_size, losses.dtype)
        if schedule == "loss_ratio":
            size = size * _loss_ratio(estimator)
        score = exponent(losses, size, estimator.prior)
        is_due = (state.count + 1) % evaluations_per_update == 0
        has_moved = is_due & jnp.any(estimator.seen > 0)
        return estimator, Estimate(score, extra={"step_size": size}, has_moved=has_moved)

    mixer = lmo(
        "skillit",
        begin,
        learn,
        needs=frozenset({"validation_loss"}),
        step_size=1.0,
        memory=0.0,
        cadence=Cadence(update=evaluate_every, validate=evaluate_every),
    )
    if start == "prior":
        return mixer

    def init(key: PRNGKeyArray, num_domains: int, prior: Weights | None = None) -> LmoState:
        plain = mixer.init(key, num_domains, prior)
        size = jnp.asarray(step_size, plain.weights.dtype)
        weights = jax.nn.softmax(exponent(jnp.ones_like(plain.weights), size, plain.weights))
        return LmoState(count=plain.count, weights=weights, average=weights, estimator=plain.estimator)

    return mixer._replace(init=init)


def _remember(last: SkillitEstimate, losses: DomainVector) -> SkillitEstimate:
    """Moves the window of every measured domain on by one evaluation."""
    is_fresh = ~jnp.isnan(losses)
    shifted = jnp.concatenate([last.recent[1:], jnp.where(is_fresh, losses, 0.0)[None, :]])
    seen = jnp.minimum(last.seen + is_fresh.astype(jnp.int32), last.recent.shape[0])
    return SkillitEstimate(
        recent=jnp.where(is_fresh[None, :], shifted, last.recent),
        seen=seen,
        initial=keep_last(losses, last.initial),
        prior=last.prior,
    )


def _loss_ratio(estimator: SkillitEstimate) -> Float[Array, ""]:
    """Sum of the first losses over the sum of the last ones, of the domains that have any; 1 before."""
    is_known = estimator.seen > 0
    first = jnp.sum(jnp.where(is_known, estimator.initial, 0.0))
    last = jnp.sum(estimator.recent[-1])
    ratio = jnp.where(last > 0, first / jnp.maximum(last, TINY), 1.0)
    return jnp.clip(ratio, 0.0, _LARGEST_RATIO)


def _check_graph(graph: float | Sequence[Sequence[float]]) -> np.ndarray:
    """The graph as float64[m, m], or float64[] for one number."""
    try:
        entries = np.asarray(graph, np.float64)
    except (TypeError, ValueError):
        entries = np.asarray([math.nan])
    is_square = entries.ndim == 2 and entries.shape[0] == entries.shape[1] and entries.size > 0
    if entries.ndim != 0 and not is_square:
        raise ConfigError(
            "the graph must be a number or m rows of m numbers",
            where="skillit(graph)",
            fix="One row per source, in the order of the sources.",
        )
    bad = entries[~(np.isfinite(entries) & (entries >= 0))]
    if bad.size:
        raise ConfigError(f"the graph's entries must be finite and ≥ 0, got {bad[0]:g}", where="skillit(graph)")
    return entries


def _matrix(entries: np.ndarray, num_domains: int, dtype: Any) -> Float[Array, "m m"]:
    if entries.ndim == 0:
        entries = np.full((num_domains, num_domains), float(entries))
        np.fill_diagonal(entries, 1.0)
    else:
        check_one_per_domain(len(entries), num_domains, "skillit(graph)", "rows and columns")
    return jnp.asarray(entries, dtype)
