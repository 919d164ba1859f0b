"""Host memory while a million sequences are drawn from changing weights, checkpointing the position now and then.

python experiments/bench_stream/bench_memory.py [--sources 200] [--sequences 1000000]
"""

import argparse
import gc
import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np
from bench_stream import prepared, write_files
from hardware import hardware

from jaxmix.data.mixture.stream import MixtureStream


def resident_megabytes():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sources", type=int, default=200)
    parser.add_argument("--sequences", type=int, default=1_000_000)
    parser.add_argument("--rows", type=int, default=100_000, help="of all sources together")
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--output", default=str(Path(__file__).with_name("results_memory.json")))
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_files(folder, arguments.sources, arguments.rows // arguments.sources, arguments.length)
        gc.collect()
        sources = {f"d{j}": prepared(folder, j) for j in range(arguments.sources)}
        total = arguments.sequences // arguments.batch
        marks, begin = [], time.perf_counter()
        with MixtureStream(
            sources, batch_size=arguments.batch, seq_len=arguments.length, seed=0, unit="rows"
        ) as stream:
            for number in range(1, total + 1):
                next(stream)
                if number % stream.block == 0:
                    stream.set_weights(rng.dirichlet(np.ones(arguments.sources)))
                if number % 1000 == 0:
                    json.dumps(stream.get_state())
                if number % max(total // 20, 1) == 0:
                    marks.append([number * arguments.batch, round(resident_megabytes(), 1)])
                    print(f"  {marks[-1][0]:9d} sequences  {marks[-1][1]:7.1f} MiB resident", flush=True)
            epochs = {name: round(drawn["epochs"], 1) for name, drawn in stream.realized().items()}
        seconds = time.perf_counter() - begin
    tenth = [mark for mark in marks if mark[0] >= 0.1 * arguments.sequences]
    grown = tenth[-1][1] - tenth[0][1]
    print(f"grown by {grown:+.1f} MiB after the first tenth; {arguments.sequences / seconds:.0f} sequences/s")
    result = {
        "hardware": hardware(),
        "settings": {k: v for k, v in vars(arguments).items() if k != "output"},
        "resident_mib": marks,
        "grown_mib_after_first_tenth": round(grown, 1),
        "sequences_per_second": round(arguments.sequences / seconds),
        "epochs": [min(epochs.values()), max(epochs.values())],
    }
    Path(arguments.output).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
