"""`jaxmix law`: fits and evaluates laws on a table of runs, and proposes a mixture."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxmix.core.errors import ConfigError, nearest
from jaxmix.core.settings import check_value, setting
from jaxmix.core.validate import check_number, check_weights
from jaxmix.data.files import write_whole
from jaxmix.data.run_tables import read_run_table, write_run_table
from jaxmix.laws import AUTO_CANDIDATES, LawFit, fit, make, parse, registry
from jaxmix.laws.base import Law, RunTable
from jaxmix.laws.judge.diagnose import Diagnosis, extrapolation, select
from jaxmix.laws.proposals.base import Proposal, check_constraints
from jaxmix.laws.proposals.propose import propose
from jaxmix.laws.proposals.repetition import MAX_EPOCHS, caps_from_tokens
from jaxmix.report.pages.laws import law_page
from jaxmix.workflows.config.mixture import MIXTURE_FILE, Mixture, write_mixture
from jaxmix.workflows.config.yaml import parse_yaml
from jaxmix.workflows.provenance import git_commit, now, versions, write_json

AUTO = "auto"
LAW, TABLE, PAGE, PROPOSAL = "law.json", "runs.csv", "report.html", "proposal.json"


@dataclasses.dataclass(frozen=True)
class LawSettings:
    """How laws are fitted and evaluated."""

    law: str = setting(AUTO, help="a name, or auto: the law of the lowest out-of-fold error")
    options: dict[str, Any] = setting(factory=dict, help="arguments of the law")
    candidates: tuple[str, ...] | None = setting(
        None, help="laws to compare; empty: `jaxmix.laws.AUTO_CANDIDATES` for auto, and all there are for `check`"
    )
    folds: int = setting(5, at_least=2, help="of the cross-validation")
    num_starts: int = setting(64, at_least=1, help="random starts of every fit")
    seed: int = setting(0, help="of the folds and the starts")
    is_simplest: bool = setting(False, help="auto takes the fewest parameters within one standard error of the best")


@dataclasses.dataclass(frozen=True)
class FittedLaw:
    """A law fitted to all runs of a table, and the errors of all compared laws.

    Attributes:
        fit: the law with its parameters.
        table: the runs.
        name: of the law.
        options: its arguments.
        diagnoses: by name, best first; {} for a law that was loaded.
        left_out: laws that could not be evaluated, and why.
        folder: where it was written, or None.
        label: its key in `diagnoses`; the name unless "auto" has compared variants of one law.
    """

    fit: LawFit
    table: RunTable
    name: str
    options: Mapping[str, Any]
    diagnoses: Mapping[str, Diagnosis]
    left_out: Mapping[str, str]
    folder: Path | None = None
    label: str = ""

    def as_json(self) -> dict[str, Any]:
        return {
            "law": self.name,
            "options": dict(self.options),
            "num_params": self.fit.num_params,
            "effective_params": self.fit.effective_params,
            "converged": self.fit.converged,
            "diagnoses": {name: diagnosis_json(found, self.table) for name, found in self.diagnoses.items()},
            "left_out": dict(self.left_out),
            "folder": None if self.folder is None else str(self.folder),
        }


def read_table(path: str, *, renormalize: bool = False) -> RunTable:
    """The runs of a CSV file; of a folder, those of its runs.csv or table.csv."""
    place = Path(path)
    if place.is_dir():
        found = next((place / name for name in (TABLE, "table.csv") if (place / name).is_file()), None)
        if found is None:
            raise ConfigError(
                f"the folder {path!r} holds no table of runs ({TABLE} or table.csv)", where="command line"
            )
        place = found
    return read_run_table(place, renormalize=renormalize)


def check_settings(settings: LawSettings) -> None:
    """Raises `ConfigError` for unknown laws and numbers out of range, before anything is fitted."""
    known = [AUTO, *(name for name in registry if name != AUTO)]
    if settings.law not in known:
        raise ConfigError(f"unknown law {settings.law!r}", where="--law", fix=nearest(settings.law, known))
    for name in settings.candidates or ():
        if name not in known[1:]:
            raise ConfigError(f"unknown law {name!r}", where="--laws", fix=nearest(name, known[1:]))
    if settings.options and settings.law == AUTO:
        raise ConfigError("options belong to one law", where="--options", fix="Name it with --law.")
    if settings.law != AUTO:
        make(settings.law, where="--options", **settings.options)
    for flag, field in (("--folds", "folds"), ("--starts", "num_starts")):
        rules = LawSettings.__dataclass_fields__[field].metadata
        check_value(flag, getattr(settings, field), int, rules, "command line")


def check_laws(
    table: RunTable, settings: LawSettings, *, say: Callable[[str], None] = lambda line: None
) -> tuple[dict[str, Diagnosis], dict[str, str]]:
    """Evaluates laws out of fold; returns diagnoses, best first, and why other laws were left out."""
    names = settings.candidates or tuple(name for name in registry if name != AUTO)
    laws = _laws({name: {} for name in names})
    return _judged(table, laws, settings, say)[1:]


def fit_law(
    table: RunTable,
    settings: LawSettings,
    *,
    out: str | None,
    command: str,
    source: str,
    say: Callable[[str], None] = lambda line: None,
) -> FittedLaw:
    """Evaluates a law out of fold, fits it to all runs, and writes its folder.

    Args:
        table: runs.
        settings: which law, and how.
        out: folder to write; None writes nothing.
        command: what was typed, for law.json.
        source: where the table came from, for the page.
        say: called with lines of progress.

    Returns:
        The fitted law. The folder gets law.json (parameters, versions, hash of the table), runs.csv and report.html.
    """
    check_settings(settings)
    key, name, options = jax.random.key(settings.seed), settings.law, dict(settings.options)
    if settings.law == AUTO:
        labels = settings.candidates or AUTO_CANDIDATES
        say(f"{len(labels)} laws, {settings.folds} folds, {len(table)} runs")
        law = make(AUTO, candidates=labels, folds=settings.folds, one_standard_error=settings.is_simplest)
        found = fit(law, table, key=key, num_starts=settings.num_starts)
        label, diagnoses, left_out = found.selection.name, found.selection.diagnoses, found.selection.left_out
        name, options = parse(label)
    else:
        laws = _laws({name: options})
        label, diagnoses, left_out = _judged(table, laws, settings, say)
        found = fit(laws[name], table, key=key, num_starts=settings.num_starts)
    folder = None if out is None else Path(out)
    fitted = FittedLaw(found, table, name, options, diagnoses, left_out, folder, label)
    if folder is not None:
        _write(fitted, settings, folder, command, source)
    return fitted


def load_law(folder: str) -> FittedLaw:
    """A law that `fit_law` has written. Laws without parameters (trees) are fitted again to the stored runs.

    Raises:
        ConfigError: no such folder or file, or runs that are not those the law was fitted to.
    """
    path = Path(folder) / LAW
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"there is no fitted law in {folder!r}",
            where="command line",
            fix="Write one with jaxmix law fit TABLE --out.",
        ) from None
    except (OSError, json.JSONDecodeError) as error:
        raise ConfigError(f"cannot read {str(path)!r}: {error}", where="command line") from None
    table = read_table(folder)
    if _hash(table) != about.get("table_hash"):
        raise ConfigError(
            f"{TABLE} is not the table the law was fitted to", where=folder, fix="Fit the law again: jaxmix law fit."
        )
    law = make(about["law"], where=str(path), **about["options"])
    if law.build is None:
        found = fit(law, table, key=jax.random.key(about["seed"]))
    else:
        params = {name: np.asarray(value, np.float64) for name, value in about["params"].items()}
        found = LawFit(
            params=params,
            objective=about["objective"],
            num_params=about["num_params"],
            converged=about["converged"],
            law=law,
            shape=table.shape,
            objectives=np.asarray([about["objective"]]),
            at_bounds=tuple(about["at_bounds"]),
            effective_params=about.get("effective_params"),
        )
    return FittedLaw(found, table, about["law"], about["options"], {}, {}, Path(folder), about["law"])


def limit_epochs(
    table: RunTable, *, tokens: float, max_epochs: float | None = None, **options: Any
) -> tuple[dict[str, Any], list[str]]:
    """Adds what the data allow to the options of a proposal: available tokens, and caps by epochs.

    Args:
        table: the runs; its `available_tokens` count unless the options have others.
        tokens: of the run to come, billions.
        max_epochs: passes over a domain, infinity for no cap; None: `MAX_EPOCHS`, or as few as the data allow.
        **options: of `jaxmix.laws.propose`, arrays in the order of the table.

    Returns:
        The options, and sentences on caps that could not be set.

    Raises:
        ConfigError: constraints that no mixture keeps, `max_epochs` without known tokens.
    """
    check_number("propose", "tokens", tokens, above=0.0)
    counts_tokens, where = table.unit == "tokens", "--max-epochs"
    given: dict[str, Any] = {"metric_weights": None, "prior": None, "max_weights": None, "min_weights": 0.0}
    given |= {"kl_strength": 0.0, "available_tokens": table.available_tokens if counts_tokens else None}
    given |= {name: options[name] for name in given if options.get(name) is not None}
    available, most = given["available_tokens"], MAX_EPOCHS if max_epochs is None else max_epochs
    if not most > 0:
        raise ConfigError(f"--max-epochs must be above 0, got {most:g}", where=where)
    if not counts_tokens and (available is not None or max_epochs is not None):
        what = f"the weights of this table count {table.unit}: neither tokens nor epochs follow from them"
        fix = "Leave out --available and --max-epochs; --max-weights sets caps, jaxmix plan shows epochs."
        raise ConfigError(what, where=where, fix=fix)
    if max_epochs is not None and available is None:
        raise ConfigError(
            "--max-epochs needs --available", where=where, fix="Say how many billion tokens each domain has."
        )
    check_constraints(table.shape, **given, names=table.domain_names)
    options = {**options, **given}
    if not counts_tokens:
        return options, [
            f"No weight is capped by epochs: weights count {table.unit}. See jaxmix plan CONFIG --mixture."
        ]
    if available is None:
        why = "how many tokens each domain has is not known"
        return options, [
            f"No weight is capped by epochs: {why}. Give --available, or see jaxmix plan CONFIG --mixture."
        ]
    unknown = [name for name, size in zip(table.domain_names, available, strict=True) if math.isinf(size)]
    notes = [f"Not capped by epochs, for lack of its number of tokens: {', '.join(unknown)}."] if unknown else []
    total = float(np.sum(available))
    fewest = 1.01 * tokens / total if total else math.inf  # epochs at which all domains are read about equally often
    while most < math.inf:
        try:
            caps = caps_from_tokens(available, tokens, most)
            caps = caps if given["max_weights"] is None else np.minimum(caps, given["max_weights"])
            check_constraints(table.shape, **{**given, "max_weights": caps})
            return {**options, "max_weights": caps}, notes
        except ConfigError as error:
            if max_epochs is not None:
                raise ConfigError(error.what, where=where, fix=error.fix) from None
            if most >= fewest:
                return options, [f"No weight is capped at {most:.3g} epochs, which no mixture keeps: {error.what}."]
            what = f"The run takes {tokens:g} billion tokens and there are {total:.4g}"
            notes.append(f"{what}: the cap is {fewest:,.1f} epochs instead of {most:g}.")
            most = fewest
    return options, notes


def make_proposal(
    fitted: FittedLaw,
    *,
    model_size: float,
    tokens: float,
    out: str | None,
    command: str,
    max_epochs: float | None = None,
    **options: Any,
) -> tuple[Proposal, dict[str, Any]]:
    """Proposes a mixture and writes mixture.yaml and proposal.json.

    Args:
        fitted: the law.
        model_size: of the run to come, millions.
        tokens: billions.
        out: folder to write; None writes nothing.
        command: what was typed.
        max_epochs, **options: as in `limit_epochs`.

    Returns:
        The proposal, and all of it as plain values by name.
    """
    table = fitted.table
    options, unlimited = limit_epochs(table, tokens=tokens, max_epochs=max_epochs, **options)
    found = propose(fitted.fit, model_size=model_size, tokens=tokens, **options)
    flags = extrapolation(table, found.weights, model_size=model_size, tokens=tokens)
    average = table.weights.mean(axis=0)
    before = fitted.fit.predict(average, model_size, tokens)[0]
    named = lambda names, values: {name: float(value) for name, value in zip(names, values, strict=True)}
    available, caps = options["available_tokens"], options["max_weights"]
    sizes = {} if available is None else named(table.domain_names, available)
    sizes = {name: round(1e9 * size) for name, size in sizes.items() if math.isfinite(size)}
    mixture = Mixture(
        table.unit,  # type: ignore[arg-type]
        named(table.domain_names, found.weights),
        tokens=round(tokens * 1e9),
        available_tokens=sizes or None,
        about={"law": fitted.name, "model_size": model_size, "predicted": named(table.metric_names, found.predicted)},
    )
    most = MAX_EPOCHS if max_epochs in (None, math.inf) else max(max_epochs, MAX_EPOCHS)
    about: dict[str, Any] = {
        "law": fitted.name,
        "model_size": model_size,
        "tokens": tokens,
        "weights": mixture.weights,
        "caps": None if caps is None else named(table.domain_names, np.broadcast_to(caps, found.weights.shape)),
        "capped": [] if caps is None else capped(table.domain_names, found.weights, caps),
        "epochs": mixture.epochs,
        "unconstrained_weights": named(table.domain_names, found.unconstrained_weights),
        "predicted": named(table.metric_names, found.predicted),
        "predicted_of_average_mixture": named(table.metric_names, before),
        "objective": found.objective,
        "unconstrained_objective": found.unconstrained_objective,
        "converged": found.converged,
        "warnings": [*warnings(fitted, flags), *unlimited, *mixture.repeated(most)],
    }
    if out is not None:
        write_json(Path(out) / PROPOSAL, {**about, "command": command, "versions": versions(), "made": now()})
        head = [
            f"Proposed by {fitted.name} for {model_size:g} million parameters and {tokens:g} billion tokens.",
            f"Predicted objective: {found.objective:.4f}.",
            *([f"At the cap: {', '.join(about['capped'])}."] if about["capped"] else []),
            *about["warnings"],
        ]
        write_mixture(Path(out) / MIXTURE_FILE, mixture, head)
    return found, about


def capped(names: Sequence[str], weights: np.ndarray, caps: Any) -> list[str]:
    """The domains whose weight is at a cap below 1."""
    caps = np.broadcast_to(caps, weights.shape)
    return [name for name, weight, cap in zip(names, weights, caps, strict=True) if cap < 1 and weight >= 0.999 * cap]


def warnings(fitted: FittedLaw, flags: Any) -> list[str]:
    """Reasons to doubt a proposal."""
    lines = []
    if flags.is_far.any():
        lines.append(
            f"The mixture lies outside the runs: {100 * flags.distance[0]:.0f} % of its tokens would have to change "
            "domain to reach the nearest."
        )
    names = [fitted.table.domain_names[i] for i in flags.unseen]
    if names:
        lines.append(f"No run has drawn from {', '.join(names)}.")
    for what, factor in (("The model size", flags.size_factor), ("The number of tokens", flags.tokens_factor)):
        if factor > 1:
            can = "" if fitted.fit.law.extrapolates else ", and this law does not extrapolate"
            lines.append(f"{what} is {factor:.3g} times outside the range of the runs{can}.")
    shape = fitted.fit.shape
    if flags.size_factor > 1 and not shape.model_size_varies:
        lines.append("All runs have one model size, so the table says little about others.")
    if fitted.fit.law.build is not None and not fitted.fit.converged:
        lines.append("The fit had not converged.")
    return lines


def by_name(text: str | None, names: Sequence[str], where: str, *, missing: float | None = None) -> np.ndarray | None:
    """Numbers given as YAML, one for all or by name, in the order of `names`; `missing` fills those left out."""
    if text is None:
        return None
    value = parse_yaml(text, where=where)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return np.full(len(names), float(value))
    if not isinstance(value, Mapping):
        raise ConfigError(
            f"must be one number or numbers by name, got {text!r}", where=where, fix="Write '{name: number, …}'."
        )
    for name, number in value.items():
        if name not in names:
            raise ConfigError(f"unknown name {name!r}", where=where, fix=nearest(str(name), names))
        if isinstance(number, bool) or not isinstance(number, (int, float)) or math.isnan(number):
            raise ConfigError(f"{name!r} must be a number, got {number!r}", where=where)
    if missing is None:
        check_weights(value, tuple(names), where)
    return np.asarray([float(value.get(name, missing)) for name in names])


def diagnosis_json(found: Diagnosis, table: RunTable) -> dict[str, Any]:
    """A diagnosis as plain values; what is not a number is None."""
    plain = {
        name: _number(getattr(found, name))
        for name in (
            "mre", "mre_positive", "mae", "spearman_mean", "regret", "optimism", "mean_mre", "mean_mre_positive",
            "standard_error",
        )
    }  # fmt: skip
    by_metric = lambda values: {n: _number(v) for n, v in zip(table.metric_names, values, strict=True)}
    return {
        "num_params": found.num_params,
        **plain,
        "mre_per_metric": by_metric(found.mre_per_metric),
        "spearman": by_metric(found.spearman),
        "at_bounds": list(found.at_bounds),
    }


def _laws(named: Mapping[str, Mapping[str, Any]]) -> dict[str, Law]:
    return {name: make(name, **options) for name, options in named.items()}


def _judged(
    table: RunTable, laws: Mapping[str, Law], settings: LawSettings, say: Callable[[str], None]
) -> tuple[str, dict[str, Diagnosis], dict[str, str]]:
    """The chosen name, diagnoses best first, and why others were left out."""
    say(f"{len(laws)} laws, {settings.folds} folds, {len(table)} runs" if len(laws) > 1 else f"{next(iter(laws))}")
    found = select(
        laws,
        table,
        key=jax.random.key(settings.seed),
        folds=settings.folds,
        one_standard_error=settings.is_simplest,
        num_starts=settings.num_starts,
    )
    return found.name, found.diagnoses, found.left_out


def _write(fitted: FittedLaw, settings: LawSettings, folder: Path, command: str, source: str) -> None:
    found, table = fitted.fit, fitted.table
    write_run_table(folder / TABLE, table)
    origin = {"command": command, "table": source, "table_hash": _hash(table), "seed": settings.seed, "made": now()}
    about = {
        **{name: value for name, value in fitted.as_json().items() if name != "folder"},
        "params": {name: value.tolist() for name, value in found.params.items()},
        "objective": found.objective,
        "at_bounds": list(found.at_bounds),
        "domains": list(table.domain_names),
        "metrics": list(table.metric_names),
    }
    write_json(folder / LAW, {**about, **origin, "commit": git_commit(), "versions": versions()})
    shares = np.full(len(table.metric_names), 1.0 / len(table.metric_names))
    page = law_page(
        found, table, fitted.diagnoses, fitted.label, title=f"Law of {Path(source).stem}", shares=shares,
        origin={**origin, "versions": ", ".join(f"{k} {v}" for k, v in versions().items())},
    )  # fmt: skip
    write_whole(folder / PAGE, page)


def _hash(table: RunTable) -> str:
    """SHA-256 of all numbers and names of a table."""
    digest = hashlib.sha256(json.dumps([table.domain_names, table.metric_names]).encode())
    for name in ("weights", "losses", "model_size", "tokens", "seed", "metric_domain"):
        digest.update(np.ascontiguousarray(getattr(table, name)).tobytes())
    return digest.hexdigest()


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
