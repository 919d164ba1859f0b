"""Trains one small language model per cell and writes results.json. Stopped, the same command continues.

python experiments/mixers_real/run.py --set bundled --out runs/mixers_real
python experiments/mixers_real/run.py --set collected --texts FOLDER --out runs/mixers_real
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import multiprocessing.connection
import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
from cells import BATCH, FEW, LARGE, LENGTH, STEPS, Cell, bad_prior, cells

MODELS = {
    "small": {"preset": "lm-300k", "num_layers": 2, "width": 64, "num_heads": 4},
    "large": {"preset": "lm-300k", "num_layers": 4, "width": 128, "num_heads": 4},
}
CANDIDATES = 12


def base(name: str, *, texts: str | None, out: str, model: str = "small") -> dict[str, Any]:
    """The configuration that all cells share."""
    sources: Any = "bundled"
    if name == "collected":
        files = sorted(Path(texts or ".").glob("*.jsonl"))
        sources = {file.stem: {"path": str(file)} for file in files}
    return {
        "sources": sources,
        "data": {
            "tokenizer": "byte",
            "seq_len": LENGTH,
            "batch_size": BATCH,
            "block": 1,
            "validation_fraction": 0.1,
            "validation_rows": 128,
            "control_rows": 16,
            "test_rows": 1024,
            "prepared": str(Path(out) / name / "prepared"),
        },
        "mixture": {"weights": "uniform"},
        "model": MODELS[model],
        "train": {"steps": STEPS, "learning_rate": 2e-3, "log_every": 25, "eval_every": STEPS, "gradient_rows": 1},
        "checkpoint": {"every": 10**6, "keep": 1},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--set", choices=("bundled", "collected"), default="bundled")
    parser.add_argument("--texts", help="folder of DOMAIN.jsonl files, for --set collected")
    parser.add_argument("--out", default="runs/mixers_real")
    parser.add_argument("--model", choices=tuple(MODELS), default="small")
    parser.add_argument("--roles", default="table,search,tool,restricted,sweep")
    parser.add_argument("--methods", default="", help="only these, and what they need")
    parser.add_argument("--workers", type=int, default=2, help="processes, one core each")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no cell after so long")
    arguments = parser.parse_args()
    small = Path(arguments.out) / arguments.set
    folder = small if arguments.model == "small" else small.with_name(f"{small.name}_large")
    folder.mkdir(parents=True, exist_ok=True)
    plan = base(arguments.set, texts=arguments.texts, out=arguments.out, model=arguments.model)
    names = domain_names(plan)
    rng = np.random.default_rng(0)
    candidates = [rng.dirichlet(np.full(len(names), 4.0)).round(4).tolist() for _ in range(CANDIDATES)]
    candidates = [(np.asarray(c) / sum(c)).tolist() for c in candidates]
    found = cells(names, candidates)
    if arguments.model == "large":
        # The search was made with the small model: its runs are what the larger ones need, and are not repeated.
        todo = [cell for cell in found if cell.method in LARGE and cell.seed in FEW]
        done = {name: load(small / name) for cell in todo for name in cell.needs}
        if missing := sorted(name for name, result in done.items() if result is None):
            parser.error(f"these cells have to be run with --model small first: {', '.join(missing)}")
    else:
        todo, done = chosen(found, arguments), {}
    run_all(todo, done, plan, folder, arguments, time.time() + 60 * arguments.minutes)


def domain_names(plan: dict[str, Any]) -> list[str]:
    from jaxmix.workflows.config.load import from_mapping
    from jaxmix.workflows.train.data import prepare_and_open

    return list(prepare_and_open(from_mapping(plan | {"out": "unused"}, file="experiment")).train)


def chosen(found: list[Cell], arguments: argparse.Namespace) -> list[Cell]:
    roles, methods = arguments.roles.split(","), [m for m in arguments.methods.split(",") if m]
    if not methods:
        return [cell for cell in found if cell.role in roles]
    wanted = {cell.name for cell in found if cell.method in methods}
    while more := {n for cell in found if cell.name in wanted for n in cell.needs} - wanted:
        wanted |= more
    return [cell for cell in found if cell.name in wanted]


def run_all(
    todo: list[Cell], done: dict[str, Any], plan: dict[str, Any], folder: Path, arguments: Any, deadline: float
) -> None:
    """Hands cells to the workers as soon as what they need is there."""
    context = multiprocessing.get_context("spawn")
    results = done | {cell.name: result for cell in todo if (result := load(folder / cell.name))}
    waiting = [cell for cell in todo if cell.name not in results]
    print(f"{len(todo) - len(waiting)} cells finished, {len(waiting)} to do", flush=True)
    pipes, busy = [], {}
    for core in range(arguments.workers):
        ours, theirs = context.Pipe()
        context.Process(target=work, args=(theirs, plan, str(folder), core), daemon=True).start()
        pipes.append(ours)
    started = time.time()
    while waiting or busy:
        for pipe in pipes:
            if pipe in busy or time.time() > deadline:
                continue
            ready = next((c for c in waiting if all(n in results for n in c.needs)), None)
            if ready is not None:
                waiting.remove(ready)
                busy[pipe] = ready
                needed = {n: results[n] for n in ready.needs}
                pipe.send((ready.name, ready.seed, ready.changes(needed, ready.seed)))
        if not busy:
            break
        for pipe in multiprocessing.connection.wait(list(busy)):
            cell = busy.pop(pipe)
            answer = pipe.recv()
            if isinstance(answer, str):
                print(f"{cell.name} FAILED: {answer}", flush=True)
                continue
            results[cell.name] = answer
            mean = np.mean(list(answer["test"].values()))
            print(f"{time.time() - started:6.0f} s  {cell.name:28s} test {mean:.4f}  {answer['seconds']:.0f} s "
                  f"({len(waiting)} waiting)", flush=True)  # fmt: skip
    for pipe in pipes:
        pipe.send(None)


def load(folder: Path) -> dict[str, Any] | None:
    path = folder / "result.json"
    return json.loads(path.read_text()) if path.is_file() else None


def work(pipe: Any, plan: dict[str, Any], folder: str, core: int) -> None:
    """One process on one core: cells that come in, results that go out."""
    os.sched_setaffinity(0, {core})
    import contextlib
    import io

    data = programs = None
    while (task := pipe.recv()) is not None:
        name, seed, changes = task
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                result, data, programs = run_cell(name, seed, changes, plan, Path(folder), data, programs)
            pipe.send(result)
        except Exception as error:
            pipe.send(f"{type(error).__name__}: {error}")


def run_cell(
    name: str, seed: int, changes: dict[str, Any], plan: dict[str, Any], folder: Path, data: Any, programs: Any
) -> tuple[Any, Any, Any]:
    from jaxmix.workflows.config.load import from_mapping
    from jaxmix.workflows.train.data import prepare_and_open
    from jaxmix.workflows.train.run import run_train

    run_dir = folder / name
    shutil.rmtree(run_dir, ignore_errors=True)
    merged = {**plan}
    for section, value in changes.items():
        merged[section] = {**plan.get(section, {}), **value}
    merged["train"] = {**merged["train"], "seed": seed}
    merged["out"] = str(run_dir)
    has_usual_length = merged["train"]["steps"] == STEPS
    if data is None:
        data = prepare_and_open(from_mapping(merged | {"mixture": {"weights": "uniform"}}, file="experiment"))
    if merged["mixture"]["weights"] == "bad_prior":
        merged["mixture"] = {"weights": dict(zip(data.train, bad_prior(len(data.train)), strict=True))}
    started = time.time()
    outcome = run_train(
        from_mapping(merged, file="experiment"),
        command="experiments/mixers_real",
        data=data,
        programs=programs if has_usual_length else None,  # the learning rate follows the length
        has_page=False,
    )
    result = summary_of(run_dir, outcome, time.time() - started)
    (run_dir / "result.json").write_text(json.dumps(result))
    return result, data, outcome.programs if has_usual_length else programs


def summary_of(run_dir: Path, outcome: Any, seconds: float) -> dict[str, Any]:
    """What the tables need of a run: losses in nats per byte, by domain."""
    from jaxmix.train import latest_by_step, read_records

    records = read_records(run_dir / "metrics.jsonl")
    result = outcome.result
    names = list(result.final_eval)
    control = latest_by_step(records, "control")
    first = latest_by_step(records, "eval")[0]
    return {
        "folder": str(run_dir),
        "test": result.final_test,
        "validation": result.final_eval,
        "start": {n: first[f"eval/loss/{n}"] for n in names},
        "control": {n: control[-1][f"control/loss/{n}"] for n in names} if control else result.final_eval,
        "weights": result.final_weights,
        "recommended": result.recommended,
        "average": outcome.average_weights,
        "realized": {n: r["share"] for n, r in result.realized.items()},
        "tokens": sum(r["tokens"] for r in result.realized.values()),
        "evaluations": max(len(control) - 1, 0),
        "seconds": seconds,
    }


if __name__ == "__main__":
    main()
