"""Diagnosis of a law: out-of-fold errors, ranks, regret, optimism, and the distance of extrapolation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float64, Int64

from jaxmix.core.errors import ConfigError, EnvironmentProblem, RunError
from jaxmix.core.types import PRNGKeyArray
from jaxmix.core.validate import check_count
from jaxmix.laws.base import Law, RunTable
from jaxmix.laws.checks import metric_shares
from jaxmix.laws.fit import fit
from jaxmix.laws.judge.candidates import named_laws
from jaxmix.laws.judge.metrics import (
    mean_absolute_error,
    mean_relative_error,
    optimism,
    own_weights,
    regret,
    spearman,
)


@dataclasses.dataclass(frozen=True, eq=False)
class Diagnosis:
    """Out-of-fold predictions of a law on a table, and how good they are.

    Ranks, regret and optimism are found among runs of one model size and one number of tokens, and averaged over
    these groups by their number of runs: between scales every law ranks well.

    Attributes:
        law: its name.
        num_params: free numbers over all metrics, fitted on all runs; those of the folds are as many.
        predicted: each run predicted by a fit that saw no run of its mixture; nan where a fold has not
            measured the metric at all.
        fold: of each run.
        mre: mean |L̂/L − 1| over all measured cells.
        mre_positive: over the cells whose own weight is above 0; nan if there are none.
        mre_per_metric: likewise, by metric.
        mae: mean |L̂ − L|, nats.
        spearman: rank correlation per metric; nan where fewer than 3 runs share a scale.
        spearman_mean: of the metric-weighted mean loss.
        regret: excess of the true mean loss of the mixture that the law ranks first, over the best, as a fraction.
        optimism: mean of (L − L̂)/L of the mean loss over the tenth of the runs that the law thinks best: above 0, what
            is chosen by the law disappoints by so much.
        mean_mre: mre of the mean predictor, which predicts each metric by its mean over the other folds' runs.
        mean_mre_positive: likewise.
        fold_mre: mre of each fold.
        standard_error: of mre, from its spread over the mixtures.
        at_bounds: parameters at their bounds in the fit to all runs, that the table does not determine; () for
            regressors.
    """

    law: str
    num_params: int
    predicted: Float64[np.ndarray, "r e"]
    fold: Int64[np.ndarray, " r"]
    mre: float
    mre_positive: float
    mre_per_metric: Float64[np.ndarray, " e"]
    mae: float
    spearman: Float64[np.ndarray, " e"]
    spearman_mean: float
    regret: float
    optimism: float
    mean_mre: float
    mean_mre_positive: float
    fold_mre: Float64[np.ndarray, " folds"]
    standard_error: float
    at_bounds: tuple[str, ...] = ()


class Extrapolation(NamedTuple):
    """Distance of requested mixtures and scales from the runs of a table.

    Attributes:
        distance: Σ |difference| / 2 to the nearest mixture of the table: the share of tokens that would
            have to change domain.
        leverage: h (HᵀH)⁺ hᵀ with H the table's distinct mixtures.
        is_far: farther from the table than any of its mixtures is from the others, of larger leverage than all
            of them, or with a part that no combination of them has.
        size_factor: model size over the nearest of the table's range: 1 within.
        tokens_factor: likewise.
        unseen: domains drawn by an asked mixture that no run of the table has drawn.
    """

    distance: Float64[np.ndarray, " q"]
    leverage: Float64[np.ndarray, " q"]
    is_far: Bool[np.ndarray, " q"]
    size_factor: float
    tokens_factor: float
    unseen: Int64[np.ndarray, " unseen"]


class LawSelection(NamedTuple):
    """The law chosen for a table.

    Attributes:
        name: of the chosen law, as given.
        law: the chosen law.
        diagnoses: by name, ascending out-of-fold error.
        left_out: by name, why a law could not be judged.
    """

    name: str
    law: Law
    diagnoses: dict[str, Diagnosis]
    left_out: dict[str, str]

    def __str__(self) -> str:
        """The ranking, one law a line, the chosen one marked."""
        width = max(len(name) for name in (*self.diagnoses, *self.left_out))
        lines = [
            f"{'*' if name == self.name else ' '} {name:{width}}  {100 * found.mre:7.3f} %  "
            f"± {100 * found.standard_error:.3f}  {found.num_params} parameters"
            for name, found in self.diagnoses.items()
        ]
        return "\n".join([*lines, *(f"  {name:{width}}  left out: {why}" for name, why in self.left_out.items())])


def cross_validate(
    law: Law,
    table: RunTable,
    *,
    key: PRNGKeyArray,
    folds: int = 5,
    metric_weights: Any = None,
    full_fit: bool = True,
    **fit_options: Any,
) -> Diagnosis:
    """Judges a law by predictions of runs whose mixtures it has not seen.

    Args:
        law: from `jaxmix.laws.make`.
        table: runs of at least 2 mixtures.
        key: typed JAX key: splits the mixtures and draws the starts of the fits. The split depends on the key and the
            table alone, so that laws judged with one key are judged on the same folds.
        folds: ≥ 2; with fewer mixtures than folds each mixture is its own.
        metric_weights: [e], of the mean loss that is ranked; None: all equal.
        full_fit: also fit all runs, to count parameters at their bounds.
        **fit_options: of `jaxmix.laws.fit`.

    Returns:
        The diagnosis.

    Raises:
        ConfigError: fewer than 2 folds or mixtures, or a law that the table does not suit.
    """
    shares = metric_shares(metric_weights, table.shape, "cross_validate(metric_weights)")
    split, start = jax.random.split(key)
    fold = split_mixtures(table, split, folds=folds)
    predicted = np.full(table.losses.shape, np.nan)
    by_mean = np.full(table.losses.shape, np.nan)
    num_params = 0
    for number in range(int(fold.max()) + 1):
        is_test = fold == number
        # Runs of weight 0 are as if left out, and folds of every size run in one compiled program.
        found = fit(
            law, table, key=jax.random.fold_in(start, number), row_weights=(~is_test).astype(float), **fit_options
        )
        num_params = found.num_params
        is_known = np.isfinite(table.losses[~is_test]).any(axis=0)
        losses = found.predict(table.weights[is_test], table.model_size[is_test], table.tokens[is_test])
        predicted[is_test] = np.where(is_known, losses, np.nan)
        by_mean[np.ix_(is_test, is_known)] = np.nanmean(table.losses[~is_test][:, is_known], axis=0)
    at_bounds: tuple[str, ...] = ()
    if full_fit and law.build is not None:
        whole = fit(law, table, key=start, **fit_options)
        num_params, at_bounds = whole.num_params, whole.at_bounds
    return _judge(law.name, num_params, table, predicted, by_mean, fold, shares, at_bounds)


def select(
    laws: Iterable[str | Law] | Mapping[str, str | Law],
    table: RunTable,
    *,
    key: PRNGKeyArray,
    folds: int = 5,
    one_standard_error: bool = False,
    **options: Any,
) -> LawSelection:
    """Chooses a law for a table by out-of-fold error alone.

    Args:
        laws: texts that `jaxmix.laws.parse` reads, laws, or a mapping of labels to either. Laws that cannot be laid out
            for the table are left out, with the reason.
        table: runs.
        key: typed JAX key; all laws are judged on the same folds.
        folds: ≥ 2.
        one_standard_error: take the law of the fewest parameters among those whose error is within one standard error
            of the lowest, where the error is that of the difference between the two laws over mixtures. Steadier when
            runs are few; the default takes the lowest error.
        **options: of `cross_validate`.

    Returns:
        The selection; `diagnoses[name].mre` is what was compared.

    Raises:
        ConfigError: no law suits the table.
    """
    named = named_laws(laws, "select(laws)")
    diagnoses: dict[str, Diagnosis] = {}
    left_out: dict[str, str] = {}
    for name, law in named.items():
        try:
            diagnosis = cross_validate(law, table, key=key, folds=folds, **options)
        except (ConfigError, RunError, EnvironmentProblem) as error:
            left_out[name] = str(error)
            continue
        if np.isfinite(diagnosis.mre):
            diagnoses[name] = diagnosis
        else:
            left_out[name] = "it predicts infinite losses for mixtures it has not seen"
    if not diagnoses:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
        raise ConfigError(f"no law could be judged on this table: {reasons or 'none was given'}", where="select(laws)")
    diagnoses = dict(sorted(diagnoses.items(), key=lambda item: item[1].mre))
    chosen = next(iter(diagnoses))
    if one_standard_error:
        best = diagnoses[chosen]
        near = [name for name, found in diagnoses.items() if _is_near(found, best, table)]
        chosen = min(near, key=lambda name: (diagnoses[name].num_params, diagnoses[name].mre))
    return LawSelection(chosen, named[chosen], diagnoses, left_out)


def split_mixtures(table: RunTable, key: PRNGKeyArray, *, folds: int) -> np.ndarray:
    """Fold of every run, i64[r]: runs of one mixture are in one fold, and folds differ by at most one mixture.

    Raises:
        ConfigError: fewer than 2 folds or mixtures.
    """
    mixture = table.mixture
    count = int(mixture.max()) + 1
    check_count("cross_validate", "folds", folds, 2)
    if count < 2:
        raise ConfigError(
            "all runs have one mixture, so that predictions of others cannot be judged",
            where="cross_validate(table)",
            fix="Add runs of other mixtures.",
        )
    order = np.asarray(jax.random.permutation(key, count))
    fold = np.empty(count, np.int64)
    fold[order] = np.arange(count) % min(folds, count)
    return fold[mixture]


def extrapolation(table: RunTable, weights: Any, *, model_size: float, tokens: float) -> Extrapolation:
    """Distance of mixtures [q, m] (or one, [m]) and of a scale from the runs of a table."""
    asked = np.atleast_2d(np.asarray(weights, np.float64))
    known = np.unique(table.weights.round(9), axis=0)
    apart = lambda a, b: 0.5 * np.abs(a[:, None, :] - b[None, :, :]).sum(axis=2)
    distance = apart(asked, known).min(axis=1)
    between = apart(known, known)
    np.fill_diagonal(between, np.inf)
    inverse = np.linalg.pinv(known.T @ known)
    of = lambda rows: np.einsum("rm,mn,rn->r", rows, inverse, rows)
    leverage, usual = of(asked), of(known)
    widest = between.min(axis=1).max() if len(known) > 1 else 0.0
    outside = lambda value, seen: float(max(value / seen.max(), seen.min() / value, 1.0))
    outside_span = np.abs(asked - asked @ inverse @ (known.T @ known)).max(axis=1)
    is_unseen = (table.weights <= 0).all(axis=0) & (asked > 0).any(axis=0)
    return Extrapolation(
        distance=distance,
        leverage=leverage,
        is_far=(distance > widest + 1e-9) | (leverage > usual.max() * (1 + 1e-9)) | (outside_span > 1e-6),
        size_factor=outside(model_size, table.model_size),
        tokens_factor=outside(tokens, table.tokens),
        unseen=np.flatnonzero(is_unseen),
    )


def _judge(
    name: str,
    num_params: int,
    table: RunTable,
    predicted: np.ndarray,
    by_mean: np.ndarray,
    fold: np.ndarray,
    shares: np.ndarray,
    at_bounds: tuple[str, ...],
) -> Diagnosis:
    losses = table.losses
    own = own_weights(table)
    positive = np.isfinite(own) & (own > 0)
    groups = _scales(table)
    observed_mean, predicted_mean = _weighted(losses, shares), _weighted(predicted, shares)
    has_mean = np.isfinite(observed_mean) & np.isfinite(predicted_mean)
    ranked = [group & has_mean for group in groups]
    counts = [int(group.sum()) for group in ranked]

    def over_scales(measure: Callable[..., float], observed: np.ndarray, guessed: np.ndarray) -> float:
        found = [(measure(observed[g], guessed[g]), n) for g, n in zip(ranked, counts, strict=True) if n > 0]
        return _average([v for v, _ in found], [n for _, n in found])

    per_metric = np.array(
        [
            _average([spearman(losses[g, i], predicted[g, i]) for g in groups], [int(g.sum()) for g in groups])
            for i in range(losses.shape[1])
        ]
    )
    return Diagnosis(
        law=name,
        num_params=num_params,
        predicted=predicted,
        fold=fold,
        mre=mean_relative_error(losses, predicted),
        mre_positive=mean_relative_error(losses, predicted, positive),
        mre_per_metric=np.array([mean_relative_error(losses[:, i], predicted[:, i]) for i in range(losses.shape[1])]),
        mae=mean_absolute_error(losses, predicted),
        spearman=per_metric,
        spearman_mean=over_scales(spearman, observed_mean, predicted_mean),
        regret=over_scales(regret, observed_mean, predicted_mean),
        optimism=over_scales(optimism, observed_mean, predicted_mean),
        mean_mre=mean_relative_error(losses, by_mean),
        mean_mre_positive=mean_relative_error(losses, by_mean, positive),
        fold_mre=np.array([mean_relative_error(losses[fold == f], predicted[fold == f]) for f in np.unique(fold)]),
        standard_error=_standard_error(_per_mixture(predicted, table)),
        at_bounds=at_bounds,
    )


def _weighted(losses: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Metric-weighted mean per run; nan where a metric that counts is missing."""
    return np.where(shares > 0, losses, 0.0) @ shares


def _scales(table: RunTable) -> list[np.ndarray]:
    """Masks of the runs of equal size and tokens."""
    _, group = np.unique(np.stack([table.model_size, table.tokens], axis=1), axis=0, return_inverse=True)
    return [group.reshape(-1) == number for number in range(int(group.max()) + 1)]


def _average(values: Sequence[float], counts: Sequence[int]) -> float:
    """Mean by counts over values that are not nan."""
    kept = [(v, n) for v, n in zip(values, counts, strict=True) if not np.isnan(v)]
    total = sum(n for _, n in kept)
    return sum(v * n for v, n in kept) / total if total else float("nan")


def _per_mixture(predicted: np.ndarray, table: RunTable) -> np.ndarray:
    """Mean relative error of every mixture; nan for one without a measured and predicted cell."""
    mixture = table.mixture
    return np.array(
        [
            mean_relative_error(table.losses[mixture == i], predicted[mixture == i])
            for i in range(int(mixture.max()) + 1)
        ]
    )


def _standard_error(values: np.ndarray) -> float:
    values = values[np.isfinite(values)]
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")


def _is_near(found: Diagnosis, best: Diagnosis, table: RunTable) -> bool:
    difference = _per_mixture(found.predicted, table) - _per_mixture(best.predicted, table)
    error = _standard_error(difference)
    return found.mre - best.mre <= (error if np.isfinite(error) else 0.0)
