"""`mixture.yaml`: one format for the weights that a command found, and the way of such a file into a configuration."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from jaxmix.core.errors import ConfigError, nearest
from jaxmix.core.settings import expand_path, setting
from jaxmix.core.validate import check_weights
from jaxmix.data.files import write_whole
from jaxmix.data.sources.corpora import bundled_corpus
from jaxmix.laws.proposals.repetition import MAX_EPOCHS
from jaxmix.workflows.config.build import Origin, read, to_plain
from jaxmix.workflows.config.sections import Unit
from jaxmix.workflows.config.yaml import describe, dump_yaml, read_yaml

MIXTURE_FILE = "mixture.yaml"


@dataclasses.dataclass(frozen=True)
class Mixture:
    """The content of a mixture file. `tokens` and `available_tokens` say what the weights mean for the data."""

    unit: Unit = setting(help="Set unit: what a weight counts, as data.unit.")
    weights: dict[str, float] = setting(help="Set weights: a number for every source.")
    version: Literal[1] = setting(1, required=True, help="Set version: 1.")
    tokens: float | None = setting(None, at_least=0, help="of the run that the mixture is for, or that found it")
    available_tokens: dict[str, float] | None = setting(None, help="of the training part of the sources, where known")
    about: dict[str, Any] = setting(factory=dict, help="how it was found, for people")

    @property
    def epochs(self) -> dict[str, float] | None:
        """Passes over the sources of known size in a run of `tokens`; None where weights count something else."""
        if self.unit != "tokens" or self.tokens is None or self.available_tokens is None:
            return None
        total, found = sum(self.weights.values()), {}
        for name, size in self.available_tokens.items():
            drawn = self.tokens * self.weights[name] / total
            found[name] = drawn / size if size else float("inf") if drawn else 0.0
        return found

    def repeated(self, most: float = MAX_EPOCHS) -> list[str]:
        """A sentence on the sources that are read more than `most` times, where there are any."""
        found = sorted(((e, n) for n, e in (self.epochs or {}).items() if e > 1.001 * most), reverse=True)
        if not found:
            return []
        total, sizes = sum(self.weights.values()), self.available_tokens or {}
        share = {name: 100 * weight / total for name, weight in self.weights.items()}
        shown = [f"{n} {e:,.1f} times ({share[n]:.2f} %, of {sizes[n]:,.0f} tokens)" for e, n in found[:5]]
        more = f" and {len(found) - 5} more" if found[5:] else ""
        what = f"A run of {self.tokens:,.0f} tokens reads {', '.join(shown)}{more}"
        return [f"{what}: cap the weight, train on fewer tokens, or add data."]


def write_mixture(path: Path, mixture: Mixture, comments: Sequence[str] = ()) -> None:
    """Writes the file, with comment lines and how to use it at its head."""
    plain = {"version": mixture.version, **to_plain(mixture)}
    about = plain.pop("about")
    known = {key: value for key, value in {**plain, "epochs": mixture.epochs}.items() if value is not None}
    lines = [*comments, f"Use: jaxmix train CONFIG --mixture {shlex.quote(str(path))}"]
    write_whole(path, "".join(f"# {line}\n" for line in lines) + dump_yaml({**known, "about": about}))


def read_mixture(path: str | Path, *, where: str = "mixture") -> Mixture:
    """The mixture of a file, or of the folder that holds it. Raises `ConfigError` by file and key.

    Args:
        path: of the file or folder.
        where: it was named, for errors.
    """
    file = str(Path(path) / MIXTURE_FILE if Path(path).is_dir() else path)
    plain = read_yaml(file, "mixture file", where=where)
    if not isinstance(plain, Mapping):
        raise ConfigError(f"the mixture file must be a mapping: it is {describe(plain)}", where=file)
    plain = {key: value for key, value in plain.items() if key != "epochs"}  # follows from the others
    mixture = read(Mixture, plain, origin=Origin(file))
    check_weights(mixture.weights, tuple(mixture.weights), f"{file}, weights")
    for name in mixture.available_tokens or ():
        if name not in mixture.weights:
            place = f"{file}, available_tokens"
            raise ConfigError(f"{name!r} has no weight", where=place, fix=nearest(name, mixture.weights))
    return mixture


def refuse_mixture(value: Any, path: str) -> None:
    """Raises `ConfigError` for a mixture file that was given as a configuration."""
    if isinstance(value, Mapping) and {"weights", "unit"} <= set(value):
        raise ConfigError(
            "this is a mixture, not a configuration",
            where=path,
            fix=f"Use it in one: jaxmix train CONFIG --mixture {shlex.quote(path)}",
        )


def insert_mixture(plain: dict[Any, Any], origin: Origin) -> None:
    """Puts the weights of the file that `mixture` names in its place, so that a configuration needs no other file.

    Raises:
        ConfigError: the file is wrong, or does not fit the sources, what weights count, or the mixer.
    """
    path, where = plain.get("mixture"), origin("mixture")
    if not isinstance(path, str) or path in ("natural", "uniform"):  # the latter belong under `weights`
        return
    mixture, sources = read_mixture(expand_path(path, where), where=where), plain.get("sources")
    names = list(bundled_corpus() if sources == "bundled" else sources if isinstance(sources, Mapping) else ())
    if names:
        unknown, missing = (
            [n for n in mixture.weights if n not in names],
            [n for n in names if n not in mixture.weights],
        )
        wrong = [f"there is no source {', '.join(unknown)}"] if unknown else []
        wrong += [f"it has no weight for {', '.join(missing)}"] if missing else []
        if wrong:
            fix = nearest(unknown[0], names) if unknown else "Write a weight of 0 to keep a source for evaluation only."
            raise ConfigError(f"{path} does not fit the sources: {', and '.join(wrong)}", where=where, fix=fix)
    data = plain.get("data")
    unit = data.get("unit", "tokens") if isinstance(data, Mapping) else "tokens"
    if unit != mixture.unit:
        raise ConfigError(
            f"the weights of {path} count {mixture.unit}, and data.unit is {unit}",
            where=where,
            fix=f"Set data.unit to {mixture.unit}, or find a mixture by {unit}.",
        )
    mixer = plain.get("mixer")
    if isinstance(mixer, Mapping) and mixer.get("name") == "scheduled" and "'prior'" not in repr(mixer.get("points")):
        raise ConfigError(
            f"the mixer 'scheduled' draws by its points alone, and {path} would change nothing",
            where=where,
            fix="Name the weights of a point `prior`, or take the mixer static.",
        )
    plain["mixture"] = {"weights": dict(mixture.weights)}
