"""One iteration over rows in memory, on one device or with the rows split over a mesh.

What an iteration of `gem` costs, in reads of the rows X [N, d] and of the posterior P [N, K] that stays with them:

| pass | reads | work |
|---|---|---|
| posterior and first evaluation of the dual | X, writes P | 2 N K d, N K exponentials |
| each further evaluation (one to four) | P | 4 N K; 2 N K² with the Hessian's matrix |
| means | X, P | 2 N K d |

Keeping P is the cheapest way: it is K/d of X, while logits made anew would cost an evaluation 2 N K d. They are made
anew where the biases move too far for P to be carried along, in the first iterations after a poor start. Over a mesh
each device keeps the posterior of its own rows; the K + K² + 1 sums of an evaluation and the K d + K of the means are
all that moves.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from jaxmix.clustering.base import Clusterer, GemState, Sums
from jaxmix.clustering.em.block_sums import (
    dual_pass,
    fused_pass,
    gram_pass,
    is_near,
    label_pass,
    moment_pass,
    posterior_pass,
)
from jaxmix.clustering.em.dual import DualSearch, Penalty, start_search, tell
from jaxmix.clustering.em.m_step import expected_value, hard_objective, maximize
from jaxmix.clustering.em.mirror import mirror_pass
from jaxmix.core.sharding import batch_spec, shard_map, sum_over
from jaxmix.core.types import Array

_FEW = 64
_MANY, _CLUSTERS_PER_MORE = 6, 64
"""After how many evaluations of an E-step the next one begins with a new Hessian, and clusters that allow one more."""


class Kind(NamedTuple):
    """What of a clusterer is compiled in; numbers such as λ are arguments, so that one program serves them all."""

    rule: str
    has_learned_weights: bool
    max_concentration: float
    e_step: str  # "none", "dual", "mirror"
    mirror_steps: int


class Iteration(NamedTuple):
    """Attributes:
    state: after the M-step.
    solved: before it, with the biases that the E-step found.
    table: f[n, k], rows as `x`: the posterior, scratch of the next iteration ("mirror": log γ).
    factor: f[k, k], for the next search.
    wants_gram: bool[], whether that one should begin with a new matrix.
    objective: f[], F after the M-step (22).
    solved_objective: f[], F after the E-step (15).
    gap: f[], certificate of the E-step.
    evaluations: i32[].
    mass: f[k], π, sums to 1.
    """

    state: GemState
    solved: GemState
    table: Any
    factor: Any
    wants_gram: Any
    objective: Any
    solved_objective: Any
    gap: Any
    evaluations: Any
    mass: Any


def kind_of(clusterer: Clusterer) -> Kind:
    """The compiled-in part of a clusterer."""
    balance = clusterer.balance
    has_balance = balance is not None and balance.strength > 0
    return Kind(
        clusterer.rule,
        clusterer.has_learned_weights,
        clusterer.max_concentration,
        balance.e_step if balance is not None and has_balance else "none",
        balance.mirror_steps if balance is not None else 0,
    )


def search_tolerance(dtype: Any, num_clusters: int) -> float:
    """Of the dual's certificate, relative to its value.

    The last digits that float32 can give take a new Hessian, which only few clusters have for little.
    """
    if dtype == jnp.float64:
        return 1e-13
    return 1e-11 if num_clusters <= _FEW else 1e-9


def improve(kind: Kind, state: GemState, sums: Sums, objective: Array) -> tuple[GemState, Array]:
    """The M-step, and F after it from F before it: no pass over rows (22)."""
    new = maximize(state, sums, kind.max_concentration, rule=kind.rule, has_learned_weights=kind.has_learned_weights)
    if kind.rule != "soft":
        return new, hard_objective(sums, kind.rule)
    value = functools.partial(expected_value, sums=sums, has_learned_weights=kind.has_learned_weights)
    return new, objective + value(new) - value(state)


def objective_of(search: DualSearch, penalty: Penalty) -> Array:
    """F at the best biases of a search: the dual's value less the certificate (14), which equals (15)."""
    level = search.level + search.value - jnp.log(jnp.asarray(search.base.dtype.type(search.base.shape[0])))
    return level - jnp.where(penalty.inverse == 0, 0, search.gap)


@functools.cache
def build_iteration(kind: Kind, mesh: Mesh | None) -> Any:
    """Compiles `(x, weight, table, state, factor, wants_gram, penalty, total) -> Iteration`; `table` is given up."""

    def local(
        x: Array,
        weight: Array,
        table: Any,
        state: GemState,
        factor: Array,
        wants_gram: Array,
        penalty: Penalty,
        total: Array,
    ) -> Iteration:
        add = (lambda tree: tree) if mesh is None else sum_over
        search = start_search(state.biases, factor, wants_gram)
        if kind.e_step == "dual":
            sums, search, table = _dual(kind, add, x, weight, table, state, search, penalty, total)
            biases = search.base + search.change
            objective = objective_of(search, penalty)
            state = GemState(state.mean_directions, state.concentrations, biases)
        elif kind.e_step == "mirror":
            sums, table, objective = mirror_pass(state, x, weight, table, penalty, total, add, kind.mirror_steps)
            search = search._replace(gap=jnp.full_like(total, jnp.nan), evaluations=jnp.int32(1))
            biases = -penalty.strength * (sums.mass / total - penalty.target)
            state = GemState(state.mean_directions, state.concentrations, biases)
        else:
            sums = add(fused_pass(state, x, weight, is_hard=kind.rule != "soft"))
            objective = sums.value / total - jnp.log(jnp.asarray(weight.dtype.type(state.biases.shape[0])))
            search = search._replace(gap=jnp.zeros_like(total), evaluations=jnp.int32(1))
        new, after = improve(kind, state, sums, objective)
        wants = search.evaluations > _MANY + search.base.shape[0] // _CLUSTERS_PER_MORE
        mass = sums.mass / total
        return Iteration(
            new, state, table, search.factor, wants, after, objective, search.gap, search.evaluations, mass
        )

    if mesh is None:
        return jax.jit(local, donate_argnums=2)
    rows, same = batch_spec(), PartitionSpec()
    has_table = kind.e_step != "none"
    table_spec = rows if has_table else None
    out = Iteration(same, same, table_spec, same, same, same, same, same, same, same)  # type: ignore[arg-type]
    mapped = shard_map(local, mesh, in_specs=(rows, rows, table_spec, same, same, same, same, same), out_specs=out)
    return jax.jit(mapped, donate_argnums=2)


def _dual(
    kind: Kind,
    add: Any,
    x: Array,
    weight: Array,
    table: Any,
    state: GemState,
    search: DualSearch,
    penalty: Penalty,
    total: Array,
) -> tuple[Sums, DualSearch, Array]:
    """Solves the dual, then takes the means; the sums that the M-step needs."""
    k = state.mean_directions.shape[0]
    tolerance = search_tolerance(weight.dtype, k)

    def note(search: DualSearch, table: Array, anchor: Array, so_far: Array, found: Any) -> tuple[DualSearch, Array]:
        """The search after an evaluation, and the value's sum; `so_far` of it lies before the posterior in use."""
        value, mass = add(found)
        value = so_far + value
        # The matrix is made, and travels, only when it is wanted.
        gram = jax.lax.cond(
            search.wants_gram,
            lambda: add(gram_pass(table, weight, search.trial - anchor)),
            lambda: jnp.zeros((k, k), mass.dtype),
        )
        told = tell(search, penalty, value / total, mass / total, gram / total, always_gram=False, tolerance=tolerance)
        return told, value

    nothing = jnp.zeros_like(total)

    def settle(search: DualSearch, table: Array, anchor: Array, so_far: Array) -> DualSearch:
        """Evaluates on the posterior at `anchor` until the search is done or leaves what is near."""
        return jax.lax.while_loop(
            lambda now: ~now.is_done & is_near(now.trial - anchor),
            lambda now: note(now, table, anchor, so_far, dual_pass(table, weight, now.trial - anchor))[0],
            search,
        )

    def renew(carry: tuple[DualSearch, Array, Array, Array]) -> tuple[DualSearch, Array, Array, Array]:
        """The posterior at the next biases to try, or at the best if the search is done, made from the rows."""
        search, table, anchor, so_far = carry
        target = jnp.where(search.is_done, search.change, search.trial)
        *found, table = posterior_pass(state, x, weight, table, (anchor, target))
        told, so_far = note(search, table, target, so_far, tuple(found))
        search = jax.tree.map(functools.partial(jnp.where, search.is_done), search, told)
        return settle(search, table, target, so_far), table, target, so_far

    *found, table = posterior_pass(state, x, weight, table)
    anchor = jnp.zeros_like(search.change)
    search = settle(note(search, table, anchor, nothing, tuple(found))[0], table, anchor, nothing)
    search, table, anchor, _ = jax.lax.while_loop(
        lambda carry: ~(carry[0].is_done & is_near(carry[0].change - carry[2])),
        renew,
        (search, table, anchor, nothing),
    )
    mass, resultant = add(moment_pass(table, x, weight, search.change - anchor))
    return Sums(total, total, search.value, mass, resultant, jnp.zeros_like(search.factor)), search, table


@functools.cache
def build_labels(mesh: Mesh | None, *, has_posterior: bool = False) -> Any:
    """Compiles `(state, x) -> (labels i32[n], log posterior f[n, k] or None)` of rows that lie as the fit has them."""
    local = functools.partial(label_pass, with_posterior=has_posterior)
    if mesh is None:
        return jax.jit(local)
    return jax.jit(shard_map(local, mesh, in_specs=(PartitionSpec(), batch_spec()), out_specs=batch_spec()))
