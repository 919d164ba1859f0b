"""Clusters as arms of a fine-tuning run: what is kept, that it is made once, and what difficulty is taken from."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from jaxmix.core.errors import ConfigError, RunError
from jaxmix.data import tasks
from jaxmix.models import TransformerConfig, transformer
from jaxmix.workflows.finetune.config import ReductionConfig
from jaxmix.workflows.finetune.load import finetune_of
from jaxmix.workflows.finetune.plan import make_finetune_plan
from jaxmix.workflows.finetune.reduction import count_solved, reduce_prompts

PROMPTS = tasks.make("digits", per_arm=30, families=["rev", "addr"], levels=3)
SECTION = ReductionConfig(num_clusters=4, per_cluster=5)


def reduced(path, **changes):
    arguments = {"model": None, "params": None, "seed": 0, "is_suite": True, "say": lambda line: None} | changes
    return reduce_prompts(arguments.pop("section", SECTION), PROMPTS, path, **arguments)


@pytest.mark.slow
def test_clusters_are_arms_from_easy_to_hard_and_are_made_once(tmp_path):
    path = tmp_path / "reduction.json"
    lines = []
    prompts, kept = reduced(path, say=lines.append)
    assert lines == ["reduction: 20 of 180 prompts kept, in 4 clusters"]
    assert prompts.arm_names == ("cluster0", "cluster1", "cluster2", "cluster3")
    assert prompts.levels == (0, 1, 2, 3)
    assert kept.shape == (4, 5)
    for arm, rows in enumerate(kept):
        assert set(prompts.arms[rows].tolist()) == {arm}
    levels = np.asarray(PROMPTS.levels)[PROMPTS.arms]
    means = [levels[prompts.arms == arm].mean() for arm in range(4)]
    assert means == sorted(means)
    again, kept_again = reduced(path, seed=1)  # read, not made again
    np.testing.assert_array_equal(kept_again, kept)
    np.testing.assert_array_equal(again.arms, prompts.arms)
    rows = kept[:, 0]
    np.testing.assert_array_equal(again.reward(rows, PROMPTS.targets[rows][:, None]), np.ones((4, 1)))
    path.write_text(json.dumps({"labels": [0], "kept": [[0]]}))
    with pytest.raises(RunError, match="1 labels for 180 prompts"):
        reduced(path)


@pytest.mark.slow
def test_attempts_count_what_the_policy_solves():
    """Rewards of all attempts are added up for their prompt, in a last batch that is not full too."""
    few = PROMPTS.take(np.arange(5))
    model = transformer(TransformerConfig(num_layers=1, width=16, num_heads=2, vocab_size=20))
    params = model.init(jax.random.key(0))
    first = lambda rows, made: np.repeat(np.asarray(rows)[:, None] == 0, made.shape[1], axis=1).astype(np.float32)
    few = dataclasses.replace(few, reward=first)
    solved = count_solved(few, model, params, attempts=3, seed=0)
    np.testing.assert_array_equal(solved, [3, 0, 0, 0, 0])


BASE = {
    "tasks": {"name": "digits", "per_arm": 20, "evaluation": {"per_arm": 4}},
    "reduction": {"num_clusters": 3, "per_cluster": 4},
    "bandit": {"name": "staged", "order": "level"},
    "train": {"steps": 10},
}


def test_the_configuration_of_a_reduction():
    config = finetune_of(BASE)
    plan = make_finetune_plan(config)
    assert plan.unique_prompts == 12
    assert any("3 clusters of at most 4 prompts" in note for note in plan.notes)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"reduction": {"per_cluster": 4}}, "no num_clusters"),
        ({"tasks": {**BASE["tasks"], "kept_per_arm": 3}}, "both choose prompts"),
        ({"reduction": {"num_clusters": 3, "difficulty": "attempts"}}, "starts from fresh parameters"),
        ({"tasks": {"name": "digits", "levels": 1}}, "the same level"),
        ({"bandit": {"name": "staged", "order": [0, 1]}}, "does not name each of the arms"),
    ],
)
def test_mistakes_of_a_reduction_are_named(changes, match):
    with pytest.raises(ConfigError, match=match):
        finetune_of(BASE | changes)


def test_arms_of_clusters_keep_the_verifier():
    labels = (np.arange(len(PROMPTS)) % 2).astype(np.int32)
    prompts = PROMPTS.with_clusters(labels, 2)
    assert prompts.num_arms == 2
    np.testing.assert_array_equal(prompts.tokens, PROMPTS.tokens)
