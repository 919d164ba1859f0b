"""Small proxies, a law, a proposal, and what it is worth at a larger size. Stopped, the same command continues.

python experiments/swarm_law/run.py --out runs/swarm_law
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from summarize import draw, interval, text_tables

from jaxmix import laws
from jaxmix.core.sharding import one_device_per_core
from jaxmix.laws.judge.metrics import mean_relative_error, spearman
from jaxmix.workflows.swarm.config import swarm_of
from jaxmix.workflows.swarm.run import SwarmOutcome, run

BATCH, LENGTH, STEPS = 16, 64, 300
SEEDS = [0, 1, 2]
CHECKED = 12
EPOCHS = 4.0
TINY = {"preset": "lm-300k", "num_layers": 2, "width": 32, "num_heads": 4}
SMALL = {"preset": "lm-300k", "num_layers": 2, "width": 64, "num_heads": 4}
LARGE = {"preset": "lm-300k", "num_layers": 4, "width": 128, "num_heads": 4}
LAWS = (
    "auto",
    "hierarchical",
    "capacity",
    "capacity_only",
    "transfer",
    "additive",
    "loglinear",
    "power",
    "linear",
    "mean",
)
FIT = {"num_starts": 16}


def base(out: Path, model: dict[str, Any], rows: int) -> dict[str, Any]:
    """The configuration of all runs of one size."""
    return {
        "sources": "bundled",
        "data": {
            "tokenizer": "byte",
            "seq_len": LENGTH,
            "batch_size": BATCH,
            "block": 1,
            "validation_fraction": 0.1,
            "validation_rows": rows,
            "prepared": str(out / "prepared"),
        },
        "mixture": {"weights": "natural"},
        "model": model,
        "train": {"steps": STEPS, "learning_rate": 2e-3, "eval_every": STEPS},
        "checkpoint": {"every": 100},
    }


def swarm(out: Path, name: str, plan: dict[str, Any], mixtures: dict[str, Any] | None = None) -> SwarmOutcome:
    """Trains what is missing of one swarm. `mixtures` by name take the place of a drawn design."""
    made = swarm_of(plan, file="experiments/swarm_law", out=str(out / name))
    if mixtures is not None:
        path = out / name / "design.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        domains = list(next(iter(mixtures.values())))
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["run", *(f"weight/{d}" for d in domains)])
            writer.writerows([run, *(repr(float(w[d])) for d in domains)] for run, w in mixtures.items())
    return run(made, command="experiments/swarm_law", say=lambda line: print(line, flush=True))


def train_proxies(out: Path) -> SwarmOutcome:
    """What laws are fitted on: two sizes on the same mixtures, one of them also for half as long."""
    return swarm(
        out,
        "proxies",
        {
            "base": base(out, SMALL, 256),
            "sizes": {
                "tiny": {"model": TINY},
                "small": {},
                "short": {"runs": 24, "train": {"steps": STEPS // 2, "eval_every": STEPS // 2}},
            },
            "design": {"runs": 46, "seed": 0, "include": ["prior", "uniform"], "concentration": [0.5, 20.0]},
            "seeds": [0],
        },
    )


def train_larger(out: Path) -> SwarmOutcome:
    """What they are judged by: mixtures of another draw at the larger size."""
    return swarm(
        out,
        "check",
        {
            "base": base(out, LARGE, 256),
            "design": {"runs": CHECKED, "seed": 1, "concentration": [0.5, 20.0]},
            "seeds": [0],
        },
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="runs/swarm_law", type=Path)
    out = parser.parse_args().out
    one_device_per_core()
    key = jax.random.key(0)

    proxies, check = train_proxies(out), train_larger(out)
    table = proxies.table
    large, tokens = float(check.table.model_size[0]), float(check.table.tokens[0])
    fits = {name: laws.fit(laws.make(name), table, key=key, **FIT) for name in LAWS}
    same = {name: laws.cross_validate(laws.make(name), table, key=key, **FIT) for name in LAWS if name != "auto"}
    extrapolated = {name: judged(fit, check.table) for name, fit in fits.items()}

    caps = laws.caps_from_tokens(available(out, table.domain_names), tokens * 1e9, EPOCHS)
    target = {"model_size": large, "tokens": tokens, "max_weights": np.minimum(caps, 1.0)}
    trees = laws.fit(laws.make("lightgbm"), table.take(table.model_size == table.model_size.max()), key=key)
    proposals = {
        "law": laws.propose(fits["auto"], **target).weights,
        "capacity": laws.propose(fits["capacity"], **target).weights,
        "regmix": laws.propose_regmix(trees, key=key, prior=table.weights[0], **target).weights,
    }
    domains = list(table.domain_names)
    arms = {"natural": table.weights[0], "uniform": np.full(len(domains), 1.0 / len(domains)), **proposals}
    mixtures = {name: dict(zip(domains, (w / w.sum()).tolist(), strict=True)) for name, w in arms.items()}
    final = swarm(
        out,
        "arms",
        {"base": base(out, LARGE, 512), "design": {"runs": len(arms), "seed": 0}, "seeds": SEEDS},
        mixtures,
    )
    observed = final.table.losses.mean(axis=1).reshape(len(SEEDS), len(arms))
    results = {
        "domains": domains,
        "proxies": len(table),
        "checked": len(check.table),
        "seconds": {"proxies": proxies.seconds, "check": check.seconds, "arms": final.seconds},
        "swarm_cost_in_large_runs": proxies.flops / (final.flops / len(final.table)),
        "chosen": fits["auto"].law.name,
        "out_of_fold": {n: {"error": d.mre, "parameters": d.num_params} for n, d in same.items()},
        "at_the_larger_size": extrapolated,
        "arms": {
            name: {
                "weights": mixtures[name],
                "predicted": float(fits["auto"].predict(arms[name], large, tokens).mean()),
                "loss": interval(observed[:, i]),
                "to_uniform": interval(observed[:, i] - observed[:, list(arms).index("uniform")]),
            }
            for i, name in enumerate(arms)
        },
    }
    here = Path(__file__).parent
    (here / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    print(text_tables(results))
    predicted = fits["auto"].predict(check.table.weights, check.table.model_size, check.table.tokens)
    draw(results, predicted, check.table.losses, here / "figure.svg")


def judged(fit: laws.LawFit, table: laws.RunTable) -> dict[str, Any]:
    """How well a law fitted on small models foretells larger ones."""
    predicted = fit.predict(table.weights, table.model_size, table.tokens)
    return {
        "law": fit.law.name,
        "parameters": fit.num_params,
        "error": mean_relative_error(table.losses, predicted),
        "spearman_of_mean": spearman(table.losses.mean(axis=1), predicted.mean(axis=1)),
    }


def available(out: Path, domains: Any) -> np.ndarray:
    from jaxmix.workflows.config.load import from_mapping
    from jaxmix.workflows.train.data import prepare_and_open

    data = prepare_and_open(from_mapping(base(out, SMALL, 256) | {"out": "unused"}, file="experiment"))
    return np.asarray([data.train[name].num_tokens for name in domains], np.float64)


if __name__ == "__main__":
    main()
