"""Reads run folders for a page, however the run ended."""

from __future__ import annotations

import dataclasses
import functools
import itertools
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
        used_up: one record for every step at which sources dropped out, having given all they may.
    """

    folder: Path
    config: dict[str, Any]
    provenance: dict[str, Any]
    train: list[dict[str, Any]]
    eval: list[dict[str, Any]]
    timing: list[dict[str, Any]]
    control: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    test: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    used_up: list[dict[str, Any]] = dataclasses.field(default_factory=list)

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

    @functools.cached_property
    def domains(self) -> tuple[str, ...]:
        """Domain names in the order of the run, of its latest session where that changed them."""
        for records, prefix in ((self.train, "mix/weight/"), (self.eval, "eval/loss/")):
            if records:
                names = _names(records[-1], prefix)
                if prefix == "eval/loss/":  # the aggregates come last and share the prefix
                    names = names[: -len(_AGGREGATES)] if names[-3:] == _AGGREGATES else names
                return names
        return tuple(self.provenance.get("domains", ()))

    @functools.cached_property
    def changes(self) -> list[tuple[int, tuple[str, ...], tuple[str, ...]]]:
        """The steps after which domains came or left, and the names of those that came, and of those that left."""
        found = []
        for before, after in itertools.pairwise(self.train):
            if before.keys() == after.keys():
                continue
            old, new = _names(before, "mix/weight/"), _names(after, "mix/weight/")
            came, left = tuple(n for n in new if n not in old), tuple(n for n in old if n not in new)
            if came or left:
                found.append((int(before["step"]), came, left))
        return found

    @property
    def left(self) -> dict[str, int]:
        """The step after which a domain left, for those that did not come back."""
        steps = {name: step for step, _, left in self.changes for name in left}
        return {name: step for name, step in steps.items() if name not in self.domains}

    @property
    def ran_out(self) -> dict[str, int]:
        """The step at which a source had given all it may, for those that did."""
        return {name: int(r["step"]) for r in self.used_up for name in _names(r, "used_up/")}

    @property
    def ended_early(self) -> str | None:
        """Why the run ended before its last step; None if it did not."""
        return self.provenance.get("ended_early")

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
        prior = self.provenance.get("prior", {}) if not self.changes else {}  # that of the latest session
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
        """The losses of the last evaluation by domain, nats per token; without those that are not finite.

        Args:
            kind: of the records, "eval" or "test"; that of the test rows if None, where there are such rows.
        """
        kind = kind or ("test" if self.test else "eval")
        last = (getattr(self, kind) or [{}])[-1]
        found = {name: last.get(f"{kind}/loss/{name}") for name in self.domains}
        return {name: float(value) for name, value in found.items() if isinstance(value, (int, float))}

    def held_out_tokens(self, kind: str | None = None) -> dict[str, int]:
        """Tokens that `final_losses` is measured on, by domain; {} where the run did not record them."""
        kind = kind or ("test" if self.test else "eval")
        return dict(self.provenance.get("held_out_tokens", {}).get(kind, {}))

    def token_shares(self) -> dict[str, float]:
        """Share of every domain in the tokens drawn so far, those that left included; of rows in older runs."""
        last = self.train[-1] if self.train else {}
        names = (*self.domains, *self.left)
        for key in ("data/tokens", "data/share"):
            drawn = {name: float(last[f"{key}/{name}"]) for name in names if f"{key}/{name}" in last}
            if total := sum(drawn.values()):
                return {name: value / total for name, value in drawn.items()}
        return {}

    def average_weights(self, since: float = 0) -> dict[str, float]:
        """Mean over the steps after `since` of the weight of every domain, 0 while it was no part of the run."""
        sums: dict[str, float] = {}
        names = (*self.domains, *self.left)
        before = steps = 0
        for record in self.train:
            length, before = record["step"] - before, record["step"]
            if before <= since:
                continue
            steps += length
            for name in names:
                # Runs of earlier versions have only the weights at the end of each interval.
                weight = record.get(f"mix/mean_weight/{name}", record.get(f"mix/weight/{name}"))
                if weight is not None:
                    sums[name] = sums.get(name, 0.0) + length * float(weight)
        return {name: value / steps for name, value in sums.items()}


def _names(record: dict[str, Any], prefix: str) -> tuple[str, ...]:
    return tuple(key[len(prefix) :] for key in record if key.startswith(prefix))


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
        config=read_mapping(folder / "config.yaml"),
        provenance=read_mapping(folder / "provenance.json"),
        train=latest_by_step(records, "train"),
        eval=latest_by_step(records, "eval"),
        timing=latest_by_step(_records(timing)) if timing.is_file() else [],
        control=latest_by_step(records, "control"),
        test=latest_by_step(records, "test"),
        used_up=latest_by_step(records, "used_up"),
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


def read_mapping(path: Path) -> dict[str, Any]:
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
