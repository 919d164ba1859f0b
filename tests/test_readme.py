"""What the README shows works: its Python on tiny data, its commands in the parser, its YAML in the loaders."""

import re
import shlex
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml

from jaxmix.cli.app import COMMANDS
from jaxmix.cli.arguments import parse
from jaxmix.workflows.config.load import load_config
from jaxmix.workflows.discover.config import load_discovery

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")

TINY_RUN = {
    "sources": "bundled",
    "data": {"tokenizer": "byte", "seq_len": 64, "batch_size": 8, "unit": "tokens"},
    "mixture": {"weights": "natural"},
    "mixer": {"name": "static"},
    "model": {"preset": "lm-300k"},
    "train": {"steps": 10},
}
"""What the fragments of configurations in the README leave out."""


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", TEXT, flags=re.DOTALL)


def commands():
    """Every `jaxmix …` of the shell blocks and the tables, without its comment."""
    shell = [line for block in blocks("bash") for line in block.splitlines() if line.startswith("jaxmix ")]
    words = [shlex.split(line, comments=True) for line in [*shell, *re.findall(r"\| `(jaxmix [^`]*)` \|", TEXT)]]
    return {" ".join(line): line[1:] for line in words}


def unit_rows(rng, *shape):
    rows = rng.normal(size=shape).astype(np.float32)
    return jnp.asarray(rows / np.linalg.norm(rows, axis=-1, keepdims=True))


def test_python_blocks_run_in_order():
    rng = np.random.default_rng(0)
    mixtures = rng.dirichlet(np.ones(3), 24)
    scope = {
        "sources": {name: rng.integers(0, 256, (40, 2048)) for name in ("web", "code", "math")},
        "temperature": jnp.float32(10.0),
        "bias": jnp.float32(-10.0),
        "rows": unit_rows(rng, 480, 8),
        "rewards": jnp.asarray(rng.integers(0, 2, (16, 4)), jnp.float32),
        "losses": 2.0 + mixtures @ rng.uniform(-1, 1, (3, 2)),
        "model_size": np.full(24, 10.0),
        "tokens": np.full(24, 1.0),
        "domain_names": ["web", "code", "math"],
        "metric_names": ["web", "code"],
    }
    image, text, of_reference, others = (unit_rows(rng, 1280, 8) for _ in range(4))
    from jaxmix.selection import Embeddings

    scope |= {"image": image, "text": text}
    scope["reference_embeddings"] = Embeddings(of_reference, others, scope["temperature"], scope["bias"])
    found = {}
    for block in blocks("python"):
        if "RunTable" in block:
            found["mixture weights"] = scope["weights"]
            scope["weights"] = mixtures
        exec(compile(block, "README.md", "exec"), scope)
    np.testing.assert_allclose(np.sum(found["mixture weights"]), 1, rtol=1e-6)
    assert scope["batch"]["tokens"].shape == (64, 1024)
    assert isinstance(scope["checkpoint"], dict)
    assert np.unique(np.asarray(jax.tree.leaves(scope["picked"])[0])).size == 1024
    assert np.bincount(scope["labels"]).size <= 24
    assert scope["arms"].shape == (16,)
    assert scope["fit"].law.name == "hierarchical"


@pytest.mark.parametrize("line", commands())
def test_commands_are_known_with_their_options(line):
    name, *_ = words = commands()[line]
    command = next(c for c in COMMANDS if c.name == name)
    parsed = parse(command, words[1:])
    for word in words[1:]:
        if word.startswith("configs/"):
            assert (ROOT / word).is_file(), word
    assert parsed is not None


def test_commands_were_found():
    assert len(commands()) >= 12
    assert {
        "plan",
        "prepare",
        "train",
        "report",
        "doctor",
        "compare",
        "swarm",
        "law",
        "discover",
        "label",
        "finetune",
    } <= {words[0] for words in commands().values()}


@pytest.mark.parametrize("block", blocks("yaml"))
def test_configurations_load(block, tmp_path):
    given = yaml.safe_load(block)
    path = tmp_path / "readme.yaml"
    if "clusterer" in given:
        path.write_text(block)
        assert load_discovery(str(path)).clusterer.num_clusters == given["clusterer"]["num_clusters"]
        return
    whole = {**TINY_RUN, **given, "data": {**TINY_RUN["data"], **given.get("data", {})}}
    path.write_text(yaml.safe_dump(whole))
    config = load_config(str(path))
    assert config.mixer.name == whole["mixer"]["name"]
    assert config.data.batch_size == whole["data"]["batch_size"]


def test_links_lead_somewhere():
    targets = [t for t in re.findall(r"\]\(([^)#]+)\)", TEXT) if not t.startswith("http")]
    assert targets
    assert [t for t in targets if not (ROOT / t).exists()] == []
