"""The law that suits a table, chosen by what each candidate predicts of mixtures it has not seen."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np

from jaxmix.core.errors import ConfigError
from jaxmix.core.types import PRNGKeyArray
from jaxmix.core.validate import check_count
from jaxmix.laws.base import FitOptions, Law, RunTable, registry
from jaxmix.laws.fit import LawFit, fit
from jaxmix.laws.judge.candidates import named_laws
from jaxmix.laws.judge.diagnose import select
from jaxmix.laws.solve.least_squares import least_squares

AUTO_CANDIDATES = (
    "hierarchical",
    "hierarchical:competition=False",
    "hierarchical:structure=False",
    "hierarchical:competition=False,structure=False",
    "hierarchical:robust=True",
    "capacity",
    "capacity:offset=per_domain",
    "capacity:rank=2",
    "transfer",
    "additive",
    "loglinear",
)
"""What "auto" compares, as `parse` reads them."""

_FOLD_STARTS = 4
_FOLD_STEPS = 60


@registry.register
def auto(
    candidates: Iterable[str] | Mapping[str, str | Law] | None = None,
    *,
    folds: int = 5,
    one_standard_error: bool = False,
) -> Law:
    """Stands for the candidate of the lowest out-of-fold error on the table it is fitted to.

    `fit(make("auto"), table, key=key)` splits the table's mixtures into folds, fits every candidate, its priors
    included, to each table without a fold, and compares the mean |L̂/L − 1| over all measured cells, each predicted
    by a fit that has not seen its mixture. The law of the lowest error is fitted to all runs and returned, with the
    ranking as its `selection` (`print(found.selection)`). Nothing but the table enters the choice.

    Args:
        candidates: laws as `parse` reads them ("capacity:offset=per_domain"), or a mapping of labels to such texts or
            laws; None: `AUTO_CANDIDATES`, five variants of the hierarchical law, three of the capacity law, transfer,
            additive and log-linear.
        folds: ≥ 2.
        one_standard_error: see `jaxmix.laws.select`.

    Returns:
        The law. `fit` returns the fit of the chosen law: its `law`, `params` and `num_params` are that law's.

    Raises:
        ConfigError: unknown law or argument; when fitted, no candidate that suits the table, or runs of one mixture.

    Numerics: laws that are searched from random starts have 4 starts of 60 steps in the folds, without shaken
    restarts, and the options given to `fit` in the last fit. A candidate without prior or penalty is left out where it
    has more numbers than the runs of the smallest training fold have measured cells: it could only reproduce them.
    Runs of weight 0 are left out of the choice; other weights of runs only enter the last fit. With the default
    candidates, 17 domains and 13 metrics it takes 66 s of one processor's time for 64 runs and 80 s for 512 (measured
    beside other work), most of it to compile, which later fits of the same law object to tables of the same outline do
    not repeat.

    Example:
        >>> import jax
        >>> import jaxmix.laws as laws
        >>> rng = np.random.default_rng(0)
        >>> h = rng.dirichlet(np.ones(2), 20)
        >>> table = laws.RunTable(h, 2 + 0.5 * (h + 0.1) ** -0.3, np.ones(20), np.ones(20), ["a", "b"], ["a", "b"])
        >>> law = auto(["loglinear", "hierarchical:robust=True"])
        >>> found = laws.fit(law, table, key=jax.random.key(0))
        >>> found.selection.name
        'hierarchical:robust=True'
    """
    check_count("auto", "folds", folds, 2)
    named = named_laws(AUTO_CANDIDATES if candidates is None else candidates, "auto(candidates)")
    if not named:
        raise ConfigError("there are no candidates", where="auto(candidates)", fix="Leave it out, or name laws.")
    for label, law in named.items():
        if law.name == "auto":
            raise ConfigError(f"{label!r} chooses among laws itself", where="auto(candidates)", fix="Leave it out.")

    def choose(law: Law, table: RunTable, key: PRNGKeyArray, row_weights: np.ndarray, options: FitOptions) -> LawFit:
        del law
        kept = table.take(row_weights > 0)
        suitable, left_out = _suitable(named, kept, folds)
        options = options._replace(start=None)
        fold_options = options._replace(
            num_starts=min(options.num_starts, _FOLD_STARTS),
            max_steps=min(options.max_steps, _FOLD_STEPS),
            restarts=0,
        )
        found = select(
            suitable,
            kept,
            key=key,
            folds=folds,
            one_standard_error=one_standard_error,
            full_fit=False,
            **fold_options._asdict(),
        )
        chosen = fit(found.law, table, key=key, row_weights=row_weights, **options._asdict())
        judged = dataclasses.replace(found.diagnoses[found.name], at_bounds=chosen.at_bounds)
        found = found._replace(
            diagnoses={**found.diagnoses, found.name: judged}, left_out={**left_out, **found.left_out}
        )
        return dataclasses.replace(chosen, selection=found)

    return Law("auto", choose)


def _suitable(named: Mapping[str, Law], table: RunTable, folds: int) -> tuple[dict[str, Law], dict[str, str]]:
    """Candidates that the table can be fitted by, and why the others are left out."""
    mixtures = int(table.mixture.max()) + 1
    share = 1.0 - -(-mixtures // min(folds, mixtures)) / mixtures
    cells = int(np.isfinite(table.losses).sum() * share)
    suitable: dict[str, Law] = {}
    left_out: dict[str, str] = {}
    for label, law in named.items():
        if law.build is not None and law.fit is least_squares:
            try:
                form = law.build(table.shape)
            except ConfigError as error:
                left_out[label] = str(error)
                continue
            if form.penalty is None and form.num_params > cells:
                left_out[label] = f"{form.num_params} parameters without a prior, and {cells} losses to fit them to"
                continue
        suitable[label] = law
    if not suitable:
        reasons = "; ".join(f"{label}: {reason}" for label, reason in left_out.items())
        raise ConfigError(f"no candidate suits this table: {reasons}", where="auto(candidates)")
    return suitable, left_out
