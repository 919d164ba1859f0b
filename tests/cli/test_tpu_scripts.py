import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "tpu_scripts" / "tpu.sh"


def run(*arguments, **environment):
    return subprocess.run(
        ["bash", str(SCRIPT), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["create"], ["tpu-vm create pod", "--accelerator-type v5e-16", "--spot"]),
        (["setup"], ["git -C", "tpu-vm scp", "--worker all", "jaxmix doctor", "rm -f"]),
        (["run", "jaxmix", "train", "web.yaml", "--distributed"], ["--worker all", "nohup", "web.yaml"]),
        (["watch"], ["--worker 0", "tail"]),
        (["stop"], ["kill", "TERM"]),
        (["delete"], ["tpu-vm delete pod"]),
    ],
)
def test_a_dry_run_prints_every_command_and_runs_none(tmp_path, arguments, expected):
    fake = tmp_path / "gcloud"
    fake.write_text("#!/bin/sh\ntouch " + str(tmp_path / "called") + "\nexit 1\n")
    fake.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = run("--dry-run", *arguments, PATH=path, TPU_NAME="pod", TPU_TYPE="v5e-16", TPU_SPOT="1")
    assert done.returncode == 0, done.stderr
    for part in expected:
        assert part in done.stdout.replace("\\", ""), part
    assert not (tmp_path / "called").exists()


def test_usage_and_unknown_actions():
    assert "tpu.sh [--dry-run] create" in run("--help").stdout
    assert run("craete").returncode == 2
    assert run("run").returncode == 2
