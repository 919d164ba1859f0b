"""Reads run folders for a page, however the run ended."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from jaxmix.core.errors import ConfigError, RunError
from jaxmix.train.run.records import latest_by_step, read_records


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """The content of a run folder.

    Attributes:
        folder: the run folder.
        config: resolved configuration, {} when missing.
        provenance: versions, command, hashes, seed; {} when missing.
        train, eval, timing: records by step, ascending, one per step.
        control: evaluations on the mixer's own rows, where it has such rows.
        test: evaluations on test rows, which no decision depends on, where there are such rows.
    """

    folder: Path
    config: dict[str, Any]
    provenance: dict[str, Any]
    train: list[dict[str, Any]]
    eval: list[dict[str, Any]]
    timing: list[dict[str, Any]]
    control: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    test: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def variant(self) -> str:
        """Runs of one variant differ in their seed only."""
        return str(self.provenance.get("variant") or self.name)

    @property
    def seed(self) -> int:
        return int(self.provenance.get("seed", 0))

    @property
    def domains(self) -> tuple[str, ...]:
        """Domain names in the order of the run."""
        for records, prefix in ((self.train, "mix/weight/"), (self.eval, "eval/loss/")):
            if records:
                names = [key[len(prefix) :] for key in records[-1] if key.startswith(prefix)]
                if prefix == "eval/loss/":  # the aggregates come last and share the prefix
                    names = names[: -len(_AGGREGATES)] if names[-3:] == list(_AGGREGATES) else names
                return tuple(names)
        return tuple(self.provenance.get("domains", ()))

    @property
    def tokens(self) -> int:
        """Tokens drawn so far: without selection those trained on."""
        return max((int(r.get("tokens", 0)) for r in (*self.train, *self.eval)), default=0)

    @property
    def steps(self) -> int:
        """Optimizer steps done so far."""
        return max((int(r["step"]) for r in (*self.train, *self.eval)), default=0)

    @property
    def has_moving_weights(self) -> bool:
        """Whether the weights changed during the run, or before its first record left the prior."""
        prior = self.provenance.get("prior", {})
        for name in self.domains:
            values = self.series("train", f"mix/weight/{name}")[1]
            start = [float(prior[name])] if values and name in prior else []
            if values and max([*values, *start]) - min([*values, *start]) > 1e-6:
                return True
        return False

    @property
    def planned_steps(self) -> int | None:
        steps = self.config.get("train", {}).get("steps")
        return int(steps) if steps is not None else None

    def series(self, kind: str, key: str) -> tuple[list[int], list[float]]:
        """Steps and values of one metric; steps at which it was not measured are left out.

        Args:
            kind: "train", "eval", "control", "test" or "timing".
            key: of the metric.
        """
        records = getattr(self, kind)
        pairs = [(int(r["step"]), float(r[key])) for r in records if isinstance(r.get(key), (int, float))]
        return [step for step, _ in pairs], [value for _, value in pairs]

    def final(self, kind: str, key: str) -> float | None:
        """The latest value of a metric, None if it was never measured."""
        values = self.series(kind, key)[1]
        return values[-1] if values else None

    @property
    def judged_by(self) -> str:
        """The rows that the result is measured on: "test" where there are test rows, else "validation"."""
        return "test" if self.test else "validation"

    def final_losses(self, kind: str | None = None) -> dict[str, float]:
        """Latest loss of every domain that has one, nats per token: of its test rows, or of `kind` of records."""
        kind = kind or ("test" if self.test else "eval")
        found = {name: self.final(kind, f"{kind}/loss/{name}") for name in self.domains}
        return {name: value for name, value in found.items() if value is not None}

    def average_weights(self) -> dict[str, float]:
        """Mean sampling weight of every domain over the logged steps."""
        return {
            name: sum(values) / len(values)
            for name in self.domains
            if (values := self.series("train", f"mix/weight/{name}")[1])
        }


_AGGREGATES = ("uniform", "prior", "worst")


def load_run(folder: Path) -> RunRecord:
    """Reads a run folder. A torn last line is left out; of repeated steps the later line counts.

    Raises:
        ConfigError: `folder` is not a run folder.
        RunError: a file in it cannot be read.
    """
    metrics = folder / "metrics.jsonl"
    if not metrics.is_file():
        raise ConfigError(
            f"{str(folder)!r} is no run folder: it has no metrics.jsonl",
            where="command line",
            fix="Name the folder that `jaxmix train` wrote, or a folder of such folders.",
        )
    records = _records(metrics)
    timing = folder / "timing.jsonl"
    return RunRecord(
        folder=folder,
        config=_mapping(folder / "config.yaml"),
        provenance=_mapping(folder / "provenance.json"),
        train=latest_by_step(records, "train"),
        eval=latest_by_step(records, "eval"),
        timing=latest_by_step(_records(timing)) if timing.is_file() else [],
        control=latest_by_step(records, "control"),
        test=latest_by_step(records, "test"),
    )


def find_runs(folder: Path) -> list[Path]:
    """The run folders at or directly below `folder`, in the order of their names.

    Raises:
        ConfigError: there is none.
    """
    if (folder / "metrics.jsonl").is_file():
        return [folder]
    found = sorted(p.parent for p in folder.glob("*/metrics.jsonl")) if folder.is_dir() else []
    if not found:
        what = f"there is no folder {str(folder)!r}" if not folder.is_dir() else f"no run in {str(folder)!r}"
        raise ConfigError(what, where="command line", fix="Name a run folder, or a folder of run folders.")
    return found


def _records(path: Path) -> list[dict[str, Any]]:
    try:
        return [r for r in read_records(path) if isinstance(r, dict) and "step" in r]
    except ValueError as error:
        raise RunError(f"cannot read a record: {error}", fix="Remove the broken line.") from None


def _mapping(path: Path) -> dict[str, Any]:
    """A YAML or JSON file that holds a mapping; {} when it is missing or was cut short."""
    if not path.is_file():
        return {}
    import yaml

    text = path.read_text(encoding="utf-8")
    try:
        value = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (json.JSONDecodeError, yaml.YAMLError):
        return {}
    return value if isinstance(value, dict) else {}
