"""Fits a clusterer to rows in memory: on one device, or with the rows split over a mesh."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxmix.clustering.base import Clusterer, FitInfo, FitResult, GemState
from jaxmix.clustering.em.dual import Penalty
from jaxmix.clustering.em.iteration import WeightedRows, Workspace, build_iteration, build_labels, em_config
from jaxmix.clustering.placement import PlacedRows, place_rows, take_rows
from jaxmix.clustering.seeding import STARTS, RowSampler, mean_cosine, sample_size, seed_directions
from jaxmix.core.errors import ConfigError
from jaxmix.core.sharding import replicated
from jaxmix.core.special import inverse_bessel_ratio
from jaxmix.core.types import Array, Float, PRNGKeyArray
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
    """The rows that starts and re-seeding look at, whole on every device."""

    x: Float[Array, "n d"]
    weight: Float[Array, " n"]


def check_fit(name: str, clusterer: Clusterer, max_iters: int, tol: float, init: Any) -> None:
    """Checks the arguments that `fit` and `fit_stream` share."""
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
    """The penalty as arrays, and λ per sample of `count` rows."""
    balance, k = clusterer.balance, clusterer.num_clusters
    strength = 0.0 if balance is None else balance.strength
    if balance is not None and balance.penalty == "summed":
        strength = strength / count
    target = balance.target if balance is not None and balance.target is not None else (1 / k,) * k
    inverse = 0.0 if strength == 0 else 1 / strength
    arrays = Penalty(*(jnp.asarray(value, dtype) for value in (strength, inverse, target)))
    return arrays, strength


def first_state(clusterer: Clusterer, sample: Sample, key: PRNGKeyArray, init: Any) -> GemState:
    """The state that a fit starts from: directions, a shared concentration that fits them, no biases."""
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


def _draw_sample(key: PRNGKeyArray, num_clusters: int, rows: PlacedRows) -> Sample:
    weights = np.asarray(rows.weight[: rows.given]) if rows.weight.is_fully_addressable else np.ones(rows.given)
    kept, _ = RowSampler(key, sample_size(num_clusters)).choose(weights)
    x = take_rows(rows.x, kept, rows.mesh).astype(rows.weight.dtype)
    x = x / jnp.sqrt(jnp.sum(x * x, axis=1, keepdims=True))
    return Sample(x, take_rows(rows.weight, kept, rows.mesh))


class Tracker:
    """What a fit keeps between iterations, on the host: a record, the best state, and which clusters are dying."""

    def __init__(self, clusterer: Clusterer, sample: Sample, key: PRNGKeyArray, tol: float, target: np.ndarray):
        self.clusterer, self.sample, self.key, self.tol, self.target = clusterer, sample, key, tol, target
        names = ("objective", "gap", "evaluations", "reseeded", "largest_bias")
        self.record: dict[str, list[float]] = {name: [] for name in names}
        self.best_objective, self.best_state = -math.inf, cast(GemState, None)
        self.dying = np.zeros(clusterer.num_clusters, np.int64)

    @property
    def iterations(self) -> int:
        return len(self.record["objective"])

    def add(
        self, state: GemState, objective: float, gap: float, evaluations: int, mass: np.ndarray
    ) -> tuple[GemState, bool]:
        """Records an iteration; returns the state to go on from, and whether F came to rest."""
        if not math.isfinite(objective):
            raise ConfigError(
                f"the objective is {objective} after {self.iterations} iterations",
                where="fit(x)",
                fix="Look for rows that are not finite.",
            )
        previous = self.record["objective"][-1] if self.iterations else -math.inf
        was_reseeded = self.iterations and self.record["reseeded"][-1]
        is_resting = not was_reseeded and objective - previous <= self.tol * max(1.0, abs(objective))
        if objective > self.best_objective:
            self.best_objective, self.best_state = objective, state
        is_dead = mass < DEAD_SHARE * self.target
        if self.clusterer.rule == "soft":
            is_dead |= np.asarray(state.concentrations) >= self.clusterer.max_concentration
        self.dying = np.where(is_dead, self.dying + 1, 0)
        reseeds = np.flatnonzero(self.dying >= 2)[: max(0, MAX_RESEEDS - int(sum(self.record["reseeded"])))]
        if len(reseeds):
            state = self._reseed(state, reseeds)
            self.dying[reseeds] = 0
        values = (objective, gap, evaluations, len(reseeds), float(np.max(np.abs(np.asarray(state.biases)))))
        for series, value in zip(self.record.values(), values, strict=True):
            series.append(value)
        return state, is_resting and not len(reseeds)

    def _reseed(self, state: GemState, clusters: np.ndarray) -> GemState:
        """New directions: rows of the sample whose nearest direction is farthest, one after another."""
        directions, kappa, biases = (np.asarray(leaf).copy() for leaf in jax.tree.leaves(state))
        rows = np.asarray(self.sample.x)
        alive = np.setdiff1d(np.arange(len(directions)), clusters)
        nearest = np.full(len(rows), -1.0) if not len(alive) else (rows @ directions[alive].T).max(1)
        for k in clusters:
            directions[k] = row = rows[int(np.argmin(nearest))]
            nearest = np.maximum(nearest, rows @ row)
        kappa[clusters] = np.asarray(_shared_concentration(jnp.asarray(directions), self.sample))
        biases[clusters] = 0
        return GemState(jnp.asarray(directions), jnp.asarray(kappa), jnp.asarray(biases))

    def dump(self) -> dict[str, Any]:
        """Arrays from which `load` restores the tracker."""
        return {
            "record": {name: np.asarray(series, np.float64) for name, series in self.record.items()},
            "best_objective": np.asarray(self.best_objective),
            "dying": self.dying,
            "best_state": self.best_state,
        }

    def load(self, saved: dict[str, Any]) -> None:
        self.record = {name: saved["record"][name].tolist() for name in self.record}
        self.best_objective, self.dying = float(saved["best_objective"]), saved["dying"]
        if "best_state" in saved:
            self.best_state = GemState(**{name: jnp.asarray(value) for name, value in saved["best_state"].items()})

    def result(self, state: GemState, converged: bool, strength: float, count: float) -> FitResult:
        """The result with one restart."""
        record = {name: np.asarray(series) for name, series in self.record.items()}
        info = FitInfo(
            gap=record["gap"],
            evaluations=record["evaluations"].astype(np.int32),
            reseeded=record["reseeded"].astype(np.int32),
            largest_bias=record["largest_bias"],
            strength_per_sample=strength,
            strength_summed=strength * count,
            restart=0,
            restart_objectives=np.asarray([self.best_objective]),
        )
        return FitResult(state, record["objective"], converged, self.iterations, info)


def _fit_once(
    clusterer: Clusterer, rows: PlacedRows, sample: Sample, key: PRNGKeyArray, init: Any, max_iters: int, tol: float
) -> FitResult:
    dtype, k = rows.weight.dtype, clusterer.num_clusters
    penalty, strength = penalty_of(clusterer, rows.number, dtype)
    config = em_config(clusterer)
    place = functools.partial(_replicate, rows.mesh)
    tracker = Tracker(clusterer, sample, key, tol, np.asarray(penalty.target))
    state = first_state(clusterer, sample, key, init)
    penalty, total = place((penalty, jnp.asarray(rows.total, dtype)))
    data = WeightedRows(rows.x, rows.weight, total)
    factor, wants_gram = place((jnp.zeros((k, k), dtype), jnp.bool_(True)))
    workspace = Workspace(_table(config.e_step, state, rows), factor, wants_gram)
    iterate, label = build_iteration(config, rows.mesh), build_labels(rows.mesh)
    labels, converged = None, False
    while tracker.iterations < max_iters and not converged:
        done = iterate(data, place(state), penalty, workspace)
        workspace = done.e_step.workspace
        objective, gap, evaluations, mass = jax.device_get(
            (done.objective, done.e_step.gap, done.e_step.evaluations, done.e_step.sums.mass)
        )
        state, is_resting = tracker.add(
            done.state, float(objective), float(gap), int(evaluations), mass / mass.dtype.type(rows.total)
        )
        if is_resting:
            new = label(place(state), rows.x)[0]
            converged = labels is not None and float(_changes(labels, new, rows.weight)) <= LABEL_CHANGES * rows.number
            labels = new
        else:
            labels = None
    state = tracker.best_state
    if config.e_step != "none":
        last = build_iteration(config._replace(e_step="dual"), rows.mesh)
        workspace = workspace._replace(wants_gram=place(jnp.bool_(True)))
        state = last(data, place(state), penalty, workspace).e_step.state
    return tracker.result(state, converged, strength, rows.number)


def _replicate(mesh: Mesh | None, tree: Any) -> Any:
    return tree if mesh is None else jax.device_put(tree, replicated(mesh))


@jax.jit
def _changes(old: Array, new: Array, weight: Array) -> Array:
    return jnp.sum((old != new) & (weight > 0), dtype=weight.dtype)


def _table(e_step: str, state: GemState, rows: PlacedRows) -> Any:
    """Scratch of the E-step; "mirror" begins with the posterior without biases."""
    if e_step == "none":
        return None
    if e_step == "mirror":
        return build_labels(rows.mesh, with_posterior=True)(state, rows.x)[1]
    sharding = None if rows.mesh is None else rows.weight.sharding
    return _zeros((rows.x.shape[0], state.biases.shape[0]), rows.weight.dtype, sharding)()


@functools.cache
def _zeros(shape: tuple[int, int], dtype: Any, sharding: Any) -> Any:
    """Compiles what makes a table, on the devices that hold its rows."""
    return jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=sharding)
