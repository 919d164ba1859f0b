"""The suites: answers against slow rules of the test's own, parts without overlap, exact and unbreakable verifiers."""

import re

import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra.numpy import arrays

from jaxmix.core.errors import ConfigError
from jaxmix.data import tasks
from jaxmix.data.tasks.prompts import PromptSet, answer_length, exact_match, left_padded
from jaxmix.data.tasks.suites import is_held_out, registry, suite

NAMES = sorted(registry)


def slow_answer(question):
    """The right answer, from the question's letter; written apart from the suites."""
    letter, body = question[0], question[1:-1]
    if letter == "A":
        left, right = body.split("+")
        return "".join(reversed(str(int(left) + int(right))))
    if letter == "R":
        return "".join(body[i] for i in range(len(body) - 1, -1, -1))
    if letter == "S":
        return "".join(d * body.count(d) for d in "0123456789")
    if letter == "D":
        return "".join(dict(zip("0123456789", "3456789012", strict=True))[d] for d in body)
    if letter == "C":
        return re.sub("(.)(.)", r"\2\1", body)
    digits = [int(c) for c in body if c.isdigit()]
    if letter == "N":
        return f"{len(body) - len(body.replace('a', ''))}{body.count('b')}{body.count('c')}"
    if letter == "M":
        return "".join(str(max(digits[: i + 1])) for i in range(len(digits)))
    if letter == "P":
        return "".join("01"[sum(d % 2 for d in digits[: i + 1]) % 2] for i in range(len(digits)))
    if letter == "T":
        return "".join(str(sum(digits[: i + 1]))[-1] for i in range(len(digits)))
    if letter == "B":
        while (shorter := re.sub(r"\(\)|\[\]|\{\}", "", body)) != body:
            body = shorter
        return body[::-1].translate(str.maketrans("([{", ")]}"))
    if letter == "U":
        return "".join(c for i, c in enumerate(body) if c not in body[:i])
    return None


@pytest.fixture(scope="module", params=NAMES)
def parts(request):
    return [tasks.make(request.param, part=part, per_arm=48) for part in ("train", "held_out")]


@pytest.mark.parametrize("name", NAMES)
def test_a_suite_has_at_least_24_arms_to_learn(name):
    prompts = tasks.make(name, per_arm=1)
    learnable = {family.name for family in suite(name) if family.is_learnable}
    assert sum(family in learnable for family in prompts.families) >= 24
    assert prompts.num_arms - sum(family in learnable for family in prompts.families) == 2


def test_answers_follow_the_rules(parts):
    for prompts in parts:
        noise = []
        for row in range(len(prompts)):
            question, answer = prompts.decode(prompts.tokens[row]), prompts.decode(prompts.targets[row])
            assert question.endswith("=")
            if (expected := slow_answer(question)) is None:
                noise.append(answer)
            else:
                assert answer == expected, question
        assert all(len(answer) == 4 for answer in noise)
        assert len(set(noise)) > 0.9 * len(noise)


def test_prompts_end_in_the_last_column_and_answers_with_an_end(parts):
    for prompts in parts:
        assert (prompts.tokens[:, -1] != prompts.pad_id).all()
        is_pad = prompts.tokens == prompts.pad_id
        assert (is_pad[:, 1:] <= is_pad[:, :-1]).all()  # padding on the left only
        ends = answer_length(prompts.targets, prompts.eos_id)
        assert (ends <= prompts.completion_length).all()
        behind = np.arange(prompts.completion_length) >= ends[:, None]
        assert (prompts.targets[behind] == prompts.pad_id).all()


def test_levels_get_longer_and_every_arm_has_prompts(parts):
    for prompts in parts:
        lengths = (prompts.tokens != prompts.pad_id).sum(1)
        counts = np.bincount(prompts.arms, minlength=prompts.num_arms)
        means = np.bincount(prompts.arms, lengths) / counts
        assert (counts >= 5).all()
        for arm in range(1, prompts.num_arms):
            if prompts.families[arm] == prompts.families[arm - 1]:
                assert prompts.levels[arm] == prompts.levels[arm - 1] + 1
                assert means[arm] > means[arm - 1]


@pytest.mark.parametrize("name", NAMES)
def test_no_prompt_is_in_both_parts_whatever_the_seed(name):
    texts = {}
    for part in ("train", "held_out"):
        sets = [tasks.make(name, part=part, per_arm=50, seed=seed) for seed in (0, 1)]
        first, second = ([p.decode(row) for row in p.tokens] for p in sets)
        assert len(set(first)) == len(first)
        assert first != second
        texts[part] = set(first) | set(second)
        assert all(is_held_out(text) == (part == "held_out") for text in texts[part])
    assert not texts["train"] & texts["held_out"]
    again = tasks.make(name, per_arm=50)
    np.testing.assert_array_equal(again.tokens, tasks.make(name, per_arm=50).tokens)


def test_small_spaces_are_used_up_and_large_ones_filled():
    prompts = tasks.make("digits", per_arm=900, families=["sort"])
    counts = np.bincount(prompts.arms)
    assert counts[0] < 100
    assert counts[0] + np.bincount(tasks.make("digits", part="held_out", families=["sort"]).arms)[0] == 100
    assert counts[1] < 900
    assert (counts[2:] == 900).all()


def test_parts_of_a_suite():
    prompts = tasks.make("digits", per_arm=3, families=["swap", "rev"], levels=2)
    assert prompts.arm_names == ("swap0", "swap1", "rev0", "rev1")
    assert "rand" not in tasks.make("symbols", per_arm=1, with_noise=False).families
    rows = prompts.rows_by_arm(2)
    np.testing.assert_array_equal(rows, [[0, 1], [3, 4], [6, 7], [9, 10]])
    few = prompts.take([4, 9])
    assert few.num_arms == 4
    np.testing.assert_array_equal(few.rows_by_arm(), [[-1], [0], [-1], [1]])
    np.testing.assert_array_equal(few.reward(np.array([1, 0]), few.targets[[[1], [1]]]), [[1], [0]])


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"families": ["sorted"]}, "unknown family 'sorted'.*Did you mean 'sort'"),
        ({"families": ["sort", "sort"]}, "different"),
        ({"part": "test"}, "unknown part 'test'"),
        ({"per_arm": 0}, "per_arm must be"),
        ({"levels": 0}, "levels must be"),
        ({"seed": -1}, "seed must be"),
        ({"color": 1}, "no argument 'color'"),
    ],
)
def test_wrong_arguments_are_named(arguments, match):
    with pytest.raises(ConfigError, match=match):
        tasks.make("digits", **arguments)


def test_unknown_suites_are_named():
    with pytest.raises(ConfigError, match=r"unknown task suite 'digit'.*Did you mean 'digits'"):
        tasks.make("digit")


FEW = tasks.make("digits", per_arm=2)
COMPLETIONS = arrays(np.int32, (2, 3, FEW.completion_length), elements=st.integers(-(2**31), 2**31 - 1))


def slow_match(completion, target, eos):
    target = target[: target.index(eos) + 1]
    return completion[: len(target)] == target


@given(COMPLETIONS, st.integers(0, len(FEW) - 1), st.integers(0, len(FEW) - 1))
def test_the_verifier_is_exact_up_to_the_end_and_never_raises(completions, first, second):
    completions[0, 0] = FEW.targets[first]
    completions[1, 1] = np.where(np.arange(8) < 6, FEW.targets[second], completions[1, 1])
    rows = np.array([first, second])
    rewards = FEW.reward(rows, completions)
    expected = [
        [slow_match(c, FEW.targets[r].tolist(), FEW.eos_id) for c in g]
        for r, g in zip(rows, completions.tolist(), strict=True)
    ]
    assert rewards.dtype == np.float32
    np.testing.assert_array_equal(rewards, np.asarray(expected, np.float32))
    assert rewards[0, 0] == 1
    assert isinstance(FEW.decode(completions[1, 2]), str)


def test_what_comes_after_the_end_does_not_count():
    reward = exact_match([[5, 1, 0]], eos_id=1)
    rows = np.array([0])
    np.testing.assert_array_equal(
        reward(rows, np.array([[[5, 1, 9], [5, 5, 1], [5, 0, 1], [1, 5, 1], [4, 1, 0]]])), [[1, 0, 0, 0, 0]]
    )
    np.testing.assert_array_equal(reward(rows, np.array([[[5], [1]]])), [[0, 0]])  # too short to hold an end
    np.testing.assert_array_equal(reward(rows, np.array([[[5, 1, 7, 7, 7]]])), [[1]])
    with pytest.raises(ConfigError, match="target 1 has no end"):
        exact_match([[5, 1], [5, 5]], eos_id=1)


GOOD = {
    "tokens": [[0, 2]],
    "targets": [[2, 1]],
    "arms": [0],
    "arm_names": ("a",),
    "families": ("f",),
    "levels": (0,),
    "reward": None,
    "decode": str,
    "pad_id": 0,
    "eos_id": 1,
    "vocab_size": 3,
    "completion_length": 2,
}


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"tokens": [[0, 3]]}, r"tokens must be in \[0, 3\)"),
        ({"tokens": [0, 2]}, "2 dimension"),
        ({"tokens": [[0.0, 2.0]]}, "whole numbers"),
        ({"targets": [[2, 1, 0]]}, "completion_length"),
        ({"arms": [1]}, r"arms must be in \[0, 1\)"),
        ({"arms": [0, 0]}, "arms have shape"),
        ({"arm_names": ("a", "a")}, "all different"),
        ({"levels": (0, 1)}, "2 levels for 1 arms"),
        ({"pad_id": 1}, "must differ"),
        ({"eos_id": 3}, "eos_id must be below"),
        ({"completion_length": 0}, "completion_length"),
    ],
)
def test_sets_that_do_not_fit_are_refused(changes, match):
    reward = exact_match([[2, 1]], eos_id=1)
    PromptSet(**GOOD | {"reward": reward})
    with pytest.raises(ConfigError, match=match):
        PromptSet(**GOOD | {"reward": reward} | changes)


def test_padding_refuses_what_is_too_long():
    with pytest.raises(ConfigError, match="sequence 1 has 3 tokens, more than 2"):
        left_padded([[1], [1, 2, 3]], 2, 0)
