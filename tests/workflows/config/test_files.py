"""Every file under configs/ loads, says what it is, and does what it says at a tiny size."""

import json
from pathlib import Path

import pytest

from jaxmix.cli import main
from jaxmix.train import latest_by_step, read_records
from jaxmix.workflows.compare.run import load_comparison
from jaxmix.workflows.config.load import load_config
from jaxmix.workflows.discover.config import load_discovery
from jaxmix.workflows.finetune.compare import is_finetune_comparison, load_finetune_comparison
from jaxmix.workflows.finetune.load import load_finetune
from jaxmix.workflows.label.config import load_labeling
from jaxmix.workflows.swarm.config import load_swarm
from jaxmix.workflows.train.doremi import load_doremi

CONFIGS = Path(__file__).parents[3] / "configs"
TINY = ["--data.seq_len", "16", "--data.batch_size", "16", "--data.validation_rows", "2", "--data.block", "1"]


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda p: p.stem)
def test_a_config_loads_and_its_head_says_what_it_does(path, monkeypatch):
    monkeypatch.chdir(CONFIGS.parent)
    loaders = {
        "discover": load_discovery,
        "finetune": load_finetune,
        "label": load_labeling,
        "compare": load_comparison,
        "swarm": load_swarm,
        "doremi": load_doremi,
    }
    load = loaders.get(path.parent.name, load_config)
    if load is load_comparison and is_finetune_comparison(str(path)):
        load = load_finetune_comparison
    load(str(path))
    head = [line for line in path.read_text().splitlines() if line.startswith("#")]
    text = " ".join(head)
    for word in ("jaxmix ", "Hardware:", "Time:", "Expected:"):
        assert word in text, word


def test_the_schedule_is_followed(tmp_path, capsys):
    path = CONFIGS / "train" / "bundled_schedule.yaml"
    points = "[{at: 0, weights: uniform}, {at: 4, weights: prior}]"
    sizes = ["--train.steps", "6", "--train.log_every", "1", "--mixer.points", points]
    folders = ["--out", str(tmp_path / "run"), "--data.prepared", str(tmp_path / "prepared")]
    assert main(["train", str(path), *TINY, *sizes, *folders, "--json"]) == 0
    capsys.readouterr()
    train = latest_by_step(read_records(tmp_path / "run" / "metrics.jsonl"), "train")
    prior = json.loads((tmp_path / "run" / "provenance.json").read_text())["prior"]
    for name, natural in prior.items():
        shares = [max(0.0, min(1.0, step / 4)) * (natural - 1 / 11) + 1 / 11 for step in range(6)]
        asked = train[-1][f"data/asked/{name}"]
        assert asked == pytest.approx(sum(shares) / 6, abs=1e-5)
        assert abs(train[-1][f"data/share/{name}"] - asked) * 96 < 1
