"""The hash of every run that a file under configs/ describes: a changed one makes old run folders refuse to continue.

Where a change is meant, `python tests/workflows/config/test_hashes.py` writes hashes.json again; the commit says why.
"""

import json
from pathlib import Path

from jaxmix.workflows.compare.run import load_comparison
from jaxmix.workflows.config.load import load_config
from jaxmix.workflows.config.sections import config_hash
from jaxmix.workflows.finetune.compare import is_finetune_comparison, load_finetune_comparison
from jaxmix.workflows.finetune.load import load_finetune
from jaxmix.workflows.swarm.config import load_swarm
from jaxmix.workflows.train.doremi import load_doremi

CONFIGS = Path(__file__).parents[3] / "configs"
EXPECTED = Path(__file__).with_name("hashes.json")


def hashes():
    found = {}
    for path in sorted(CONFIGS.rglob("*.yaml")):
        file, kind, key = str(path), path.parent.name, f"{path.parent.name}/{path.stem}"
        if kind in ("discover", "label"):  # these have no hash of their own
            continue
        if kind == "finetune":
            found[key] = config_hash(load_finetune(file))
        elif kind == "swarm":
            found |= {f"{key} {size.name}": config_hash(size.config) for size in load_swarm(file).sizes}
        elif kind == "doremi":
            doremi = load_doremi(file)
            found |= {f"{key} {name}": config_hash(getattr(doremi, name)) for name in ("reference", "proxy")}
        elif kind == "compare" and is_finetune_comparison(file):
            for m in load_finetune_comparison(file):
                found[f"{key} {m.variant} {m.seed}"] = config_hash(m.config)
        elif kind == "compare":
            for m in load_comparison(file):
                found[f"{key} {m.variant} {m.seed}"] = config_hash(m.config)
        else:
            found[key] = config_hash(load_config(file))
    return found


def test_the_files_under_configs_keep_their_hashes():
    assert hashes() == json.loads(EXPECTED.read_text(encoding="utf-8"))


if __name__ == "__main__":
    EXPECTED.write_text(json.dumps(hashes(), indent=1) + "\n", encoding="utf-8")
