"""Two real processes train on image–text pairs with selection as one does, and one goes on with what two began."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from loopback import free_port

from jaxmix.train import latest_by_step, read_records

pytestmark = pytest.mark.multihost

SCRIPT = """
import sys
from pathlib import Path

folder, steps, is_stale, index, count, port, tests = sys.argv[1:]
sys.path.insert(0, tests)
import jax
import numpy as np
import optax
from jax.experimental import multihost_utils

from jaxmix.core import sharding

if int(count) > 1:
    sharding.initialize_distributed(f"127.0.0.1:{port}", int(count), int(index), timeout_s=60)

from pair_models import flip, linear_towers, pairs
from jaxmix.selection import jest
from jaxmix.train.pairs.loop import run_pairs
from jaxmix.train.pairs.step import OnlineReference, PairSettings, build_pair_programs
from jaxmix.train.pairs.stream import PairPool, PairStream
from jaxmix.train.lm.settings import TrainSettings

towers, mesh, seen = linear_towers(), sharding.build_mesh(), []


class Images(np.ndarray):
    def __getitem__(self, rows):
        seen.append(len(rows))
        return np.asarray(self).__getitem__(rows)


images, tokens, _ = pairs(120, corrupted=0.3)
programs = build_pair_programs(
    towers,
    optax.adamw(0.05),
    num_candidates=32,
    selector=jest(8, num_chunks=4, mesh=mesh),
    reference=OnlineReference(towers, towers.init(jax.random.key(7))),
    settings=PairSettings(is_stale=is_stale == "True"),
    augment=flip,
    mesh=mesh,
)
result = run_pairs(
    folder,
    model=towers,
    programs=programs,
    stream=PairStream(PairPool(images.view(Images), tokens), num_candidates=32, seed=3),
    settings=TrainSettings(steps=int(steps), log_every=1, eval_every=5, checkpoint_every=4),
    evaluate=lambda params: {"norm": float(optax.global_norm(params))},
    show_progress=False,
)
assert set(seen) == {32 // int(count)}, seen
kernel = np.asarray(multihost_utils.process_allgather(result.params["image"]["kernel"], tiled=True))
if int(index) == 0:
    np.save(Path(folder) / "kernel.npy", kernel)
"""


def run(folder, steps, is_stale, processes):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(2 // processes)}
    port, tests = free_port(), Path(__file__).parents[1] / "train"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, *map(str, (folder, steps, is_stale, i, processes, port, tests))],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        for i in range(processes)
    ]
    for process in started:
        _, stderr = process.communicate(timeout=240)
        assert process.returncode == 0, stderr.decode()[-3000:]
    records = read_records(folder / "metrics.jsonl")
    return latest_by_step(records, "train"), latest_by_step(records, "eval"), np.load(folder / "kernel.npy")


def assert_close(actual, expected):
    for got, wanted in zip(actual[:2], expected[:2], strict=True):
        assert len(got) == len(wanted) > 0
        for a, b in zip(got, wanted, strict=True):
            assert a.pop("kind") == b["kind"]
            assert a == pytest.approx({name: b[name] for name in b if name != "kind"}, rel=1e-4, abs=1e-5)
    np.testing.assert_allclose(actual[2], expected[2], atol=2e-5)


@pytest.mark.parametrize("is_stale", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_two_processes_equal_one(tmp_path, is_stale):
    whole = run(tmp_path / "one", 10, is_stale, processes=1)
    assert_close(run(tmp_path / "two", 10, is_stale, processes=2), whole)


@pytest.mark.slow
@pytest.mark.parametrize("is_stale", [False, True])
def test_one_process_goes_on_with_what_two_began(tmp_path, is_stale):
    whole = run(tmp_path / "one", 10, is_stale, processes=1)
    run(tmp_path / "mixed", 5, is_stale, processes=2)
    assert_close(run(tmp_path / "mixed", 10, is_stale, processes=1), whole)
