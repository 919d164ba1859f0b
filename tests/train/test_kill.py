"""kill -9 at random moments of a real process; the restarted run ends as the uninterrupted one."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from jaxmix.train import latest_by_step, read_records

SCRIPT = Path(__file__).with_name("small_run.py")
STEPS = 300


def start(run_dir):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), str(run_dir), str(STEPS)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def finish(process):
    _, stderr = process.communicate(timeout=240)
    assert process.returncode == 0, stderr.decode()[-2000:]


def outcome(run_dir):
    records = read_records(run_dir / "metrics.jsonl")
    return latest_by_step(records, "train"), latest_by_step(records, "eval"), np.load(run_dir / "params.npy")


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_kill_nine_at_random_moments(tmp_path, seed):
    finish(start(tmp_path / "whole"))
    expected = outcome(tmp_path / "whole")

    rng, run_dir, kills = random.Random(seed), tmp_path / "killed", 0
    while kills < 2:
        process = start(run_dir)
        metrics = run_dir / "metrics.jsonl"
        before = metrics.stat().st_size if metrics.exists() else 0
        # Wait until it is under way, then for a random while inside the few seconds that the run takes.
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if metrics.exists() and metrics.stat().st_size > before:
                break
            time.sleep(0.01)
        time.sleep(rng.uniform(0.0, 0.6))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += 1
        if (run_dir / "params.npy").exists():
            break
    finish(start(run_dir))
    train, evaluation, params = outcome(run_dir)
    assert train == expected[0]
    assert evaluation == expected[1]
    np.testing.assert_array_equal(params, expected[2])


def test_an_interrupt_saves_and_says_how_to_go_on(tmp_path):
    process = start(tmp_path)
    metrics = tmp_path / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.stat().st_size > 0):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert b"interrupted; saved at step" in stderr
    assert b"Run the same command again" in stderr
    assert any(p.name.isdigit() for p in (tmp_path / "checkpoints").iterdir())
