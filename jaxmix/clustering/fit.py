"""Fits a clusterer to rows in memory: on one device, or with the rows split over a mesh."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxmix.clustering.base import Clusterer, FitInfo, FitResult, GemState
from jaxmix.clustering.em.dual import Penalty
from jaxmix.clustering.em.iteration import build_iteration, build_labels, kind_of
from jaxmix.clustering.placement import Rows, place_rows, take_rows
from jaxmix.clustering.seeding import STARTS, RowSampler, mean_cosine, sample_size, seed_directions
from jaxmix.core.errors import ConfigError
from jaxmix.core.sharding import replicated
from jaxmix.core.special import inverse_bessel_ratio
from jaxmix.core.types import Array, PRNGKeyArray
from jaxmix.core.validate import check_choice, check_count, check_number

LABEL_CHANGES = 1e-4
DEAD_SHARE = 0.01
MAX_RESEEDS = 20


def fit(
    clusterer: Clusterer,
    x: Any,
    *,
    key: PRNGKeyArray,
    sample_weight: Any = None,
    max_iters: int = 100,
    tol: float = 1e-6,
    init: Any = "overseed",
    restarts: int = 1,
    mesh: Mesh | None = None,
) -> FitResult:
    """Fits a clusterer; every row is read twice an iteration by `gem`, once by the others.

    Args:
        clusterer: `gem(…)`, `vmf_mixture(…)`, `spherical_kmeans(…)` or `kmeans(…)`.
        x: f[n, d], rows of length 1 (float16 and bfloat16 rows are brought back to it); NumPy or JAX. Without rows of
            length 0: drop empty documents.
        key: typed key; the same key gives the same result.
        sample_weight: f[n] ≥ 0, such as the tokens of each document: the clusters' masses, and with them the balance,
            are then shares of tokens. `None` counts documents.
        max_iters: ≥ 1.
        tol: stops when F rises by at most `tol · max(1, |F|)` in an iteration and since the last such iteration at
            most one label in 10,000 has changed. Use 1e-8 in float64.
        init: "overseed" (spherical k-means with 5 K seeds, merged down to K; for imbalanced or well separated data),
            "kmeans++", "random", or f[k, d] mean directions of length 1. A start looks at up to 65,536 rows (or 80 K).
        restarts: fits from different starts; the best F is returned. They do not replace "overseed".
        mesh: rows are split over its axes `data` and `fsdp`, padded with rows of weight 0. Each device keeps the N × K
            table of its own rows. With several processes `x` and `sample_weight` are global arrays.

    Returns:
        See `FitResult`. The state is the one with the largest F, its biases solved once more for its final directions.

    Raises:
        ConfigError: an argument outside its range; rows that are not of length 1.

    Clusters that die. A cluster with less than a hundredth of its target (of 1/K without one), or whose concentration
    stays at its limit, for two iterations is started anew at one of the rows least like any direction, at most 20 times
    in a fit. F may fall there; `info.reseeded` says where.

    Numerics: see `gem`. The result does not depend on the number of devices, except for rounding.
    """
    check_fit("fit", clusterer, max_iters, tol, init)
    check_count("fit", "restarts", restarts)
    rows = place_rows("fit", x, sample_weight, clusterer.num_clusters, mesh)
    sample = _draw_sample(key, clusterer.num_clusters, rows)
    results = [
        _fit_once(clusterer, rows, sample, jax.random.fold_in(key, 1 + number), init, max_iters, tol)
        for number in range(restarts)
    ]
    finals = np.asarray([float(np.max(result.objective)) for result in results])
    best = int(np.argmax(finals))
    chosen = results[best]
    return chosen._replace(info=chosen.info._replace(restart=best, restart_objectives=finals))


class Sample(NamedTuple):
    """Rows that starts and re-seeding look at, whole on every device."""

    x: Array
    weight: Array


def check_fit(name: str, clusterer: Clusterer, max_iters: int, tol: float, init: Any) -> None:
    """Checks the arguments that the ways to fit share."""
    check_count(name, "max_iters", max_iters)
    check_number(name, "tol", tol, 0.0)
    if isinstance(init, str):
        check_choice(name, "init", init, STARTS)
        return
    shape: tuple[int, ...] = getattr(init, "shape", ())
    if len(shape) != 2 or shape[0] != clusterer.num_clusters:
        raise ConfigError(
            f"given directions have shape {list(shape)}, expected [{clusterer.num_clusters}, d]",
            where=f"{name}(init)",
            fix=f"Give one row a cluster, or one of {', '.join(STARTS)}.",
        )
    if not np.allclose(np.linalg.norm(np.asarray(init, np.float64), axis=1), 1, atol=1e-3):
        raise ConfigError("given directions must have length 1", where=f"{name}(init)", fix="Normalize the rows.")


def penalty_of(clusterer: Clusterer, count: float, dtype: Any) -> tuple[Penalty, float]:
    """The penalty as arrays, and λ per sample."""
    balance, k = clusterer.balance, clusterer.num_clusters
    strength = 0.0 if balance is None else balance.strength
    if balance is not None and balance.penalty == "summed":
        strength = strength / count
    target = balance.target if balance is not None and balance.target is not None else (1 / k,) * k
    inverse = 0.0 if strength == 0 else 1 / strength
    arrays = Penalty(*(jnp.asarray(value, dtype) for value in (strength, inverse, target)))
    return arrays, strength


def first_state(clusterer: Clusterer, sample: Sample, key: PRNGKeyArray, init: Any) -> GemState:
    """The state that a fit begins with: directions, a shared concentration that fits them, no biases."""
    if isinstance(init, str):
        directions = seed_directions(
            key,
            sample.x,
            sample.weight,
            clusterer.num_clusters,
            start=init,
            max_concentration=clusterer.max_concentration,
        )
    else:
        directions = jnp.asarray(init, sample.x.dtype)
        if directions.shape[1] != sample.x.shape[1]:
            raise ConfigError(
                f"given directions have width {directions.shape[1]}, the rows {sample.x.shape[1]}",
                where="fit(init)",
                fix="Use directions of the same encoder.",
            )
    return clusterer.init(directions, _shared_concentration(directions, sample))


def _shared_concentration(directions: Array, sample: Sample) -> Array:
    cosine = mean_cosine(directions, sample.x, sample.weight)
    return jnp.minimum(inverse_bessel_ratio(jnp.clip(cosine, 0, 1), directions.shape[1]), 1e5)


def _draw_sample(key: PRNGKeyArray, num_clusters: int, rows: Rows) -> Sample:
    weights = np.asarray(rows.weight[: rows.given]) if rows.weight.is_fully_addressable else np.ones(rows.given)
    kept, _ = RowSampler(key, sample_size(num_clusters)).choose(weights)
    x = take_rows(rows.x, kept, rows.mesh).astype(rows.weight.dtype)
    x = x / jnp.sqrt(jnp.sum(x * x, axis=1, keepdims=True))
    return Sample(x, take_rows(rows.weight, kept, rows.mesh))


class Progress:
    """What a fit remembers between iterations, on the host: the record, the best state, clusters that are dying."""

    def __init__(self, clusterer: Clusterer, sample: Sample, key: PRNGKeyArray, tol: float, target: np.ndarray):
        self.clusterer, self.sample, self.key, self.tol, self.target = clusterer, sample, key, tol, target
        self.record: dict[str, list[float]] = {
            name: [] for name in ("objective", "gap", "evaluations", "reseeded", "bias")
        }
        self.best_objective, self.best_state = -math.inf, GemState(None, None, None)
        self.dying = np.zeros(clusterer.num_clusters, np.int64)
        self.reseeds = 0

    @property
    def iterations(self) -> int:
        return len(self.record["objective"])

    def note(
        self, state: GemState, objective: float, gap: float, evaluations: int, mass: np.ndarray
    ) -> tuple[GemState, bool]:
        """Takes an iteration in; returns the state to go on from, and whether F came to rest."""
        if not math.isfinite(objective):
            raise ConfigError(
                f"the objective is {objective} after {self.iterations} iterations",
                where="fit(x)",
                fix="Look for rows that are not finite.",
            )
        previous = self.record["objective"][-1] if self.record["objective"] else -math.inf
        was_reseeded = bool(self.record["reseeded"] and self.record["reseeded"][-1])
        is_resting = not was_reseeded and objective - previous <= self.tol * max(1.0, abs(objective))
        if objective > self.best_objective:
            self.best_objective, self.best_state = objective, state
        is_dead = mass < DEAD_SHARE * self.target
        if self.clusterer.rule == "soft":
            is_dead |= np.asarray(state.concentrations) >= self.clusterer.max_concentration
        self.dying = np.where(is_dead, self.dying + 1, 0)
        chosen = np.flatnonzero(self.dying >= 2)[: max(0, MAX_RESEEDS - self.reseeds)]
        if len(chosen):
            state = self._reseed(state, chosen)
            self.dying[chosen] = 0
            self.reseeds += len(chosen)
        values = (objective, gap, evaluations, len(chosen), float(np.max(np.abs(np.asarray(state.biases)))))
        for series, value in zip(self.record.values(), values, strict=True):
            series.append(value)
        return state, is_resting and not len(chosen)

    def _reseed(self, state: GemState, chosen: np.ndarray) -> GemState:
        """New directions: rows of the sample whose nearest direction is farthest, one after another."""
        directions = np.asarray(state.mean_directions).copy()
        rows = np.asarray(self.sample.x)
        alive = np.setdiff1d(np.arange(len(directions)), chosen)
        nearest = np.full(len(rows), -1.0) if not len(alive) else (rows @ directions[alive].T).max(1)
        for k in chosen:
            row = rows[int(np.argmin(nearest))]
            directions[k] = row
            nearest = np.maximum(nearest, rows @ row)
        shared = np.asarray(_shared_concentration(jnp.asarray(directions), self.sample))
        kappa, biases = np.asarray(state.concentrations).copy(), np.asarray(state.biases).copy()
        kappa[chosen], biases[chosen] = shared, 0
        return GemState(*(jnp.asarray(value) for value in (directions, kappa, biases)))

    def dump(self) -> dict[str, Any]:
        """Arrays that `load` makes the same progress of."""
        return {
            **{name: np.asarray(series, np.float64) for name, series in self.record.items()},
            "best_objective": np.asarray(self.best_objective),
            "dying": self.dying,
            "reseeds": np.asarray(self.reseeds),
            "best": self.best_state,
        }

    def load(self, saved: dict[str, Any]) -> None:
        self.record = {name: saved[name].tolist() for name in self.record}
        self.best_objective, self.dying = float(saved["best_objective"]), saved["dying"]
        self.reseeds = int(saved["reseeds"])
        if "best" in saved:
            self.best_state = GemState(**{name: jnp.asarray(value) for name, value in saved["best"].items()})

    def result(self, state: GemState, converged: bool, strength: float, count: float) -> FitResult:
        """The result with one restart."""
        record = self.record
        info = FitInfo(
            gap=np.asarray(record["gap"]),
            evaluations=np.asarray(record["evaluations"], np.int32),
            reseeded=np.asarray(record["reseeded"], np.int32),
            largest_bias=np.asarray(record["bias"]),
            strength_per_sample=strength,
            strength_summed=strength * count,
            restart=0,
            restart_objectives=np.asarray([self.best_objective]),
        )
        return FitResult(state, np.asarray(record["objective"]), converged, self.iterations, info)


def _fit_once(
    clusterer: Clusterer, rows: Rows, sample: Sample, key: PRNGKeyArray, init: Any, max_iters: int, tol: float
) -> FitResult:
    dtype, k = rows.weight.dtype, clusterer.num_clusters
    penalty, strength = penalty_of(clusterer, rows.number, dtype)
    kind = kind_of(clusterer)
    iterate = build_iteration(kind, rows.mesh)
    place = functools.partial(_replicate, rows.mesh)
    progress = Progress(clusterer, sample, key, tol, np.asarray(penalty.target))
    state = first_state(clusterer, sample, key, init)
    table = _table(kind.e_step, state, rows)
    factor, wants = place((jnp.zeros((k, k), dtype), jnp.bool_(True)))
    whole = place((penalty, jnp.asarray(rows.total, dtype)))
    labels, converged = None, False
    while progress.iterations < max_iters and not converged:
        done = iterate(rows.x, rows.weight, table, place(state), factor, wants, *whole)
        table, factor, wants = done.table, done.factor, done.wants_gram
        objective, gap, evaluations, mass = jax.device_get((done.objective, done.gap, done.evaluations, done.mass))
        state, is_resting = progress.note(done.state, float(objective), float(gap), int(evaluations), mass)
        if is_resting:
            new = build_labels(rows.mesh)(place(state), rows.x)[0]
            converged = labels is not None and float(_changes(labels, new, rows.weight)) <= LABEL_CHANGES * rows.number
            labels = new
        else:
            labels = None
    state = progress.best_state
    if kind.e_step != "none":
        last = build_iteration(kind._replace(e_step="dual"), rows.mesh)
        state = last(rows.x, rows.weight, table, place(state), factor, place(jnp.bool_(True)), *whole).solved
    return progress.result(state, converged, strength, rows.number)


def _replicate(mesh: Mesh | None, tree: Any) -> Any:
    return tree if mesh is None else jax.device_put(tree, replicated(mesh))


@jax.jit
def _changes(old: Array, new: Array, weight: Array) -> Array:
    return jnp.sum((old != new) & (weight > 0), dtype=weight.dtype)


def _table(e_step: str, state: GemState, rows: Rows) -> Any:
    """Scratch of the E-step; "mirror" begins with the posterior without biases."""
    if e_step == "none":
        return None
    if e_step == "mirror":
        return build_labels(rows.mesh, has_posterior=True)(state, rows.x)[1]
    sharding = None if rows.mesh is None else rows.weight.sharding
    return _zeros((rows.x.shape[0], state.biases.shape[0]), rows.weight.dtype, sharding)()


@functools.cache
def _zeros(shape: tuple[int, int], dtype: Any, sharding: Any) -> Any:
    """Compiles what makes a table, on the devices that hold its rows."""
    return jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=sharding)
