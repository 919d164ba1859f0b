"""Two real processes on loopback fine-tune as one does: the same arms, prompts and rewards, hence the same states."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from loopback import free_port
from tolerance import adam_tolerance

from jaxmix.train import latest_by_step, read_records

pytestmark = [pytest.mark.multihost, pytest.mark.slow]

SCRIPT = Path(__file__).parents[1] / "train" / "finetuning.py"
STEPS = "8"


def run(run_dir, processes):
    port = free_port()
    extra = [[]] if processes == 1 else [[str(processes), str(i), str(port)] for i in range(processes)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
    started = [
        subprocess.Popen([sys.executable, str(SCRIPT), str(run_dir), STEPS, *arguments], env=environment, stderr=-1)
        for arguments in extra
    ]
    for process in started:
        _, stderr = process.communicate(timeout=400)
        assert process.returncode == 0, stderr.decode()[-3000:]
    records = read_records(run_dir / "metrics.jsonl")
    return [latest_by_step(records, kind) for kind in ("train", "eval")], np.load(run_dir / "params.npy")


def test_two_processes_equal_one(tmp_path):
    (expected, wanted), (found, got) = run(tmp_path / "one", 1), run(tmp_path / "two", 2)
    for mine, others in zip(found, expected, strict=True):
        assert len(mine) == len(others)
        for a, b in zip(mine, others, strict=True):
            assert a.keys() == b.keys()
            for name in a:
                if name.startswith("train/"):  # sums over two processes round otherwise
                    assert a[name] == pytest.approx(b[name], rel=1e-4, abs=1e-6), name
                else:
                    assert a[name] == b[name], name
    np.testing.assert_allclose(got, wanted, rtol=0, atol=adam_tolerance(int(STEPS), 0.01, terms=64))
