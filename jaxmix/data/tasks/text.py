"""Prompts over a tokenizer: questions and answers as text, scored as text."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxmix.core.errors import ConfigError
from jaxmix.core.validate import check_count
from jaxmix.data.tasks.prompts import PromptSet, left_padded, right_padded
from jaxmix.data.tokenizers import Tokenizer


class Question(NamedTuple):
    """A question as text.

    Attributes:
        prompt: given to the model.
        answer: a reference answer, to start from by supervision; `None` where there is none.
        family: kind of task.
        level: difficulty within its family, from 0. Questions of one family and level are one arm.
    """

    prompt: str
    answer: str | None
    family: str = "all"
    level: int = 0


def text_prompts(
    questions: Sequence[Question],
    score: Callable[[int, str], float],
    tokenizer: Tokenizer,
    *,
    completion_length: int,
    prompt_length: int | None = None,
    template: str = "{question}",
    references: Sequence[str] = (),
) -> PromptSet:
    """Questions as a `PromptSet`: a completion is decoded up to its end and scored as text.

    The tokenizer's end of document ends a completion; the padding is one further id, `tokenizer.vocab_size`.

    Args:
        questions: at least one.
        score: `(number of the question, completion) -> number in [0, 1]`. If it raises, or returns no number,
            the completion counts as wrong.
        tokenizer: as for `prepare`.
        completion_length: slots of a completion, its end included.
        prompt_length: columns of the prompts; `None`: as the longest needs.
        template: text with `{question}` in it, for instructions around each question.
        references: what `score` compares with, which the hash of the prompts covers where they have no targets.

    Raises:
        ConfigError: no questions, a prompt or answer that is too long, or a template without `{question}`.
    """
    check_count("text_prompts", "completion_length", completion_length)
    if not questions:
        raise ConfigError("there are no questions", where="text_prompts(questions)")
    if "{question}" not in template:
        raise ConfigError(
            f"the template {template!r} has no {{question}}", where="text_prompts(template)", fix="Say where it goes."
        )
    prompts = tokenizer.encode_batch([template.replace("{question}", q.prompt) for q in questions])
    width = max(1, *(len(p) for p in prompts)) if prompt_length is None else prompt_length
    _check_lengths("prompt", prompts, width, "prompt_length")
    end, pad = tokenizer.end_of_document, tokenizer.vocab_size
    targets = None
    if all(q.answer is not None for q in questions):
        answers = [np.append(ids, end) for ids in tokenizer.encode_batch([str(q.answer) for q in questions])]
        _check_lengths("answer", answers, completion_length, "completion_length")
        targets = right_padded(answers, completion_length, pad)
    arms = sorted({(q.family, q.level) for q in questions})
    index = {arm: number for number, arm in enumerate(arms)}

    def decode(tokens: NDArray) -> str:
        ids = np.asarray(tokens).ravel()
        ends = np.flatnonzero(ids == end)
        ids = ids[: ends[0]] if len(ends) else ids
        return tokenizer.decode(ids[(ids >= 0) & (ids < pad)])

    def reward(rows: NDArray, completions: NDArray) -> NDArray[np.float32]:
        given = np.asarray(completions)
        values = [
            [_safe(score, int(row), decode, one) for one in group] for row, group in zip(rows, given, strict=True)
        ]
        return np.asarray(values, np.float32).reshape(given.shape[:2])

    return PromptSet(
        tokens=left_padded(prompts, width, pad),
        targets=targets,
        arms=np.asarray([index[q.family, q.level] for q in questions], np.int32),
        arm_names=tuple(f"{family}{level}" for family, level in arms),
        families=tuple(family for family, _ in arms),
        levels=tuple(level for _, level in arms),
        reward=reward,
        decode=decode,
        pad_id=pad,
        eos_id=end,
        vocab_size=pad + 1,
        completion_length=completion_length,
        references=hashlib.sha256(json.dumps(list(references)).encode()).hexdigest() if targets is None else "",
    )


def _safe(score: Callable[[int, str], float], row: int, decode: Callable[[NDArray], str], tokens: NDArray) -> float:
    """The score in [0, 1]; 0 where the scorer fails, because no completion may stop the training."""
    try:
        value = float(score(row, decode(tokens)))
    except Exception:  # scorers parse what a model wrote, and may fail in any way
        return 0.0
    return min(max(value, 0.0), 1.0) if math.isfinite(value) else 0.0


def _check_lengths(what: str, sequences: Sequence[NDArray], limit: int, argument: str) -> None:
    lengths = [len(sequence) for sequence in sequences]
    if max(lengths) > limit:
        raise ConfigError(
            f"{what} {lengths.index(max(lengths))} has {max(lengths)} tokens, more than {limit}",
            where=f"text_prompts({argument})",
            fix=f"Give a larger {argument}, or leave long questions out.",
        )
