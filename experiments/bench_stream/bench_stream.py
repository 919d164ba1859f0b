"""Sequences per second of MixtureStream, of Grain's static mix and of Hugging Face's interleave_datasets.

All read the same rows by the same weights: Grain and MixtureStream from the same ArrayRecord files, Hugging Face from
Parquet (which it turns into memory-mapped tables first, unless it streams). Every competitor has several set-ups, the
fastest of which is compared. The two take turns in one process; the ratio is the median over the turns.

    python experiments/bench_stream/bench_stream.py [--sources 8 200] [--turns 7] [--seconds 2]
"""

import argparse
import gc
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
from hardware import hardware

from jaxmix.data.mixture.stream import MixtureStream
from jaxmix.data.prepared.store import PreparedSource

VOCAB = 32_000


def write_files(folder, num_sources, rows, length):
    """`rows` records of `length` + 1 Zipf-distributed tokens per source, in ArrayRecord as `prepare` writes it,
    and in Parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from array_record.python.array_record_module import ArrayRecordWriter

    rng = np.random.default_rng(0)
    for source in range(num_sources):
        tokens = np.minimum(rng.zipf(1.2, (rows, length + 1)), VOCAB - 1).astype(np.uint16)
        writer = ArrayRecordWriter(str(folder / f"{source}.array_record"), "group_size:1")
        for row in tokens:
            writer.write(row.tobytes())
        writer.close()
        np.save(folder / f"{source}.npy", np.full(rows, length + 1, np.int64))
        np.save(folder / f"{source}.rows.npy", tokens)
        column = pa.FixedSizeListArray.from_arrays(pa.array(tokens.reshape(-1)), length + 1)
        pq.write_table(pa.table({"tokens": column}), folder / f"{source}.parquet")


def targets_too(tokens):
    return {"tokens": tokens[..., :-1], "targets": tokens[..., 1:]}


class Grain:
    """Grain's static mix as its documentation builds it: shuffle, repeat, mix, then threads that read ahead."""

    set_ups = ("rows, 2 threads", "rows, 16 threads", "batches, 2 threads", "batches, 16 threads")

    def __init__(self, folder, weights, batch, length, set_up):
        import grain

        what, threads = set_up.split(", ")
        options = grain.ReadOptions(
            num_threads=int(threads.split()[0]), prefetch_buffer_size=500 if what == "rows" else 16
        )
        files = [folder / f"{j}.array_record" for j in range(len(weights))]
        self.readers = [grain.sources.ArrayRecordDataSource(str(path)) for path in files]

        def decode(record):
            return targets_too(np.frombuffer(record, np.uint16).astype(np.int32))

        parts = [
            grain.MapDataset.source(reader).seed(j).shuffle().repeat().map(decode)
            for j, reader in enumerate(self.readers)
        ]
        mixed = grain.MapDataset.mix(parts, weights=weights.tolist())
        if what == "rows":
            dataset = mixed.to_iter_dataset(options).batch(batch, drop_remainder=True)
        else:
            dataset = mixed.batch(batch, drop_remainder=True).to_iter_dataset(options)
        self.iterator = iter(dataset)

    def __next__(self):
        return next(self.iterator)

    def close(self):
        self.iterator.close()
        for reader in self.readers:
            reader.__exit__(None, None, None)


class HuggingFace:
    """interleave_datasets over memory-mapped tables (rows shuffled), or over streamed Parquet."""

    set_ups = ("map", "iterable", "streaming")

    def __init__(self, folder, weights, batch, length, set_up):
        import datasets

        datasets.disable_progress_bars()
        files = [str(folder / f"{j}.parquet") for j in range(len(weights))]
        streaming = set_up == "streaming"
        parts = [
            datasets.load_dataset(
                "parquet", data_files=path, split="train", streaming=streaming, cache_dir=str(folder / "cache")
            )
            for path in files
        ]
        if set_up == "map":
            parts = [part.shuffle(seed=j, keep_in_memory=True) for j, part in enumerate(parts)]
        elif set_up == "iterable":
            parts = [part.to_iterable_dataset() for part in parts]
        mixed = datasets.interleave_datasets(
            parts, probabilities=weights.tolist(), seed=0, stopping_strategy="all_exhausted"
        ).with_format("numpy")
        self.make = lambda: mixed.iter(batch, drop_last_batch=True)
        self.iterator = self.make()

    def __next__(self):
        try:
            data = next(self.iterator)
        except StopIteration:
            self.iterator = self.make()
            data = next(self.iterator)
        return targets_too(data["tokens"].astype(np.int32))

    def close(self):
        del self.iterator


def prepared(folder, number):
    file = folder / f"{number}.array_record"
    return PreparedSource(folder, f"d{number}", "uint16", [{"file": file.name, "bytes": file.stat().st_size}])


class Jaxmix:
    """The stream with its defaults.

    `rows` reads the records that Grain reads, and is what is compared with it; `tokens` packs them, so that a row
    needs two records; with new weights every block it does what no competitor can. `mapped` reads uncompressed rows
    from memory maps, as Hugging Face's tables do, and is compared with them.
    """

    set_ups = ("rows", "tokens", "rows with new weights every block", "mapped rows")

    def __init__(self, folder, weights, batch, length, set_up):
        if set_up == "mapped rows":
            self.sources = {f"d{j}": np.load(folder / f"{j}.rows.npy", mmap_mode="r") for j in range(len(weights))}
        else:
            self.sources = {f"d{j}": prepared(folder, j) for j in range(len(weights))}
        unit = "tokens" if set_up == "tokens" else "rows"
        self.stream = MixtureStream(self.sources, batch_size=batch, seq_len=length, seed=0, weights=weights, unit=unit)
        self.changes = "new weights" in set_up
        self.rng, self.count = np.random.default_rng(0), 0

    def __next__(self):
        self.count += 1
        if self.changes and self.count % self.stream.block == 0:
            self.stream.set_weights(self.rng.dirichlet(np.ones(len(self.sources))))
        return next(self.stream)

    def close(self):
        self.stream.close()
        for source in self.sources.values():
            if isinstance(source, PreparedSource):
                source.close()


def sequences_per_second(system, set_up, seconds, warm_up, folder, weights, batch, length):
    """Sequences per second, and seconds from the beginning to the first batch."""
    begin = time.perf_counter()
    running = system(folder, weights, batch, length, set_up)
    data = next(running)
    first = time.perf_counter() - begin
    assert data["tokens"].shape == data["targets"].shape == (batch, length)
    assert data["tokens"].dtype == np.int32
    end = time.perf_counter() + warm_up
    while time.perf_counter() < end:
        next(running)
    count, begin = 0, time.perf_counter()
    while (now := time.perf_counter()) < begin + seconds:
        next(running)
        count += batch
    running.close()
    del running
    gc.collect()
    return count / (now - begin), first


def compare(folder, num_sources, arguments):
    weights = np.random.default_rng(1).dirichlet(np.full(num_sources, 5.0))
    weights = np.maximum(weights, 0.2 / num_sources)
    weights /= weights.sum()
    common = (folder, weights, arguments.batch, arguments.length)
    systems = {"jaxmix": Jaxmix, "grain": Grain, "huggingface": HuggingFace}
    speeds: dict[str, dict[str, float]] = {}
    trial = {}
    for name, system in systems.items():
        for set_up in system.set_ups:
            speed, first = sequences_per_second(system, set_up, arguments.seconds, 0.5, *common)
            speeds.setdefault(name, {})[set_up] = speed
            trial[f"{name}, {set_up}"] = {
                "sequences_per_second": round(speed),
                "seconds_to_first_batch": round(first, 2),
            }
            what = f"{num_sources:4d} sources  {name:12s} {set_up:34s}"
            print(f"  {what} {speed:9.0f} sequences/s, first after {first:.2f} s", flush=True)
    best = {name: max(speeds[name], key=speeds[name].__getitem__) for name in ("grain", "huggingface")}
    pairs = {  # what is compared with what
        f"grain ({best['grain']})": ("rows", "grain", best["grain"]),
        f"huggingface ({best['huggingface']})": ("mapped rows", "huggingface", best["huggingface"]),
    }
    if best["huggingface"] != "streaming":
        pairs["huggingface (streaming)"] = ("rows", "huggingface", "streaming")
    turns: dict[str, list[list[float]]] = {pair: [] for pair in pairs}
    for turn in range(arguments.turns):
        for pair, (ours, other, theirs) in pairs.items():
            contest = [(Jaxmix, ours), (systems[other], theirs)]
            result = {}
            for system, set_up in reversed(contest) if turn % 2 else contest:
                result[system], _ = sequences_per_second(system, set_up, arguments.seconds, 0.5, *common)
            turns[pair].append([result[Jaxmix], result[systems[other]]])
    compared = {}
    for pair, speeds_of_pair in turns.items():
        ratios = [a / b for a, b in speeds_of_pair]
        compared[f"jaxmix ({pairs[pair][0]}) over {pair}"] = {
            "ratio": round(statistics.median(ratios), 2),
            "least": round(min(ratios), 2),
            "most": round(max(ratios), 2),
            "sequences_per_second": [round(statistics.median(side)) for side in zip(*speeds_of_pair, strict=True)],
        }
    for name, figures in compared.items():
        print(
            f"  {num_sources:4d} sources  {name}: {figures['ratio']}x "
            f"({figures['least']} to {figures['most']} in {arguments.turns} turns)"
        )
    return {"one_run_each": trial, "compared": compared}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sources", type=int, nargs="+", default=[8, 200])
    parser.add_argument("--rows", type=int, default=100_000, help="of all sources together")
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--output", default=str(Path(__file__).with_name("results_speed.json")))
    arguments = parser.parse_args()
    results = {"hardware": hardware(), "settings": {k: v for k, v in vars(arguments).items() if k != "output"}}
    for num_sources in arguments.sources:
        with tempfile.TemporaryDirectory() as folder:
            write_files(Path(folder), num_sources, arguments.rows // num_sources, arguments.length)
            results[f"{num_sources} sources"] = compare(Path(folder), num_sources, arguments)
    Path(arguments.output).write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    from absl import flags

    flags.FLAGS.mark_as_parsed()  # Grain reads them
    main()
