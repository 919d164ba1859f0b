"""Foresight: weights that a law of every domain's loss curve says are best for the rest of the run.

A method of this library. It spends nothing: no probes, no reference, no evaluations, no gradients, only the training
losses per domain that every step has anyway.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxmix.core.errors import ConfigError
from jaxmix.core.pytree import state
from jaxmix.core.simplex import mix_with
from jaxmix.core.types import Array, DomainVector, Float, Int, PRNGKeyArray, Weights
from jaxmix.core.validate import Count, NonNegative, Positive, Share, check_number, checked
from jaxmix.mixers.base import Cadence, Feedback, Mixer, MixerInfo, initial_weights, registry, require
from jaxmix.mixers.missing import finite_or_nan, fresh_mean
from jaxmix.mixers.per_domain import check_values, domain_values

_ITERATIONS = 100
_UNKNOWN = 1e6
_LEAST_SHARE = 0.02
_LARGEST = 1e4


@state(version=1)
class CurveSums:
    """Discounted moments of (logarithm of exposure, loss), one row per window. All f32[k, m].

    Attributes:
        weight, weight_squares: Σ w and Σ w², w being the tokens behind an observation.
        mean_x, mean_y: weighted means.
        xx, xy, yy: weighted sums of products of deviations from them.
    """

    weight: Float[Array, "k m"]
    weight_squares: Float[Array, "k m"]
    mean_x: Float[Array, "k m"]
    mean_y: Float[Array, "k m"]
    xx: Float[Array, "k m"]
    xy: Float[Array, "k m"]
    yy: Float[Array, "k m"]


@state(version=1)
class ForesightState:
    """Attributes:
    count: i32[], updates so far.
    weights: f32[m], what the next batches are drawn by.
    drawn: f32[m], tokens of each domain so far.
    curves: `CurveSums`.
    """

    count: Int[Array, ""]
    weights: Weights
    drawn: DomainVector
    curves: CurveSums


class _Slopes(NamedTuple):
    """Per window and domain, f32[k, m]: by how much the loss falls per e-fold of exposure, and its variance."""

    value: Array
    variance: Array


def curve_slopes(curves: CurveSums) -> _Slopes:
    """Weighted least-squares slopes with the variance that the residuals suggest; a huge one with too little data."""
    has_spread = curves.xx > 0
    xx = jnp.where(has_spread, curves.xx, 1.0)
    weight = jnp.where(curves.weight > 0, curves.weight, 1.0)
    observations = curves.weight**2 / jnp.maximum(curves.weight_squares, 1e-12)
    residual = jnp.maximum(curves.yy - curves.xy**2 / xx, 0.0) / weight
    is_known = has_spread & (observations > 3.5)
    variance = residual / (xx / weight * jnp.maximum(observations - 2.0, 1.0))
    value = jnp.where(has_spread, -curves.xy / xx, 0.0)
    usable = is_known & jnp.isfinite(variance) & jnp.isfinite(value) & (variance < _UNKNOWN)
    return _Slopes(jnp.where(usable, value, 0.0), jnp.where(usable, jnp.maximum(variance, 1e-12), _UNKNOWN))


def shrunk_slopes(value: Float[Array, "k m"], variance: Float[Array, "k m"]) -> DomainVector:
    """One slope per domain out of windows from long to short, by empirical Bayes.

    Starts from the mean over the domains and moves toward each window's slopes in turn, by the share of their
    differences that noise does not explain: where a short window says nothing new beyond its noise, the longer one
    stands.
    """
    precision = 1.0 / variance
    slope = jnp.broadcast_to(jnp.sum(value[0] * precision[0]) / jnp.sum(precision[0]), value[0].shape)
    for k in range(value.shape[0]):
        difference = value[k] - slope
        real = jnp.sum((difference**2 - variance[k]) * precision[k]) / jnp.sum(precision[k])
        real = jnp.maximum(real, 0.0)
        slope = slope + difference * real / (real + variance[k])
    return slope


def planned_weights(
    weights: Weights,
    slope: DomainVector,
    exposure: DomainVector,
    remaining: Float[Array, ""],
    *,
    transfer: float,
    exponent: float,
    objective: DomainVector,
) -> Weights:
    """The mixture for the rest of the budget that minimizes the final losses under the law.

    Domain i's loss falls as a power α of its exposure E_i, with slope u_i = −dL_i/d log E_i now. With R tokens to
    go at weights p, its end is `L_i − (u_i/α) (1 − (1 + R (T p)_i / E_i)^−α)`, convex in p. Multiplicative steps
    `p_j ∝ p_j sqrt(v_j)` on the marginal values v lead to the minimum, where all drawn domains have the same v.

    Args:
        weights: f32[m] to start from; weights below 1e-4 start there.
        slope: u, f32[m] > 0.
        exposure: E, f32[m] > 0, in tokens.
        remaining: R, tokens.
        transfer: T is 1 on the diagonal and this elsewhere.
        exponent: α > 0.
        objective: f32[m] ≥ 0, weight of each domain's loss.
    """
    start = jnp.maximum(weights, 1e-4)

    def improve(_: Any, p: Weights) -> Weights:
        growth = 1.0 + remaining * _spread(p, transfer) / exposure
        value = _spread(objective * slope * growth ** (-exponent - 1.0) / exposure, transfer)
        moved = p * jnp.sqrt(value / jnp.max(value))
        return moved / jnp.sum(moved)

    return jax.lax.fori_loop(0, _ITERATIONS, improve, start / jnp.sum(start))


def _spread(x: DomainVector, transfer: float) -> DomainVector:
    """The product with the symmetric matrix that is 1 on the diagonal and `transfer` elsewhere."""
    return (1.0 - transfer) * x + transfer * jnp.sum(x)


@registry.register
@checked
def foresight(
    total_steps: Count,
    *,
    signal: Literal["train", "validation"] = "train",
    every: Count = 10,
    ignore: float = 0.05,
    start: float = 0.1,
    windows: Sequence[float] = (1.0, 3.0, 9.0),
    transfer: float = 0.0,
    exponent: Positive = 0.5,
    smoothing: Share = 0.01,
    least_horizon: NonNegative = 1.0,
    objective: float | Sequence[float] = 1.0,
) -> Mixer:
    r"""Foresight: plans the rest of the budget by a law of every domain's loss curve.

    At every update, from the slopes u of the losses against the logarithm of each domain's exposure, and the law that
    losses go on falling as a power of it: the mixture for all tokens that are left which minimizes the sum of final
    losses. `docs/mixers.md` derives the three steps.

    Args:
        total_steps: length of the run in optimizer steps. Runs from a configuration fill it in.
        signal: "train" takes the training losses of what was drawn, "validation" held-out losses, which a run of
            many epochs needs; it then evaluates at every update.
        every: steps between updates, ≥ 1.
        ignore: share of the run whose losses are left out (warm-up, unigrams), in [0, 1).
        start: share of the run until which the prior is kept, in [ignore, 1).
        windows: powers h ≥ 0 by which observations are forgotten, increasing; h = 0 never forgets.
        transfer: in [0, 1); how much a token of another domain is worth. 0 keeps domains that only help themselves
            as apart as can be, which is the safe side: above it the plan may leave a domain to what others teach it.
        exponent: α > 0 of the law.
        smoothing: in [0, 1], share that is always spread evenly.
        least_horizon: ≥ 0; the plan looks at least so many times as far ahead as the run has come. With 0 the last
            updates give all that is left to one domain, which a model that forgets pays for.
        objective: weight of each domain's loss in what is minimized, one number or m numbers ≥ 0.

    Returns:
        A mixer that needs `loss_sum` and `token_count`, or `token_count` and `validation_loss`. `info.score` is u,
        in nats per e-fold; `info.extra` has `slope_error`, the standard error of the longest window's slopes.

    Raises:
        ConfigError: an argument is out of range.

    Numerics: in the dtype of the weights. Absent domains and losses that are not finite teach nothing; losses beyond
        ± 10 000 nats count as that.

    Example:
        >>> mixer = foresight(1000, every=100)
        >>> mixer.weights(mixer.init(jax.random.key(0), 4)).tolist()
        [0.25, 0.25, 0.25, 0.25]
    """
    check_number("foresight", "ignore", ignore, 0.0, 0.999)
    check_number("foresight", "start", start, ignore, 0.999)
    check_number("foresight", "transfer", transfer, 0.0, 0.999)
    objectives = check_values("foresight", "objective", objective)
    if min(objectives if isinstance(objectives, tuple) else (objectives,)) < 0:
        raise ConfigError(f"objective must be ≥ 0, got {objective}", where="foresight(objective)")
    powers = tuple(windows)
    if not powers or any(not h >= 0 for h in powers) or list(powers) != sorted(set(powers)):
        raise ConfigError(f"windows must be increasing powers ≥ 0, got {list(powers)}", where="foresight(windows)")
    needs = frozenset({"token_count", "loss_sum" if signal == "train" else "validation_loss"})

    def init(key: PRNGKeyArray, num_domains: int, prior: Weights | None = None) -> ForesightState:
        del key
        weights = initial_weights(num_domains, prior)
        domain_values("foresight", "objective", objectives, num_domains, weights.dtype)
        table = jnp.zeros((len(powers), num_domains), weights.dtype)
        sums = CurveSums(*[table] * 7)
        return ForesightState(jnp.int32(0), weights, jnp.zeros_like(weights), sums)

    def update(key: PRNGKeyArray, state: ForesightState, feedback: Feedback) -> tuple[ForesightState, MixerInfo]:
        del key
        require(feedback, needs, "foresight")
        m, dtype = state.weights.shape[0], state.weights.dtype
        count = state.count + 1
        progress = count.astype(dtype) * (every / total_steps)
        drawn = state.drawn + feedback.token_count.astype(dtype)
        before, after = _spread(state.drawn, transfer), _spread(drawn, transfer)
        if signal == "train":
            loss, is_fresh = fresh_mean(feedback.loss_sum, feedback.token_count, dtype)
            observations = feedback.token_count.astype(dtype)
            exposure = 0.5 * (before + after)  # the losses were measured on the way
        else:
            loss = finite_or_nan(feedback.validation_loss, dtype)
            observations, exposure, is_fresh = jnp.ones((m,), dtype), after, ~jnp.isnan(loss)
        is_seen = is_fresh & (exposure > 0) & (progress > ignore)
        kept = jnp.where(after > 0, before / jnp.where(after > 0, after, 1.0), 1.0)
        curves = _observe(
            state.curves,
            jnp.stack([kept**h for h in powers]),
            jnp.where(is_seen, observations, 0.0),
            jnp.log(jnp.where(is_seen, exposure, 1.0)),
            jnp.clip(jnp.where(is_seen, loss, 0.0), -_LARGEST, _LARGEST),
        )
        found = curve_slopes(curves)
        slope = shrunk_slopes(found.value, found.variance)
        # A loss that does not fall any more is worth little, and not less than that: the next window may be right.
        slope = jnp.maximum(slope, _LEAST_SHARE * jnp.maximum(jnp.mean(slope), 1e-6))
        steps_left = jnp.maximum(total_steps - count * every, every).astype(dtype)
        remaining = jnp.sum(drawn) * jnp.maximum(steps_left / (count * every).astype(dtype), least_horizon)
        planned = planned_weights(
            state.weights,
            slope,
            jnp.maximum(after, 1e-3 * jnp.maximum(jnp.mean(after), 1.0)),
            remaining,
            transfer=transfer,
            exponent=exponent,
            objective=domain_values("foresight", "objective", objectives, m, dtype),
        )
        planned = mix_with(planned, jnp.full_like(planned, 1.0 / m), smoothing)
        has_plan = (progress >= start) & jnp.any(found.variance < _UNKNOWN) & jnp.all(jnp.isfinite(planned))
        weights = jnp.where(has_plan, planned, state.weights)
        info = MixerInfo(score=slope, extra={"slope_error": jnp.sqrt(found.variance[0])})
        return ForesightState(count, weights, drawn, curves), info

    return Mixer(
        init=init,
        update=update,
        weights=lambda state: state.weights,
        needs=needs,
        cadence=Cadence(update=every, validate=0 if signal == "train" else every),
        name="foresight",
    )


def _observe(
    curves: CurveSums, kept: Float[Array, "k m"], weight: DomainVector, x: DomainVector, y: DomainVector
) -> CurveSums:
    """Discounts the moments and adds one observation per domain, by weight 0 none."""
    old = curves.weight * kept
    total = old + weight[None, :]
    share = jnp.where(total > 0, weight[None, :] / jnp.where(total > 0, total, 1.0), 0.0)
    dx, dy = x[None, :] - curves.mean_x, y[None, :] - curves.mean_y
    moment = old * share
    return CurveSums(
        weight=total,
        weight_squares=curves.weight_squares * kept**2 + weight[None, :] ** 2,
        mean_x=curves.mean_x + share * dx,
        mean_y=curves.mean_y + share * dy,
        xx=curves.xx * kept + moment * dx * dx,
        xy=curves.xy * kept + moment * dx * dy,
        yy=curves.yy * kept + moment * dy * dy,
    )
