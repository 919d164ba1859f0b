"""Synthetic run folders with values that can be worked out by hand."""

import json
import math

import pytest


def weights_at(step, names, *, moving):
    """The first domain gains what the last one loses."""
    weights = dict.fromkeys(names, 1.0 / len(names))
    if moving:
        shift = min(step, 100) / 100 * weights[names[-1]] / 2
        weights[names[0]] += shift
        weights[names[-1]] -= shift
    return weights


@pytest.fixture
def write_run():
    """`write_run(folder, losses, …)` writes a run folder that ended with the given validation losses."""

    def write(folder, losses, *, variant=None, seed=0, steps=100, planned=None, moving=False, extra=None, given=None):
        names = list(losses)
        folder.mkdir(parents=True)
        config = {"train": {"steps": steps if planned is None else planned, "seed": seed}, "mixer": {"name": "odm"}}
        config |= given or {}
        (folder / "config.yaml").write_text(json.dumps(config))
        provenance = {
            "command": "jaxmix train configs/<train>.yaml",
            "versions": {"jaxmix": "0.1.0", "jax": "0.10.2"},
            "seed": seed,
            "prior": {n: 1.0 / len(names) for n in names},
            "natural_shares": {n: (i + 1) / sum(range(1, len(names) + 1)) for i, n in enumerate(names)},
            "max_epochs": dict.fromkeys(names[:1], 4.0),
            **({"variant": variant} if variant else {}),
            **(extra or {}),
        }
        (folder / "provenance.json").write_text(json.dumps(provenance))
        lines, timing = [], []
        for step in range(0, steps + 1, 10):
            if step % 50 == 0:
                left = (steps - step) / steps
                record = {f"eval/loss/{n}": loss + 3.0 * left for n, loss in losses.items()}
                values = list(record.values())
                record |= {"eval/loss/uniform": sum(values) / len(values), "eval/loss/prior": sum(values) / len(values)}
                record |= {"eval/loss/worst": max(values)}
                lines.append({"kind": "eval", "step": step, "tokens": step * 512, **record})
            if step == 0:
                continue
            record = {"train/loss": 5.0 - step / 50, "train/grad_norm": 1.0, "train/skipped": 0}
            for index, (name, weight) in enumerate(weights_at(step, names, moving=moving).items()):
                record |= {f"train/loss/{name}": 4.0, f"mix/weight/{name}": weight}
                record |= {f"data/share/{name}": weight + 1e-4, f"data/asked/{name}": weight}
                record[f"data/epochs/{name}"] = 0.5 * (index + 1)
                record[f"data/tokens/{name}"] = round(step * 512 * weight)
            weights = weights_at(step, names, moving=moving).values()
            record["mix/entropy"] = -sum(w * math.log(w) for w in weights if w > 0)
            record["data/weight_lag"] = 4 if step == 50 else 1
            lines.append({"kind": "train", "step": step, "tokens": step * 512, **record})
            seconds = 5.0 if step == 10 else 0.1  # the first interval compiles
            timing.append({"step": step, "step_seconds": seconds, "tokens_per_second": 512 / seconds})
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (folder / "timing.jsonl").write_text("".join(json.dumps(line) + "\n" for line in timing))
        return folder

    return write


@pytest.fixture
def add_records():
    """`add_records(folder, {...}, …)` appends lines to a run's metrics."""

    def add(folder, *records):
        with (folder / "metrics.jsonl").open("a") as file:
            file.writelines(json.dumps(record) + "\n" for record in records)

    return add
