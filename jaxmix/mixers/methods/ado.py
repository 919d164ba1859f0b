"""Adaptive Data Optimization: draws what its own loss curve predicts to fall fastest.

Jiang, Zhou, Feng, Malladi, Kolter: "Adaptive Data Optimization: Dynamic Sample Selection with Scaling Laws",
arXiv 2410.11820.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxmix.core.errors import ConfigError
from jaxmix.core.pytree import state
from jaxmix.core.segment import mean_by_domain
from jaxmix.core.simplex import mix_with, normalize
from jaxmix.core.types import Array, Bool, DomainVector, Float, Int, PRNGKeyArray, Weights
from jaxmix.core.validate import (
    Decay,
    NonNegative,
    Positive,
    Share,
    at_least,
    check_number,
    check_one_per_domain,
    check_simplex,
    checked,
)
from jaxmix.mixers.base import Feedback, Mixer, MixerInfo, initial_weights, is_present, registry, require
from jaxmix.mixers.power_law import PowerLaw, fit_power_laws, predict

_POLYNOMIAL_ORDER = 3


@state(version=1)
class LossHistory:
    """Attributes:
    count: i32[], steps recorded.
    examples: f32[], examples of all domains drawn in them.
    recent_losses: f32[w, m], loss of the last w steps, step s in row s mod w.
    recent_examples: f32[w], `examples` after each of them.
    losses: f32[k, m], smoothed loss, nats per token, oldest point first.
    point_examples: f32[k], examples after each point's step.
    num_points: i32[], points in use.
    stride: i32[], steps between points.
    """

    count: Int[Array, ""]
    examples: Float[Array, ""]
    recent_losses: Float[Array, "w m"]
    recent_examples: Float[Array, " w"]
    losses: Float[Array, "k m"]
    point_examples: Float[Array, " k"]
    num_points: Int[Array, ""]
    stride: Int[Array, ""]


@state(version=1)
class AdoState:
    """Attributes:
    count: i32[], updates so far.
    weights: f32[m], p.
    average: f32[m], mean preference, with the prior for the steps before the first.
    natural: f32[m], μ.
    drawn: f32[m], moving average of each domain's share of the tokens drawn.
    loss: f32[m], last known training loss; 0 before any.
    history: the smoothed losses.
    law: the last valid law of each domain.
    has_law: bool[m].
    """

    count: Int[Array, ""]
    weights: Weights
    average: Weights
    natural: Weights
    drawn: Weights
    loss: DomainVector
    history: LossHistory
    law: PowerLaw
    has_law: Bool[Array, " m"]


def learning_speed(law: PowerLaw, examples: Float[Array, ""], min_exponent: float = 0.05) -> DomainVector:
    """How fast each loss falls per example: `max(α, min_exponent) · (L̂(n) − e^floor) / n` at n = `examples`."""
    n = jnp.maximum(examples, 1.0)
    return jnp.maximum(law.exponent, min_exponent) * jnp.exp(law.log_scale - law.exponent * jnp.log(n)) / n


def ado_preference(
    natural: Weights,
    drawn: Weights,
    speed: DomainVector,
    *,
    credit: float = 0.5,
    min_weight: float = 0.01,
    variant: str = "paper",
) -> Weights:
    """`r ∝ max(r′, min_weight)` with `r′ ∝ μ · credited · speed`.

    `credited` is `h^credit` in the paper and `(h (1 − h))^credit` in the repository, h = drawn. Uniform where nothing
    has any speed.
    """
    base = drawn if variant == "paper" else drawn * (1.0 - drawn)
    # Relative to the fastest, so that the product stays within float32's range.
    fastest = jnp.max(speed)
    relative = speed / jnp.where(fastest > 0, fastest, 1.0)
    preference = normalize(natural * jnp.maximum(base, 0.0) ** credit * relative)
    return normalize(jnp.maximum(preference, min_weight))


def ado_weights(
    average: Weights, preference: Weights, count: Int[Array, ""], momentum: float = 0.1
) -> tuple[Weights, Weights]:
    """The next weights, `(1 − momentum) r̄ + momentum r`, and the next mean, `r̄ + (r − r̄) / (count + 1)`.

    Args:
        average: r̄, from before.
        preference: r.
        count: i32[], updates before this one.
        momentum: share of the present preference.
    """
    weights = mix_with(average, preference, momentum)
    return weights, average + (preference - average) / (count + 1).astype(average.dtype)


@registry.register
@checked
def ado(
    variant: Literal["paper", "repository"] = "paper",
    *,
    refit_every: Annotated[int, at_least(1)] = 1000,
    ignore: Annotated[int, at_least(0)] = 1000,
    start: Annotated[int, at_least(0)] = 1000,
    min_points: Annotated[int, at_least(4)] = 50,
    subsample: Annotated[int, at_least(1)] = 10,
    window: Annotated[int, at_least(1)] = 101,
    buffer: int = 1024,
    natural: Sequence[float] | None = None,
    credit: NonNegative = 0.5,
    credit_decay: Decay = 0.9,
    momentum: Share = 0.1,
    min_weight: Share = 0.01,
    min_exponent: NonNegative = 0.05,
    min_irreducible: float = 0.5,
    tokens_per_example: Positive = 1024.0,
) -> Mixer:
    r"""Adaptive Data Optimization: fits a power law to each domain's training loss and draws what falls fastest.

    The preference r_j is in proportion to μ_j h_j^credit and the law's present slope, h being the average share of the
    tokens drawn; the weights mix it with its mean r̄ over time, and are the prior until there are laws. `docs/mixers.md`
    has the formulas, the smoothing of the losses and the fit.

    Args:
        variant: "paper", or "repository" for the credit `(h (1 − h))^credit` that the released code has at present
            (commit 731863d).
        refit_every: updates between fits, ≥ 1. The first fit is at the first multiple ≥ `start` with enough points.
        ignore: steps ≥ 0 at the beginning of training that no fit sees.
        start: update ≥ 0 before which nothing is fitted.
        min_points: least number of points for a fit, ≥ 4.
        subsample: steps between points, ≥ 1.
        window: steps that a point is smoothed over, odd; 1 for none.
        buffer: points kept per domain, even, ≥ 2 · min_points. A fit costs in proportion.
        natural: μ, one number ≥ 0 per domain, the share of the tokens that exist; the prior if `None`.
        credit: exponent ≥ 0 of the share drawn; 0 ignores it.
        credit_decay: in [0, 1), how much of the average share stays after a step.
        momentum: share in [0, 1] of the present preference in the weights.
        min_weight: in [0, 1], least preference before it is normalized.
        min_exponent: ≥ 0, exponents below it count as this.
        min_irreducible: least log of the irreducible loss that costs nothing. The paper's 0.5 means 1.65 nats per
            token: lower it (−2, say) for bytes, characters and code.
        tokens_per_example: tokens > 0 that count as one example. The unit of n matters only through the fit's
            `β ≤ 6.5`; the released code counts sequences of 1024 tokens.

    Returns:
        A mixer that needs `loss_sum` and `token_count`, updated after every step. `info.score` is r (μ before there
        are laws); `info.extra` has `learning_speed` (nats per example), `predicted_loss`, `irreducible_loss`,
        `exponent` (all 0 before). `final(state)` is r̄.

    Raises:
        ConfigError: an unknown variant, a number outside its range, `natural` of the wrong length.

    Numerics: float32. Between fits an update costs O(window · m). A fit is one `lax.cond`: under `vmap` that becomes
    a select, which fits at every update. A domain that a step did not draw keeps its last loss (before any: the mean
    loss of the step); losses that are not finite count as "not drawn"; a step without tokens repeats all losses. A
    fit that is not finite leaves that domain's last law in place.

    Differs from the paper: starts of the fit come from a closed form and not from 512 grid points (same optimum, see
    `tests/mixers/test_power_law.py`); a fit needs `min_points` points (the released code would fit one); the first
    half window is never a point; weights follow preferences only once every domain has had a valid fit.

    Example:
        >>> mixer = ado(refit_every=50, ignore=0, start=0, subsample=1, window=11, min_irreducible=-2.0)
        >>> key = jax.random.key(0)
        >>> state, update = mixer.init(key, 2), jax.jit(mixer.update)
        >>> for step in range(1, 302):  # the first domain still falls, the second does not
        ...     loss = jnp.array([1.0 + step**-0.5, 2.0])
        ...     feedback = Feedback(loss_sum=512 * loss, token_count=jnp.full(2, 512.0))
        ...     state, info = update(key, state, feedback)
        >>> bool(mixer.weights(state)[0] > 0.7)
        True

    References:
        arXiv 2410.11820, section 3 and Algorithm 1; github.com/yidingjiang/ado.
    """
    check_number("ado", "buffer", buffer, 2 * min_points)
    for name, value, kind in (("window", window, "odd"), ("buffer", buffer, "even")):
        if value % 2 != (kind == "odd"):
            raise ConfigError(f"{name} must be {kind}, got {value}", where=f"ado({name})")
    check_number("ado", "min_irreducible", min_irreducible, -math.inf)
    if natural is not None:
        check_simplex([float(share) for share in natural], "ado(natural)")
    needs = frozenset({"loss_sum", "token_count"})

    def init(key: PRNGKeyArray, num_domains: int, prior: Weights | None = None) -> AdoState:
        del key
        weights = initial_weights(num_domains, prior)
        if natural is not None:
            check_one_per_domain(len(natural), num_domains, "ado(natural)", "numbers")
        zeros = jnp.zeros_like(weights)
        return AdoState(
            count=jnp.int32(0),
            weights=weights,
            average=weights,
            natural=weights if natural is None else normalize(jnp.asarray(natural, weights.dtype)),
            drawn=weights,
            loss=zeros,
            history=LossHistory(
                count=jnp.int32(0),
                examples=jnp.zeros((), weights.dtype),
                recent_losses=jnp.zeros((window, num_domains), weights.dtype),
                recent_examples=jnp.zeros((window,), weights.dtype),
                losses=jnp.zeros((buffer, num_domains), weights.dtype),
                point_examples=jnp.zeros((buffer,), weights.dtype),
                num_points=jnp.int32(0),
                stride=jnp.int32(subsample),
            ),
            law=PowerLaw(log_scale=zeros, log_floor=zeros, exponent=zeros),
            has_law=jnp.zeros((num_domains,), bool),
        )

    def refit(history: LossHistory, old: PowerLaw, had: Array) -> tuple[PowerLaw, Array]:
        examples, losses, weights = fit_points(history, ignore=ignore)
        # A point stands for as many steps as it is apart from the next one.
        weights = weights * (history.stride // subsample).astype(weights.dtype)
        rows = jnp.broadcast_to(examples, losses.T.shape), losses.T, jnp.broadcast_to(weights, losses.T.shape)
        fit = fit_power_laws(*rows, min_irreducible=min_irreducible)
        is_new = fit.is_valid & (jnp.sum((weights > 0).astype(jnp.int32)) >= min_points)
        law = jax.tree.map(lambda new, last: jnp.where(is_new, new, last), fit.law, old)
        return law, had | is_new

    def update(key: PRNGKeyArray, state: AdoState, feedback: Feedback) -> tuple[AdoState, MixerInfo]:
        del key
        require(feedback, needs, "ado")
        dtype = state.weights.dtype
        present = is_present(feedback)
        tokens = jnp.where(present, feedback.token_count, 0.0).astype(dtype)
        loss_sum = jnp.where(present, feedback.loss_sum, 0.0).astype(dtype)
        total = jnp.sum(tokens)
        overall = jnp.sum(loss_sum / jnp.maximum(total, 1.0))
        loss = mean_by_domain(loss_sum, tokens, jnp.where(state.loss > 0, state.loss, overall))
        share = jnp.where(total > 0, tokens / jnp.where(total > 0, total, 1.0), state.drawn)
        drawn = credit_decay * state.drawn + (1.0 - credit_decay) * share
        history = record(state.history, loss, total / tokens_per_example, ignore=ignore)

        is_due = (state.count >= start) & (state.count % refit_every == 0) & (history.num_points > 0)
        law, has_law = jax.lax.cond(is_due, refit, lambda _, *same: same, history, state.law, state.has_law)

        is_ready = jnp.all(has_law)
        speed = jnp.where(is_ready, learning_speed(law, history.examples, min_exponent), 0.0)
        preference = ado_preference(state.natural, drawn, speed, credit=credit, min_weight=min_weight, variant=variant)
        weights, average = ado_weights(state.average, preference, state.count, momentum)
        new = dataclasses.replace(
            state,
            count=state.count + 1,
            weights=jnp.where(is_ready, normalize(weights), state.weights),
            average=jnp.where(is_ready, average, state.average),
            drawn=drawn,
            loss=loss,
            history=history,
            law=law,
            has_law=has_law,
        )
        shown = {
            "learning_speed": speed,
            "predicted_loss": predict(law, jnp.broadcast_to(jnp.maximum(history.examples, 1.0), loss.shape)),
            "irreducible_loss": jnp.exp(law.log_floor),
            "exponent": law.exponent,
        }
        extra = {name: jnp.where(has_law, value, 0.0) for name, value in shown.items()}
        return new, MixerInfo(score=jnp.where(is_ready, preference, state.natural), extra=extra)

    return Mixer(
        init=init,
        update=update,
        weights=lambda state: state.weights,
        needs=needs,
        name="ado",
        final=lambda state: normalize(state.average),
    )


def record(history: LossHistory, loss: DomainVector, new_examples: Float[Array, ""], *, ignore: int) -> LossHistory:
    """Adds one step's losses, and the point at the middle of the last window if one is due."""
    window, size = history.recent_losses.shape[0], history.losses.shape[0]
    half = window // 2
    history = jax.lax.cond(history.num_points == size, _thin, lambda same: same, history)
    row, count = history.count % window, history.count + 1
    examples = history.examples + new_examples
    recent_losses = history.recent_losses.at[row].set(loss)
    recent_examples = history.recent_examples.at[row].set(examples)
    middle = history.count - half
    is_due = (count >= window) & (middle >= ignore) & ((middle - ignore) % history.stride == 0)
    smoothed = _weighted(_smoother(window)[half], recent_losses[_oldest_first(history.count, window)])
    # A row past the end is dropped: no branch, and nothing but this row is written.
    place = jnp.where(is_due, history.num_points, size)
    return dataclasses.replace(
        history,
        count=count,
        examples=examples,
        recent_losses=recent_losses,
        recent_examples=recent_examples,
        losses=history.losses.at[place].set(smoothed, mode="drop"),
        point_examples=history.point_examples.at[place].set(recent_examples[middle % window], mode="drop"),
        num_points=history.num_points + is_due.astype(jnp.int32),
    )


def fit_points(
    history: LossHistory, *, ignore: int
) -> tuple[Float[Array, " n"], Float[Array, "n m"], Float[Array, " n"]]:
    """All points for a fit: those kept, and those at the newest edge, which a full window does not surround yet.

    Returns:
        Examples f32[n], smoothed losses f32[n, m] and whether each is a point, f32[n] of 0 and 1; n is the buffer
        plus half a window.
    """
    window, size = history.recent_losses.shape[0], history.losses.shape[0]
    half = window // 2
    last = history.count - 1
    edge = _weighted(_smoother(window)[half + 1 :], history.recent_losses[_oldest_first(last, window)])
    steps = last - half + 1 + jnp.arange(half, dtype=jnp.int32)
    is_point = (history.count >= window) & (steps >= ignore) & ((steps - ignore) % history.stride == 0)
    is_kept = jnp.arange(size, dtype=jnp.int32) < history.num_points
    return (
        jnp.concatenate([history.point_examples, history.recent_examples[steps % window]]),
        jnp.concatenate([history.losses, edge]),
        jnp.concatenate([is_kept, is_point]).astype(history.losses.dtype),
    )


def _thin(history: LossHistory) -> LossHistory:
    """Drops every second point of a full buffer."""
    size = history.losses.shape[0]
    return dataclasses.replace(
        history,
        losses=jnp.concatenate([history.losses[::2], jnp.zeros_like(history.losses[::2])]),
        point_examples=jnp.concatenate([history.point_examples[::2], jnp.zeros_like(history.point_examples[::2])]),
        num_points=jnp.int32(size // 2),
        stride=2 * history.stride,
    )


def _oldest_first(last: Int[Array, ""], window: int) -> Int[Array, " w"]:
    """Rows of the recent steps in order of time, where step `last` is the newest."""
    return (last + 1 + jnp.arange(window, dtype=jnp.int32)) % window


def _weighted(coefficients: np.ndarray, losses: Float[Array, "w m"]) -> Array:
    """`coefficients @ losses`, at full precision on every device."""
    return jnp.matmul(jnp.asarray(coefficients, losses.dtype), losses, precision=jax.lax.Precision.HIGHEST)


def _smoother(window: int) -> np.ndarray:
    """[w, w]: row i gives, from the w values, the least-squares cubic's value at place i (Savitzky and Golay)."""
    place = np.linspace(-1.0, 1.0, window) if window > 1 else np.zeros(1)
    powers = np.vander(place, min(_POLYNOMIAL_ORDER, window - 1) + 1)
    return powers @ np.linalg.pinv(powers)
