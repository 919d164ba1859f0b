"""Batched projected L-BFGS for laws, for problems whose normal equations would be too large."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmix.core.types import Array
from jaxmix.laws.solve.layout import Layout, Point
from jaxmix.laws.solve.levenberg_marquardt import Cells, Solution, build_objective

_MEMORY = 12
_CALM = 10
_HALVINGS = 25


class _State(NamedTuple):
    vector: Array  # [n]
    cost: Array  # []
    grad: Array  # [n]
    moves: Array  # [memory, n], newest last
    turns: Array  # [memory, n], changes of the gradient
    calm: Array  # []
    is_done: Array  # []


def build_lbfgs(
    layout: Layout, huber_delta: float | None, tolerance: float
) -> Callable[[Point, Cells, Array, Array], Solution]:
    """`(starts, cells, row_weights [s, r], max_steps []) -> Solution`, jitted; float64 throughout.

    Two-loop recursion over the numbers that are not held at a bound, then halving along the projected path until
    Armijo's condition holds. Metrics are never fitted apart; a cost is split evenly over the groups that callers of
    `build_solver` expect, which for a separable law are summed again.
    """
    objective = build_objective(layout, huber_delta)
    ps, (e, pl) = layout.low.shared.size, layout.low.local.shape
    flat = lambda point: jnp.concatenate([jnp.reshape(point.shared, -1), jnp.reshape(point.local, -1)])
    point_of = lambda vector: Point(vector[:ps], vector[ps:].reshape(e, pl))
    low, high = (flat(Point(*map(jnp.asarray, bound))) for bound in (layout.low, layout.high))

    def value(vector: Array, cells: Cells, row_weights: Array) -> Array:
        point = point_of(vector)
        cost = jnp.sum(objective.costs(point, cells, row_weights))
        return cost if objective.penalty is None else cost + objective.penalty(point)

    def advance(state: _State, cells: Cells, row_weights: Array) -> _State:
        is_held = ((state.vector <= low) & (state.grad > 0)) | ((state.vector >= high) & (state.grad < 0))
        free = jnp.where(is_held, 0.0, 1.0)
        direction = -_two_loop(state.grad * free, state.moves * free[None], state.turns * free[None]) * free
        slope = direction @ state.grad
        direction = jnp.where(slope < 0, direction, -state.grad * free)
        # Without history the gradient says nothing of the length: at most one unit of the logarithm.
        is_first = jnp.all(state.moves == 0)
        longest = jnp.max(jnp.abs(direction))
        direction = direction * jnp.where(is_first, jnp.minimum(1.0, 1.0 / jnp.maximum(longest, 1e-300)), 1.0)

        def trial(length: Array) -> tuple[Array, Array, Array]:
            vector = jnp.clip(state.vector + length * direction, low, high)
            cost = value(vector, cells, row_weights)
            enough = cost <= state.cost + 1e-4 * (state.grad @ (vector - state.vector))
            return vector, cost, enough

        def is_going(carry: tuple[Array, Array]) -> Array:
            return (carry[1] < _HALVINGS) & ~trial(carry[0])[2] & ~state.is_done

        length, _ = jax.lax.while_loop(is_going, lambda c: (c[0] * 0.5, c[1] + 1), (jnp.float64(1.0), jnp.int32(0)))
        vector, _, enough = trial(length)
        cost, grad = jax.value_and_grad(value)(vector, cells, row_weights)
        is_better = enough & (cost < state.cost) & ~state.is_done
        move, turn = vector - state.vector, grad - state.grad
        is_curved = is_better & (move @ turn > 1e-12 * (turn @ turn))
        push = lambda history, new: jnp.where(is_curved, jnp.concatenate([history[1:], new[None]]), history)
        # A failed search forgets the history once before it gives up.
        forget = ~is_better & ~is_first
        keep = lambda history: jnp.where(forget, 0.0, history)
        is_calm = is_better & (state.cost - cost <= tolerance * state.cost)
        calm = jnp.where(is_calm, state.calm + 1, jnp.where(is_better, 0, state.calm))
        return _State(
            vector=jnp.where(is_better, vector, state.vector),
            cost=jnp.where(is_better, cost, state.cost),
            grad=jnp.where(is_better, grad, state.grad),
            moves=keep(push(state.moves, move)),
            turns=keep(push(state.turns, turn)),
            calm=calm,
            is_done=state.is_done | (calm >= _CALM) | (~is_better & is_first),
        )

    def start(vector: Array, cells: Cells, row_weights: Array) -> _State:
        cost, grad = jax.value_and_grad(value)(vector, cells, row_weights)
        history = jnp.zeros((_MEMORY, vector.shape[0]))
        is_lost = ~jnp.isfinite(cost)
        return _State(vector, jnp.where(is_lost, jnp.inf, cost), grad, history, history, jnp.int32(0), is_lost)

    @jax.jit
    def solve(starts: Point, cells: Cells, row_weights: Array, max_steps: Array) -> Solution:
        vectors = jax.vmap(flat)(starts)
        state = jax.vmap(start, in_axes=(0, None, 0))(vectors, cells, row_weights)
        step = jax.vmap(advance, in_axes=(0, None, 0))
        state, steps = jax.lax.while_loop(
            lambda carry: (carry[1] < max_steps) & ~jnp.all(carry[0].is_done),
            lambda carry: (step(carry[0], cells, row_weights), carry[1] + 1),
            (state, jnp.int32(0)),
        )
        points = jax.vmap(point_of)(state.vector)
        is_converged = state.is_done & jnp.isfinite(state.cost)
        if not layout.is_separable:
            return Solution(points, state.cost[:, None], is_converged[:, None], steps)
        costs = jax.vmap(objective.costs, in_axes=(0, None, 0))(points, cells, row_weights)
        return Solution(points, costs, jnp.broadcast_to(is_converged[:, None], costs.shape), steps)

    return solve


def _two_loop(grad: Array, moves: Array, turns: Array) -> Array:
    """Inverse Hessian times gradient from the pairs kept, those of no curvature skipped."""
    curvature = jnp.sum(moves * turns, axis=1)
    is_used = curvature > 0
    inverse = jnp.where(is_used, 1.0 / jnp.where(is_used, curvature, 1.0), 0.0)

    def back(i: Any, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        vector, alphas = carry
        at = _MEMORY - 1 - i
        alpha = inverse[at] * (moves[at] @ vector)
        return vector - alpha * turns[at], alphas.at[at].set(alpha)

    vector, alphas = jax.lax.fori_loop(0, _MEMORY, back, (grad, jnp.zeros(_MEMORY)))
    newest = jnp.sum(turns[-1] ** 2)
    size = jnp.where(is_used[-1], curvature[-1] / jnp.where(newest > 0, newest, 1.0), 1.0)

    def forth(i: Any, vector: Array) -> Array:
        return vector + moves[i] * (alphas[i] - inverse[i] * (turns[i] @ vector))

    return jax.lax.fori_loop(0, _MEMORY, forth, vector * size)
