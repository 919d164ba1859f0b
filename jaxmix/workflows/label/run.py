"""`jaxmix label`: the domain of every document of a corpus, as Parquet files beside the documents."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxmix.core.errors import RunError
from jaxmix.data.sources.readers import Trouble
from jaxmix.workflows.discover.domains import Domains, open_domains
from jaxmix.workflows.label.config import LabelConfig
from jaxmix.workflows.label.ray import label_on_ray
from jaxmix.workflows.label.shard import LabelShard, label_shard, label_shards
from jaxmix.workflows.provenance import made_by, now, write_json

SUMMARY = "labels.json"


def run_labeling(config: LabelConfig, *, command: str, say: Callable[[str], None]) -> dict[str, Any]:
    """Labels all shards that are not labeled yet and writes the summary, labels.json.

    Args:
        config: from `load_labeling`.
        command: what was typed.
        say: receives one line now and then.

    Raises:
        ConfigError: labels of other documents or models are in the way.
        EnvironmentProblem: the engine is not installed.
        RunError: some shards failed; the others are labeled.
    """
    assert config.out is not None
    domains = open_domains(config.domains)
    shards = label_shards(config, domains)
    waiting = [shard for shard in shards if shard.result() is None]
    say(f"{len(shards)} shards, {len(shards) - len(waiting)} already labeled")
    if config.engine == "ray":
        failed = label_on_ray(waiting, config, say=say) if waiting else {}
    else:
        failed = _label_here(waiting, domains, config, say)
    results = [shard.result() for shard in shards if shard.name not in failed]
    summary = _summary(config, domains, [result for result in results if result is not None])
    files = [str(shard.target) for shard in shards]
    write_json(
        Path(config.out) / SUMMARY, {**summary, "files": files, "failed": failed, **made_by(command), "finished": now()}
    )
    if failed:
        name, reason = next(iter(failed.items()))
        raise RunError(
            f"{len(failed)} of {len(shards)} shards could not be labeled, such as {name}: {reason}",
            where=config.out,
            fix="The others are labeled. Run the same command to retry these.",
        )
    return summary


def _label_here(
    shards: list[LabelShard], domains: Domains, config: LabelConfig, say: Callable[[str], None]
) -> dict[str, str]:
    step = max(1, len(shards) // 20)
    for done, shard in enumerate(shards, start=1):
        label_shard(shard, domains, method=config.method, batch_documents=config.batch_documents)
        if done % step == 0 or done == len(shards):
            say(f"{done} of {len(shards)} shards")
    return {}


def _summary(config: LabelConfig, domains: Domains, results: list[dict[str, Any]]) -> dict[str, Any]:
    trouble = Trouble()
    for result in results:
        trouble.merge(result["troubles"])
    total = {key: sum(result[key] for result in results) for key in ("documents", "bytes", "unlabeled")}
    by_domain = {
        name: {
            "documents": sum(result["counts"][name] for result in results),
            "bytes": sum(result["bytes_by_domain"][name] for result in results),
        }
        for name in domains.names
    }
    return {"out": config.out, "method": config.method, "shards": len(results), **total, "domains": by_domain,
            "troubles": trouble.to_json()}  # fmt: skip


def describe_labeling(config: LabelConfig) -> dict[str, Any]:
    """What a labeling would read and write. Looks for the files and reads none of their text."""
    domains = open_domains(config.domains)
    shards = label_shards(config, domains)
    waiting = [shard for shard in shards if shard.result() is None]
    files = {path for shard in waiting for unit in shard.units for path in unit.paths}
    return {
        "domains": list(domains.names),
        "shards": len(shards),
        "labeled": len(shards) - len(waiting),
        "input_bytes": sum(path.stat().st_size for path in files),
        "first": str(shards[0].target) if shards else None,
    }
