"""Fits a clusterer to a store that is larger than device and host memory, block by block, and goes on after a kill.

The first pass surveys: weights, and the sample of rows that a start looks at. After that every pass over the blocks
adds up all sums at one value of the biases: an evaluation of the dual together with the means that the M-step would
need there. Reading is what a stream spends its time on, so the last evaluation of an E-step must not be followed by
another pass for the means, and no table of N × K numbers is kept: it would have to be written and read as well. An
iteration takes as many passes as its E-step evaluations (two or three; one where there is no balance).

Memory: one block and its logits on the device, two blocks on the host, the sample, and sums of K (d + K) numbers.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from jaxmix.clustering.base import Clusterer, FitResult, GemState, Sums
from jaxmix.clustering.checkpoint import StreamCheckpoint, fingerprint
from jaxmix.clustering.em.block_sums import fused_pass
from jaxmix.clustering.em.dual import DualSearch, Evaluation, Penalty, start_search, update_search
from jaxmix.clustering.em.iteration import EmConfig, em_config, improve, objective_of, search_tolerance
from jaxmix.clustering.fit import Sample, Tracker, check_fit, first_state, penalty_of
from jaxmix.clustering.placement import place_rows
from jaxmix.clustering.seeding import RowSampler, sample_size
from jaxmix.core.errors import ConfigError
from jaxmix.core.pytree import from_nested
from jaxmix.core.sharding import batch_spec, shard_map, sum_over
from jaxmix.core.types import Array, PRNGKeyArray
from jaxmix.core.validate import check_count


def fit_stream(
    clusterer: Clusterer,
    blocks: Callable[[], Iterable[Any]],
    *,
    key: PRNGKeyArray,
    max_iters: int = 100,
    tol: float = 1e-6,
    init: Any = "overseed",
    mesh: Mesh | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 64,
) -> FitResult:
    """Fits a clusterer to blocks of rows that are read again and again.

    Args:
        clusterer: as for `fit`; not `gem(e_step="mirror")`, which keeps N × K numbers.
        blocks: called for every pass; gives blocks f[b, d] or pairs of rows and weights f[b], NumPy or JAX, the same
            ones in the same order every time. Half precision is welcome. Equal sizes save compilations.
        key: typed key. The start is that of `fit` with the same key and rows, however they are cut into blocks.
        max_iters: ≥ 1, of EM; each takes as many passes as its E-step has evaluations.
        tol: stops when F rises by at most `tol · max(1, |F|)` in two iterations running. Labels are not looked at.
        init: as for `fit`.
        mesh: each block's rows are split over its axes `data` and `fsdp`. One process only.
        checkpoint: folder; a run that finds its own files there goes on from them, to exactly the result it would have
            reached. `None` for none.
        checkpoint_every: blocks between two saves; there is one after every pass as well.

    Returns:
        See `FitResult`. F agrees with that of `fit` to 1e-6.

    Raises:
        ConfigError: an argument outside its range, rows that are not of length 1, blocks that changed between passes,
            a checkpoint of other settings.

    Example:
        >>> import jax, numpy as np
        >>> from jaxmix.clustering import fit_stream, spherical_kmeans
        >>> rows = np.eye(4, dtype=np.float32)[np.arange(200) % 4]
        >>> blocks = lambda: (rows[i : i + 50] for i in range(0, 200, 50))
        >>> result = fit_stream(spherical_kmeans(4), blocks, key=jax.random.key(0), init=np.eye(4)[::-1])
        >>> float(result.objective[-1])
        1.0
    """
    check_fit("fit_stream", clusterer, max_iters, tol, init)
    check_count("fit_stream", "checkpoint_every", checkpoint_every)
    if clusterer.balance is not None and clusterer.balance.e_step == "mirror":
        raise ConfigError(
            "the mirror E-step keeps numbers for every row and cannot be streamed",
            where="fit_stream(clusterer)",
            fix='Use e_step="dual".',
        )
    settings = fingerprint(clusterer, key, tol, init)
    files = None if checkpoint is None else StreamCheckpoint(Path(checkpoint), settings, checkpoint_every)
    return _StreamFit(clusterer, blocks, key, max_iters, tol, init, mesh, files).run()


class _Position(NamedTuple):
    """Where a fit is: all that changes from block to block. What a checkpoint keeps, with the tracker.

    Attributes:
        phase: "fit", "final" (a last E-step) or "done".
        block: blocks of the current pass that are summed.
        rests: iterations running in which F rose too little.
        start_value: value of the first evaluation of `search`; later ones are counted from it.
        state: before the current E-step.
        search: of the current E-step.
        accepted: sums at the search's best biases.
        partial: sums of the blocks so far.
    """

    phase: Any
    block: Any
    rests: Any
    start_value: Any
    state: GemState
    search: DualSearch
    accepted: Sums
    partial: Sums


class _StreamFit:
    """One fit: the survey, then passes until F rests or the iterations are used up, then a last E-step."""

    def __init__(
        self,
        clusterer: Clusterer,
        blocks: Callable[[], Iterable[Any]],
        key: PRNGKeyArray,
        max_iters: int,
        tol: float,
        init: Any,
        mesh: Mesh | None,
        files: StreamCheckpoint | None,
    ):
        self.clusterer, self.blocks, self.mesh, self.files, self.max_iters = clusterer, blocks, mesh, files, max_iters
        survey = None if files is None else files.read_survey()
        if survey is None:
            survey = _survey(clusterer, blocks, key)
            if files is not None:
                files.write_survey(survey)
        self.rows, self.total = float(survey["rows"]), float(survey["total"])
        sample = Sample(jnp.asarray(survey["x"]), jnp.asarray(survey["weight"]))
        self.dtype = sample.x.dtype
        self.config = em_config(clusterer)
        self.penalty, self.strength = penalty_of(clusterer, self.rows, self.dtype)
        start_key = jax.random.fold_in(key, 1)
        self.tracker = Tracker(clusterer, sample, start_key, tol, np.asarray(self.penalty.target))
        saved = None if files is None else files.read()
        if saved is None:
            self.at = self._start(first_state(clusterer, sample, start_key, init))
        else:
            at = from_nested(self._start(clusterer.init(sample.x[: clusterer.num_clusters], 0.0)), saved["position"])
            self.at = at._replace(**jax.tree.map(jnp.asarray, {"state": at.state, "search": at.search}))
            self.tracker.load(saved["tracker"])

    def run(self) -> FitResult:
        while self.at.phase != "done":
            if self.at.phase == "fit" and (self.tracker.iterations >= self.max_iters or self.at.rests >= 2):
                state, phase = self.tracker.best_state, "final" if self.config.e_step == "dual" else "done"
                self._move(phase=phase, state=state, search=self._new_search(state))
            if self.at.phase != "done":
                self._advance(self._sum_blocks())
                self._save()
        return self.tracker.result(self.at.state, bool(self.at.rests >= 2), self.strength, self.rows)

    def _start(self, state: GemState) -> _Position:
        zero, no_sums = np.asarray(0), _no_sums(state)
        return _Position(np.asarray("fit"), zero, zero, zero * 0.0, state, self._new_search(state), no_sums, no_sums)

    def _move(self, **changes: Any) -> None:
        self.at = self.at._replace(**changes)

    def _new_search(self, state: GemState) -> DualSearch:
        k = self.clusterer.num_clusters
        return start_search(state.biases, jnp.zeros((k, k), self.dtype), jnp.bool_(True))

    def _advance(self, sums: Sums) -> None:
        """Uses the sums of one pass: other biases to try, or an M-step."""
        at, value = self.at, float(sums.value) / self.total
        sums = jax.tree.map(lambda leaf: np.asarray(leaf, self.dtype), sums)
        state, gap, evaluations = at.state, 0.0, 1
        if self.config.e_step == "dual":
            is_first = int(at.search.evaluations) == 0
            start = value if is_first else float(at.start_value)
            given = jnp.asarray(value if is_first else value - start, self.dtype)
            search = _update(at.search, self.penalty, given, sums.mass, sums.gram, jnp.asarray(self.total, self.dtype))
            is_best = np.array_equal(np.asarray(search.change), np.asarray(at.search.trial))
            sums = sums if is_best else at.accepted
            self._move(search=search, accepted=sums, start_value=np.asarray(start))
            if not bool(search.is_done):
                return
            state = GemState(state.mean_directions, state.concentrations, search.base + search.change)
            objective, gap = float(objective_of(search, self.penalty)), float(search.gap)
            evaluations = int(search.evaluations)
        else:
            objective = value - np.log(self.clusterer.num_clusters)
        if at.phase == "final":
            self._move(phase="done", state=state)
            return
        new, after = _improve(self.config, state, sums, jnp.asarray(objective, self.dtype))
        new, is_resting = self.tracker.add(new, float(after), gap, evaluations, np.asarray(sums.mass) / self.total)
        self._move(state=new, rests=at.rests + 1 if is_resting else np.asarray(0), search=self._new_search(new))

    def _sum_blocks(self) -> Sums:
        """The sums of a pass in float64 on the host. A block is read while the device works on the one before."""
        at = self.at
        state = GemState(at.state.mean_directions, at.state.concentrations, at.search.base + at.search.trial)
        compute = _build_sums(self.config.rule != "soft", self.config.e_step == "dual", self.mesh)
        in_flight = None
        rows = itertools.islice(_read(self.blocks, self.mesh), int(at.block), None)
        for number, (x, weight) in enumerate(rows, int(at.block) + 1):
            found = compute(state, x, weight)
            self._add(in_flight)
            in_flight = found
            if self.files is not None and number % self.files.every == 0:
                self._add(in_flight)
                in_flight = None
                self._move(block=np.asarray(number))
                self._save()
        self._add(in_flight)
        sums = self.at.partial
        self._move(partial=_no_sums(state), block=np.asarray(0))
        if abs(float(sums.count) - self.rows) > 1e-6 * self.rows:
            raise ConfigError(
                f"a pass saw {float(sums.count):.0f} rows, the first one {self.rows:.0f}",
                where="fit_stream(blocks)",
                fix="Give the same rows in the same order at every call.",
            )
        return sums

    def _add(self, found: Sums | None) -> None:
        if found is not None:
            add = lambda old, new: old + np.asarray(new, np.float64)
            self._move(partial=jax.tree.map(add, self.at.partial, jax.device_get(found)))

    def _save(self) -> None:
        if self.files is not None:
            self.files.write({"position": self.at, "tracker": self.tracker.dump()})


def _read(blocks: Callable[[], Iterable[Any]], mesh: Mesh | None) -> Iterator[tuple[Array, Array]]:
    """Blocks on the devices, with weights; not checked again."""
    for block in blocks():
        x, weight = block if isinstance(block, tuple) else (block, None)
        rows = place_rows("fit_stream", x, weight, 0, mesh, checked=False)
        yield rows.x, rows.weight


def _survey(clusterer: Clusterer, blocks: Callable[[], Iterable[Any]], key: PRNGKeyArray) -> dict[str, np.ndarray]:
    """Checks every row and weight, and draws the sample."""
    sampler = RowSampler(key, sample_size(clusterer.num_clusters))
    rows = total = 0.0
    sample: tuple[np.ndarray, np.ndarray] | None = None
    for block in blocks():
        x, weight = block if isinstance(block, tuple) else (block, None)
        placed = place_rows("fit_stream", x, weight, 0, None)
        rows, total = rows + placed.number, total + placed.total
        weights = np.asarray(placed.weight)
        new, old = sampler.choose(weights)
        # On the host: every block has another number of them, and a device would compile anew for each.
        fresh = np.asarray(placed.x)[new].astype(weights.dtype)
        fresh = fresh / np.linalg.norm(fresh, axis=1, keepdims=True)
        if sample is None:
            sample = fresh, weights[new]
        else:
            sample = np.concatenate([sample[0][old], fresh]), np.concatenate([sample[1][old], weights[new]])
    if sample is None or rows < clusterer.num_clusters:
        raise ConfigError(
            f"{rows:.0f} rows are fewer than {clusterer.num_clusters} clusters",
            where="fit_stream(blocks)",
            fix="`blocks` must return a new iterable at every call.",
        )
    return {"rows": np.asarray(rows), "total": np.asarray(total), "x": sample[0], "weight": sample[1]}


def _no_sums(state: GemState) -> Sums:
    k, d = state.mean_directions.shape
    zeros: Any = np.zeros
    return Sums(zeros(()), zeros(()), zeros(()), zeros(k), zeros((k, d)), zeros((k, k)))


@functools.cache
def _build_sums(hard: bool, gram: bool, mesh: Mesh | None) -> Any:
    """Compiles `(state, x, weight) -> Sums` of a block."""
    local = functools.partial(fused_pass, hard=hard, gram=gram)
    if mesh is None:
        return jax.jit(local)
    summed = lambda state, x, weight: sum_over(local(state, x, weight))
    specs = PartitionSpec(), batch_spec(), batch_spec()
    return jax.jit(shard_map(summed, mesh, in_specs=specs, out_specs=PartitionSpec()))


@jax.jit
def _update(search: DualSearch, penalty: Penalty, value: Any, mass: Any, gram: Any, total: Any) -> DualSearch:
    level = jnp.where(search.evaluations == 0, value, search.level)
    tolerance = search_tolerance(mass.dtype, mass.shape[0])
    found = Evaluation(value, mass / total, gram / total)
    return update_search(search, penalty, found, always_gram=True, tolerance=tolerance, noise=1 + jnp.abs(level))


_improve: Callable[[EmConfig, GemState, Sums, Array], tuple[GemState, Array]] = jax.jit(improve, static_argnums=0)
