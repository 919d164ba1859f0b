"""`jaxmix quickstart`: four mixtures on the bundled texts, one of them proposed by a law, compared at equal tokens.

Then one of them again, on domains that were discovered instead of given.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxmix.core.errors import RunError
from jaxmix.data.files import write_whole
from jaxmix.models.lm.accounting import count_params, flops_per_token
from jaxmix.workflows.compare.run import members
from jaxmix.workflows.compare.variant import Member
from jaxmix.workflows.config.build import to_plain
from jaxmix.workflows.config.mixture import MIXTURE_FILE
from jaxmix.workflows.config.resolve import Run, resolve_run
from jaxmix.workflows.config.sections import RunConfig
from jaxmix.workflows.config.yaml import apply_overrides, dump_yaml
from jaxmix.workflows.law import fit_law, make_proposal
from jaxmix.workflows.quickstart.file import FILE, read_quickstart
from jaxmix.workflows.swarm.config import load_swarm
from jaxmix.workflows.swarm.run import collect
from jaxmix.workflows.train.data import known_sizes

DEFAULT_OUT = "runs/quickstart"
VARIANT = "law"


def quickstart_members(
    overrides: Sequence[tuple[str, str]] = (), *, out: str = DEFAULT_OUT, seeds: int | None = None
) -> list[Member[RunConfig]]:
    """The runs of the quickstart, from the file in the package.

    The variant "law" trains on the mixture that `propose_mixture` has left in `out`, and on the prior until then.

    Args:
        overrides: dotted overrides of its base configuration.
        out: folder to write to.
        seeds: number of seeds instead of the file's.
    """
    file, found = read_quickstart(), _mixture_file(out)
    variants = dict(file.variants)
    if found.is_file():
        variants[VARIANT] = {**variants[VARIANT], "mixture": str(found)}
    comparison = {"base": file.base, "variants": variants, "seeds": file.seeds}
    return members(comparison, overrides, file=FILE, out=out, seeds=seeds)


def propose_mixture(
    run: RunConfig, overrides: Sequence[tuple[str, str]], *, out: str, command: str, say: Callable[[str], None]
) -> str:
    """Trains a swarm of proxies, fits a law, and writes the mixture it proposes for `run` to `out`.

    What is there is not done again. The swarm is a process of its own, since it divides the processor's cores
    otherwise than single runs do.

    Args:
        run: a run of the comparison: what the mixture is for.
        overrides: of its base configuration.
        out: folder of the comparison.
        command: what was typed.
        say: receives one line per stage.

    Returns:
        A sentence: what the mixture cost.

    Raises:
        RunError: the swarm did not end well; what it has trained is kept.
    """
    path = Path(out) / "swarm.yaml"
    if not _mixture_file(out).is_file():
        write_whole(path, dump_yaml(_swarm(run, overrides, out)))
        say("a swarm of proxies, for a law of mixtures")
        arguments = [sys.executable, "-m", "jaxmix", "swarm", "run", str(path), "--out", f"{out}/swarm", "--json"]
        done = subprocess.run(arguments, stdout=subprocess.DEVNULL, check=False)
        if done.returncode:
            raise RunError(
                f"the swarm ended with exit status {done.returncode}",
                where=f"{out}/swarm",
                fix="Its error is printed above. Run the same command to continue.",
            )
    swarm = collect(load_swarm(str(path), out=f"{out}/swarm"))
    if not _mixture_file(out).is_file():
        _fit_and_propose(run, swarm.table, out=out, command=command, say=say)
    return _cost(run, swarm)


def _fit_and_propose(run: RunConfig, table: Any, *, out: str, command: str, say: Callable[[str], None]) -> None:
    law = read_quickstart().law
    fitted = fit_law(table, law.fit, out=f"{out}/law", command=command, source=f"{out}/swarm/table.csv", say=say)
    own, tokens = _resolve(run)
    make_proposal(
        fitted,
        model_size=count_params(own.model) / 1e6,
        tokens=tokens / 1e9,
        out=f"{out}/law",
        command=command,
        **law.propose,
    )


def _resolve(config: RunConfig) -> tuple[Run, int]:
    """A run of the comparison, and the tokens that it is trained on."""
    run = resolve_run(config, known_sizes(config)[0])
    return run, config.train.steps * config.data.batch_size * config.data.seq_len


def _cost(run: RunConfig, swarm: Any) -> str:
    own, tokens = _resolve(run)
    return (
        f"The law's mixture cost {len(swarm.table)} proxies, "
        f"{swarm.flops / flops_per_token(own.model) / tokens:.1f} times the operations of one run, on top of what the "
        "table counts."
    )


def _mixture_file(out: str) -> Path:
    return Path(out) / "law" / MIXTURE_FILE


def _swarm(run: RunConfig, overrides: Sequence[tuple[str, str]], out: str) -> Mapping[str, Any]:
    """The file of the swarm: the comparison's base at the proxies' size and length."""
    file = read_quickstart()
    law = file.law
    base = apply_overrides(file.base, overrides)
    base["data"] = {"prepared": run.data.prepared, **base["data"]}
    steps = max(round(law.length * run.train.steps), 1)
    base["train"] = {**base["train"], "steps": steps, "eval_every": steps}
    base["model"] = to_plain(law.model)
    base["mixture"] = {"weights": "natural"}
    return {"base": base, "design": to_plain(law.design), "seeds": [0]}
