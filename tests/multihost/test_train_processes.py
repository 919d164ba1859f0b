"""Two real processes on loopback draw what one draws, and one goes on with what two began."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from loopback import free_port
from tolerance import adam_tolerance

from jaxmix.train import latest_by_step, read_records

pytestmark = pytest.mark.multihost

SCRIPT = Path(__file__).parents[1] / "train" / "small_run.py"


def run(run_dir, steps, processes):
    port = free_port()
    extra = [[]] if processes == 1 else [[str(processes), str(i), str(port)] for i in range(processes)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(run_dir), str(steps), *arguments],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        for arguments in extra
    ]
    for process in started:
        _, stderr = process.communicate(timeout=240)
        assert process.returncode == 0, stderr.decode()[-3000:]


def outcome(run_dir):
    records = read_records(run_dir / "metrics.jsonl")
    return latest_by_step(records, "train"), latest_by_step(records, "eval"), np.load(run_dir / "params.npy")


def assert_close(actual, expected):
    for got, wanted in zip(actual[:2], expected[:2], strict=True):
        assert len(got) == len(wanted)
        for a, b in zip(got, wanted, strict=True):
            assert a.keys() == b.keys()
            for name in a:
                # What was asked follows losses, whose sums two processes round otherwise; what was drawn is the same.
                is_drawn = name.startswith("data/") and not name.startswith("data/asked")
                if is_drawn or name in ("step", "tokens", "kind"):
                    assert a[name] == b[name], name
                else:
                    assert a[name] == pytest.approx(b[name], rel=1e-4, abs=1e-6), name
    np.testing.assert_allclose(actual[2], expected[2], rtol=0, atol=adam_tolerance(24, 0.05, terms=64 + 16))


def test_two_processes_equal_one_and_one_continues_two(tmp_path):
    run(tmp_path / "one", 24, processes=1)
    expected = outcome(tmp_path / "one")

    run(tmp_path / "two", 24, processes=2)
    assert_close(outcome(tmp_path / "two"), expected)

    # Stop two processes at step 12 by asking for no more, then let one process finish the run.
    run(tmp_path / "mixed", 12, processes=2)
    run(tmp_path / "mixed", 24, processes=1)
    mixed = outcome(tmp_path / "mixed")
    assert [r["step"] for r in mixed[0]] == [r["step"] for r in expected[0]]
    for got, wanted in zip(mixed[0], expected[0], strict=True):
        for name in got:
            if name.startswith("data/share") or name in ("tokens", "data/weight_lag"):
                assert got[name] == wanted[name], (got["step"], name)
