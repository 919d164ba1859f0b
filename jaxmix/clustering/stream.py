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
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from jaxmix.clustering.base import Clusterer, FitResult, GemState, Sums
from jaxmix.clustering.em.block_sums import fused_pass
from jaxmix.clustering.em.dual import DualSearch, Penalty, start_search, tell
from jaxmix.clustering.em.iteration import Kind, improve, kind_of, objective_of, search_tolerance
from jaxmix.clustering.fit import Progress, Sample, check_fit, first_state, penalty_of
from jaxmix.clustering.placement import place_rows
from jaxmix.clustering.resume import StreamCheckpoint, fingerprint
from jaxmix.clustering.seeding import RowSampler, sample_size
from jaxmix.core.errors import ConfigError
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
    return _Run(clusterer, blocks, key, max_iters, tol, init, mesh, files).run()


class _Run:
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
        self.kind = kind_of(clusterer)
        self.penalty, self.strength = penalty_of(clusterer, self.rows, self.dtype)
        start_key = jax.random.fold_in(key, 1)
        self.progress = Progress(clusterer, sample, start_key, tol, np.asarray(self.penalty.target))
        self.phase, self.rests = "fit", 0
        saved = None if files is None else files.read()
        if saved is None:
            self.state = first_state(clusterer, sample, start_key, init)
            self.search = self._new_search()
            self.start_value, self.accepted = 0.0, _no_sums(self.state)
            self.partial, self.position = _no_sums(self.state), 0
        else:
            self._restore(saved)

    def run(self) -> FitResult:
        while self.phase != "done":
            has_more = self.phase == "fit" and self.progress.iterations < self.max_iters and self.rests < 2
            if self.phase == "fit" and not has_more:
                self.state = self.progress.best_state
                self.phase = "final" if self.kind.e_step == "dual" else "done"
                self.search = self._new_search()
            if self.phase != "done":
                self._advance(self._sum_blocks())
                self._save(0)
        return self.progress.result(self.state, self.rests >= 2, self.strength, self.rows)

    def _new_search(self) -> DualSearch:
        k = self.clusterer.num_clusters
        return start_search(self.state.biases, jnp.zeros((k, k), self.dtype), jnp.bool_(True))

    def _advance(self, sums: Sums) -> None:
        """What follows from the sums of one pass: other biases, or an M-step."""
        value = float(sums.value) / self.total
        sums = jax.tree.map(lambda leaf: np.asarray(leaf, self.dtype), sums)
        if self.kind.e_step != "dual":
            objective, gap, evaluations = value - np.log(self.clusterer.num_clusters), 0.0, 1
        else:
            if int(self.search.evaluations) == 0:
                self.start_value = value
            trial = np.asarray(self.search.trial)
            is_first = int(self.search.evaluations) == 0
            given = jnp.asarray(value if is_first else value - self.start_value, self.dtype)
            self.search = _tell(
                self.search, self.penalty, given, sums.mass, sums.gram, jnp.asarray(self.total, self.dtype)
            )
            if np.array_equal(np.asarray(self.search.change), trial):
                self.accepted = sums
            if not bool(self.search.is_done):
                return
            sums = self.accepted
            biases = self.search.base + self.search.change
            self.state = GemState(self.state.mean_directions, self.state.concentrations, biases)
            objective, gap = float(objective_of(self.search, self.penalty)), float(self.search.gap)
            evaluations = int(self.search.evaluations)
        if self.phase == "final":
            self.phase = "done"
            return
        new, after = _improve(self.kind, self.state, sums, jnp.asarray(objective, self.dtype))
        mass = np.asarray(sums.mass) / self.total
        self.state, is_resting = self.progress.note(new, float(after), gap, evaluations, mass)
        self.rests = self.rests + 1 if is_resting else 0
        self.search = self._new_search()

    def _sum_blocks(self) -> Sums:
        """The sums of a pass in float64 on the host. A block is read while the device works on the one before."""
        biases = self.search.base + self.search.trial
        state = GemState(self.state.mean_directions, self.state.concentrations, biases)
        compute = _build_sums(self.kind.rule != "soft", self.kind.e_step == "dual", self.mesh)
        pending = None
        rows = itertools.islice(_read(self.blocks, self.clusterer, self.mesh), self.position, None)
        for number, (x, weight) in enumerate(rows, self.position + 1):
            found = compute(state, x, weight)
            self._take(pending)
            pending = found
            if self.files is not None and number % self.files.every == 0:
                self._take(pending)
                pending = None
                self._save(number)
        self._take(pending)
        sums, self.partial, self.position = self.partial, _no_sums(self.state), 0
        if abs(float(sums.count) - self.rows) > 1e-6 * self.rows:
            raise ConfigError(
                f"a pass saw {float(sums.count):.0f} rows, the first one {self.rows:.0f}",
                where="fit_stream(blocks)",
                fix="Give the same rows in the same order at every call.",
            )
        return sums

    def _take(self, found: Sums | None) -> None:
        if found is not None:
            add = lambda old, new: old + np.asarray(new, np.float64)
            self.partial = jax.tree.map(add, self.partial, jax.device_get(found))

    def _save(self, position: int) -> None:
        if self.files is None:
            return
        self.files.write(
            {
                "phase": np.asarray(self.phase),
                "position": np.asarray(position),
                "rests": np.asarray(self.rests),
                "start_value": np.asarray(self.start_value),
                "state": self.state,
                "search": self.search,
                "accepted": self.accepted,
                "partial": self.partial,
                "progress": self.progress.dump(),
            }
        )

    def _restore(self, saved: dict[str, Any]) -> None:
        self.phase, self.position, self.rests = str(saved["phase"]), int(saved["position"]), int(saved["rests"])
        self.start_value = float(saved["start_value"])
        to_device = lambda fields: {name: jnp.asarray(value) for name, value in fields.items()}
        self.state = GemState(**to_device(saved["state"]))
        self.search = DualSearch(**to_device(saved["search"]))
        self.accepted, self.partial = Sums(**saved["accepted"]), Sums(**saved["partial"])
        self.progress.load(saved["progress"])


def _read(
    blocks: Callable[[], Iterable[Any]], clusterer: Clusterer, mesh: Mesh | None
) -> Iterator[tuple[Array, Array]]:
    """Blocks on the devices, with weights; not checked again."""
    for block in blocks():
        x, weight = block if isinstance(block, tuple) else (block, None)
        rows = place_rows("fit_stream", x, weight, 0, mesh, is_checked=False)
        yield rows.x, rows.weight


def _survey(clusterer: Clusterer, blocks: Callable[[], Iterable[Any]], key: PRNGKeyArray) -> dict[str, np.ndarray]:
    """Checks every row and weight, and draws the sample."""
    sampler = RowSampler(key, sample_size(clusterer.num_clusters))
    rows = total = 0.0
    held: tuple[np.ndarray, np.ndarray] | None = None
    for block in blocks():
        x, weight = block if isinstance(block, tuple) else (block, None)
        placed = place_rows("fit_stream", x, weight, 0, None)
        rows, total = rows + placed.number, total + placed.total
        weights = np.asarray(placed.weight)
        new, old = sampler.choose(weights)
        # Taken on the host: every block has another number of them, and a device would compile anew for each.
        fresh = np.asarray(placed.x)[new].astype(weights.dtype)
        fresh = fresh / np.linalg.norm(fresh, axis=1, keepdims=True)
        first = (fresh, weights[new])
        if held is None:
            held = first
        else:
            held = np.concatenate([held[0][old], first[0]]), np.concatenate([held[1][old], first[1]])
    if held is None or rows < clusterer.num_clusters:
        raise ConfigError(
            f"{rows:.0f} rows are fewer than {clusterer.num_clusters} clusters",
            where="fit_stream(blocks)",
            fix="`blocks` must return a new iterable at every call.",
        )
    return {"rows": np.asarray(rows), "total": np.asarray(total), "x": held[0], "weight": held[1]}


def _no_sums(state: GemState) -> Sums:
    k, d = state.mean_directions.shape
    return Sums(np.zeros(()), np.zeros(()), np.zeros(()), np.zeros(k), np.zeros((k, d)), np.zeros((k, k)))


@functools.cache
def _build_sums(is_hard: bool, has_gram: bool, mesh: Mesh | None) -> Any:
    """Compiles `(state, x, weight) -> Sums` of a block."""
    local = functools.partial(fused_pass, is_hard=is_hard, has_gram=has_gram)
    if mesh is None:
        return jax.jit(local)
    summed = lambda state, x, weight: sum_over(local(state, x, weight))
    specs = PartitionSpec(), batch_spec(), batch_spec()
    return jax.jit(shard_map(summed, mesh, in_specs=specs, out_specs=PartitionSpec()))


@jax.jit
def _tell(search: DualSearch, penalty: Penalty, value: Any, mass: Any, gram: Any, total: Any) -> DualSearch:
    level = jnp.where(search.evaluations == 0, value, search.level)
    return tell(
        search,
        penalty,
        value,
        mass / total,
        gram / total,
        always_gram=True,
        tolerance=search_tolerance(mass.dtype, mass.shape[0]),
        noise=1 + jnp.abs(level),
    )


_improve: Callable[[Kind, GemState, Sums, Array], tuple[GemState, Array]] = jax.jit(improve, static_argnums=0)
