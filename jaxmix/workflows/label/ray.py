"""The Ray engine of `jaxmix label`: shards go to a pool of workers, each with its own copy of the models.

A worker is an actor of Ray Data that runs `label_shard`. When one dies, Ray starts another and gives it the shard;
labels that were written stay, and one that was not whole is not there.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from typing import Any

from jaxmix.core.errors import EnvironmentProblem, JaxmixError
from jaxmix.workflows.discover.domains import open_domains
from jaxmix.workflows.label.config import LabelConfig
from jaxmix.workflows.label.shard import LabelShard, label_shard


class _Worker:
    """Opens the models once, then labels shard by shard."""

    def __init__(self, domains: str, method: str, batch_documents: int):
        self._domains, self._method, self._batch = open_domains(domains), method, batch_documents

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        shard: LabelShard = pickle.loads(row["shard"])
        try:
            label_shard(shard, self._domains, method=self._method, batch_documents=self._batch)
        except (JaxmixError, OSError) as error:  # of this shard alone: the others go on
            return {"name": shard.name, "error": str(error) or type(error).__name__}
        return {"name": shard.name, "error": ""}


def label_on_ray(shards: Sequence[LabelShard], config: LabelConfig, *, say: Callable[[str], None]) -> dict[str, str]:
    """Labels shards on a Ray cluster; returns why some failed, by name.

    A cluster that this call started ends with it; one that was there stays.

    Raises:
        EnvironmentProblem: Ray is not installed, or there is no cluster at the address.
    """
    try:
        import ray
        import ray.data
    except ModuleNotFoundError as error:
        raise EnvironmentProblem(
            "the engine ray needs the package 'ray', which is not installed",
            where="engine",
            fix='Run: pip install "jaxmix[ray]"',
        ) from error
    section = config.ray
    is_own = not ray.is_initialized()
    try:
        if is_own:
            ray.init(address=section.address, log_to_driver=False, include_dashboard=False if section.address is None
                     else None)  # fmt: skip
    except ConnectionError as error:
        raise EnvironmentProblem(
            f"there is no Ray cluster at {section.address!r}: {error}",
            where="ray.address",
            fix="Start one with `ray start`, or leave the address empty.",
        ) from error
    try:
        return _run(ray, shards, config, say)
    finally:
        if is_own:
            ray.shutdown()


def _run(ray: Any, shards: Sequence[LabelShard], config: LabelConfig, say: Callable[[str], None]) -> dict[str, str]:
    section = config.ray
    ray.data.DataContext.get_current().enable_progress_bars = False
    rows = [{"shard": pickle.dumps(shard)} for shard in shards]
    workers = min(section.workers, len(rows))
    # One shard a block: what a dead worker loses is one shard's work. Ray Data starts actors and their
    # tasks again without limit.
    labeled = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        _Worker,
        fn_constructor_args=(config.domains, config.method, config.batch_documents),
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_cpus=section.cpus,
        num_gpus=section.gpus or None,
        **({"resources": dict(section.resources)} if section.resources else {}),
    )
    failed, step = {}, max(1, len(rows) // 20)
    for done, row in enumerate(labeled.iter_rows(), start=1):
        if row["error"]:
            failed[row["name"]] = row["error"]
        if done % step == 0 or done == len(rows):
            say(f"{done} of {len(rows)} shards")
    return failed
