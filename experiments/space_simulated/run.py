"""Prompts that each curriculum needs in simulated skills, against uniform sampling over clusters.

    python experiments/space_simulated/run.py                  # 40 paired seeds, writes results.json
    python experiments/space_simulated/run.py --seeds 8 --only thompson

A row that is in results.json with the same number of seeds is not run again. Censored runs count with the most prompts.
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from pathlib import Path

import jax
import numpy as np

from jaxmix import curricula
from jaxmix.simulate.learners import prompts_to_target, skill_worlds

RESULTS = Path(__file__).parent / "results.json"
ROWS = {
    "uniform": ("uniform", {}),
    "proportional": ("space", {"rule": "proportional"}),
    "thompson": ("space", {"rule": "thompson"}),
    "literal": ("space", {"rule": "literal"}),
    "sparft_v1": ("sparft_v1", {}),
    "dump": ("dump", {}),
    "sec": ("sec", {"temperature": 0.4}),
    "lilo": ("lilo", {}),
    "adarft": ("adarft", {}),
    "staged": ("staged", {}),
    "mopps": ("mopps", {"kept": 0.5}),
}
LATE = {f"{row} {lag} late": (row, lag) for row in ("thompson", "proportional") for lag in (1, 4, 16)}
"""Rows whose rewards come so many steps late."""
BATCH = 16
BY_LEVEL = {"adarft": "difficulty", "staged": "order"}
"""Rows that are told how hard each arm is at the start."""


def bandit_of(row, start):
    name, arguments = ROWS[LATE.get(row, (row, 0))[0]]
    if row in BY_LEVEL:
        rank = np.argsort(-start, kind="stable")
        labels = 100 * (start.max() - start) / np.ptp(start)
        arguments = arguments | {BY_LEVEL[row]: [int(arm) for arm in rank] if row == "staged" else labels.tolist()}
    if row == "adarft":
        # Arms of one label share a batch: the order of their prompts in the pool is not known.
        arguments["prompts_per_arm"] = max(1, BATCH * len(set(start.tolist())) // len(start))
    return curricula.make(name, len(start), **arguments)


@functools.cache
def compiled(row, start):
    bandit = bandit_of(row, np.asarray(start))
    lag = LATE.get(row, (row, 0))[1]
    return jax.jit(jax.vmap(lambda world, key: prompts_to_target(bandit, world, key, lag=lag), in_axes=(None, 0)))


def measure(row, world, seeds):
    # The same program for all worlds of a size; rows told the levels need one per set of levels.
    start = np.asarray(world.start) if row in BY_LEVEL else np.zeros(len(world.start))
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(2024), np.arange(seeds))
    prompts, shares = compiled(row, tuple(start.tolist()))(world, keys)
    return {"prompts": np.asarray(prompts).tolist(), "largest_share": float(np.asarray(shares).max(1).mean())}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=40)
    parser.add_argument("--only", nargs="*", default=[*ROWS, *LATE], choices=[*ROWS, *LATE])
    parser.add_argument("--worlds", nargs="*", default=list(skill_worlds()), choices=list(skill_worlds()))
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    stored = json.loads(args.out.read_text()) if args.out.exists() else {}
    cells = stored if stored.get("seeds") == args.seeds else {"seeds": args.seeds, "cells": {}}
    for name in args.worlds:
        for row in dict.fromkeys(["uniform", *args.only]):
            key = f"{name}/{row}"
            if key not in cells["cells"]:
                begin = time.process_time()
                cells["cells"][key] = measure(row, skill_worlds()[name], args.seeds)
                args.out.write_text(json.dumps(cells) + "\n")
                base = np.array(cells["cells"][f"{name}/uniform"]["prompts"])
                own = np.array(cells["cells"][key]["prompts"])
                gain, censored = np.median(base / own), (own >= 64_000).mean()
                spent = time.process_time() - begin
                print(f"{key:32s} {np.median(own):8.0f} gain {gain:5.2f} censored {censored:.2f} {spent:5.1f} s CPU")
    for row in args.only:
        done = [name for name in args.worlds if f"{name}/{row}" in cells["cells"]]
        ratios = [cells["cells"][f"{name}/uniform"]["prompts"] for name in done]
        own = [cells["cells"][f"{name}/{row}"]["prompts"] for name in done]
        gains = np.array([np.median(np.array(a) / np.array(b)) for a, b in zip(ratios, own, strict=True)])
        print(f"{row:14s} geometric mean {np.exp(np.log(gains).mean()):.2f}, worst {gains.min():.2f} of {len(gains)}")


if __name__ == "__main__":
    main()
