"""`jaxmix swarm`: a design of mixtures, proxies trained on them at once, and the table that laws are fitted on."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxmix.core.errors import ConfigError, RunError
from jaxmix.data.files import write_whole
from jaxmix.data.run_tables import read_mixtures, write_mixtures, write_run_table
from jaxmix.laws.base import RunTable
from jaxmix.laws.design import dirichlet_designs, sobol_designs
from jaxmix.models import transformer
from jaxmix.models.lm.accounting import count_params, flops_per_token
from jaxmix.report import write_report
from jaxmix.train.lm.evaluate import validation_set
from jaxmix.train.swarm.files import SwarmStatus, finished_chunks, read_status
from jaxmix.train.swarm.plan import Proxy
from jaxmix.train.swarm.run import run_swarm
from jaxmix.train.swarm.step import micro_batches
from jaxmix.workflows.config.build import Origin, to_plain
from jaxmix.workflows.config.mixer import place_argument
from jaxmix.workflows.config.resolve import Run, resolve_run
from jaxmix.workflows.config.yaml import dump_yaml
from jaxmix.workflows.provenance import made_by, now, write_json
from jaxmix.workflows.swarm.config import Size, Swarm
from jaxmix.workflows.train.data import known_sizes, prepare_and_open
from jaxmix.workflows.train.plan import estimate_memory

DESIGN, TABLE, CURVES = "design.csv", "table.csv", "curves.csv"
_GPU_SHARE, _CPU_SHARE = 0.7, 0.5


# ── design ───────────────────────────────────────────────────────────────────────────────────────────────────────


def generate(swarm: Swarm, *, is_dry: bool = False) -> dict[str, dict[str, float]]:
    """Draws the mixtures of the design and writes design.csv, one row per mixture.

    A design that is there is kept if it holds the same mixtures; a different one is an error, since proxies may have
    been trained on it. The file may also be written by hand: columns `run` and `weight/<domain>`.

    Returns:
        Weights by domain, by name of the mixture.

    Raises:
        ConfigError: the design does not fit, or the folder holds another one.
    """
    if not is_dry:
        prepare_and_open(swarm.sizes[0].config)  # natural weights follow from sizes in tokens
    designed = _draw(swarm)
    path = Path(swarm.out) / DESIGN
    if path.is_file():
        if read_design(swarm) != designed:
            raise ConfigError(
                "the folder holds another design",
                where=str(path),
                fix="Choose another folder with --out, or remove the file if no proxy was trained on it.",
            )
    elif not is_dry:
        write_mixtures(path, designed)
    return designed


def _draw(swarm: Swarm) -> dict[str, dict[str, float]]:

    design = swarm.design
    prior = _prior(_resolve(swarm.sizes[0]))
    names, key = list(prior), jax.random.key(design.seed)
    try:
        if design.method == "dirichlet":
            drawn = dirichlet_designs(key, np.asarray(list(prior.values())), design.runs, **design.options)
        else:
            drawn = sobol_designs(key, len(names), design.runs, **design.options)
    except ConfigError as error:
        raise place_argument(error, Origin(), "design", design.options) from None
    fixed = {"prior": prior, "uniform": dict.fromkeys(names, 1.0 / len(names))}
    result: dict[str, dict[str, float]] = {name: fixed[name] for name in design.include}
    result |= {f"mix-{i:04d}": dict(zip(names, row.tolist(), strict=True)) for i, row in enumerate(drawn)}
    return result


def _resolve(size: Size) -> Run:
    """The run of a size, with what is known of the sources without opening them."""
    return resolve_run(size.config, known_sizes(size.config)[0])


def _prior(run: Run) -> dict[str, float]:
    if not run.prior:
        raise ConfigError(
            "the prior is natural and the sizes of the sources are not known",
            where="base.mixture.weights",
            fix="Run jaxmix prepare first, give `tokens:` of every source, or write weights.",
        )
    return run.prior


def read_design(swarm: Swarm) -> dict[str, dict[str, float]]:
    """The mixtures of design.csv by name.

    Raises:
        ConfigError: there is no such file, or a row is not a mixture of the sources.
    """
    path = Path(swarm.out) / DESIGN
    if not path.is_file():
        raise ConfigError("there is no design", where=str(path), fix="Run jaxmix swarm generate first.")
    result = read_mixtures(path)
    names, wanted = list(next(iter(result.values()))), swarm.sizes[0].config.source_names
    if wanted is not None and names != list(wanted):
        raise ConfigError(
            f"weights of {', '.join(names)}, the sources are {', '.join(wanted)}", where=f"{path}, line 1"
        )
    return result


# ── plan ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class SizePlan(NamedTuple):
    """The cost of one size of a swarm.

    Attributes:
        name: of the size.
        proxies: trained in all.
        chunk: of them at once.
        steps: of each.
        tokens: of all.
        num_params: of one model.
        flops: of all.
        bytes_per_proxy: estimated, parameters and optimizer, and activations where proxies are computed at once.
        bytes_per_device: estimated, of a chunk; without the table of tokens.
        memory: bytes that were allowed per device.
    """

    name: str
    proxies: int
    chunk: int
    steps: int
    tokens: int
    num_params: int
    flops: float
    bytes_per_proxy: int
    bytes_per_device: int
    memory: int


def plan_swarm(swarm: Swarm, *, mixtures: int | None = None) -> list[SizePlan]:
    """Computes chunks, memory and operations of every size. Asks the devices how much memory they have.

    Args:
        swarm: checked.
        mixtures: of the design; what its configuration says if None.
    """
    count = swarm.design.runs + len(swarm.design.include) if mixtures is None else mixtures
    return [_plan_size(size, swarm, min(size.runs or count, count) * len(swarm.seeds)) for size in swarm.sizes]


def _plan_size(size: Size, swarm: Swarm, proxies: int) -> SizePlan:

    own = _resolve(size)
    data, settings, model = size.config.data, size.config.train, own.model
    devices = jax.local_devices()
    is_cpu = devices[0].platform == "cpu"
    rows = data.batch_size // settings.accumulate
    if is_cpu:
        rows //= micro_batches(rows, data.seq_len)
    memory = estimate_memory(model, rows=rows, seq_len=data.seq_len, parameter_shards=1, is_accumulating=is_cpu)
    kept, working = memory.params + memory.optimizer, memory.gradients + memory.activations + memory.logits
    allowed = _memory(swarm, devices[0], len(devices))
    # On a CPU one proxy of a device computes at a time; checkpoints hold a second copy of what is kept.
    per_proxy = 2 * kept if is_cpu else 2 * kept + working
    fixed = working if is_cpu else 0
    fitting = max(int((allowed - fixed) // per_proxy), 1) * len(devices)
    chunk = min(swarm.limits.chunk or fitting, proxies)
    parts = -(-proxies // chunk)
    chunk = -(-proxies // parts)
    tokens = proxies * settings.steps * data.batch_size * data.seq_len
    return SizePlan(
        name=size.name,
        proxies=proxies,
        chunk=chunk,
        steps=settings.steps,
        tokens=tokens,
        num_params=count_params(model),
        flops=flops_per_token(model) * tokens,
        bytes_per_proxy=per_proxy,
        bytes_per_device=fixed + per_proxy * -(-chunk // len(devices)),
        memory=allowed,
    )


def _memory(swarm: Swarm, device: Any, devices: int) -> int:
    """Bytes of one device that a swarm may take."""
    if swarm.limits.memory is not None:
        return int(swarm.limits.memory * 1e9)
    stats = device.memory_stats() if device.platform != "cpu" else None
    if stats and "bytes_limit" in stats:
        return int(stats["bytes_limit"] * _GPU_SHARE)
    return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * _CPU_SHARE) // devices


# ── run ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclasses.dataclass(frozen=True)
class SwarmOutcome:
    """The results of a swarm: its folder, the table of runs, its file, its page, and what diverged, with reasons."""

    out: Path
    table: RunTable
    path: Path
    report: Path
    diverged: dict[str, str]
    seconds: float
    flops: float

    def as_json(self) -> dict[str, Any]:
        return {
            "out": str(self.out),
            "table": str(self.path),
            "report": str(self.report),
            "runs": len(self.table),
            "domains": list(self.table.domain_names),
            "diverged": self.diverged,
            "seconds": self.seconds,
            "flops_per_second": self.flops / self.seconds if self.seconds else None,
        }


def run(swarm: Swarm, *, command: str, say: Callable[[str], None] = lambda line: None) -> SwarmOutcome:
    """Trains everything that is not trained yet, size by size, and collects the table.

    Makes the design first where there is none. Stopped or killed, the same call continues.

    Args:
        swarm: checked.
        command: what was typed, for provenance.json.
        say: receives one line per stage.

    Raises:
        ConfigError: also when the folder holds another swarm.
        RunError: interrupted; what was saved is complete.
    """
    out = Path(swarm.out)
    for size in swarm.sizes:
        prepare_and_open(size.config)
    if not (out / DESIGN).is_file():
        generate(swarm)
    designed = read_design(swarm)
    _write_about(swarm, command)
    for size, plan in zip(swarm.sizes, plan_swarm(swarm, mixtures=len(designed)), strict=True):
        config, data = size.config, prepare_and_open(size.config)
        own = resolve_run(config, data.known)
        rows, proxies = config.data.validation_rows, _proxies(size, designed, swarm.seeds, tuple(data.train))
        say(f"{size.name}: {len(proxies)} proxies of {plan.num_params:,} parameters, {plan.chunk} at a time")
        run_swarm(
            out / size.name,
            model=transformer(own.model),
            proxies=proxies,
            sources=data.train,
            validation=validation_set(data.validation, seq_len=config.data.seq_len, rows_per_domain=rows),
            settings=config.train,
            batch_size=config.data.batch_size,
            seq_len=config.data.seq_len,
            vocab_size=data.vocab_size,
            unit=config.data.unit,
            block=config.data.block,
            on_exhaust=own.on_exhaust,
            max_epochs=own.limits,
            chunk=plan.chunk,
            table_bytes=int(swarm.limits.table * 1e9),
            label=size.name,
        )
    return collect(swarm)


def _proxies(
    size: Size, designed: Mapping[str, Mapping[str, float]], seeds: Sequence[int], names: Sequence[str]
) -> list[Proxy]:
    chosen = list(designed.items())[: size.runs]
    for run, weights in chosen:
        if tuple(weights) != tuple(names):
            raise ConfigError(
                f"mixture {run!r} has weights of {', '.join(weights)}, the data has {', '.join(names)}",
                where=DESIGN,
            )
    return [
        Proxy(f"{size.name}/{run}-seed{seed}", np.asarray(list(weights.values())), seed)
        for seed in seeds
        for run, weights in chosen
    ]


def _write_about(swarm: Swarm, command: str) -> None:
    out = Path(swarm.out)
    sizes = {size.name: {**to_plain(size.config), "runs": size.runs} for size in swarm.sizes}
    plain = {"design": to_plain(swarm.design), "seeds": list(swarm.seeds), "sizes": sizes}
    write_whole(out / "config.yaml", dump_yaml(plain))
    write_json(out / "provenance.json", {**made_by(command), "started": now()})


def status(swarm: Swarm) -> dict[str, SwarmStatus]:
    """The progress of every size, by name; reads files only."""
    return {size.name: read_status(Path(swarm.out) / size.name) for size in swarm.sizes}


def collect(swarm: Swarm) -> SwarmOutcome:
    """Writes table.csv with the sizes of its domains, curves.csv, and the page from all chunks that are finished.

    `model_size` is all parameters in millions, `tokens` those of all batches in billions. A run that diverged has
    empty losses. curves.csv holds the held-out losses at every evaluation of every run, by the table's `run`.

    Raises:
        RunError: no chunk is finished, or every run diverged.
    """
    out = Path(swarm.out)
    names: list[str] = []
    rows: list[tuple[Any, float, float]] = []
    curves: list[list[Any]] = []
    seconds = flops = 0.0
    for size in swarm.sizes:
        own = _resolve(size)
        tokens = size.config.train.steps * size.config.data.batch_size * size.config.data.seq_len
        for chunk in finished_chunks(out / size.name):
            names = list(chunk.domain_names)
            seconds += chunk.seconds
            flops += flops_per_token(own.model) * sum(proxy.tokens for proxy in chunk.proxies)
            for proxy in chunk.proxies:
                rows.append((proxy, count_params(own.model) / 1e6, tokens / 1e9))
                curves += [
                    [len(rows) - 1, proxy.name, step, *map(float, losses)]
                    for step, losses in zip(chunk.curve_steps, proxy.curve, strict=True)
                ]
    if not any(proxy.reason is None for proxy, _, _ in rows):
        what = "every run diverged" if rows else "no chunk is finished"
        raise RunError(what, where=swarm.out, fix="Lower the learning rate." if rows else "Run jaxmix swarm run.")
    config = swarm.sizes[0].config
    known = known_sizes(config)[0].tokens
    available = [known.get(name) for name in names]
    table = RunTable(
        np.stack([proxy.weights for proxy, _, _ in rows]),
        np.stack([proxy.losses for proxy, _, _ in rows]),
        np.asarray([size for _, size, _ in rows]),
        np.asarray([tokens for _, _, tokens in rows]),
        names,
        names,
        seed=np.asarray([proxy.seed for proxy, _, _ in rows]),
        available_tokens=None if None in available else np.asarray(available, np.float64) / 1e9,
        unit=config.data.unit,
    )
    path = write_run_table(out / TABLE, table)
    head = ["run", "name", "step", *(f"loss/{name}" for name in names)]
    write_whole(out / CURVES, "\n".join(",".join(map(_cell, line)) for line in [head, *curves]) + "\n")
    diverged = {proxy.name: proxy.reason for proxy, _, _ in rows if proxy.reason is not None}
    return SwarmOutcome(out, table, path, write_report(out), diverged, seconds, flops)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "" if np.isnan(value) else repr(value)
    return str(value)
