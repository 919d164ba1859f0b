"""The files of a swarm: the proxies of every chunk, and their results."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64

from jaxmix.core.errors import ConfigError
from jaxmix.data.files import read_json, write_whole
from jaxmix.train.run.records import read_records

PLAN, RESULT = "plan.json", "result.json"


class ProxyResult(NamedTuple):
    """The result of one proxy.

    Attributes:
        name: of the run.
        weights: on the simplex.
        seed: of parameters and data order.
        losses: held-out losses at the end, nats per token; nan if it diverged.
        curve: held-out losses at the k evaluations; nan where they were not finite.
        skipped: updates that were not finite.
        tokens: trained on.
        reason: why the losses are nan; None if they are not.
    """

    name: str
    weights: Float64[np.ndarray, " m"]
    seed: int
    losses: Float64[np.ndarray, " m"]
    curve: Float64[np.ndarray, "k m"]
    skipped: int
    tokens: int
    reason: str | None


class ChunkResult(NamedTuple):
    """The result of one chunk: its domains, its proxies, the steps of their evaluations, and the seconds it took."""

    domain_names: tuple[str, ...]
    proxies: tuple[ProxyResult, ...]
    curve_steps: tuple[int, ...]
    seconds: float


class SwarmStatus(NamedTuple):
    """The progress of a swarm.

    Attributes:
        proxies: number of proxies; 0 before the swarm was begun.
        chunks: number of chunks.
        finished: number of finished chunks.
        diverged: number of proxies in finished chunks that have no losses.
        latest: the last record of progress, None before the first.
    """

    proxies: int
    chunks: int
    finished: int
    diverged: int
    latest: dict[str, Any] | None


def pinned_chunks(
    run_dir: Path, names: Sequence[str], fingerprint: str, size: int, resume: str = "auto"
) -> list[list[int]]:
    """The proxies of every chunk by number: as the swarm in `run_dir` began, or of at most `size` each.

    Raises:
        ConfigError: `run_dir` holds another swarm, or none although `resume` is "must".
    """
    if (plan := read_json(run_dir / PLAN)) is not None:
        if resume == "never":
            raise ConfigError(
                f"{run_dir} already holds a swarm",
                where="checkpoint.resume: never",
                fix="Choose another folder, or set checkpoint.resume to auto to continue it.",
            )
        if plan["fingerprint"] != fingerprint:
            raise ConfigError(
                "the folder holds a swarm of other proxies, settings or data",
                where=str(run_dir),
                fix="Choose another folder, or take the old settings.",
            )
        return [list(range(start, stop)) for start, stop in plan["chunks"]]
    if resume == "must":
        raise ConfigError("there is no swarm to resume", where=str(run_dir), fix="Set checkpoint.resume to auto.")
    if size < 1:
        raise ConfigError(f"chunk must be at least 1, got {size}", where="run_swarm(chunk)")
    # Chunks of nearly equal size: the last must not be a small one that leaves devices idle.
    count = -(-len(names) // size)
    bounds = [round(i * len(names) / count) for i in range(count + 1)]
    chunks = list(itertools.pairwise(bounds))
    _write(run_dir / PLAN, {"fingerprint": fingerprint, "proxies": list(names), "chunks": chunks})
    return [list(range(start, stop)) for start, stop in chunks]


def write_chunk(folder: Path, result: ChunkResult) -> None:
    """Writes a chunk's result and removes its checkpoints, which are no longer needed."""
    rows = []
    for proxy in result.proxies:
        arrays = {k: plain(getattr(proxy, k)) for k in ("weights", "losses", "curve")}
        rows.append({**proxy._asdict(), **arrays})
    _write(folder / RESULT, {**result._asdict(), "proxies": rows})
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def read_chunk(folder: Path) -> ChunkResult | None:
    """A finished chunk's result, None while there is none."""
    record = read_json(folder / RESULT)
    if record is None:
        return None
    proxies = []
    for row in record["proxies"]:
        arrays = {k: np.asarray(row[k], np.float64) for k in ("weights", "losses", "curve")}
        proxies.append(ProxyResult(**{**row, **arrays}))
    names, steps = tuple(record["domain_names"]), tuple(record["curve_steps"])
    return ChunkResult(names, tuple(proxies), steps, record["seconds"])


def finished_chunks(run_dir: Path) -> list[ChunkResult]:
    """The results of the finished chunks of the swarm in `run_dir`, in order."""
    results = (read_chunk(chunk_folder(run_dir, number)) for number in range(len(_read_plan(run_dir)["chunks"])))
    return [result for result in results if result is not None]


def _read_plan(run_dir: Path) -> dict[str, Any]:
    return read_json(run_dir / PLAN) or {"proxies": [], "chunks": []}


def chunk_folder(run_dir: Path, number: int) -> Path:
    return run_dir / f"chunk_{number:03d}"


def read_status(run_dir: Path) -> SwarmStatus:
    """The progress of the swarm in `run_dir`; reads files only."""
    plan, finished = _read_plan(run_dir), finished_chunks(run_dir)
    progress = run_dir / "progress.jsonl"
    records = read_records(progress) if progress.is_file() else []
    return SwarmStatus(
        proxies=len(plan["proxies"]),
        chunks=len(plan["chunks"]),
        finished=len(finished),
        diverged=sum(proxy.reason is not None for result in finished for proxy in result.proxies),
        latest=records[-1] if records else None,
    )


def plain(values: np.ndarray) -> Any:
    """Losses as JSON keeps them: a float32 reads back to the same bits, what is not finite becomes null."""
    if values.ndim > 1:
        return [plain(row) for row in values]
    return [x if math.isfinite(x) else None for x in values.astype(np.float64).tolist()]


def _write(path: Path, value: Any) -> None:
    write_whole(path, json.dumps(value) + "\n")
