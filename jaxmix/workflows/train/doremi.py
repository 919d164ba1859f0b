"""DoReMi offline: a reference run, a proxy run that weighs domains by its excess loss, and their average weights.

Xie et al.: "DoReMi: Optimizing Data Mixtures Speeds Up Language Model Pretraining", arXiv 2305.10429. Both runs are
ordinary runs of `jaxmix train`; the method is the mixer `doremi` in its mode "proxy".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxmix.core.errors import ConfigError
from jaxmix.core.settings import setting
from jaxmix.workflows.compare.variant import naming, run_of
from jaxmix.workflows.config.build import Origin, read
from jaxmix.workflows.config.load import read_config_mapping
from jaxmix.workflows.config.mixture import MIXTURE_FILE, Mixture, write_mixture
from jaxmix.workflows.config.resolve import prior_weights
from jaxmix.workflows.config.sections import RunConfig, folder_of
from jaxmix.workflows.config.yaml import apply_overrides
from jaxmix.workflows.train.data import prepare_and_open
from jaxmix.workflows.train.run import check_continuation, run_train


@dataclasses.dataclass(frozen=True)
class DoremiConfig:
    """The file: what both runs share, and the sections that each changes."""

    base: dict[str, Any] = setting(help="Set base: a configuration as for `jaxmix train`; its mixture is the prior.")
    reference: dict[str, Any] = setting(factory=dict, help="sections of base that the reference run changes")
    proxy: dict[str, Any] = setting(factory=dict, help="sections of base that the proxy run changes")


@dataclasses.dataclass(frozen=True)
class Doremi:
    """Both runs, checked: their folders are `reference` and `proxy` in `out`."""

    out: str
    reference: RunConfig
    proxy: RunConfig


@dataclasses.dataclass(frozen=True)
class DoremiOutcome:
    """What DoReMi found, everything by domain.

    Attributes:
        path: mixture.yaml.
        weights: the mean of the proxy's domain weights over its steps: the mixture for another run.
        epochs: passes over every source in a run of the proxy's length; None where weights do not count tokens.
        warnings: sources that such a run would read too often.
        prior: what both runs drew by.
        reference_loss, proxy_loss: held-out losses at the end, nats per token.
    """

    path: Path
    weights: dict[str, float]
    epochs: dict[str, float] | None
    warnings: list[str]
    prior: dict[str, float]
    reference_loss: dict[str, float]
    proxy_loss: dict[str, float]


def load_doremi(path: str, overrides: Sequence[tuple[str, str]] = (), *, out: str | None = None) -> Doremi:
    """Loads and checks a file in the form of `DoremiConfig`; touches no other file and no device.

    Args:
        path: YAML file.
        overrides: dotted overrides of the base.
        out: folder; runs/<name of the file> if None.
    """
    config = read(DoremiConfig, read_config_mapping(path), origin=Origin(path))
    out = out or f"runs/{Path(path).stem}"
    static: dict[str, Any] = {"mixer": {"name": "static"}}
    weighing: dict[str, Any] = {
        "mixer": {"name": "doremi", "mode": "proxy"},
        "reference": {"run": f"{out}/reference"},
    }
    runs = {}
    for name, default, changes in (("reference", static, config.reference), ("proxy", weighing, config.proxy)):
        plain = apply_overrides({**config.base, **default, **changes}, overrides)
        with naming(name):
            runs[name] = run_of(plain, name, out=out, file=path)
    if runs["proxy"].mixer.name != "doremi":
        raise ConfigError(
            f"the proxy has the mixer {runs['proxy'].mixer.name!r}",
            where=f"{path}, proxy.mixer.name",
            fix="Leave the name out, or write doremi.",
        )
    return Doremi(out, runs["reference"], runs["proxy"])


def run_doremi(doremi: Doremi, *, command: str) -> DoremiOutcome:
    """Trains the reference, then the proxy, and writes mixture.yaml; continues what is there.

    Args:
        doremi: checked configurations.
        command: what was typed, for provenance.json.

    Raises:
        ConfigError: a run folder holds a run that its configuration cannot continue.
        RunError: a run could not continue; the same call resumes it.
    """
    for run in (doremi.reference, doremi.proxy):
        check_continuation(folder_of(run))
    data = prepare_and_open(doremi.reference)
    reference = run_train(doremi.reference, command=command, data=data, label="reference", has_page=False)
    proxy = run_train(doremi.proxy, command=command, data=data, label="proxy", has_page=False)
    weights = proxy.result.recommended
    prior = prior_weights(doremi.proxy, data.known)
    assert prior is not None
    path = Path(doremi.out) / MIXTURE_FILE
    about = {
        "mixer": "doremi",
        "reference": str(doremi.reference.out),
        "proxy": str(doremi.proxy.out),
        "steps": proxy.result.steps,
        "tokenizer": doremi.proxy.data.tokenizer,
        "tokenizer_hash": data.tokenizer_hash,
        "prior": prior,
    }
    tokens = int(sum(drawn["tokens"] for drawn in proxy.result.realized.values()))
    found = Mixture(
        doremi.proxy.data.unit, dict(weights), tokens=tokens, available_tokens=dict(data.sizes), about=about
    )
    write_mixture(path, found, found.repeated())
    losses = reference.result.final_eval, proxy.result.final_eval
    return DoremiOutcome(path, dict(weights), found.epochs, found.repeated(), prior, *losses)
