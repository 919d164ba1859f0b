"""The quickstart's last arm: the same mixer on domains that were discovered instead of given."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxmix.workflows.compare.variant import Member, run_of
from jaxmix.workflows.config.build import to_plain
from jaxmix.workflows.config.sections import RunConfig
from jaxmix.workflows.config.yaml import apply_overrides
from jaxmix.workflows.discover.config import discovery_from
from jaxmix.workflows.discover.run import run_discovery
from jaxmix.workflows.provenance import write_json
from jaxmix.workflows.quickstart.file import FILE, DiscoveredArm, read_quickstart
from jaxmix.workflows.train.cross_eval import held_out_losses, write_training_texts
from jaxmix.workflows.train.run import run_train

RESULT = "result.json"


def discovered_arm(
    runs: Sequence[Member[RunConfig]],
    overrides: Sequence[tuple[str, str]],
    *,
    out: str,
    command: str,
    say: Callable[[str], None],
) -> list[str]:
    """Discovers domains in the training texts of a comparison and trains one variant on them; returns sentences.

    The discovery sees neither the given domains nor any held-out text; runs have the same model, mixer, seeds and
    number of tokens as those of the variant, and are judged on the same held-out rows of the given domains.

    Args:
        runs: of the comparison; finished.
        overrides: of its base configuration.
        out: folder of the comparison.
        command: what was typed.
        say: receives one line per stage.
    """
    file = read_quickstart()
    section, base = file.gem, apply_overrides(file.base, overrides)
    given = [m for m in runs if m.variant == section.variant and m.seed in section.seeds]
    if not given:
        return []
    home = Path(out) / "gem"
    prepared, rows = str(given[0].config.data.prepared), given[0].config.data.validation_rows
    texts = write_training_texts(prepared, home / "texts")
    # One source of all texts: the discovery does not see the given domains.
    sources = {"texts": {"path": [str(path) for path in texts.values()]}}
    config = discovery_from({**section.discover, "sources": sources}, file=FILE, out=str(home / "domains"))
    say(f"{config.clusterer.num_clusters} domains of {config.clusterer.name}, discovered in the training texts")
    found = run_discovery(config, command=command, say=lambda line: None)
    discovered, against = [], []
    for member in given:
        discovered.append(_run(section, base, member, home, prepared, rows, command=command))
        against.append(_mean(held_out_losses(str(member.config.out), prepared, rows_per_domain=rows)))
    seeds = "one seed, so the spread is not known" if len(given) == 1 else f"means of {len(given)} seeds"
    names = [cluster["name"] for cluster in found["taxonomy"]["clusters"]]
    difference = sum(discovered) / len(discovered) - sum(against) / len(against)
    return [
        f"{section.variant} on {len(names)} domains discovered by GEM: mean validation loss over the given domains "
        f"{sum(discovered) / len(discovered):.4f}, {abs(difference):.4f} {'above' if difference > 0 else 'below'} the "
        f"same on the given domains ({seeds}).",
        f"What the discovered domains are about: {home}/domains/report.html",
    ]


def _run(
    section: DiscoveredArm,
    base: Mapping[str, Any],
    member: Member[RunConfig],
    home: Path,
    prepared: str,
    rows: int,
    *,
    command: str,
) -> float:
    """Mean held-out loss of one run on the discovered domains, trained unless it is finished."""
    plain = to_plain(member.config)
    same = {key: plain[key] for key in ("mixture", "mixer", "model", "train", "checkpoint")}
    data = {**plain["data"], "prepared": str(home / "prepared"), "validation_fraction": section.validation_fraction}
    config = run_of(
        {**base, **same, "sources": str(home / "domains"), "data": data},
        f"{member.variant}-seed{member.seed}",
        out=str(home),
        file=FILE,
    )
    folder = Path(str(config.out))
    try:
        return float(json.loads((folder / RESULT).read_text(encoding="utf-8"))["mean"])
    except FileNotFoundError:
        pass
    run_train(config, command=command, label=f"gem seed {member.seed}", extra={"variant": "gem"})
    losses = held_out_losses(folder, prepared, rows_per_domain=rows)
    write_json(folder / RESULT, {"mean": _mean(losses), "losses": losses})
    return _mean(losses)


def _mean(losses: Mapping[str, float]) -> float:
    return sum(losses.values()) / len(losses)
