"""Documents per second of `jaxmix label`, by method and engine.

python experiments/bench_label/run.py                      # student, in process; hashing and prediction apart
python experiments/bench_label/run.py --methods student,teacher --engines local,ray --workers 1,2
python experiments/bench_label/run.py --documents 400      # smallest
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent


def corpus(folder: Path, documents: int, characters: int, files: int) -> list[Path]:
    """The bundled texts in pieces of `characters`, repeated to `documents`, in `files` JSON-lines files."""
    import pyarrow.parquet as pq

    from jaxmix.data import bundled_corpus

    pieces = []
    for domain in bundled_corpus().values():
        for text in pq.read_table(domain.path)["text"].to_pylist():
            pieces += [text[i : i + characters] for i in range(0, max(len(text) - characters // 2, 1), characters)]
    order = np.random.default_rng(0).permutation(len(pieces))
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, part in enumerate(np.array_split(np.arange(documents), files)):
        paths.append(folder / f"{number:04d}.jsonl")
        lines = (json.dumps({"text": pieces[order[i % len(order)]]}) + "\n" for i in part)
        paths[-1].write_text("".join(lines))
    return paths


def discovery(folder: Path, clusters: int) -> None:
    """A discovery in the bundled texts with the built-in encoder and a student of the default size."""
    from jaxmix.workflows.discover.config import discovery_from
    from jaxmix.workflows.discover.run import run_discovery

    config = discovery_from(
        {"sources": "bundled", "clusterer": {"name": "gem", "num_clusters": clusters, "balance": 1000}},
        file="bench_label",
        out=str(folder),
    )
    run_discovery(config, command="bench_label", say=print)


def parts(domains: Path, texts: list[str], repeats: int) -> dict[str, float]:
    """Documents per second of the student's two halves, single-threaded."""
    from jaxmix.workflows.discover.domains import open_domains

    student = open_domains(domains).student
    student.predict(texts[:64])
    whole = _best(lambda: student.predict(texts), repeats)
    hashing = _best(lambda: student.features(texts), repeats)
    size = sum(len(text.encode()) for text in texts)
    return {
        "student_documents_per_second": len(texts) / whole,
        "hashing_documents_per_second": len(texts) / hashing,
        "student_megabytes_per_second": size / whole / 1e6,
        "hashing_share": hashing / whole,
    }


def _best(function: Any, repeats: int) -> float:
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return min(times)


def labeling(domains: Path, folder: Path, method: str, engine: str, workers: int, repeats: int) -> dict[str, Any]:
    """Documents per second of a whole labeling, reading and writing included, start of the engine too."""
    from jaxmix.workflows.label.config import label_from
    from jaxmix.workflows.label.run import run_labeling

    seconds = []
    for _ in range(repeats):
        labels = folder.parent / "labels"
        shutil.rmtree(labels, ignore_errors=True)
        config = label_from(
            {
                "domains": str(domains), "sources": {"web": {"path": str(folder)}}, "labels": str(labels),
                "method": method, "engine": engine, "ray": {"workers": workers},
            },
            file="bench_label", out=str(folder.parent / "out"),
        )  # fmt: skip
        started = time.perf_counter()
        found = run_labeling(config, command="bench_label", say=lambda line: None)
        seconds.append(time.perf_counter() - started)
    return {
        "method": method,
        "engine": engine,
        "workers": workers if engine == "ray" else 1,
        "seconds": [round(s, 3) for s in seconds],
        "documents_per_second": found["documents"] / statistics.median(seconds),
        "megabytes_per_second": found["bytes"] / statistics.median(seconds) / 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=50_000)
    parser.add_argument("--characters", type=int, default=2000)
    parser.add_argument("--files", type=int, default=32)
    parser.add_argument("--clusters", type=int, default=24)
    parser.add_argument("--methods", default="student")
    parser.add_argument("--engines", default="local")
    parser.add_argument("--workers", default="1,2", help="of ray")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--domains", help="folder of a finished discovery; one in the bundled texts is made otherwise")
    parser.add_argument("--out", default=str(HERE / "results.json"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        domains = Path(arguments.domains) if arguments.domains else home / "domains"
        if not arguments.domains:
            discovery(domains, arguments.clusters)
        files = corpus(home / "web", arguments.documents, arguments.characters, arguments.files)
        texts = [json.loads(line)["text"] for path in files[:2] for line in path.read_text().splitlines()]
        results: dict[str, Any] = {"documents": arguments.documents, "characters": arguments.characters}
        results["parts"] = parts(domains, texts, arguments.repeats)
        print(json.dumps(results["parts"], indent=1))
        results["labeling"] = []
        for method in arguments.methods.split(","):
            for engine in arguments.engines.split(","):
                for workers in map(int, arguments.workers.split(",")) if engine == "ray" else (1,):
                    row = labeling(domains, home / "web", method, engine, workers, arguments.repeats)
                    results["labeling"].append(row)
                    print(json.dumps(row))
    Path(arguments.out).write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
