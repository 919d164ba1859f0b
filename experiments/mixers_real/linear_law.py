"""Does the linear dynamic law hold, and does it help to follow it?

One checkpoint, many mixtures for 100 steps, drops regressed on the mixtures; then whole runs on what that says.

python experiments/mixers_real/linear_law.py --set bundled --out runs/mixers_real
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from cells import SEEDS
from run import base, load, run_cell
from summarize import interval

START, LENGTH, MIXTURES = 500, 100, 32
EXPONENTS = (0.5, 1.0)


def main() -> None:
    from jaxmix.workflows.config.load import from_mapping
    from jaxmix.workflows.train.data import prepare_and_open

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--set", choices=("bundled", "collected"), default="bundled")
    parser.add_argument("--texts", help="folder of DOMAIN.jsonl files, for --set collected")
    parser.add_argument("--out", default="runs/mixers_real")
    arguments = parser.parse_args()
    whole = base(arguments.set, texts=arguments.texts, out=arguments.out)
    plan = whole | {"data": whole["data"] | {"validation_rows": 256, "test_rows": 0, "control_rows": None}}
    folder = Path(arguments.out) / arguments.set / "linear_law"
    data = prepare_and_open(from_mapping(plan | {"out": "unused"}, file="experiment"))
    names = list(data.train)
    rng = np.random.default_rng(0)
    uniform = np.full(len(names), 1 / len(names))
    mixtures = [uniform, *(0.5 * uniform + 0.5 * rng.dirichlet(uniform * 11) for _ in range(MIXTURES - 1))]
    before = losses_after(folder / "start", None, plan, data, uniform, START)
    drops = []
    for index, mixture in enumerate(mixtures):
        after = losses_after(folder / f"mixture{index:02d}", folder / "start", plan, data, mixture, START + LENGTH)
        drops.append(before - after)
        print(f"{index + 1}/{MIXTURES}", flush=True)
    result = regression(np.stack(mixtures), np.stack(drops), names)
    result["followed"] = {str(e): followed(folder, whole, names, result, e) for e in EXPONENTS}
    path = folder / "result.json"
    path.write_text(json.dumps(result, indent=1))
    print(json.dumps(result["r_squared"], indent=1), "mean", result["mean_r_squared"])


def losses_after(run_dir: Path, start: Path | None, plan: dict[str, Any], data: Any, mixture: Any, steps: int) -> Any:
    """Validation losses of a run that goes on from `start` with `mixture`."""
    from jaxmix.workflows.config.load import from_mapping
    from jaxmix.workflows.train.run import run_train

    done = run_dir / "losses.json"
    if not done.is_file():
        shutil.rmtree(run_dir, ignore_errors=True)
        if start is not None:
            shutil.copytree(start, run_dir, ignore=shutil.ignore_patterns("losses.json"))
        points = [{"at": 0, "weights": "uniform"}, {"at": START, "weights": [float(x) for x in mixture]}]
        settings = plan["train"] | {"steps": steps, "schedule": "constant", "eval_every": 10**6, "seed": 0}
        mixer = {"name": "scheduled", "points": points}
        config = from_mapping(plan | {"train": settings, "mixer": mixer, "out": str(run_dir)}, file="experiment")
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            outcome = run_train(config, command="experiments/mixers_real", data=data, has_page=False)
        done.write_text(json.dumps(list(outcome.result.final_eval.values())))
    return np.asarray(json.loads(done.read_text()))


def followed(folder: Path, plan: dict[str, Any], names: list[str], result: dict[str, Any], exponent: float) -> Any:
    """Test loss of whole runs on the static mixture `p ∝ exp(exponent · column sums)`, against the stratified runs."""
    sums = np.asarray([result["column_sums"][name] for name in names])
    mixture = np.exp(exponent * (sums - sums.mean()))
    changes = {"mixer": {"name": "static", "weights": (mixture / mixture.sum()).tolist()}}
    data = programs = None
    differences = []
    for seed in SEEDS:
        name = f"follow{exponent:g}-seed{seed}"
        run = load(folder / name)
        if run is None:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                run, data, programs = run_cell(name, seed, changes, plan, folder, data, programs)
        stratified = load(folder.parent / f"stratified-seed{seed}")
        if stratified is None:
            raise SystemExit("Run the stratified cells first: run.py --methods stratified")
        differences.append(np.mean(list(run["test"].values())) - np.mean(list(stratified["test"].values())))
        print(f"{name}: {differences[-1]:+.4f}", flush=True)
    return interval(differences)


def regression(mixtures: Any, drops: Any, names: list[str]) -> dict[str, Any]:
    """Drops on mixtures without intercept; R² about the mean, in sample and left one out."""
    fitted, left_out = np.empty_like(drops), np.empty_like(drops)
    interaction = np.linalg.lstsq(mixtures, drops, rcond=None)[0].T
    fitted = mixtures @ interaction.T
    for k in range(len(mixtures)):
        rest = np.arange(len(mixtures)) != k
        left_out[k] = mixtures[k] @ np.linalg.lstsq(mixtures[rest], drops[rest], rcond=None)[0]
    spread = ((drops - drops.mean(0)) ** 2).sum(0)
    r_squared = 1 - ((drops - fitted) ** 2).sum(0) / spread
    predicted = 1 - ((drops - left_out) ** 2).sum(0) / spread
    return {
        "r_squared": dict(zip(names, r_squared.tolist(), strict=True)),
        "mean_r_squared": float(r_squared.mean()),
        "left_out_r_squared": dict(zip(names, predicted.tolist(), strict=True)),
        "mean_left_out_r_squared": float(predicted.mean()),
        "interaction": interaction.tolist(),
        "column_sums": dict(zip(names, interaction.sum(0).tolist(), strict=True)),
        "start": START,
        "steps": LENGTH,
        "mixtures": len(mixtures),
    }


if __name__ == "__main__":
    main()
