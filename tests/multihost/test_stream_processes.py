"""Real processes: two read what one reads, each only its share, and one goes on where two stopped."""

import json
import subprocess
import sys

import numpy as np
import pytest

pytestmark = pytest.mark.multihost

SCRIPT = """
import json, sys
import numpy as np
from jaxmix.data.mixture.stream import MixtureStream

index, count, first, last, state_in, out = sys.argv[1:]
requested = []


class Source:
    def __init__(self, start, rows):
        self.tokens = np.arange(start, start + 4 * rows, dtype=np.int32).reshape(rows, 4)
        self.doc_lengths = np.full(rows, 4)

    def __len__(self):
        return len(self.tokens)

    def __getitem__(self, i):
        return self.tokens[i]

    def read(self, indices):
        requested.extend(indices)
        return [self.tokens[i] for i in indices]


sources = {"a": Source(0, 9), "b": Source(100, 50), "c": Source(1000, 6_000)}
with MixtureStream(
    sources, batch_size=8, seq_len=4, seed=3, block=3, prefetch=0, unit="rows", shard=(int(index), int(count))
) as stream:
    if state_in:
        stream.set_state(json.load(open(state_in)))
    batches = []
    for number in range(int(first), int(last)):
        batches.append(next(stream))
        if number % 4 == 1:
            stream.set_weights(np.random.default_rng(number).random(3))
    np.savez(out, requested=len(requested), **{k: np.stack([b[k] for b in batches]) for k in batches[0]})
    json.dump(stream.get_state(), open(out + ".json", "w"))
"""


def run(folder, name, count, first, last, state=""):
    started = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, *map(str, (i, count, first, last, state, folder / f"{name}{i}.npz"))],
            stderr=subprocess.PIPE,
        )
        for i in range(count)
    ]
    for process in started:
        _, stderr = process.communicate(timeout=120)
        assert process.returncode == 0, stderr.decode()[-3000:]
    return [dict(np.load(folder / f"{name}{i}.npz")) for i in range(count)]


def test_processes_draw_what_one_draws_and_any_number_goes_on(tmp_path):
    (whole,) = run(tmp_path, "whole", 1, 0, 20)
    assert len(np.unique(whole["weights_version"])) > 3
    assert np.sum(whole["domain"] == 0) > 9  # more than an epoch
    keys = [k for k in whole if k != "requested"]
    halves = run(tmp_path, "half", 2, 0, 11)
    for key in keys:
        joined = np.concatenate([half[key] for half in halves], axis=1)
        np.testing.assert_array_equal(joined, whole[key][:11])
    assert [int(half["requested"]) for half in halves] == [11 * 4, 11 * 4]  # each reads only its share
    states = [json.loads((tmp_path / f"half{i}.npz.json").read_text()) for i in range(2)]
    assert states[0] == states[1]
    for count in (1, 4):
        parts = run(tmp_path, f"rest{count}_", count, 11, 20, tmp_path / "half1.npz.json")
        for key in keys:
            joined = np.concatenate([part[key] for part in parts], axis=1)
            np.testing.assert_array_equal(joined, whole[key][11:])
