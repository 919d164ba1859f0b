"""One process at a time in a folder, whoever it is and however the last one ended."""

import json
import os
import subprocess
import sys
import time

import pytest

from jaxmix.core.errors import ConfigError
from jaxmix.data.lock import LOCK, locked

HOLD = """
import sys, time
from pathlib import Path
from jaxmix.data.lock import locked
with locked(Path(sys.argv[1]), "prepares data"):
    print("held", flush=True)
    time.sleep(600)
"""


def refused(holder):
    return pytest.raises(ConfigError, match=holder)


def test_a_second_process_is_refused_by_name_and_a_dead_one_forgotten(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        with refused(rf"process {process.pid} on .* prepares data here since 20"), locked(tmp_path, "trains"):
            pass
        process.kill()
    with locked(tmp_path, "trains"):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_the_same_process_cannot_hold_it_twice(tmp_path):
    with locked(tmp_path, "trains"), refused(f"process {os.getpid()} on"), locked(tmp_path, "trains"):
        pass


def test_a_lock_of_another_machine_stays_as_long_as_it_is_touched(tmp_path):
    holder = {"host": "elsewhere", "space": None, "pid": 1, "began": "then", "start": None, "what": "trains"}
    (tmp_path / LOCK).write_text(json.dumps(holder))
    with refused("process 1 on elsewhere trains here since then"), locked(tmp_path, "trains"):
        pass
    os.utime(tmp_path / LOCK, (time.time() - 130,) * 2)
    with locked(tmp_path, "trains"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_number_that_came_again_is_another_process(tmp_path):
    with locked(tmp_path, "trains"):
        held = json.loads((tmp_path / LOCK).read_text())
    if held["start"] is None:
        pytest.skip("no /proc")
    (tmp_path / LOCK).write_text(json.dumps({**held, "start": "0"}))
    with locked(tmp_path, "trains"):
        pass


def test_a_lock_cut_short_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    (tmp_path / LOCK).write_text("")
    with pytest.raises(ConfigError, match="cannot be read"), locked(tmp_path, "trains"):
        pass
