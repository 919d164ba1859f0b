"""What can only be checked on a GPU, in stages, one JSON: called by `scripts/gpu_checks.sh`, which says how.

    python experiments/gpu/run.py --out results.json                     # every stage
    python experiments/gpu/run.py --out results.json --only swarm mfu    # stages whose names begin so; the rest is kept
    python experiments/gpu/run.py --out trial.json --tiny                # small sizes, on any machine

Every stage is a process of its own with a time of its own: one that fails or hangs costs the others nothing and is
recorded with its error. The file is written after every stage.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
BUDGET = 530.0
"""Seconds of the whole; what has not begun by then is recorded as left out."""


class Stage(NamedTuple):
    """Attributes:
    seconds: the most it may take.
    memory: share of the device's memory that JAX takes; 0: nothing in advance.
    beside: may run beside the stage before it: it times nothing.
    """

    name: str
    seconds: int
    memory: float = 0.9
    beside: bool = False


CELLS = [(name, length) for name in ("lm-125m", "lm-350m", "lm-1b") for length in (1024, 4096)]
STAGES = [
    Stage("doctor", 60, 0.0),
    Stage("kernels", 110, 0.1, beside=True),
    Stage("gem-iteration", 110, 0.1, beside=True),
    Stage("jest-choice", 110, 0.3, beside=True),
    Stage("mixers", 110, 0.05, beside=True),
    Stage("resume", 130, 0.04, beside=True),
    *(Stage(f"mfu-{name}-{length}", 110 if name == "lm-1b" else 90, 0.94) for name, length in CELLS),
    *(Stage(f"mfu-{name}-1024-unrolled", 90, 0.94) for name in ("lm-350m", "lm-1b")),
    Stage("swarm", 60),
    Stage("rollouts", 60),
    Stage("clusters", 110),
    Stage("peers", 40, 0.0),
    Stage("jest", 50),
    Stage("stream", 40, 0.05),
]


def doctor(is_tiny: bool, save: Callable[[Any], None]) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "jaxmix", "doctor", "--json"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    from measure import gpu_state, hardware

    return {"doctor": json.loads(done.stdout), "hardware": hardware(), "nvidia_smi": gpu_state()}


def checks(names: list[str], is_tiny: bool, save: Callable[[Any], None]) -> Any:
    import kernels

    found: dict[str, Any] = {"failed": [], "errors": {}, "checks": []}
    for name in names:
        began = time.perf_counter()
        try:
            for check in kernels.CHECKS[name](is_tiny):
                found["checks"].append(check.as_json())
                if not check.is_ok:
                    found["failed"].append(check.name)
                save(found)
        except Exception as error:
            found["errors"][name] = f"{type(error).__name__}: {str(error)[:500]}"
        print(name, f"{time.perf_counter() - began:.1f} s", flush=True)
    return found


def run_stage(name: str, is_tiny: bool, save: Callable[[Any], None]) -> Any:
    """What the process of one stage does."""
    if name == "doctor":
        return doctor(is_tiny, save)
    if name == "kernels":
        import kernels

        own = ("gem_iteration", "mixer_updates", "jest_small", "jest_large")
        return checks([n for n in kernels.CHECKS if n not in own], is_tiny, save)
    if name == "gem-iteration":
        return checks(["gem_iteration"], is_tiny, save)
    if name == "jest-choice":
        return checks(["jest_small", "jest_large"], is_tiny, save)
    if name == "mixers":
        return checks(["mixer_updates"], is_tiny, save)
    if name in ("clusters", "peers", "jest"):
        import clusters

        called = {"clusters": clusters.gem_and_assign, "peers": clusters.peers, "jest": clusters.selection}
        return called[name](is_tiny, save)
    import training

    if name.startswith("mfu-"):
        _, _, size, length, *rest = name.split("-")
        return training.model_flops(is_tiny, f"lm-{size}", int(length), is_unrolled=bool(rest))
    return getattr(training, name)(is_tiny, save)


class Running:
    """A stage's process."""

    def __init__(self, stage: Stage, folder: Path, is_tiny: bool, left: float):
        self.stage, self.part, self.log = stage, folder / f"{stage.name}.json", folder / f"{stage.name}.log"
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        # Another library, or processes beside it, share the card: JAX takes a share, or nothing, in advance.
        if stage.memory:
            environment["XLA_PYTHON_CLIENT_MEM_FRACTION"] = str(stage.memory)
        else:
            environment["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
        environment.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
        command = [sys.executable, str(HERE / "run.py"), "--stage", stage.name, "--part", str(self.part)]
        self.began = time.monotonic()
        # Small sizes are for a rehearsal, perhaps on a machine that does other things: nothing is hurried.
        self.limit = 10.0 * stage.seconds if is_tiny else min(float(stage.seconds), left)
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*command, *(["--tiny"] if is_tiny else [])],
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def finish(self) -> dict[str, Any]:
        error = None
        try:
            self.process.wait(max(self.limit - (time.monotonic() - self.began), 0.1))
            if self.process.returncode:
                error = f"exit status {self.process.returncode}: {self.log.read_text()[-1500:]}"
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            error = f"took longer than {self.limit:.0f} s: {self.log.read_text()[-800:]}"
        found = json.loads(self.part.read_text()) if self.part.exists() else None
        seconds = time.monotonic() - self.began
        return {"ok": error is None, "seconds": round(seconds, 1), "error": error, "result": found}


def goals(stages: dict[str, Any]) -> dict[str, Any]:
    """What is asked of each stage, what was found, and whether it was met; None where it was not measured."""
    result = lambda name: (stages.get(name) or {}).get("result") or {}
    found: dict[str, Any] = {}

    def goal(name: str, value: float | bool | None, met: Callable[[Any], bool], asked: str) -> None:
        found[name] = {"value": value, "asked": asked, "met": None if value is None else bool(met(value))}

    goal("doctor", result("doctor").get("doctor", {}).get("ok"), bool, "every check is fine")
    for name in ("kernels", "gem-iteration", "jest-choice", "mixers"):
        stage, here = stages.get(name) or {}, result(name)
        bad = len(here.get("failed", [])) + len(here.get("errors", {})) + (not stage.get("ok"))
        goal(name, bad if stage else None, lambda x: x == 0, "none outside its bound")
    for name, runs in result("resume").get("runs", {}).items():
        goal(f"resume, flags: {name}", runs["resume_is_exact"], bool, "parameters equal bit for bit")
    for name, length in CELLS:
        here = result(f"mfu-{name}-{length}")
        goal(f"{name}, T = {length}: MFU", here.get("mfu"), lambda x: x >= 0.45, "≥ 0.45 of the bfloat16 product")
        goal(f"{name}, T = {length}: flash", here.get("attention", {}).get("is_flash"), bool, "cuDNN's attention")
    for name, here in result("swarm").items():
        if isinstance(here, dict) and "ratio" in here:
            goal(f"swarm of {name}", here["ratio"], lambda x: x <= 0.1, "a proxy's step ≤ 0.1 of a lone one")
    for size, here in result("clusters").items():
        theirs = result("peers").get(size)
        if "assign_seconds" not in here:
            continue
        if theirs is not None:
            # No goal is set for these two: the peer's k-means is hard and reads the rows once, GEM twice.
            for name, ours, other in (
                ("gem 5000", here["gem 5000"]["seconds"], "iteration_seconds_float32"),
                ("assign", here["assign_seconds"], "labels_seconds_float32"),
            ):
                found[f"{name} {size} over torch"] = {"value": ours / theirs[other], "asked": None, "met": None}
    rates = result("stream")
    step = result("mfu-lm-125m-1024")
    if "in_memory" in rates and step:
        ratio = rates["in_memory"]["tokens_per_second"] / step["tokens_per_second"]
        goal("stream over what lm-125m consumes", ratio, lambda x: x >= 1.0, "≥ 1")
    return found


def run_all(arguments: argparse.Namespace) -> None:
    began = time.monotonic()
    report: dict[str, Any] = json.loads(arguments.out.read_text()) if arguments.out.exists() else {"stages": {}}
    wanted = [s for s in STAGES if not arguments.only or any(s.name.startswith(name) for name in arguments.only)]
    groups: list[list[Stage]] = []
    for stage in wanted:
        if stage.beside and groups:
            groups[-1].append(stage)
        else:
            groups.append([stage])
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor() as waiting:
        for group in groups:
            left = 1e6 if arguments.tiny else arguments.budget - (time.monotonic() - began)
            begun = [Running(s, Path(folder), arguments.tiny, left) for s in group] if left > 10 else []
            started = [waiting.submit(running.finish) for running in begun]
            for stage, running in zip(group, started or [None] * len(group), strict=True):
                left_out = {"ok": False, "seconds": 0.0, "error": "left out: the time was spent", "result": None}
                done = left_out if running is None else running.result()
                earlier = report["stages"].get(stage.name)
                # A stage that failed takes no earlier measurement away.
                if done["ok"] or earlier is None or not earlier["ok"]:
                    report["stages"][stage.name] = done
                state = "ok" if done["ok"] else f"FAILED: {done['error'][-300:]}"
                print(f"{stage.name:<18}{done['seconds']:>7.1f} s  {state}", flush=True)
                report["stages"] = {s.name: report["stages"][s.name] for s in STAGES if s.name in report["stages"]}
                known = report["stages"].get("doctor", {}).get("result") or {}
                report = {
                    "hardware": known.get("hardware"),
                    "nvidia_smi": known.get("nvidia_smi"),
                    "is_tiny": arguments.tiny,
                    "goals": goals(report["stages"]),
                    "stages": report["stages"],
                }
                arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    for name, goal in report["goals"].items():
        value = goal["value"]
        shown = f"{value:.3f}" if isinstance(value, float) else str(value)
        print(f"{name:<44}{shown:>10}  {'met' if goal['met'] else 'MISSED' if goal['met'] is False else '-'}")
    print(f"{time.monotonic() - began:.0f} s in all", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE / "results.json")
    parser.add_argument("--only", nargs="+", default=[], help="stages whose names begin with one of these")
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds of the whole")
    parser.add_argument("--tiny", action="store_true", default=os.environ.get("JAXMIX_GPU_CHECKS") == "tiny")
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    parser.add_argument("--part", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.stage is None:
        run_all(arguments)
        return

    def save(found: Any) -> None:
        arguments.part.write_text(json.dumps(found, default=float))

    save(run_stage(arguments.stage, arguments.tiny, save))


if __name__ == "__main__":
    main()
