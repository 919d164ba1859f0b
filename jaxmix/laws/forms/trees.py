"""RegMix's law: gradient-boosted trees (LightGBM). Liu et al., arXiv 2407.01492."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxmix.core.errors import EnvironmentProblem
from jaxmix.core.validate import Count, Positive, check_count, checked
from jaxmix.laws.base import Law, RunTable, registry
from jaxmix.laws.fit import regressor
from jaxmix.laws.forms.terms import with_log_scales


@registry.register
@checked
def lightgbm(
    rounds: Count = 1000,
    *,
    learning_rate: Positive = 0.01,
    leaves: int = 31,
    min_per_leaf: Count | None = None,
    seed: int = 42,
) -> Law:
    r"""RegMix's regression: boosted trees of each loss on the mixture, with N and D as features where they vary.

    Args:
        rounds: trees a metric, ≥ 1.
        learning_rate: > 0.
        leaves: most of a tree, ≥ 2.
        min_per_leaf: runs a leaf must hold, ≥ 1; None: n / 40 rounded, at least 2 and at most 20 (LightGBM's
            default, which leaves fewer than 40 runs without a single split).
        seed: of LightGBM; the trees are deterministic.

    Returns:
        The law. Its number of parameters is that of all leaves.

    Raises:
        ConfigError: a number out of range.
        EnvironmentProblem: when fitted, if the package `lightgbm` is not installed.

    Differs from the paper: RegMix's notebook stops early on its test set; here all rounds are run. Smaller leaves for
    small tables.

    Example:
        >>> lightgbm(rounds=300).name
        'lightgbm'

    References:
        arXiv 2407.01492; github.com/sail-sg/regmix, regression_fitting/regression.ipynb.
    """
    check_count("lightgbm", "leaves", leaves, 2)

    def regress(table: RunTable) -> tuple[Callable[..., np.ndarray], int]:
        package = _package()
        features = functools.partial(with_log_scales, shape=table.shape)
        x = features(table.weights, table.model_size, table.tokens)
        boosters = []
        for column in table.losses.T:
            rows = np.flatnonzero(np.isfinite(column))
            settings = {
                "objective": "regression",
                "learning_rate": learning_rate,
                "num_leaves": leaves,
                "min_data_in_leaf": min_per_leaf or int(np.clip(round(len(rows) / 40), 2, 20)),
                "min_data_in_bin": 1,
                "seed": seed,
                "deterministic": True,
                "force_row_wise": True,
                "num_threads": 1,
                "verbosity": -1,
            }
            data = package.Dataset(x[rows], column[rows], free_raw_data=True)
            boosters.append(package.train(settings, data, num_boost_round=rounds))

        def predict(weights: np.ndarray, model_size: np.ndarray, tokens: np.ndarray) -> np.ndarray:
            z = features(weights, model_size, tokens)
            return np.stack([np.asarray(b.predict(z, num_threads=1), np.float64) for b in boosters], axis=1)

        num_leaves = sum(tree["num_leaves"] for b in boosters for tree in b.dump_model()["tree_info"])
        return predict, num_leaves

    return regressor("lightgbm", regress)


def _package() -> Any:
    try:
        import lightgbm as package
    except ModuleNotFoundError as error:
        raise EnvironmentProblem(
            "the law 'lightgbm' needs the package lightgbm, which is not installed",
            where="lightgbm",
            fix="Install jaxmix with the extra `trees`: pip install 'jaxmix[trees]'.",
        ) from error
    return package
