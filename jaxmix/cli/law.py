"""`jaxmix law ACTION TABLE`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxmix.cli.arguments import Arguments
from jaxmix.cli.output import answer, table
from jaxmix.cli.session import do_action, notes_of
from jaxmix.core.errors import ConfigError
from jaxmix.core.validate import check_number
from jaxmix.laws.base import RunTable
from jaxmix.laws.judge.diagnose import Diagnosis
from jaxmix.report.pages.laws import laws_table, proposal_table, verdict
from jaxmix.workflows.config.yaml import parse_yaml
from jaxmix.workflows.law import (
    LAW,
    FittedLaw,
    LawSettings,
    by_name,
    check_laws,
    check_settings,
    diagnosis_json,
    fit_law,
    limit_epochs,
    load_law,
    make_proposal,
    read_table,
)


def law(arguments: Arguments) -> int:
    """Runs the action on a table of runs, or on the folder of a fitted law."""
    return do_action(arguments, {"fit": _fit, "propose": _propose, "check": _check})


def _settings(arguments: Arguments) -> LawSettings:
    options = parse_yaml(f"{{{arguments.options}}}", where="--options") if arguments.options else {}
    given = {
        "law": arguments.law,
        "options": options,
        "candidates": tuple(n.strip() for n in arguments.laws.split(",")) if arguments.laws else None,
        "folds": arguments.folds,
        "num_starts": arguments.starts,
        "seed": arguments.seed,
        "is_simplest": arguments.simplest,
    }
    settings = LawSettings(**{name: value for name, value in given.items() if value is not None})
    check_settings(settings)
    return settings


def _table(arguments: Arguments) -> RunTable:
    return read_table(arguments.table, renormalize=arguments.renormalize)


def _fit_law(arguments: Arguments, runs: RunTable, settings: LawSettings, out: str) -> FittedLaw:
    say = notes_of(arguments)
    return fit_law(runs, settings, out=out, command=arguments.command, source=arguments.table, say=say)


def _fit(arguments: Arguments) -> int:
    settings, runs = _settings(arguments), _table(arguments)
    out = arguments.out or f"runs/law-{Path(arguments.table).stem}"
    if arguments.dry_run:
        return _answer_dry(arguments, runs, f"fit {settings.law} with {settings.folds} folds and write to {out}")
    fitted = _fit_law(arguments, runs, settings, out)
    notes = [] if fitted.fit.converged else ["The fit had not converged: try more starts."]
    return answer(
        arguments,
        fitted.as_json(),
        *_laws(fitted.diagnoses, fitted.left_out),
        " ".join(verdict(fitted.label, fitted.diagnoses[fitted.label])),
        *notes,
        f"\nLaw: {out}/law.json. Page: {out}/report.html",
    )


def _check(arguments: Arguments) -> int:
    settings, runs = _settings(arguments), _table(arguments)
    if arguments.dry_run:
        return _answer_dry(arguments, runs, f"compare laws over {settings.folds} folds")
    diagnoses, left_out = check_laws(runs, settings, say=notes_of(arguments))
    laws = {name: diagnosis_json(found, runs) for name, found in diagnoses.items()}
    return answer(arguments, {"laws": laws, "left_out": left_out}, *_laws(diagnoses, left_out))


def _propose(arguments: Arguments) -> int:
    for flag, value in (("--model-size", arguments.model_size), ("--tokens", arguments.tokens)):
        if value is None:
            raise ConfigError(
                f"{flag} is missing",
                where="jaxmix law propose",
                fix="Give the model size in millions and tokens in billions.",
            )
    check_number("propose", "model_size", arguments.model_size, above=0.0)
    is_fitted = (Path(arguments.table) / LAW).is_file()
    settings, runs = _settings(arguments), _table(arguments)
    domains, metrics = runs.domain_names, runs.metric_names
    out = arguments.out or (arguments.table if is_fitted else f"runs/law-{Path(arguments.table).stem}")
    options: dict[str, Any] = {
        "metric_weights": by_name(arguments.metric_weights, metrics, "--metric-weights", missing=0.0),
        "max_weights": by_name(arguments.max_weights, domains, "--max-weights", missing=1.0),
        "prior": by_name(arguments.prior, domains, "--prior"),
        "available_tokens": by_name(arguments.available, domains, "--available", missing=float("nan")),
    }
    if options["available_tokens"] is not None:  # what the table says of the others, else no limit
        known = np.inf if runs.available_tokens is None else runs.available_tokens
        options["available_tokens"] = np.where(
            np.isnan(options["available_tokens"]), known, options["available_tokens"]
        )
    if arguments.min_weights is not None:
        options["min_weights"] = by_name(arguments.min_weights, domains, "--min-weights", missing=0.0)
    if arguments.kl is not None:
        options["kl_strength"] = arguments.kl
    options["max_epochs"] = arguments.max_epochs
    limit_epochs(runs, tokens=arguments.tokens, **options)  # before anything is fitted
    if arguments.dry_run:
        what = "load the law" if is_fitted else f"fit {settings.law}"
        return _answer_dry(arguments, runs, f"{what}, propose a mixture and write to {out}")
    fitted = load_law(arguments.table) if is_fitted else _fit_law(arguments, runs, settings, out)
    found, about = make_proposal(
        fitted,
        model_size=arguments.model_size,
        tokens=arguments.tokens,
        out=out,
        command=arguments.command,
        **{name: value for name, value in options.items() if value is not None},
    )
    shown = proposal_table(about, runs.weights.mean(axis=0))
    return answer(
        arguments,
        {**about, "out": out},
        "",
        table(shown, title=f"Proposed by {fitted.name}"),
        "",
        f"Predicted objective {found.objective:.4f}; without bounds {found.unconstrained_objective:.4f}.",
        *([f"At the cap: {', '.join(about['capped'])}."] if about["capped"] else []),
        *(f"Warning: {line}" for line in about["warnings"]),
        f"\nMixture: {out}/mixture.yaml",
    )


def _answer_dry(arguments: Arguments, runs: RunTable, what: str) -> int:
    domains, metrics = runs.domain_names, runs.metric_names
    mixtures = len(set(runs.mixture.tolist()))
    about = f"{len(runs)} runs of {mixtures} mixtures, {len(domains)} domains, {len(metrics)} metrics"
    value = {"runs": len(runs), "domains": list(domains), "metrics": list(metrics), "would": what}
    return answer(arguments, value, f"{about}. Would {what}. Nothing was written.")


def _laws(diagnoses: Mapping[str, Diagnosis], left_out: Mapping[str, str]) -> list[Any]:
    """The laws that were compared, for `answer`."""
    shown = table(laws_table(diagnoses), title="Errors on mixtures that the law has not seen")
    return ["", shown, "", *(f"Left out: {name}: {reason}" for name, reason in left_out.items())]
