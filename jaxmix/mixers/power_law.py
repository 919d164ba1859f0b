"""Fits `L(n) = e^floor + e^scale · n^−exponent` to many loss curves at once, inside `jit`.

The objective is that of Adaptive Data Optimization (Jiang et al., arXiv 2410.11820): a Huber loss on the logarithm
of the loss, plus penalties that act as soft bounds. The solver is our own, see `fit_power_law`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmix.core.types import Array, Bool, Float, Int

MAX_LOG_SCALE = 6.5
MIN_EXPONENT, MAX_EXPONENT = 1e-3, 0.8
HUBER_WIDTH = 1e-3
_GRID = np.linspace(0.025, 0.8, 16)
_LEAST_SHARE = 1e-4
_BIG_DAMPING = 1e6
_LONGEST_STEP = 2.0


class PowerLaw(NamedTuple):
    """`L(n) = e^log_floor + e^log_scale · n^−exponent`, nats per token.

    Attributes:
        log_scale: f32[...], logarithm of the reducible loss at n = 1.
        log_floor: f32[...], logarithm of the loss that no amount of data removes.
        exponent: f32[...].
    """

    log_scale: Float[Array, "*n"]
    log_floor: Float[Array, "*n"]
    exponent: Float[Array, "*n"]


class PowerLawFit(NamedTuple):
    """Attributes:
    law: the best law found.
    objective: f32[...], its `penalized_huber`.
    iterations: i32[...], steps of the longest polish.
    is_valid: bool[...], false where a parameter or the objective is not finite, or no point has weight.
    """

    law: PowerLaw
    objective: Float[Array, "*n"]
    iterations: Int[Array, "*n"]
    is_valid: Bool[Array, "*n"]


def predict(law: PowerLaw, examples: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """The loss that the law predicts after `examples` > 0, nats per token."""
    return jnp.exp(law.log_floor) + jnp.exp(law.log_scale - law.exponent * jnp.log(examples))


def penalized_huber(
    law: PowerLaw,
    log_examples: Float[Array, " n"],
    log_losses: Float[Array, " n"],
    weights: Float[Array, " n"],
    min_irreducible: float = 0.5,
) -> Float[Array, ""]:
    """What a fit minimizes: `Σ w · huber(log L − log L̂; 0.001) + penalties`.

    The penalties are the distances outside of `log_scale ≤ 6.5`, `log_floor ≥ min_irreducible` and
    `0.001 ≤ exponent ≤ 0.8`. Since a point pulls by 0.001 at most, they are bounds as long as there are few points
    (below about a thousand), and give way to many.
    """
    parameters = jnp.stack([law.log_scale, law.log_floor, law.exponent])
    lower, upper = _kinks(min_irreducible, parameters.dtype)
    outside = jnp.maximum(lower - parameters, 0.0) + jnp.maximum(parameters - upper, 0.0)
    return _huber(_predict_log(parameters, log_examples)[0] - log_losses, weights) + jnp.sum(outside)


def fit_power_laws(
    examples: Float[Array, "m n"],
    losses: Float[Array, "m n"],
    weights: Float[Array, "m n"],
    **options: Any,
) -> PowerLawFit:
    """`fit_power_law` with its options for every row; all fields of the result have shape [m]."""
    return jax.vmap(lambda *row: fit_power_law(*row, **options))(examples, losses, weights)


def fit_power_law(
    examples: Float[Array, " n"],
    losses: Float[Array, " n"],
    weights: Float[Array, " n"],
    *,
    min_irreducible: float = 0.5,
    num_polished: int = 2,
    max_iterations: int = 100,
) -> PowerLawFit:
    """The law that minimizes `penalized_huber` over the points with weight.

    Starts: for a fixed exponent the law is linear in its two other parameters; least squares on the relative error
    gives them in closed form. The best few of 16 exponents are polished by damped Gauss–Newton steps on the
    reweighted squares (weights `min(1, 0.001 / |residual|)`), which stop at the kinks of the penalties, cross them
    where that pays, and otherwise stay on them.

    Args:
        examples: f32[n] > 0, data seen at each point.
        losses: f32[n] > 0, nats per token.
        weights: f32[n] ≥ 0; points with weight 0, and points whose examples or losses are not usable, do not count.
        min_irreducible: least log_floor that costs nothing; 0.5 means a floor of 1.65 nats.
        num_polished: starts that are polished, 1 to 16.
        max_iterations: of the polish.

    Returns:
        The best law, see `PowerLawFit`.

    Numerics: float32 is enough: examples are centered in log space, which takes the correlation of scale and
    exponent out of the normal equations.
    """
    dtype = losses.dtype
    is_usable = (weights > 0) & (losses > 0) & jnp.isfinite(losses) & (examples > 0) & jnp.isfinite(examples)
    weights = jnp.where(is_usable, weights, 0.0)
    x = jnp.log(jnp.where(is_usable, examples, 1.0))
    y = jnp.log(jnp.where(is_usable, losses, 1.0))
    total = jnp.sum(weights)
    weight_sum = jnp.where(total > 0, total, 1.0)
    center = jnp.sum(weights * x) / weight_sum
    x = jnp.where(is_usable, x, center)
    y = jnp.where(is_usable, y, jnp.sum(weights * y) / weight_sum)
    kinks = _kinks(min_irreducible, dtype)

    def objective(parameters: Array) -> Array:
        return penalized_huber(PowerLaw(*parameters), x, y, weights, min_irreducible)

    starts = jax.vmap(lambda exponent: _start(exponent, x, y, weights, center, min_irreducible))(
        jnp.asarray(_GRID, dtype)
    )
    scores = jax.vmap(objective)(starts)
    best = jax.lax.top_k(-jnp.where(jnp.isfinite(scores), scores, jnp.finfo(dtype).max), num_polished)[1]

    def polish(parameters: Array, score: Array) -> tuple[Array, Array, Array]:
        def is_open(carry: Any) -> Bool[Array, ""]:
            _, _, damping, quiet, iteration = carry
            return (iteration < max_iterations) & (damping < _BIG_DAMPING) & (quiet < 3)

        def step(carry: Any) -> Any:
            old, value, damping, quiet, iteration = carry
            direct = _gauss_newton_step(old, x, y, weights, center, damping, kinks)
            # Reweighting is cautious, so a longer step is often better.
            candidates = jnp.stack([_move(old, direct, kinks), _move(old, 2.5 * direct, kinks)])
            values = jax.vmap(objective)(candidates)
            values = jnp.where(jnp.isfinite(values), values, jnp.inf)
            chosen = jnp.argmin(values)
            is_better = values[chosen] < value
            gain = jnp.where(is_better, value - values[chosen], 0.0)
            quiet = jnp.where(is_better & (gain <= 1e-6 * jnp.abs(value)), quiet + 1, jnp.where(is_better, 0, quiet))
            return (
                jnp.where(is_better, candidates[chosen], old),
                jnp.where(is_better, values[chosen], value),
                jnp.where(is_better, jnp.maximum(damping * 0.2, 1e-7), damping * 6.0),
                quiet,
                iteration + 1,
            )

        begin = (parameters, score, jnp.asarray(1e-3, dtype), jnp.int32(0), jnp.int32(0))
        parameters, score, _, _, iteration = jax.lax.while_loop(is_open, step, begin)
        return parameters, score, iteration

    polished, values, iterations = jax.vmap(polish)(starts[best], scores[best])
    winner = jnp.argmin(jnp.where(jnp.isfinite(values), values, jnp.inf))
    parameters, value = polished[winner], values[winner]
    is_valid = (total > 0) & jnp.all(jnp.isfinite(parameters)) & jnp.isfinite(value)
    return PowerLawFit(PowerLaw(*parameters), value, jnp.max(iterations), is_valid)


def _kinks(min_irreducible: float, dtype: Any) -> tuple[Array, Array]:
    """Between which values each of (log_scale, log_floor, exponent) costs nothing."""
    lower = jnp.asarray([-jnp.inf, min_irreducible, MIN_EXPONENT], dtype)
    return lower, jnp.asarray([MAX_LOG_SCALE, jnp.inf, MAX_EXPONENT], dtype)


def _predict_log(parameters: Array, x: Array) -> tuple[Array, Array]:
    """Log of the predicted loss, and the share of it that is reducible."""
    floor = parameters[1]
    excess = parameters[0] - parameters[2] * x - floor
    ratio = jnp.exp(-jnp.abs(excess))
    share = jnp.where(excess > 0, 1.0, ratio) / (1.0 + ratio)
    return floor + jnp.maximum(excess, 0.0) + jnp.log1p(ratio), share


def _huber(residual: Array, weights: Array) -> Array:
    size = jnp.abs(residual)
    return jnp.sum(weights * jnp.where(size > HUBER_WIDTH, HUBER_WIDTH * (size - 0.5 * HUBER_WIDTH), 0.5 * size * size))


def _start(exponent: Array, x: Array, y: Array, weights: Array, center: Array, min_irreducible: float) -> Array:
    """Floor and scale of least relative error at this exponent, each kept within its bounds."""
    level = jnp.sum(weights * y) / jnp.maximum(jnp.sum(weights), jnp.finfo(x.dtype).tiny)
    u = jnp.exp(level - y)  # everything in units of the typical loss
    v = u * jnp.exp(-exponent * (x - center))
    uu, uv, vv = (jnp.sum(weights * a * b) for a, b in ((u, u), (u, v), (v, v)))
    u1, v1 = jnp.sum(weights * u), jnp.sum(weights * v)
    tiny = jnp.finfo(x.dtype).tiny
    determinant = jnp.maximum(uu * vv - uv * uv, 1e-6 * uu * vv + tiny)
    least_floor = jnp.exp(jnp.clip(min_irreducible - level, -60.0, 60.0))
    most_scale = jnp.exp(jnp.clip(MAX_LOG_SCALE - exponent * center - level, -60.0, 60.0))
    floor = jnp.maximum((vv * u1 - uv * v1) / determinant, least_floor)
    scale = jnp.clip((v1 - floor * uv) / (vv + tiny), jnp.minimum(_LEAST_SHARE, most_scale), most_scale)
    floor = jnp.maximum((u1 - scale * uv) / (uu + tiny), least_floor)
    return jnp.stack([jnp.log(scale) + level + exponent * center, jnp.log(floor) + level, exponent])


def _gauss_newton_step(
    parameters: Array, x: Array, y: Array, weights: Array, center: Array, damping: Array, kinks: tuple[Array, Array]
) -> Array:
    """Damped step on the reweighted squares, along the parameters that no kink holds."""
    lower, upper = kinks
    log_loss, share = _predict_log(parameters, x)
    residual = log_loss - y
    curvature = weights * jnp.minimum(1.0, HUBER_WIDTH / jnp.maximum(jnp.abs(residual), HUBER_WIDTH))
    pull = curvature * residual
    gradient = jnp.stack([jnp.sum(pull * share), jnp.sum(pull * (1.0 - share)), -jnp.sum(pull * share * x)])
    # One-sided slopes of the penalties; a parameter on a kink is free only where one side goes downhill.
    right = (parameters >= upper).astype(x.dtype) - (parameters < lower).astype(x.dtype)
    left = (parameters > upper).astype(x.dtype) - (parameters <= lower).astype(x.dtype)
    slope = jnp.where(gradient + left > 0, left, right)
    downhill = gradient + slope
    is_held = (gradient + left <= 0) & (gradient + right >= 0)
    on_kink = (parameters == lower) | (parameters == upper)
    # Two bases for the exponent: with the curve's height at its center fixed (well conditioned) while the scale is
    # free, with the height at n = 1 fixed while a kink holds the scale.
    columns = jnp.stack([share, 1.0 - share, -share * (x - center), -share * x])
    inner = jnp.einsum("in,jn,n->ij", columns, columns, curvature, precision=jax.lax.Precision.HIGHEST)
    moments = jnp.sum(columns * pull[None, :], axis=1)
    free_rows, held_rows = jnp.asarray([0, 1, 2]), jnp.asarray([0, 1, 3])
    step = jnp.zeros_like(parameters)
    for _ in range(2):  # the second time without what would cross a kink uphill
        rows = jnp.where(is_held[0], held_rows, free_rows)
        offset = jnp.where(is_held[0], 0.0, center)
        shift = jnp.stack([0.0 * offset, 0.0 * offset, offset])
        target = moments[rows] + slope + shift * slope[0]
        step = _solve_free(inner[rows][:, rows], -target, ~is_held, damping)
        # A flat curve leaves the scale open: without a limit it would run off to −∞.
        step = jnp.clip(step, -_LONGEST_STEP, _LONGEST_STEP)
        step = step + jnp.roll(shift, 1) * step[2]
        is_held = is_held | (on_kink & (step * downhill > 0))
    return jnp.where(is_held, 0.0, step)


def _solve_free(normal: Array, right: Array, is_free: Array, damping: Array) -> Array:
    """Solves the 3 × 3 system among the free parameters, scaled to a unit diagonal; 0 for the others."""
    eye = jnp.eye(3, dtype=normal.dtype)
    diagonal = jnp.maximum(jnp.sum(normal * eye, axis=1), jnp.finfo(normal.dtype).tiny ** 0.5)
    scale = jnp.where(is_free, 1.0 / jnp.sqrt(diagonal), 0.0)
    a = normal * scale[:, None] * scale[None, :] * (1.0 - eye) + (1.0 + damping) * eye
    first, second = jnp.roll(a, -1, axis=0), jnp.roll(a, -2, axis=0)
    cofactors = jnp.roll(first, -1, 1) * jnp.roll(second, -2, 1) - jnp.roll(first, -2, 1) * jnp.roll(second, -1, 1)
    determinant = jnp.maximum(jnp.sum(a[0] * cofactors[0]), jnp.finfo(a.dtype).eps)
    return scale * (jnp.sum(cofactors * (right * scale)[:, None], axis=0) / determinant)


def _move(parameters: Array, step: Array, kinks: tuple[Array, Array]) -> Array:
    """Goes along the step as far as the first kink, and lands on that exactly."""
    lower, upper = kinks
    up = jnp.where(parameters < lower, lower, jnp.where(parameters < upper, upper, jnp.inf))
    down = jnp.where(parameters > upper, upper, jnp.where(parameters > lower, lower, -jnp.inf))
    bound = jnp.where(step > 0, up, down)
    is_bounded = (step != 0) & jnp.isfinite(bound)
    room = jnp.where(
        is_bounded, jnp.where(is_bounded, bound - parameters, 1.0) / jnp.where(step != 0, step, 1.0), jnp.inf
    )
    share = jnp.minimum(1.0, jnp.min(room))
    return jnp.where(room <= share, bound, parameters + share * step)
