"""One corpus divided in several ways, each trained on under the same mixers; resumable per cell.

python experiments/gem_mixing/run.py --out runs/gem_mixing                  # all
python experiments/gem_mixing/run.py --out runs/gem_mixing --part 0/2       # every other cell, for two processes
python experiments/gem_mixing/run.py --out runs/gem_mixing --summary        # results.json and the table alone
python experiments/gem_mixing/run.py --out /tmp/try --smallest              # does it run at all
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from jaxmix.core.errors import JaxmixError
from jaxmix.data.files import write_whole
from jaxmix.report.intervals import student_interval
from jaxmix.workflows.config.load import from_mapping
from jaxmix.workflows.config.mixture import read_mixture
from jaxmix.workflows.config.yaml import dump_yaml
from jaxmix.workflows.discover.config import discovery_from
from jaxmix.workflows.discover.run import run_discovery
from jaxmix.workflows.provenance import versions, write_json
from jaxmix.workflows.train.cross_eval import held_out_losses, write_training_texts
from jaxmix.workflows.train.data import prepare_and_open
from jaxmix.workflows.train.run import run_train

HERE = Path(__file__).parent
CLUSTERERS: dict[str, dict[str, Any]] = {
    "gem": {"name": "gem", "balance": 1000},
    "gem_documents": {"name": "gem", "balance": 1000},
    "gem_unbalanced": {"name": "gem", "balance": 1},
    "spherical_kmeans": {"name": "spherical_kmeans"},
}
WEIGH_BY = {"gem_documents": "documents"}
"""What clusters are balanced by; elsewhere words."""
PARTITIONS = ("given", *CLUSTERERS)
WITHOUT_LAW = ("gem_documents", "gem_unbalanced")
METHODS: dict[str, dict[str, Any]] = {
    "natural": {"mixture": {"weights": "natural"}, "mixer": {"name": "static"}},
    "uniform": {"mixture": {"weights": "uniform"}, "mixer": {"name": "static"}},
    "odm": {"mixture": {"weights": "natural"}, "mixer": {"name": "odm"}},
    "law": {"mixer": {"name": "static"}},
}


KL = 0.1
"""Pull of a proposal to even weights, nats per nat: what keeps it inside of the mixtures that were run."""


@dataclasses.dataclass(frozen=True)
class Size:
    """How large everything is."""

    steps: int
    rows: int
    proxies: int
    seeds: int
    proxy_share: float = 0.5


SIZES = {"real": Size(steps=1000, rows=256, proxies=24, seeds=5), "smallest": Size(4, 4, 4, 1, 0.5)}


def base(out: Path, size: Size) -> dict[str, Any]:
    """What all runs share."""
    return {
        "data": {"tokenizer": "byte", "seq_len": 64, "batch_size": 16, "block": 1, "validation_rows": size.rows},
        "model": {"preset": "lm-300k", "num_layers": 2, "width": 64, "num_heads": 4},
        "train": {
            "steps": size.steps, "learning_rate": 2e-3, "log_every": max(size.steps // 40, 1), "eval_every": size.steps
        },
        "checkpoint": {"every": 10**6, "keep": 1},
    }  # fmt: skip


def held_out_folder(out: Path, size: Size, sources: Any) -> Path:
    """Prepares the corpus by its given labels: its validation part judges all runs."""
    plain = base(out, size) | {"sources": sources, "out": "unused"}
    plain["data"] = plain["data"] | {"prepared": str(out / "corpus"), "validation_fraction": 0.1}
    prepare_and_open(from_mapping(plain, file="gem_mixing"))
    return out / "corpus"


def partition_sources(name: str, out: Path, texts: dict[str, Path], seed: int) -> dict[str, Any] | str:
    """The section `sources` of a partition; clusters are found where they are not there yet."""
    if name == "given":
        return {domain: {"path": str(path)} for domain, path in texts.items()}
    config = discovery_from(
        {
            "sources": {"texts": {"path": [str(path) for path in texts.values()]}},
            "encoder": {"name": "builtin", "dim": 128},
            "clusterer": {"num_clusters": len(texts), **CLUSTERERS[name]},
            "fit": {"seed": seed, "weigh_by": WEIGH_BY.get(name, "words")},
            "student": {"rule": "random", "per_cluster": 200, "buckets": 65536},
        },
        file=name,
        out=str(out / name / "domains"),
    )
    run_discovery(config, command="gem_mixing", say=lambda line: None)
    return str(out / name / "domains")


def cell_config(partition: str, method: str, seed: int, out: Path, size: Size, sources: Any) -> dict[str, Any]:
    plain = base(out, size) | {"sources": sources, **METHODS[method]}
    plain["data"] = plain["data"] | {"prepared": str(out / partition / "prepared"), "validation_fraction": 0.05}
    plain["train"] = plain["train"] | {"seed": seed}
    plain["out"] = str(out / partition / f"{method}-seed{seed}")
    if method == "law":
        plain["mixture"] = propose(partition, out, size, plain)
    return plain


def propose(partition: str, out: Path, size: Size, plain: dict[str, Any]) -> dict[str, Any]:
    """The mixture of the law of a partition, from a swarm of shorter runs; made once, for their own length."""
    home = out / partition
    path = home / "law" / "mixture.yaml"
    if not path.is_file():
        from jaxmix.workflows.law import LawSettings, fit_law, make_proposal
        from jaxmix.workflows.swarm.config import load_swarm
        from jaxmix.workflows.swarm.run import collect

        steps = max(round(size.proxy_share * size.steps), 1)
        small = {k: v for k, v in plain.items() if k not in ("out", "mixer", "mixture")}
        small["mixture"] = {"weights": "natural"}
        small["train"] = {k: v for k, v in plain["train"].items() if k != "seed"} | {
            "steps": steps,
            "eval_every": steps,
        }
        design = {"runs": size.proxies, "seed": 0, "include": ["prior", "uniform"], "concentration": [0.5, 20.0]}
        swarm = home / "swarm.yaml"
        write_whole(swarm, dump_yaml({"base": small, "design": design, "seeds": [0]}))
        words = [sys.executable, "-m", "jaxmix", "swarm", "run", str(swarm), "--out", str(home / "swarm"), "--json"]
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
        table = collect(load_swarm(str(swarm), out=str(home / "swarm"))).table
        law = LawSettings(law="hierarchical" if size.proxies > 10 else "linear")
        fitted = fit_law(table, law, out=str(home / "law"), command="gem_mixing", source=str(home / "swarm"))
        make_proposal(
            fitted, model_size=float(table.model_size[0]), tokens=float(table.tokens[0]), out=str(home / "law"),
            command="gem_mixing", kl_strength=KL,
        )  # fmt: skip
    return {"weights": read_mixture(path).weights}


def run_cell(partition: str, method: str, seed: int, out: Path, size: Size, sources: Any, corpus: Path) -> None:
    started = time.time()
    plain = cell_config(partition, method, seed, out, size, sources)
    run_train(from_mapping(plain, file=partition), command="gem_mixing", label=f"{partition} {method} seed {seed}",
              extra={"variant": f"{partition} {method}"}, has_page=False)  # fmt: skip
    losses = held_out_losses(plain["out"], corpus, rows_per_domain=size.rows)
    seconds = round(time.time() - started, 1)
    write_json(Path(plain["out"]) / "result.json", {"losses": losses, "seconds": seconds, "versions": versions()})
    print(f"{partition:18s} {method:8s} seed {seed}: {np.mean(list(losses.values())):.4f}, {seconds} s", flush=True)


def summarize(out: Path, sizes: dict[str, float], target: Path) -> None:
    """Loss over given sources, even and weighted by size: means over seeds, 95 % intervals of paired differences."""
    rows: dict[str, Any] = {}
    for path in sorted(out.glob("*/*-seed*/result.json")):
        method, seed = path.parent.name.rsplit("-seed", 1)
        losses = json.loads(path.read_text())["losses"]
        even = float(np.mean(list(losses.values())))
        by_size = float(np.average(list(losses.values()), weights=[sizes[name] for name in losses]))
        rows.setdefault(f"{path.parent.parent.name} {method}", {})[seed] = {"even": even, "by_size": by_size}
    if not rows:
        return
    write_json(target, {"cells": rows})
    print("| division, mixer | seeds | mean over given sources | less given | weighted by size | less given |")
    print("|---|---|---|---|---|---|")
    for name, seeds in rows.items():
        cells = []
        for key in ("even", "by_size"):
            cells.append(f"{np.mean([s[key] for s in seeds.values()]):.4f}")
            given = rows.get(f"given {name.rsplit(' ', 1)[1]}", {})
            common = sorted(set(seeds) & set(given)) if not name.startswith("given ") else []
            less = student_interval(seeds[seed][key] - given[seed][key] for seed in common)
            half = "" if less.half_width is None else f" ± {less.half_width:.3f}"
            cells.append(f"{less.mean:+.3f}{half}" if common else "")
        print(f"| {name} | {len(seeds)} | " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="runs/gem_mixing")
    parser.add_argument("--texts", help="folder of DOMAIN.jsonl files instead of the bundled texts")
    parser.add_argument("--partitions", default=",".join(PARTITIONS))
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--part", default="0/1", help="i/n: every n-th cell from the i-th")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no cell after so long")
    parser.add_argument("--smallest", action="store_true", help="a few steps of everything, to see that it runs")
    parser.add_argument("--summary", action="store_true", help="only collect what is finished")
    arguments = parser.parse_args()
    size, out = SIZES["smallest" if arguments.smallest else "real"], Path(arguments.out).resolve()
    sources: Any = "bundled"
    if arguments.texts:
        sources = {path.stem: {"path": str(path)} for path in sorted(Path(arguments.texts).glob("*.jsonl"))}
    corpus = held_out_folder(out, size, sources)
    index = json.loads((corpus / "index.json").read_text())
    shares = {name: float(entry["splits"]["train"]["tokens"]) for name, entry in index["domains"].items()}
    target = out / "results.json" if arguments.smallest else HERE / "results.json"
    if not arguments.summary:
        texts = write_training_texts(corpus, out / "texts")
        number, count = map(int, arguments.part.split("/"))
        todo = [
            (partition, method, seed)
            for seed in range(size.seeds)
            for partition in arguments.partitions.split(",")
            for method in arguments.methods.split(",")
            if not (method == "law" and partition in WITHOUT_LAW)
        ][number::count]
        deadline, failed = time.time() + 60 * arguments.minutes, 0
        for partition, method, seed in todo:
            if (out / partition / f"{method}-seed{seed}" / "result.json").is_file() or time.time() > deadline:
                continue
            try:
                found = partition_sources(partition, out, texts, seed=0)
                run_cell(partition, method, seed, out, size, found, corpus)
            except (JaxmixError, subprocess.CalledProcessError) as error:
                failed += 1
                print(f"{partition} {method} seed {seed} FAILED: {error}", flush=True)
    summarize(out, shares, target)


if __name__ == "__main__":
    main()
