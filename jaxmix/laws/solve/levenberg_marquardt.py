"""Batched, bounded, robust Levenberg–Marquardt for laws: all starts of a fit advance in one jitted program.

The normal equations of a law are an arrow (see `jaxmix.laws.solve.layout`): shared parameters couple all metrics, the
others only their own. They are formed from forward-mode derivatives, one per shared number and one per column of the
per-metric ones, and solved by eliminating the per-metric blocks, so that nothing of size (e · p)² appears.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float64

from jaxmix.core.types import Array, Bool, Int
from jaxmix.laws.solve.layout import Layout, Point

_MAX_MOVE = 2.0
_MAX_DAMPING = 1e12
_PATIENCE = 3


class Cells(NamedTuple):
    """The table as a solver sees it.

    Attributes:
        weights, model_size, tokens: as in `RunTable`.
        losses: 1 where not observed.
        is_observed: 1 or 0.
    """

    weights: Float64[Array, "r m"]
    model_size: Float64[Array, " r"]
    tokens: Float64[Array, " r"]
    losses: Float64[Array, "r e"]
    is_observed: Float64[Array, "r e"]


class Solution(NamedTuple):
    """Where each start ended: JAX arrays from a solver, NumPy arrays on the host.

    Attributes:
        point: [s, ps] and [s, e, pl].
        cost: float64[s, g], of the g groups that are fitted apart: metrics if separable, else 1. Adds up to
            the objective.
        is_converged: bool[s, g], whether the start stopped by itself.
    """

    point: Point
    cost: Any
    is_converged: Any


class Objective(NamedTuple):
    """What is minimized, for one start.

    Attributes:
        costs: `(point, cells, row_weights [r]) -> [e]`: each metric's share of the mean loss over all cells.
        penalty: `(point) -> []`.
    """

    costs: Callable[[Point, Cells, Array], Array]
    penalty: Callable[[Point], Array] | None


class _Model(NamedTuple):
    """Second-order model at a point: half the gradient and half the Gauss–Newton matrix of the cost, in blocks."""

    cost: Float64[Array, " g"]
    grad: Point
    shared: Float64[Array, "ps ps"]
    cross: Float64[Array, "e ps pl"]
    local: Float64[Array, "e pl pl"]


class _State(NamedTuple):
    point: Point
    model: _Model
    damping: Float64[Array, " g"]
    growth: Float64[Array, " g"]
    stalled: Int[Array, " g"]  # steps in a row that gained next to nothing
    is_done: Bool[Array, " g"]


def build_objective(layout: Layout, huber_delta: float | None) -> Objective:
    """The mean over observed cells of ρ(L̂ / L − 1), ρ the square or Huber's function that starts as the square."""

    def costs(point: Point, cells: Cells, row_weights: Array) -> Array:
        residual = _residuals(layout, point, cells)
        return jnp.sum(_shares(cells, row_weights) * _rho(residual, huber_delta)[0], axis=0)

    penalty = layout.form.penalty
    return Objective(costs, None if penalty is None else lambda point: penalty(layout.params(point)))


def build_solver(
    layout: Layout, huber_delta: float | None, tolerance: float
) -> Callable[[Point, Cells, Array, Array], Solution]:
    """`(starts, cells, row_weights [s, r], max_steps []) -> Solution`, jitted; float64 throughout."""
    objective = build_objective(layout, huber_delta)
    is_separable = layout.is_separable
    low, high = (Point(*map(jnp.asarray, bound)) for bound in (layout.low, layout.high))
    # The damping of a group as seen by each kind of parameter; without groups the metrics' share one.
    spread = lambda value: value if is_separable else jnp.broadcast_to(value, (layout.num_metrics,))
    gather = lambda per_metric, common: per_metric if is_separable else jnp.sum(per_metric)[None] + common

    def model(point: Point, cells: Cells, row_weights: Array) -> _Model:
        residual, columns = _jacobian(layout, point, cells)
        shares = _shares(cells, row_weights)
        value, influence = _rho(residual, huber_delta)
        pull = shares * influence
        columns = columns * jnp.sqrt(pull).T[:, None, :]
        whole = jnp.einsum("ekr,elr->ekl", columns, columns)
        slope = jnp.einsum("ekr,er->ek", columns, (jnp.sqrt(pull) * residual).T)
        ps = point.shared.shape[0]
        made = _Model(
            cost=jnp.sum(shares * value, axis=0),
            grad=Point(jnp.sum(slope[:, :ps], axis=0), slope[:, ps:]),
            shared=jnp.sum(whole[:, :ps, :ps], axis=0),
            cross=whole[:, :ps, ps:],
            local=whole[:, ps:, ps:],
        )
        if objective.penalty is None:
            return made._replace(cost=gather(made.cost, 0.0))
        return _with_penalty(made, objective.penalty, point)

    def advance(state: _State, cells: Cells, row_weights: Array) -> _State:
        scale, scaled = _rescale(state.model)
        move = _bounded_move(
            scaled, scale, state.point, low, high, state.damping[0], spread(state.damping), layout.num_metrics
        )
        trial = jax.tree.map(lambda p, m, a, b: jnp.clip(p + m, a, b), state.point, move, low, high)
        move = jax.tree.map(jnp.subtract, trial, state.point)
        promised = gather(*_promise(state.model, move))
        new = model(trial, cells, row_weights)
        gained = state.model.cost - new.cost
        ratio = gained / jnp.maximum(promised, 1e-300)
        # The first model is empty, its cost infinite: any finite cost is progress.
        is_first = jnp.isinf(state.model.cost)
        is_better = (gained > 0) & (new.cost < jnp.inf) & ~state.is_done
        shrink = jnp.maximum(1.0 / 3.0, 1.0 - (2.0 * jnp.minimum(ratio, 1.0) - 1.0) ** 3)
        damping = jnp.where(
            is_first,
            state.damping,
            jnp.where(is_better, jnp.maximum(state.damping * shrink, 1e-12), state.damping * state.growth),
        )
        growth = jnp.where(is_better, 2.0, state.growth * 2.0)
        has_stalled = is_better & (gained <= tolerance * state.model.cost) & ~is_first
        stalled = jnp.where(has_stalled, state.stalled + 1, jnp.where(is_better, 0, state.stalled))
        is_lost = is_first & ~is_better
        is_done = state.is_done | (stalled >= _PATIENCE) | (damping > _MAX_DAMPING) | is_lost
        point, model_here = _choose(is_better, (trial, new), (state.point, state.model), is_separable)
        return _State(
            point=point,
            model=model_here,
            damping=damping,
            growth=growth,
            stalled=stalled,
            is_done=is_done,
        )

    def start(point: Point) -> _State:
        groups = layout.num_metrics if is_separable else 1
        e, pl = point.local.shape
        ps = point.shared.shape[0]
        empty = _Model(
            cost=jnp.full((groups,), jnp.inf),
            grad=Point(jnp.zeros(ps), jnp.zeros((e, pl))),
            shared=jnp.eye(ps),
            cross=jnp.zeros((e, ps, pl)),
            local=jnp.broadcast_to(jnp.eye(pl), (e, pl, pl)),
        )
        zeros = jnp.zeros((groups,))
        return _State(
            point, empty, zeros + 1e-2, zeros + 2.0, jnp.zeros((groups,), jnp.int32), jnp.zeros((groups,), bool)
        )

    @jax.jit
    def solve(starts: Point, cells: Cells, row_weights: Array, max_steps: Array) -> Solution:
        step = jax.vmap(advance, in_axes=(0, None, 0))

        def body(carry: tuple[_State, Array]) -> tuple[_State, Array]:
            return step(carry[0], cells, row_weights), carry[1] + 1

        def is_going(carry: tuple[_State, Array]) -> Array:
            return (carry[1] < max_steps) & ~jnp.all(carry[0].is_done)

        state, _ = jax.lax.while_loop(is_going, body, (jax.vmap(start)(starts), jnp.int32(0)))
        is_converged = state.is_done & jnp.isfinite(state.model.cost)
        return Solution(state.point, state.model.cost, is_converged)

    return solve


def _residuals(layout: Layout, point: Point, cells: Cells) -> Array:
    """`L̂ / L − 1` [r, e]; 0 where not observed, whatever the law says there."""
    predicted = layout.form.predict(layout.params(point), cells.weights, cells.model_size, cells.tokens)
    is_observed = cells.is_observed > 0
    return jnp.where(is_observed, predicted / cells.losses - 1.0, 0.0)


def _jacobian(layout: Layout, point: Point, cells: Cells) -> tuple[Array, Array]:
    """Residuals [r, e] and their derivatives [e, ps + pl, r] by the shared numbers and each metric's own."""
    if layout.form.jacobian is not None:
        return _jacobian_by_hand(layout, point, cells)
    residual, push = jax.linearize(lambda point: _residuals(layout, point, cells), point)
    ps, (e, pl) = point.shared.shape[0], point.local.shape
    total = ps + pl
    basis = jnp.eye(total)
    shared = basis[:, :ps]
    # One direction moves the same column of every metric: no metric feels the others' columns.
    local = jnp.broadcast_to(basis[:, None, ps:], (total, e, pl))
    columns = jax.vmap(lambda s, c: push(Point(s, c)))(shared, local)
    return residual, jnp.transpose(columns, (2, 0, 1))


def _jacobian_by_hand(layout: Layout, point: Point, cells: Cells) -> tuple[Array, Array]:
    """The same from `Form.jacobian`."""
    losses, columns = layout.form.jacobian(  # type: ignore[misc]
        layout.params(point), cells.weights, cells.model_size, cells.tokens
    )
    is_observed = cells.is_observed > 0
    residual = jnp.where(is_observed, losses / cells.losses - 1.0, 0.0)
    share = jnp.where(is_observed, 1.0 / cells.losses, 0.0).T[:, None, :]
    whole = [jnp.where(share > 0, columns[name] * share, 0.0) for name in (*layout.shared, *layout.local)]
    return residual, jnp.concatenate(whole, axis=1)


def _shares(cells: Cells, row_weights: Array) -> Array:
    """Weight of each cell [r, e], adding up to 1."""
    raw = cells.is_observed * row_weights[:, None]
    return raw / jnp.sum(raw)


def _rho(residual: Array, huber_delta: float | None) -> tuple[Array, Array]:
    """ρ(r) and ρ'(r) / 2r, the weight of the square that touches it."""
    if huber_delta is None:
        return residual**2, jnp.ones_like(residual)
    size = jnp.abs(residual)
    is_small = size <= huber_delta
    value = jnp.where(is_small, residual**2, 2.0 * huber_delta * size - huber_delta**2)
    return value, jnp.where(is_small, 1.0, huber_delta / jnp.where(is_small, 1.0, size))


def _with_penalty(model: _Model, penalty: Callable[[Point], Array], point: Point) -> _Model:
    """Adds a penalty with its gradient and those blocks of its second derivative that fit the arrow."""
    value, grad = jax.value_and_grad(penalty)(point)
    hessian = jax.hessian(penalty)(point)
    e = point.local.shape[0]
    own = jnp.arange(e)
    return _Model(
        cost=jnp.sum(model.cost)[None] + value,
        grad=jax.tree.map(lambda a, b: a + 0.5 * b, model.grad, grad),
        shared=model.shared + 0.5 * hessian.shared.shared,
        cross=model.cross + 0.5 * jnp.moveaxis(hessian.shared.local, 0, 1),
        local=model.local + 0.5 * hessian.local.local[own, :, own, :],
    )


def _rescale(model: _Model) -> tuple[Point, _Model]:
    """Units in which the diagonal is 1 (Marquardt's), and the model in them."""
    shared = jnp.diagonal(model.shared)
    local = jnp.diagonal(model.local, axis1=-2, axis2=-1)
    top = jnp.maximum(jnp.max(shared, initial=1e-30), jnp.max(local, initial=1e-30))
    scale = Point(*(jax.lax.rsqrt(jnp.maximum(value, 1e-14 * top)) for value in (shared, local)))
    s, c = scale
    return scale, _Model(
        cost=model.cost,
        grad=Point(model.grad.shared * s, model.grad.local * c),
        shared=model.shared * s[:, None] * s[None, :],
        cross=model.cross * s[None, :, None] * c[:, None, :],
        local=model.local * c[:, :, None] * c[:, None, :],
    )


def _bounded_move(
    model: _Model,
    scale: Point,
    point: Point,
    low: Point,
    high: Point,
    damping_shared: Array,
    damping_local: Array,
    num_metrics: int,
) -> Point:
    """The damped step, with numbers that would leave their bounds held there and the others solved for again."""
    each = jax.tree.map
    floor, ceiling = (each(lambda bound, p, s: (bound - p) / s, bounds, point, scale) for bounds in (low, high))
    # On a bound and pushed against it: held from the beginning.
    held = each(lambda f, c, g: ((f >= 0) & (g > 0)) | ((c <= 0) & (g < 0)), floor, ceiling, model.grad)
    move = each(jnp.zeros_like, floor)
    for _ in range(3):
        fixed = each(lambda h, m: jnp.where(h, m, 0.0), held, move)
        free = _arrow_solve(model, fixed, held, damping_shared, damping_local)
        whole = each(jnp.where, held, fixed, free)
        move = each(jnp.clip, whole, floor, ceiling)
        held = each(lambda h, w, f, c: h | (w < f) | (w > c), held, whole, floor, ceiling)
    return each(lambda m, s: jnp.clip(m * s, -_MAX_MOVE, _MAX_MOVE), move, scale)


def _arrow_solve(model: _Model, fixed: Point, held: Point, damping_shared: Array, damping_local: Array) -> Point:
    """Solves (H + damping) d = −grad for the numbers not held, given the moves of those that are."""
    free_s, free_l = (jnp.where(h, 0.0, 1.0) for h in held)
    pull_s = model.shared @ fixed.shared + jnp.einsum("esl,el->s", model.cross, fixed.local)
    pull_l = jnp.einsum("ekl,el->ek", model.local, fixed.local) + jnp.einsum("esl,s->el", model.cross, fixed.shared)
    right_s = -free_s * (model.grad.shared + pull_s)
    right_l = -free_l * (model.grad.local + pull_l)
    eye = jnp.eye(free_l.shape[-1])[None]
    local = model.local * free_l[:, :, None] * free_l[:, None, :]
    local = local + eye * (1.0 - free_l + damping_local[:, None])[:, :, None]
    if free_s.size == 0:
        return Point(right_s, _solve(local, right_l[..., None])[..., 0])
    shared = model.shared * free_s[:, None] * free_s[None, :] + jnp.diag(1.0 - free_s + damping_shared)
    if free_l.size == 0:
        return Point(_solve(shared, right_s[:, None])[:, 0], right_l)
    cross = model.cross * free_s[None, :, None] * free_l[:, None, :]
    answer = _solve(local, jnp.concatenate([jnp.swapaxes(cross, 1, 2), right_l[..., None]], axis=-1))
    by_shared, alone = answer[..., :-1], answer[..., -1]
    schur = shared - jnp.einsum("esl,elt->st", cross, by_shared)
    move = _solve(schur, (right_s - jnp.einsum("esl,el->s", cross, alone))[:, None])[:, 0]
    return Point(move, alone - jnp.einsum("els,s->el", by_shared, move))


def _solve(matrix: Array, right: Array) -> Array:
    """By Cholesky; nan where the matrix is not positive definite, which the caller takes for a step to reject."""
    return jax.scipy.linalg.cho_solve((jnp.linalg.cholesky(matrix), True), right)


def _promise(model: _Model, move: Point) -> tuple[Array, Array]:
    """How much the model says the cost falls by a move: per metric [e], and the shared part."""
    s, c = move
    bent = jnp.einsum("ekl,el->ek", model.local, c) + 2.0 * jnp.einsum("esl,s->el", model.cross, s)
    per_metric = -jnp.sum(c * (2.0 * model.grad.local + bent), axis=-1)
    return per_metric, -s @ (2.0 * model.grad.shared + model.shared @ s)


def _choose(is_better: Array, new: Any, old: Any, is_separable: bool) -> Any:
    """A point and its model: as a whole, or the rows of each metric by themselves (nothing is shared then)."""

    def pick(n: Array, o: Array) -> Array:
        if not is_separable:
            return jnp.where(is_better[0], n, o)
        return jnp.where(jnp.expand_dims(is_better, tuple(range(1, n.ndim))), n, o) if n.size else o

    return jax.tree.map(pick, new, old)
