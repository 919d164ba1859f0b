"""Fitting the capacity law: all starts in one program against SciPy one by one; and scoring a million mixtures.

    python experiments/bench_law/run.py                # 512 runs, 17 domains, 64 starts: minutes
    python experiments/bench_law/run.py --starts 8 --scipy-starts 4 --candidates 100000   # a trial

Both sides minimize the same objective (mean squared relative error of capacity + offset, in logarithms, within the
same bounds), from the same random starts, with the same jitted exact gradient. Compilation is left out on both sides:
each program is called once before the clock starts. SciPy is L-BFGS-B with ftol 1e-12, starts one after the other;
with `--scipy-starts` it takes only the first of them, and its time is scaled to all.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent / "bench_stream"), str(HERE.parent / "law_tables")]
import run as law_tables  # noqa: E402
from hardware import hardware  # noqa: E402

from jaxmix import laws  # noqa: E402
from jaxmix.laws.fit import compiled, on_host  # noqa: E402
from jaxmix.laws.solve.layout import Point  # noqa: E402
from jaxmix.laws.solve.least_squares import cells_of  # noqa: E402
from jaxmix.laws.solve.levenberg_marquardt import build_objective  # noqa: E402


def synthetic(rows: int) -> laws.RunTable:
    """17 domains, 13 of them with a metric: the law itself with 1 % of noise, 45 % of weights 0 as in RegMix."""
    rng = np.random.default_rng(0)
    weights = rng.dirichlet(np.full(17, 0.3), rows)
    weights[weights < 1e-3] = 0.0
    weights /= weights.sum(axis=1, keepdims=True)
    names = [f"domain_{i}" for i in range(17)]
    form = laws.make("capacity").build(laws.Shape(17, tuple(range(13))))
    params = {n: np.exp(rng.uniform(*np.log(p.start), p.shape)) for n, p in form.parameters.items()}
    with on_host():
        ones = jnp.ones(rows)
        losses = np.asarray(form.predict(jax.tree.map(jnp.asarray, params), jnp.asarray(weights), ones, ones))
    losses = losses * np.exp(0.01 * rng.standard_normal(losses.shape))
    return laws.RunTable(weights, losses, np.ones(rows), np.ones(rows), names, names[:13])


def fit_ours(law: laws.Law, table: laws.RunTable, starts: int) -> dict[str, Any]:
    run = lambda: laws.fit(law, table, key=jax.random.key(0), num_starts=starts)
    laws.fit(law, table, key=jax.random.key(0), num_starts=1, restarts=0, max_steps=1)
    began = time.perf_counter()
    found = run()
    return {"seconds": time.perf_counter() - began, "objective": found.objective, "converged": found.converged}, found


def fit_scipy(law: laws.Law, table: laws.RunTable, starts: int, run: int) -> dict[str, Any]:
    """The first `run` of the `starts` starts; seconds of these."""
    layout = compiled(law, table.shape).layout
    ps, shape = layout.low.shared.size, layout.low.local.shape
    flat = lambda point: np.concatenate([np.ravel(point.shared), np.ravel(point.local)])
    objective = build_objective(layout, None)
    with on_host():
        cells, row_weights = cells_of(table, np.ones(len(table)))
        row_weights = jnp.asarray(row_weights)

        @jax.jit
        @jax.value_and_grad
        def both(vector):
            return jnp.sum(objective.costs(Point(vector[:ps], vector[ps:].reshape(shape)), cells, row_weights))

        numbers = lambda vector: tuple(np.asarray(v, np.float64) for v in both(vector))
        draw, _ = jax.random.split(jax.random.key(0), 2)
        points = jax.device_get(layout.random_points(draw, starts))
        vectors = [flat(Point(s, c)) for s, c in zip(*points, strict=True)][:run]
        numbers(vectors[0])
        bounds = list(zip(flat(layout.low), flat(layout.high), strict=True))
        options = {"maxiter": 5000, "maxfun": 20000, "ftol": 1e-12, "gtol": 1e-9}
        began = time.perf_counter()
        found = [
            scipy.optimize.minimize(numbers, v, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
            for v in vectors
        ]
        seconds = time.perf_counter() - began
    objectives = sorted(float(f.fun) for f in found)
    return {
        "seconds": seconds,
        "objective": objectives[0],
        "objectives": objectives,
        "evaluations": sum(f.nfev for f in found),
    }


def score(found: laws.LawFit, count: int) -> dict[str, Any]:
    """Time of predicting all metrics of `count` mixtures."""
    weights = np.random.default_rng(1).dirichlet(np.full(found.shape.num_domains, 0.5), count)
    size, tokens = found.shape.model_size, found.shape.tokens
    found.predict(weights, size, tokens)
    began = time.perf_counter()
    found.predict(weights, size, tokens)
    seconds = time.perf_counter() - began
    return {"candidates": count, "metrics": found.shape.num_metrics, "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--starts", type=int, default=64)
    parser.add_argument("--scipy-starts", type=int, help="how many of the starts SciPy runs; default: all")
    parser.add_argument("--candidates", type=int, default=1_000_000)
    parser.add_argument("--table", choices=("synthetic", "regmix"), default="synthetic")
    parser.add_argument("--out", type=Path, default=HERE / "results.json")
    arguments = parser.parse_args()
    law = laws.make("capacity")
    if arguments.table == "regmix":
        table = law_tables.regmix("train_mixture_1m", "train_pile_loss_1m", 1.0, 1.0)
    else:
        table = synthetic(arguments.rows)
    ours, found = fit_ours(law, table, arguments.starts)
    print(f"jaxmix: {ours['seconds']:.1f} s, objective {ours['objective']:.9g}", flush=True)
    scoring = score(found, arguments.candidates)
    print(f"{scoring['candidates']} mixtures x {scoring['metrics']} metrics: {scoring['seconds']:.2f} s", flush=True)
    run = arguments.scipy_starts or arguments.starts
    theirs = fit_scipy(law, table, arguments.starts, run)
    theirs |= {"starts": run, "seconds_of_all_starts": theirs["seconds"] * arguments.starts / run}
    ratio = theirs["seconds_of_all_starts"] / ours["seconds"]
    print(f"scipy: {theirs['seconds']:.1f} s for {run} starts, objective {theirs['objective']:.9g}; {ratio:.1f} times")
    result = {
        "table": arguments.table,
        "rows": len(table),
        "starts": arguments.starts,
        "jaxmix": ours,
        "scipy": theirs,
        "speedup": ratio,
        "objective_over_scipy": ours["objective"] / theirs["objective"] - 1,
        "scoring": scoring,
        "hardware": hardware(),
    }
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
