"""Every law on the RegMix tables: held-out error, rank correlation and parameters.

    python experiments/law_tables/run.py                                             # every registered law
    python experiments/law_tables/run.py --laws capacity capacity:offset=none,rank=2 --cases 1B-24 1B-46

A law is a registered name with its arguments after a colon. Each law × case × split is a cell with a file of its own,
so that a run that was stopped goes on where it was; `results.json` is made anew from the cells on every run.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxmix import laws
from jaxmix.core.errors import JaxmixError
from jaxmix.data.run_tables import read_regmix
from jaxmix.laws.judge.metrics import mean_relative_error, own_weights, regret, spearman

HERE = Path(__file__).parent
SIZES_60M = {"60M": 60.0, "60M as 1M": 1.0}


class Split(NamedTuple):
    """One fit: what it is fitted to, and the tables it is judged on by name."""

    train: laws.RunTable
    tests: dict[str, laws.RunTable]


def data_folder() -> Path:
    """The folder that holds `regmix/`: $JAXMIX_DATA, else beside the repository."""
    return Path(os.environ.get("JAXMIX_DATA") or HERE.parent.parent.parent / "shared" / "data")


def regmix(mixture: str, loss: str, model_size: float, tokens: float) -> laws.RunTable:
    folder = data_folder() / "regmix"
    return read_regmix(folder / f"{mixture}.csv", folder / f"{loss}.csv", model_size=model_size, tokens=tokens)


def splits_1b(count: int) -> list[Split]:
    """Three splits of the 64 runs: 16 to judge, the next `count` to fit."""
    table = regmix("test_mixture_1B", "test_pile_loss_1B", 1000.0, 25.0)
    orders = [np.random.default_rng(100 + s).permutation(64) for s in range(3)]
    return [Split(table.take(order[16 : 16 + count]), {"": table.take(order[:16])}) for order in orders]


def splits_1m(count: int) -> list[Split]:
    """The first `count` of the shuffled training runs; judged on the 256 test runs of 1M, and of 60M.

    The runs of 60M are asked for at 60M, and, as "60M as 1M", at the size fitted, which only carries the ranking over.
    """
    table = regmix("train_mixture_1m", "train_pile_loss_1m", 1.0, 1.0)
    test = regmix("test_mixture_1m", "test_pile_loss_1m", 1.0, 1.0)
    larger = {name: regmix("test_mixture_60m", "test_pile_loss_60m", n, 1.0) for name, n in SIZES_60M.items()}
    chosen = np.random.default_rng(7).permutation(512)[:count]
    return [Split(table.take(chosen), {"": test, **larger})]


CASES = {
    "1B-24": lambda: splits_1b(24),
    "1B-46": lambda: splits_1b(46),
    "1M-64": lambda: splits_1m(64),
    "1M-512": lambda: splits_1m(512),
}


def law_of(text: str) -> laws.Law:
    """`name` or `name:argument=value,…`, values read as JSON where they can be."""
    name, options = laws.parse(text)
    return laws.make(name, **options)


def measured(found: laws.LawFit, test: laws.RunTable) -> dict[str, float]:
    predicted = found.predict(test.weights, test.model_size, test.tokens)
    own = own_weights(test)
    mean, guessed = test.losses.mean(axis=1), predicted.mean(axis=1)
    return {
        "mre_all": 100 * mean_relative_error(test.losses, predicted),
        "mre_own": 100 * mean_relative_error(test.losses, predicted, own > 0),
        "spearman_mean": spearman(mean, guessed),
        "spearman_metrics": float(np.mean([spearman(a, b) for a, b in zip(test.losses.T, predicted.T, strict=True)])),
        "regret": 100 * regret(mean, guessed),
    }


def run_cell(law: laws.Law, split: Split, arguments: argparse.Namespace) -> dict[str, Any]:
    began = time.perf_counter()
    found = laws.fit(
        law, split.train, key=jax.random.key(arguments.seed), num_starts=arguments.starts, restarts=arguments.restarts
    )
    return {
        "parameters": found.num_params,
        "determined": None if found.effective_params is None else round(found.effective_params, 1),
        "chosen": None if found.selection is None else found.selection.name,
        "out_of_fold": None
        if found.selection is None
        else {n: round(100 * d.mre, 3) for n, d in found.selection.diagnoses.items()},
        "objective": found.objective,
        "converged": found.converged,
        "at_bounds": len(found.at_bounds),
        "seconds": round(time.perf_counter() - began, 2),
        "tests": {name: measured(found, test) for name, test in split.tests.items()},
    }


def summarize(folder: Path) -> dict[str, Any]:
    """Means over splits of every law and case; the 60M test of a fit to 1M is a case of its own."""
    cells: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("*.json")):
        cell = json.loads(path.read_text())
        cells.setdefault((cell["law"], cell["case"]), []).append(cell)
    rows: dict[str, Any] = {}
    for (law, case), found in sorted(cells.items()):
        for test in found[0]["tests"]:
            name = f"{case} to {test}" if test else case
            values = [cell["tests"][test] for cell in found]
            rows.setdefault(law, {})[name] = {
                "splits": len(found),
                "parameters": found[0]["parameters"],
                "determined": _mean([cell.get("determined") for cell in found]),
                "chosen": [cell.get("chosen") for cell in found],
                "objective": float(np.mean([cell["objective"] for cell in found])),
                "converged": sum(cell["converged"] for cell in found),
                **{key: round(float(np.mean([v[key] for v in values])), 4) for key in values[0]},
            }
    return rows


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(float(np.mean(known)), 1) if known else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--laws", nargs="+", default=sorted(laws.registry), help="names, with arguments after a colon")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--starts", type=int, default=64)
    parser.add_argument("--restarts", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=HERE)
    arguments = parser.parse_args()
    folder = arguments.out / "cells"
    folder.mkdir(parents=True, exist_ok=True)
    for case in arguments.cases:
        splits = CASES[case]()
        for text in arguments.laws:
            law = law_of(text)
            for index, split in enumerate(splits):
                path = folder / f"{text.replace(':', '_').replace(',', '_')}.{case}.{index}.json"
                if path.exists():
                    continue
                try:
                    cell = run_cell(law, split, arguments)
                except JaxmixError as error:
                    print(f"{text} {case} {index}: {error}")
                    continue
                path.write_text(json.dumps({"law": text, "case": case, "split": index, **cell}, indent=1) + "\n")
                main_test = cell["tests"][""]
                print(
                    f"{text} {case} {index}: {main_test['mre_all']:.3f} % all, {main_test['mre_own']:.3f} % own > 0, "
                    f"rank {main_test['spearman_mean']:.3f}, {cell['parameters']} parameters, {cell['seconds']} s",
                    flush=True,
                )
    (arguments.out / "results.json").write_text(json.dumps(summarize(folder), indent=1) + "\n")


if __name__ == "__main__":
    main()
