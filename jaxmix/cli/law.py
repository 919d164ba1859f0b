"""`jaxmix law ACTION TABLE`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from jaxmix.cli.arguments import Arguments
from jaxmix.cli.output import say, say_json, say_table
from jaxmix.cli.session import command_of, notes_of
from jaxmix.core.errors import ConfigError, nearest
from jaxmix.laws.proposals.repetition import caps_from_tokens
from jaxmix.report.pages.laws import laws_table, proposal_table, verdict
from jaxmix.workflows.config.yaml import parse_yaml
from jaxmix.workflows.law import (
    LAW,
    LawSettings,
    by_name,
    check_laws,
    check_settings,
    diagnosis_json,
    fit_law,
    load_law,
    make_proposal,
    read_table,
)


def law(arguments: Arguments) -> int:
    """Does the action on a table of runs, or on the folder of a fitted law."""
    actions = {"fit": _fit, "propose": _propose, "check": _check}
    if arguments.action not in actions:
        raise ConfigError(
            f"unknown action {arguments.action!r}", where="jaxmix law", fix=nearest(arguments.action, actions)
        )
    return actions[arguments.action](arguments)


def _settings(arguments: Arguments) -> Any:
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


def _table(arguments: Arguments) -> Any:
    return read_table(arguments.table, renormalize=arguments.renormalize)


def _about(table: Any) -> str:
    mixtures = len(set(table.mixture.tolist()))
    return (
        f"{len(table)} runs of {mixtures} mixtures, {len(table.domain_names)} domains, "
        f"{len(table.metric_names)} metrics"
    )


def _fit(arguments: Arguments) -> int:
    settings, table = _settings(arguments), _table(arguments)
    out = arguments.out or f"runs/law-{Path(arguments.table).stem}"
    if arguments.dry_run:
        return _dry_run(arguments, table, f"fit {settings.law} with {settings.folds} folds and write to {out}")

    fitted = fit_law(
        table, settings, out=out, command=command_of(arguments), source=arguments.table, say=notes_of(arguments)
    )
    if arguments.json:
        say_json(fitted.as_json())
        return 0
    _print_laws(laws_table(fitted.diagnoses), fitted.left_out)
    say(" ".join(verdict(fitted.label, fitted.diagnoses[fitted.label])))
    if not fitted.fit.converged:
        say("The fit had not converged: try more starts.")
    say(f"\nLaw: {out}/law.json. Page: {out}/report.html")
    return 0


def _check(arguments: Arguments) -> int:
    settings, table = _settings(arguments), _table(arguments)
    if arguments.dry_run:
        return _dry_run(arguments, table, f"compare laws over {settings.folds} folds")

    diagnoses, left_out = check_laws(table, settings, say=notes_of(arguments))
    if arguments.json:
        say_json({"laws": {n: diagnosis_json(d, table) for n, d in diagnoses.items()}, "left_out": left_out})
        return 0
    _print_laws(laws_table(diagnoses), left_out)
    return 0


def _propose(arguments: Arguments) -> int:
    for flag, value in (("--model-size", arguments.model_size), ("--tokens", arguments.tokens)):
        if value is None:
            raise ConfigError(
                f"{flag} is missing",
                where="jaxmix law propose",
                fix="Give the model size in millions and tokens in billions.",
            )
    if arguments.max_epochs is not None and arguments.available is None:
        raise ConfigError(
            "--max-epochs needs --available", where="--max-epochs", fix="Say how many billion tokens each domain has."
        )
    is_fitted = (Path(arguments.table) / LAW).is_file()
    settings, table = _settings(arguments), _table(arguments)
    domains, metrics = table.domain_names, table.metric_names
    out = arguments.out or (arguments.table if is_fitted else f"runs/law-{Path(arguments.table).stem}")
    options: dict[str, Any] = {
        "metric_weights": by_name(arguments.metric_weights, metrics, "--metric-weights", missing=0.0),
        "max_weights": by_name(arguments.max_weights, domains, "--max-weights", missing=1.0),
        "prior": by_name(arguments.prior, domains, "--prior"),
        "available_tokens": by_name(arguments.available, domains, "--available", missing=float("inf")),
    }
    if arguments.min_weights is not None:
        options["min_weights"] = by_name(arguments.min_weights, domains, "--min-weights", missing=0.0)
    if arguments.kl is not None:
        options["kl_strength"] = arguments.kl
    if arguments.max_epochs is not None:
        options["max_weights"] = _capped(options, arguments)
    if arguments.dry_run:
        what = "load the law" if is_fitted else f"fit {settings.law}"
        return _dry_run(arguments, table, f"{what}, propose a mixture and write to {out}")
    if is_fitted:
        fitted = load_law(arguments.table)
    else:
        fitted = fit_law(
            table, settings, out=out, command=command_of(arguments), source=arguments.table, say=notes_of(arguments)
        )
    found, about = make_proposal(
        fitted,
        model_size=arguments.model_size,
        tokens=arguments.tokens,
        out=out,
        command=command_of(arguments),
        **{name: value for name, value in options.items() if value is not None},
    )
    if arguments.json:
        say_json({**about, "out": out})
        return 0

    shown = proposal_table(
        domains, found.weights, found.unconstrained_weights, table.weights.mean(axis=0), options["max_weights"]
    )
    say()
    say_table(shown.columns, shown.rows, title=f"Proposed by {fitted.name}")
    say()
    say(f"Predicted objective {found.objective:.4f}; without bounds {found.unconstrained_objective:.4f}.")
    for line in about["warnings"]:
        say(f"Warning: {line}")
    say(f"\nMixture: {out}/mixture.yaml")
    return 0


def _capped(options: dict[str, Any], arguments: Arguments) -> Any:
    """The caps that epochs set, and those given, whichever is lower."""
    caps = caps_from_tokens(options["available_tokens"], arguments.tokens, arguments.max_epochs)
    return caps if options["max_weights"] is None else np.minimum(caps, options["max_weights"])


def _dry_run(arguments: Arguments, table: Any, what: str) -> int:
    if arguments.json:
        say_json(
            {
                "runs": len(table),
                "domains": list(table.domain_names),
                "metrics": list(table.metric_names),
                "would": what,
            }
        )
    else:
        say(f"{_about(table)}. Would {what}. Nothing was written.")
    return 0


def _print_laws(shown: Any, left_out: Any) -> None:
    say()
    say_table(shown.columns, shown.rows, title="Errors on mixtures that the law has not seen")
    say()
    for name, reason in left_out.items():
        say(f"Left out: {name}: {reason}")
