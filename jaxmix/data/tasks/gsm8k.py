"""Word problems from a JSONL file in the form of GSM8K, scored by their final answer."""

from __future__ import annotations

import json
from pathlib import Path

from jaxmix.core.errors import ConfigError
from jaxmix.data.tasks.answers import extract_answer, is_same_answer
from jaxmix.data.tasks.prompts import PromptSet
from jaxmix.data.tasks.text import Question, text_prompts
from jaxmix.data.tokenizers import Tokenizer, byte_tokenizer


def gsm8k(
    path: str | Path,
    tokenizer: Tokenizer | None = None,
    *,
    completion_length: int = 256,
    prompt_length: int | None = None,
    template: str = "{question}\n",
    question_field: str = "question",
    answer_field: str = "answer",
    family_field: str | None = None,
    level_field: str | None = None,
    with_targets: bool = True,
    limit: int | None = None,
) -> PromptSet:
    r"""Prompts of a JSONL file with a question and a worked answer on each line.

    A completion is right (1, else 0) if what `extract_answer` finds in it, after `####`, in `\boxed{…}`, or the last
    number, is the reference's final answer, see `is_same_answer`.

    Args:
        path: the file; blank lines are skipped.
        tokenizer: `None`: bytes.
        completion_length, prompt_length, template: see `text_prompts`.
        question_field, answer_field: keys of a line. The answer may be a number, or text that `extract_answer` reads.
        family_field, level_field: keys that say which arm a line belongs to; `None`: one arm. Levels are whole numbers.
        with_targets: keep the worked answers as targets, for a supervised start; then all must fit.
        limit: read at most this many lines.

    Raises:
        ConfigError: no such file, a line that is not such an object, an answer without a final answer.

    References:
        Cobbe et al., arXiv 2110.14168.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"there is no file {str(path)!r}", where="gsm8k(path)", fix="Name a JSONL file.")
    questions: list[Question] = []
    expected: list[str] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip() or (limit is not None and len(questions) >= limit):
            continue
        where = f"{path}, line {number}"
        record = _record(line, where)
        solution = str(_field(record, answer_field, where))
        final = extract_answer(solution) if "####" in solution or "\\boxed" in solution else solution
        if final is None or not final.strip():
            raise ConfigError("the answer is empty", where=where)
        family = "all" if family_field is None else str(_field(record, family_field, where))
        level = 0 if level_field is None else _field(record, level_field, where)
        if isinstance(level, bool) or not isinstance(level, int) or level < 0:
            raise ConfigError(f"{level_field} must be a whole number ≥ 0, got {level!r}", where=where)
        prompt = str(_field(record, question_field, where))
        questions.append(Question(prompt, solution if with_targets else None, family, level))
        expected.append(final)
    return text_prompts(
        questions,
        lambda row, completion: float(is_same_answer(extract_answer(completion), expected[row])),
        tokenizer or byte_tokenizer(),
        completion_length=completion_length,
        prompt_length=prompt_length,
        template=template,
    )


def _record(line: str, where: str) -> dict[str, object]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ConfigError(f"not valid JSON: {error.msg}", where=where) from None
    if not isinstance(record, dict):
        raise ConfigError("a line must be an object", where=where, fix='Write {"question": …, "answer": …}.')
    return record


def _field(record: dict[str, object], name: str, where: str) -> object:
    if name not in record:
        raise ConfigError(f"there is no {name!r}", where=where, fix=f"The line has: {', '.join(record)}.")
    return record[name]
