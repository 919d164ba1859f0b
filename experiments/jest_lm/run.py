"""Trains the reference, then one small model per cell, on text of which 30 % is noise. Stopped, it continues.

python experiments/jest_lm/run.py --out runs/jest_lm
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
from texts import CLEAN, WEIGHTS, write_texts

BATCH, LENGTH = 16, 128
STEPS, LONG = 240, 1200
SEEDS = (0, 1, 2)
MODEL = {"preset": "lm-300k", "num_layers": 2, "width": 64, "num_heads": 4}


def rows(method: str, **options: Any) -> dict[str, Any]:
    return {"selection": {"method": method, "filter_ratio": 0.8, **options}}


def tokens(method: str, **options: Any) -> dict[str, Any]:
    return {"selection": {"method": method, "level": "token", "keep": 0.6, **options}}


ARMS: dict[str, dict[str, Any]] = {
    "iid": {"train": {"steps": LONG}},
    "learnability_greedy": rows("learnability", greedy=True),
    "token_learnability": tokens("learnability"),
    "learnability": rows("learnability", gain=10.0),
    "easy_reference": rows("easy_reference", gain=10.0),
    "hard_learner": rows("hard_learner", gain=10.0),
    "clean_only": {"mixture": {"weights": {n: w if n in CLEAN else 0.0 for n, w in WEIGHTS.items()}}},
    "learnability_half": rows("learnability", greedy=True, filter_ratio=0.5),
    "learnability_gain1": rows("learnability", gain=1.0),
    "token_hard": tokens("hard_learner"),
    "learnability_diverse": rows("learnability", gain=10.0, diversity=1.0),
}
"""Sections that each arm changes; the first ones matter most."""


def base(folder: Path, kind: str) -> dict[str, Any]:
    """The configuration that runs on the pool, or the reference's, share."""
    names = WEIGHTS if kind == "pool" else CLEAN
    return {
        "sources": {name: {"path": str(folder / "texts" / kind / f"{name}.jsonl")} for name in names},
        "data": {
            "prepared": str(folder / "prepared" / kind),
            "seq_len": LENGTH,
            "batch_size": BATCH,
            "block": 1,
            "validation_fraction": 0.05,
            "validation_rows": 24,
        },
        "mixture": {"weights": {name: WEIGHTS[name] for name in names}},
        "mixer": {"name": "static"},
        "model": MODEL,
        # A rate that does not depend on the length, so that steps of runs of different lengths can be compared.
        "train": {
            "steps": STEPS,
            "learning_rate": 3e-3,
            "schedule": "constant",
            "warmup_steps": 20,
            "log_every": 20,
            "eval_every": 20,
        },
        "checkpoint": {"every": 10**6, "keep": 1},
    }


def merged(plain: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    result = dict(plain)
    for section, value in changes.items():
        result[section] = {**result.get(section, {}), **value}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="runs/jest_lm")
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)))
    parser.add_argument("--reference-steps", type=int, default=900)
    parser.add_argument("--scale", type=float, default=1.0, help="of all numbers of steps; 0.02 tries it out")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no cell after so long")
    arguments = parser.parse_args()
    folder = Path(arguments.out)
    write_texts(folder / "texts")
    started = time.time()
    reference = train_reference(folder, max(int(arguments.reference_steps * arguments.scale), 25))
    programs: dict[str, Any] = {}
    data = None
    for seed in map(int, arguments.seeds.split(",")):
        for arm in arguments.arms.split(","):
            path = folder / "cells" / f"{arm}-seed{seed}.json"
            if path.is_file():
                continue
            if time.time() - started > 60 * arguments.minutes:
                print("out of time", flush=True)
                return
            plain = merged(base(folder, "pool"), ARMS[arm])
            if "selection" in plain:
                plain["reference"] = {"run": str(reference)}
            steps = max(int(plain["train"]["steps"] * arguments.scale), 25)
            plain["train"] = {**plain["train"], "steps": steps, "seed": seed}
            plain["out"] = str(folder / "runs" / f"{arm}-seed{seed}")
            result, data, programs[arm] = run_cell(plain, data, programs.get(arm))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(result))
            print(f"{time.time() - started:6.0f} s  {arm:22s} seed {seed}  clean {result['clean'][-1]:.4f}  "
                  f"{result['seconds']:.0f} s", flush=True)  # fmt: skip


def train_reference(folder: Path, steps: int) -> Path:
    """The same model on the disjoint clean part, longer."""
    out = folder / "runs" / "reference"
    if not (out / "mixture.yaml").is_file():
        plain = merged(base(folder, "reference"), {"data": {"batch_size": 2 * BATCH}, "train": {"steps": steps}})
        plain["train"] |= {"schedule": "cosine", "warmup_steps": -1, "eval_every": 100, "seed": 100}
        train({**plain, "out": str(out)}, None, None)
    return out


def train(plain: dict[str, Any], data: Any, programs: Any) -> tuple[Any, Any, float]:
    from jaxmix.workflows.config.load import from_mapping
    from jaxmix.workflows.train.data import prepare_and_open
    from jaxmix.workflows.train.run import run_train

    config = from_mapping(plain, file="experiment")
    shutil.rmtree(plain["out"], ignore_errors=True)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        data = data or prepare_and_open(config)
        started = time.time()
        outcome = run_train(config, command="experiments/jest_lm", data=data, programs=programs, has_page=False)
    return outcome, data, time.time() - started


def run_cell(plain: dict[str, Any], data: Any, programs: Any) -> tuple[dict[str, Any], Any, Any]:
    from jaxmix.report import load_run

    outcome, data, seconds = train(plain, data, programs)
    run = load_run(outcome.run_dir)
    losses = {name: run.series("eval", f"eval/loss/{name}") for name in run.domains}
    weights = {name: WEIGHTS[name] / sum(WEIGHTS[n] for n in CLEAN) for name in CLEAN}
    clean = np.sum([weights[name] * np.asarray(losses[name][1]) for name in CLEAN], axis=0)
    paces = [r["step_seconds"] for r in run.timing][1:]
    result = {
        "steps": losses["prose"][0],
        "clean": clean.tolist(),
        "losses": {name: values for name, (_, values) in losses.items()},
        "compute": run.provenance["compute"],
        "seconds": seconds,
        "step_seconds": float(np.median(paces)) if paces else None,
        "trained_share": {n: run.final("train", f"select/share/{n}") or run.final("train", f"data/share/{n}")
                          for n in run.domains},
        "score": {k: run.series("train", f"select/score/{k}")[1] for k in ("scanned", "trained")},
    }  # fmt: skip
    return result, data, outcome.programs


if __name__ == "__main__":
    main()
