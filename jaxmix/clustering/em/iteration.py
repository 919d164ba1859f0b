"""One iteration over rows in memory, on one device or with the rows split over a mesh.

What an iteration of `gem` costs, in reads of the rows X [N, d] and of the posterior P [N, K] that stays with them:

| pass | reads | work |
|---|---|---|
| posterior and first evaluation of the dual | X, writes P | 2 N K d, N K exponentials |
| each further evaluation (one to four) | P | 4 N K; 2 N K² with the Hessian's matrix |
| means | X, P | 2 N K d |

Keeping P is the cheapest way: it is K/d of X, while logits made anew would cost an evaluation 2 N K d. They are made
anew where the biases move too far for P to be carried along, in the first iterations after a poor start. Over a mesh
each device keeps the posterior of its own rows; only the K + K² + 1 sums of an evaluation and the K d + K of the means
are exchanged.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
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
from jaxmix.clustering.em.dual import DualSearch, Evaluation, Penalty, start_search, update_search
from jaxmix.clustering.em.m_step import expected_value, hard_objective, maximize
from jaxmix.clustering.em.mirror import mirror_pass
from jaxmix.core.sharding import batch_spec, shard_map, sum_over
from jaxmix.core.types import Array, Bool, Float, Int

_FEW = 64
_MANY, _CLUSTERS_PER_MORE = 6, 64
"""After how many evaluations of an E-step the next one begins with a new Hessian, and clusters that allow one more."""


class EmConfig(NamedTuple):
    """What of a clusterer is compiled in; numbers such as λ are arguments, so that one program serves them all."""

    rule: str
    learned_weights: bool
    max_concentration: float
    e_step: str  # "none", "dual", "mirror"
    mirror_steps: int


class WeightedRows(NamedTuple):
    """The rows of this device, their weights, and the total weight on all devices."""

    x: Float[Array, "n d"]
    weight: Float[Array, " n"]
    total: Float[Array, ""]


class Workspace(NamedTuple):
    """What the E-step of one iteration leaves for the next.

    Attributes:
        table: the posterior of every row ("mirror": its logarithm); `None` for clusterers without balance.
        factor: of the dual's Hessian.
        wants_gram: whether the next search should begin with a new matrix.
    """

    table: Float[Array, "n k"] | None
    factor: Float[Array, "k k"]
    wants_gram: Bool[Array, ""]


class EStep(NamedTuple):
    """Result of an E-step.

    Attributes:
        state: that of the iteration before, with the biases found.
        sums: what the M-step needs.
        objective: F (15).
        gap: certificate.
        evaluations: passes over the log-likelihoods.
        workspace: for the next iteration.
    """

    state: GemState
    sums: Sums
    objective: Float[Array, ""]
    gap: Float[Array, ""]
    evaluations: Int[Array, ""]
    workspace: Workspace


class Iteration(NamedTuple):
    """The state after the M-step, F there (22), and the E-step before it."""

    state: GemState
    objective: Float[Array, ""]
    e_step: EStep


def em_config(clusterer: Clusterer) -> EmConfig:
    """The compiled-in part of a clusterer."""
    balance = clusterer.balance
    has_balance = balance is not None and balance.strength > 0
    return EmConfig(
        clusterer.rule,
        clusterer.has_learned_weights,
        clusterer.max_concentration,
        balance.e_step if balance is not None and has_balance else "none",
        balance.mirror_steps if balance is not None else 0,
    )


def search_tolerance(dtype: Any, num_clusters: int) -> float:
    """Tolerance of the dual's certificate, relative to its value.

    The last digits that float32 can give take a new Hessian, which is cheap for few clusters only.
    """
    if dtype == jnp.float64:
        return 1e-13
    return 1e-11 if num_clusters <= _FEW else 1e-9


@functools.cache
def build_iteration(config: EmConfig, mesh: Mesh | None) -> Any:
    """Compiles `(rows: WeightedRows, state, penalty, workspace) -> Iteration`; the workspace is donated."""
    solve = {"dual": _Problem.solve_dual, "mirror": _Problem.solve_mirror, "none": _Problem.solve_plain}[config.e_step]
    add = (lambda tree: tree) if mesh is None else sum_over

    def iterate(rows: WeightedRows, state: GemState, penalty: Penalty, workspace: Workspace) -> Iteration:
        done = solve(_Problem(config, add, rows, state, penalty), workspace)
        return Iteration(*improve(config, done.state, done.sums, done.objective), done)

    if mesh is not None:
        split, same = batch_spec(), PartitionSpec()
        workspace = Workspace(None if config.e_step == "none" else split, same, same)  # type: ignore[arg-type]
        iterate = shard_map(
            iterate,
            mesh,
            in_specs=(WeightedRows(split, split, same), same, same, workspace),  # type: ignore[arg-type]
            out_specs=Iteration(same, same, EStep(same, same, same, same, same, workspace)),  # type: ignore[arg-type]
        )
    return jax.jit(iterate, donate_argnums=3)


def improve(config: EmConfig, state: GemState, sums: Sums, objective: Array) -> tuple[GemState, Array]:
    """The M-step, and F after it from F before it: no pass over rows (22)."""
    new = maximize(state, sums, config.max_concentration, rule=config.rule, learned_weights=config.learned_weights)
    if config.rule != "soft":
        return new, hard_objective(sums, config.rule)
    value = functools.partial(expected_value, sums=sums, learned_weights=config.learned_weights)
    return new, objective + value(new) - value(state)


def objective_of(search: DualSearch, penalty: Penalty) -> Float[Array, ""]:
    """F at the best biases of a search: the dual's value less the certificate (14), which equals (15)."""
    level = search.level + search.value - jnp.log(jnp.asarray(search.base.dtype.type(search.base.shape[0])))
    return level - jnp.where(penalty.inverse == 0, 0, search.gap)


class _Posterior(NamedTuple):
    """The posterior of every row at the biases `base + change`, and the change of Σ w_i lse_i since `base`."""

    table: Float[Array, "n k"]
    change: Float[Array, " k"]
    value: Float[Array, ""]


@dataclasses.dataclass(frozen=True)
class _Problem:
    """The E-step of one iteration, from a given state: three ways to solve it."""

    config: EmConfig
    add: Callable[[Any], Any]
    rows: WeightedRows
    state: GemState
    penalty: Penalty

    def solve_plain(self, workspace: Workspace) -> EStep:
        """Without balance: every sum in one pass."""
        rows, state = self.rows, self.state
        sums = self.add(fused_pass(state, rows.x, rows.weight, hard=self.config.rule != "soft"))
        objective = sums.value / rows.total - jnp.log(jnp.asarray(rows.weight.dtype.type(state.biases.shape[0])))
        workspace = workspace._replace(wants_gram=jnp.bool_(False))
        return EStep(state, sums, objective, jnp.zeros_like(rows.total), jnp.int32(1), workspace)

    def solve_mirror(self, workspace: Workspace) -> EStep:
        """By mirror ascent."""
        (x, weight, total), steps = self.rows, self.config.mirror_steps
        found = mirror_pass(self.state, x, weight, workspace.table, self.penalty, total, self.add, steps)
        sums, table, objective = found
        state = self._with_biases(-self.penalty.strength * (sums.mass / total - self.penalty.target))
        workspace = Workspace(table, workspace.factor, jnp.bool_(False))
        return EStep(state, sums, objective, jnp.full_like(total, jnp.nan), jnp.int32(1), workspace)

    def solve_dual(self, workspace: Workspace) -> EStep:
        """Finds the biases by the dual, then reads the rows once more for their means."""
        x, weight, total = self.rows
        assert workspace.table is not None
        search = start_search(self.state.biases, workspace.factor, workspace.wants_gram)
        value, mass, table = posterior_pass(self.state, x, weight, workspace.table)
        value, mass = self.add((value, mass))
        posterior = _Posterior(table, jnp.zeros_like(search.change), jnp.zeros_like(total))
        search = self._search_near(self._update(search, posterior, value, mass), posterior)
        search, posterior = jax.lax.while_loop(
            lambda now: ~(now[0].is_done & is_near(now[0].change - now[1].change)),
            lambda now: self._move(*now),
            (search, posterior),
        )
        mass, resultant = self.add(moment_pass(posterior.table, x, weight, search.change - posterior.change))
        sums = Sums(total, total, search.value, mass, resultant, jnp.zeros_like(search.factor))
        wants_gram = search.evaluations > _MANY + search.base.shape[0] // _CLUSTERS_PER_MORE
        workspace = Workspace(posterior.table, search.factor, wants_gram)
        state, objective = self._with_biases(search.base + search.change), objective_of(search, self.penalty)
        return EStep(state, sums, objective, search.gap, search.evaluations, workspace)

    def _with_biases(self, biases: Array) -> GemState:
        return GemState(self.state.mean_directions, self.state.concentrations, biases)

    def _search_near(self, search: DualSearch, posterior: _Posterior) -> DualSearch:
        """Evaluates on a kept posterior until the search is done or leaves the biases that it can be carried to."""

        def evaluate(now: DualSearch) -> DualSearch:
            value, mass = self.add(dual_pass(posterior.table, self.rows.weight, now.trial - posterior.change))
            return self._update(now, posterior, posterior.value + value, mass)

        return jax.lax.while_loop(lambda now: ~now.is_done & is_near(now.trial - posterior.change), evaluate, search)

    def _move(self, search: DualSearch, old: _Posterior) -> tuple[DualSearch, _Posterior]:
        """Makes the posterior anew at the next biases to try, or at the best if the search is done, and goes on."""
        change = jnp.where(search.is_done, search.change, search.trial)
        value, mass, table = posterior_pass(self.state, self.rows.x, self.rows.weight, old.table, (old.change, change))
        value, mass = self.add((value, mass))
        posterior = _Posterior(table, change, old.value + value)
        updated = self._update(search, posterior, posterior.value, mass)
        search = jax.tree.map(functools.partial(jnp.where, search.is_done), search, updated)
        return self._search_near(search, posterior), posterior

    def _update(self, search: DualSearch, posterior: _Posterior, value: Array, mass: Array) -> DualSearch:
        """The search after an evaluation. The matrix is made, and travels, only when it is wanted."""
        total, k = self.rows.total, mass.shape[0]
        gram = jax.lax.cond(
            search.wants_gram,
            lambda: self.add(gram_pass(posterior.table, self.rows.weight, search.trial - posterior.change)),
            lambda: jnp.zeros((k, k), mass.dtype),
        )
        found = Evaluation(value / total, mass / total, gram / total)
        return update_search(search, self.penalty, found, always_gram=False, tolerance=search_tolerance(mass.dtype, k))


@functools.cache
def build_labels(mesh: Mesh | None, *, with_posterior: bool = False) -> Any:
    """Compiles `(state, x) -> (labels i32[n], log posterior f[n, k] or None)` of rows that lie as the fit has them."""
    local = functools.partial(label_pass, with_posterior=with_posterior)
    if mesh is None:
        return jax.jit(local)
    return jax.jit(shard_map(local, mesh, in_specs=(PartitionSpec(), batch_spec()), out_specs=batch_spec()))
