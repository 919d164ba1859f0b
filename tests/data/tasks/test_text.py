"""Prompts over a tokenizer: word problems out of JSONL, and the generators of reasoning-gym."""

import gzip
import json
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra.numpy import arrays

from jaxmix.core.errors import ConfigError, EnvironmentProblem
from jaxmix.data.tasks import Question, gsm8k, reasoning_gym, text_prompts
from jaxmix.data.tokenizers import byte_tokenizer
from jaxmix.workflows.finetune.run import _prompts_hash

LINES = [
    {"question": "How many are 3 bags of 5 eggs?", "answer": "3*5=<<3*5=15>>15\n#### 15", "level": 0},
    {"question": "Half of $2,500?", "answer": "#### 1,250", "level": 1},
    {"question": "And of that?", "answer": 625, "level": 1},
]


def written(tmp_path, lines):
    path = tmp_path / "problems.jsonl"
    path.write_text(
        "\n\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8"
    )
    return path


def completions_of(prompts, texts):
    ids = [np.append(e, prompts.eos_id) for e in byte_tokenizer().encode_batch(texts)]
    table = np.full((len(texts), 1, prompts.completion_length), prompts.pad_id, np.int32)
    for row, one in enumerate(ids):
        table[row, 0, : len(one)] = one
    return table


def test_word_problems(tmp_path):
    prompts = gsm8k(written(tmp_path, LINES), completion_length=48, level_field="level", template="Q: {question} A:")
    assert prompts.arm_names == ("all0", "all1")
    assert prompts.arms.tolist() == [0, 1, 1]
    assert prompts.decode(prompts.tokens[1]) == "Q: Half of $2,500? A:"
    assert prompts.decode(prompts.targets[0]).endswith("#### 15")
    assert prompts.vocab_size == 257
    np.testing.assert_array_equal(prompts.reward(np.arange(3), prompts.targets[:, None]), np.ones((3, 1)))
    texts = ["so 15 eggs", r"\boxed{\frac{2500}{2}}", "625.00 dollars"]
    np.testing.assert_array_equal(prompts.reward(np.arange(3), completions_of(prompts, texts)), np.ones((3, 1)))
    texts = ["15 #### 16", "1,25", ""]
    np.testing.assert_array_equal(prompts.reward(np.arange(3), completions_of(prompts, texts)), np.zeros((3, 1)))


def test_the_hash_of_the_prompts_covers_answers_that_are_no_targets(tmp_path):
    def hash_of(answer, **options):
        return _prompts_hash(gsm8k(written(tmp_path, [{"question": "x", "answer": answer}]), **options))

    assert hash_of("#### 5", with_targets=False) == hash_of("so #### 5", with_targets=False)
    assert hash_of("#### 5", with_targets=False) != hash_of("#### 6", with_targets=False)
    assert hash_of("#### 5") != hash_of("#### 6")


@pytest.mark.parametrize(
    ("lines", "arguments", "match"),
    [
        (["{"], {}, "line 1"),
        (["[1]"], {}, "lines that are not JSON objects: 1"),
        ([{"question": "x"}], {}, "lines without 'answer': 1 .*The first of them has: question"),
        ([{"question": "x", "answer": " "}], {}, "lines whose 'answer' is empty: 1"),
        ([{"question": " ", "answer": "7"}], {}, "lines whose 'question' is empty: 1"),
        ([{"question": "x", "answer": None}], {}, "lines whose 'answer' is not text or a number: 1"),
        ([{"question": "x", "answer": ["4", "5"]}], {}, "is not text or a number: 1"),
        ([{"question": [{"role": "user", "content": "x"}], "answer": 1}], {}, "chat-style prompts"),
        ([{"question": "x", "answer": "yes"}], {}, "would score 0 against themselves: 1"),
        ([{"question": "x", "answer": 1, "level": "hard"}], {"level_field": "level"}, "whole number"),
        ([{"question": "x", "answer": "1" * 60}], {}, "answer 0 has 61 tokens, more than 48"),
        ([], {}, "empty files: 1"),
        (LINES, {"template": "Q"}, "has no {question}"),
        (LINES, {"prompt_length": 3}, "prompt 0 has 31 tokens, more than 3"),
    ],
)
def test_files_that_do_not_do_are_refused(tmp_path, lines, arguments, match):
    with pytest.raises(ConfigError, match=match):
        gsm8k(written(tmp_path, lines), **{"completion_length": 48} | arguments)


def test_answers_that_cannot_be_scored_are_left_out_on_request(tmp_path, capsys):
    lines = [{"question": "x", "answer": a} for a in ("yes", "#### yes", "3 and 4, so 7", "A")]
    prompts = gsm8k(written(tmp_path, lines), completion_length=16, skip_unscorable=True)
    assert len(prompts) == 2
    np.testing.assert_array_equal(prompts.reward(np.arange(2), completions_of(prompts, ["#### Yes", "7"])), 1)
    said = "left out: lines without a final answer, which would score 0 against themselves: 2 (problems.jsonl:line 1, "
    assert capsys.readouterr().err.count(said) == 1
    gsm8k(tmp_path / "problems.jsonl", completion_length=16, skip_unscorable=True)
    assert capsys.readouterr().err == ""


def test_all_kinds_of_unusable_lines_are_told_at_once_and_may_be_left_out(tmp_path, capsys):
    fine, bare = {"question": "x", "answer": 7}, {"question": "x"}
    path = written(tmp_path, ["{", fine, {**bare, "answer": None}, bare, {**bare, "answer": "yes"}, fine, "[]", "{"])
    kinds = (
        "lines that are not JSON: 2 (problems.jsonl:line 1, problems.jsonl:line 15)",
        "lines that are not JSON objects: 1 (problems.jsonl:line 13)",
        "lines whose 'answer' is not text or a number: 1 (problems.jsonl:line 5)",
        "lines without 'answer': 1 (problems.jsonl:line 7)",
        "lines without a final answer, which would score 0 against themselves: 1 (problems.jsonl:line 9)",
    )
    with pytest.raises(ConfigError) as caught:
        gsm8k(path, completion_length=8)
    assert caught.value.what == "; ".join(kinds)
    assert len(gsm8k(path, completion_length=8, skip_unscorable=True)) == 2
    assert capsys.readouterr().err.splitlines() == [f"{path}: left out: {kind}" for kind in kinds]
    with pytest.raises(ConfigError, match=r"lines without 'reply': 5 .*has: question, answer"):
        gsm8k(path, completion_length=8, skip_unscorable=True, answer_field="reply")


def test_a_reference_with_a_unit_is_compared_with_it(tmp_path):
    prompts = gsm8k(written(tmp_path, [{"question": "x", "answer": "#### 12 apples"}]), completion_length=24)
    completions = completions_of(prompts, ["#### 12 apples", "#### 12", "#### 12 pears"])
    np.testing.assert_array_equal(prompts.reward(np.zeros(3, int), completions)[:, 0], [1, 1, 0])


def test_a_reference_in_prose_keeps_its_scale_and_a_time_is_no_number(tmp_path):
    lines = [{"question": "x", "answer": a} for a in ("it is about 3 million", "so 12:30", "3-2", "1 000 000")]
    prompts = gsm8k(written(tmp_path, lines), completion_length=24, skip_unscorable=True)
    for texts, rewards in {("#### 3 million", "1000000"): [1, 1], ("#### 3", "#### 12:30"): [0, 0]}.items():
        np.testing.assert_array_equal(prompts.reward(np.arange(2), completions_of(prompts, texts))[:, 0], rewards)


def test_a_line_ends_with_a_line_feed_alone(tmp_path):
    for ending in ("\u2028", "\u0085", "\u000b"):
        line = json.dumps({"question": f"List:{ending} a", "answer": "#### 4"}, ensure_ascii=False)
        path = tmp_path / "p.jsonl.gz"
        path.write_bytes(gzip.compress(b"\xef\xbb\xbf" + line.encode() + b"\r\n"))
        prompts = gsm8k(path, completion_length=8)
        assert prompts.decode(prompts.tokens[0]) == f"List:{ending} a\n"


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    whole = gzip.compress(json.dumps({"question": "x", "answer": 1}).encode() * 9)
    cases = {"a.jsonl.gz": whole[:-9], "b.jsonl.gz": b"no archive", "c.jsonl": b'{"question": "\xff", "answer": 1}\n'}
    cases["d.jsonl"] = b'{"question": "\\ud800", "answer": 1}\n'
    for name, data in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ConfigError, match=r"cannot be read|not UTF-8|surrogate"):
            gsm8k(tmp_path / name)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match="no file"):
        gsm8k(tmp_path / "none.jsonl")


TOKENS = arrays(np.int32, (2, 2, 12), elements=st.integers(-(2**31), 2**31 - 1) | st.integers(0, 257))


def test_long_reference_answers_can_be_left_out(tmp_path):
    lines = [{"question": "x", "answer": "long " * 40 + "#### 3"}]
    prompts = gsm8k(written(tmp_path, lines), completion_length=12, with_targets=False)
    assert prompts.targets is None

    @given(TOKENS)
    def never_raises(completions):
        rewards = prompts.reward(np.array([0, 0]), completions)
        assert rewards.shape == (2, 2)
        assert set(np.unique(rewards)) <= {0.0, 1.0}

    never_raises()


@given(TOKENS, st.sampled_from([np.nan, np.inf, -1.0, 2.0, "x", None, ZeroDivisionError, RecursionError]))
def test_a_scorer_that_fails_counts_as_wrong(completions, outcome):
    def score(row, text):
        assert isinstance(text, str)
        if isinstance(outcome, type):
            raise outcome
        return outcome

    prompts = text_prompts([Question("a", "b")], score, byte_tokenizer(), completion_length=12)
    expected = 1.0 if outcome == 2.0 else 0.0
    np.testing.assert_array_equal(prompts.reward(np.array([0, 0]), completions), np.full((2, 2), expected))


class Sums:
    """As a dataset of reasoning-gym: entries with question, answer and metadata, and a scorer of its own."""

    def __init__(self, seed, size, terms=2):
        rng = np.random.default_rng(seed)
        rows = rng.integers(0, 9, (size, terms)).tolist()
        self.entries = [{"question": f"{row}?", "answer": str(sum(row)), "metadata": {}} for row in rows]

    def __iter__(self):
        return iter(self.entries)

    def score_answer(self, answer, entry):
        if answer is None or not answer.isdigit():
            raise ValueError(answer)
        return 1.0 if answer == entry["answer"] else 0.01


def create_dataset(name, seed, size, **options):
    if name != "sums":
        raise ValueError(f"Dataset '{name}' not registered")
    return Sums(seed, size, **options)


FAKE = SimpleNamespace(create_dataset=create_dataset)


def test_generators_become_arms():
    configurations = {"sums": [{"terms": 2}, {"terms": 3}]}
    prompts = reasoning_gym(configurations, per_arm=20, completion_length=8, package=FAKE)
    held_out = reasoning_gym(configurations, part="held_out", per_arm=10, completion_length=8, package=FAKE)
    assert prompts.arm_names == held_out.arm_names == ("sums0", "sums1")
    texts = {prompts.decode(row) for row in prompts.tokens}
    assert len(texts) == len(prompts)
    assert not texts & {held_out.decode(row) for row in held_out.tokens}
    np.testing.assert_array_equal(prompts.reward(np.arange(3), prompts.targets[:3, None]), np.ones((3, 1)))
    np.testing.assert_allclose(prompts.reward(np.arange(1), completions_of(prompts, [" 99 "])), [[0.01]])
    np.testing.assert_array_equal(prompts.reward(np.arange(1), completions_of(prompts, ["?"])), [[0.0]])


def test_answers_that_no_completion_can_be_leave_no_targets():
    assert reasoning_gym(["sums"], per_arm=3, completion_length=2, package=FAKE).targets is None


@pytest.mark.parametrize("datasets", [["products"], {"sums": [{"color": 1}]}])
def test_what_the_package_refuses_is_named(datasets):
    with pytest.raises(ConfigError, match="reasoning-gym does not make"):
        reasoning_gym(datasets, package=FAKE)


def test_the_real_package():
    package = pytest.importorskip("reasoning_gym", reason="the extra reasoning-gym is not installed")
    datasets = {
        "chain_sum": [{"min_terms": 2, "max_terms": 2}, {"min_terms": 4, "max_terms": 4}],
        "spell_backward": [{}],
    }
    prompts = reasoning_gym(datasets, per_arm=12, completion_length=32, package=package)
    held_out = reasoning_gym(datasets, part="held_out", per_arm=8, completion_length=32)
    assert prompts.arm_names == ("chain_sum0", "chain_sum1", "spell_backward0")
    assert not {prompts.decode(r) for r in prompts.tokens} & {held_out.decode(r) for r in held_out.tokens}
    np.testing.assert_array_equal(prompts.reward(np.arange(len(prompts)), prompts.targets[:, None]), 1.0)
    assert (prompts.reward(np.arange(2), completions_of(prompts, ["", "\u0664 no"])) < 0.1).all()


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "reasoning_gym", None)
    with pytest.raises(EnvironmentProblem, match=r"jaxmix\[reasoning-gym\]"):
        reasoning_gym(["sums"])
