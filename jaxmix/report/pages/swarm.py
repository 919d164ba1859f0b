"""The page of a swarm: which mixtures came out best, how far apart they are, and which proxies failed."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxmix.data.run_tables import read_run_table
from jaxmix.report import charts, html
from jaxmix.report.numbers import DEFINITIONS, FEW_TOKENS, mean_of_known, number, percent, standard_error
from jaxmix.report.run_folder import read_mapping
from jaxmix.report.tables import Table
from jaxmix.report.widgets import origin
from jaxmix.train.swarm.files import PLAN, ProxyResult, finished_chunks, read_status

_MAX_PANELS = 24
_MAX_NAMED = 5


class TrainedMixture(NamedTuple):
    """One mixture of a size.

    Attributes:
        name: as in design.csv.
        weights: by domain.
        losses: final losses by domain, means over its proxies.
        seeds: mean loss over domains of every proxy, one per seed.
        tokens: that a proxy was trained on.
    """

    name: str
    weights: tuple[float, ...]
    losses: tuple[float, ...]
    seeds: tuple[float, ...]
    tokens: int

    @property
    def loss(self) -> float:
        """Mean over domains and seeds, nats per token."""
        return statistics.fmean(self.losses)


class SwarmRecord(NamedTuple):
    """What the folder of a swarm holds.

    Attributes:
        folder: of the swarm.
        config: of all sizes.
        provenance: {} where it is missing.
        domains: names.
        sizes: the mixtures of every size that has any, the best first.
        failed: reason by name of the proxy that has no losses.
        waiting: proxies that are not trained yet.
        available: tokens of every domain; {} where that is not known.
    """

    folder: Path
    config: dict[str, Any]
    provenance: dict[str, Any]
    domains: tuple[str, ...]
    sizes: dict[str, list[TrainedMixture]]
    failed: dict[str, str]
    waiting: int
    available: dict[str, float]


def is_swarm(folder: Path) -> bool:
    """Whether the folder is that of a swarm that was begun."""
    return {"design", "sizes"} <= read_mapping(folder / "config.yaml").keys()


def read_swarm(folder: Path) -> SwarmRecord:
    """Reads what is finished of a swarm."""
    config = read_mapping(folder / "config.yaml")
    domains: tuple[str, ...] = ()
    sizes: dict[str, list[TrainedMixture]] = {}
    failed: dict[str, str] = {}
    waiting = 0
    for size in config["sizes"]:
        if not (folder / size / PLAN).is_file():
            continue
        chunks = finished_chunks(folder / size)
        proxies = [proxy for chunk in chunks for proxy in chunk.proxies]
        domains = chunks[0].domain_names if chunks else domains
        failed |= {proxy.name: proxy.reason for proxy in proxies if proxy.reason is not None}
        waiting += read_status(folder / size).proxies - len(proxies)
        if mixtures := _mixtures(proxies):
            sizes[size] = mixtures
    provenance, available = read_mapping(folder / "provenance.json"), _available(folder / "table.csv")
    return SwarmRecord(folder, config, provenance, domains, sizes, failed, waiting, available)


def _mixtures(proxies: Sequence[ProxyResult]) -> list[TrainedMixture]:
    groups: dict[tuple[float, ...], list[ProxyResult]] = {}
    for proxy in proxies:
        if proxy.reason is None:
            groups.setdefault(tuple(proxy.weights.tolist()), []).append(proxy)
    mixtures = [
        TrainedMixture(
            name=group[0].name.partition("/")[2].rpartition("-seed")[0],
            weights=weights,
            losses=tuple(statistics.fmean(column) for column in zip(*(p.losses.tolist() for p in group), strict=True)),
            seeds=tuple(statistics.fmean(proxy.losses.tolist()) for proxy in group),
            tokens=group[0].tokens,
        )
        for weights, group in groups.items()
    ]
    return sorted(mixtures, key=lambda mixture: mixture.loss)


def _data(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The section `data` of every size."""
    return [plain["data"] for plain in config["sizes"].values()]


def _available(table: Path) -> dict[str, float]:
    """Tokens there are of each domain, as `swarm collect` has written them; empty before, or where they are unknown."""
    runs = read_run_table(table) if table.is_file() else None
    if runs is None or runs.available_tokens is None:
        return {}
    return {name: round(1e9 * size) for name, size in zip(runs.domain_names, runs.available_tokens, strict=True)}


def describe_swarm(swarm: SwarmRecord) -> list[str]:
    """The result in sentences, the most important first."""
    sentences = []
    for size, mixtures in swarm.sizes.items():
        best, losses = mixtures[0], [mixture.loss for mixture in mixtures]
        weights = sorted(zip(best.weights, swarm.domains, strict=True), reverse=True)
        largest = ", ".join(f"{name} {percent(weight)}" for weight, name in weights[:_MAX_NAMED])
        others = ", the others less" if len(weights) > _MAX_NAMED else ""
        sentences.append(
            f"{size}: {best.name} has the lowest mean loss over {len(swarm.domains)} domains, {best.loss:.4f} nats per "
            f"token, with {largest}{others}."
        )
        if len(losses) > 1:
            runner_up = mixtures[1]
            sentences.append(
                f"Next is {runner_up.name}, {runner_up.loss - best.loss:+.4f}; {len(losses)} mixtures range up to "
                f"{losses[-1]:.4f}; standard deviation {statistics.stdev(losses):.4f}{_between_seeds(mixtures)}."
            )
    held_out = min((d["validation_rows"] * d["seq_len"] for d in _data(swarm.config)), default=FEW_TOKENS)
    if held_out < FEW_TOKENS:
        sentences.append(
            f"At most {held_out:,} tokens of a domain are evaluated: its loss has a standard error of about "
            f"{standard_error(held_out):.2g} nats or more."
        )
    if swarm.failed:
        named = ", ".join(f"{name} ({reason})" for name, reason in list(swarm.failed.items())[:_MAX_NAMED])
        more = f", and {len(swarm.failed) - _MAX_NAMED} more" if len(swarm.failed) > _MAX_NAMED else ""
        sentences.append(f"Proxies without a result: {len(swarm.failed)}: {named}{more}.")
    if swarm.waiting:
        sentences.append(f"Proxies that are not trained yet: {swarm.waiting}.")
    return sentences or ["No proxy has finished yet."]


def _between_seeds(mixtures: Sequence[TrainedMixture]) -> str:
    variances = [statistics.variance(mixture.seeds) for mixture in mixtures if len(mixture.seeds) > 1]
    mean = mean_of_known(variances)
    return "" if mean is None else f" between mixtures and {mean**0.5:.4f} between seeds of one mixture"


def swarm_table(swarm: SwarmRecord, size: str) -> Table:
    """One row per domain: the best mixture of a size beside what was tried, and how far it goes through the data."""
    mixtures = swarm.sizes[size]
    best = mixtures[0]
    columns = (
        "domain",
        "best mixture",
        "weights tried",
        "loss in best",
        "losses",
        "available tokens",
        "epochs of best",
    )
    rows = []
    for i, name in enumerate(swarm.domains):
        weights, losses = (
            [values[i] for values in (getattr(m, key) for m in mixtures)] for key in ("weights", "losses")
        )
        there = swarm.available.get(name)
        rows.append(
            (
                name,
                percent(best.weights[i]),
                f"{percent(min(weights))} to {percent(max(weights))}",
                number(best.losses[i], 4),
                f"{min(losses):.4f} to {max(losses):.4f}",
                number(there, 0, missing="?"),
                number(best.weights[i] * best.tokens / there if there else None, 2, missing="?"),
            )
        )
    rows.append(
        ("mean over domains", "", "", number(best.loss, 4), f"{best.loss:.4f} to {mixtures[-1].loss:.4f}", "", "")
    )
    return Table(columns, tuple(rows), first_total=len(rows) - 1)


def swarm_page(swarm: SwarmRecord) -> str:
    """The page's HTML."""
    body = []
    if swarm.sizes:
        size = max(swarm.sizes, key=lambda name: len(swarm.sizes[name]))
        mixtures = swarm.sizes[size]
        losses = [mixture.loss for mixture in mixtures]
        panels = list(enumerate(swarm.domains))[:_MAX_PANELS]
        points: Mapping[str, Any] = {name: ([m.weights[i] for m in mixtures], losses) for i, name in panels}
        chart = charts.scatters(
            points, name="swarm", x_label="weight of the domain", y_label="mean loss", line=None, share_x=True
        )
        hidden = len(swarm.domains) - len(panels)
        body = [
            html.heading(f"Weights and the mean loss: {size}"),
            html.figure(
                chart,
                "A point is a mixture; all panels have one scale."
                + (f" {hidden} more domains are in the table." if hidden else ""),
            ),
            html.table(swarm_table(swarm, size), f"Domains: {size}"),
            html.note(f"{DEFINITIONS} All runs are in table.csv, their losses over time in curves.csv."),
        ]
    facts = {key: value for key in ("devices", "commit") if (value := swarm.provenance.get(key))}
    count = sum(len(mixture.seeds) for mixtures in swarm.sizes.values() for mixture in mixtures)
    parts = [f"{count} proxies with results", f"{len(swarm.domains)} domains", swarm.provenance.get("started")]
    subtitle = " · ".join(str(part) for part in parts if part)
    return html.page(
        swarm.folder.resolve().name,
        subtitle,
        describe_swarm(swarm),
        [*body, *origin(swarm.provenance, facts, {"Configuration": swarm.config})],
    )
