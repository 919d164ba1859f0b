"""Word problems from a JSONL file in the form of GSM8K, scored by their final answer."""

from __future__ import annotations

import functools
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from jaxmix.core.errors import ConfigError
from jaxmix.core.validate import check_choice
from jaxmix.data.sources.readers import Trouble, json_lines, trouble_lines
from jaxmix.data.tasks.answers import extract_answer, is_same_answer, parse_number
from jaxmix.data.tasks.expressions import SameExpression
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
    skip_unscorable: bool = False,
    verifier: Literal["small", "math_verify"] = "small",
) -> PromptSet:
    r"""Prompts of a JSONL file with a question and a worked answer on each line.

    A completion is right (1, else 0) if what `extract_answer` finds in it, after `####`, in `\boxed{…}`, or the last
    number, is the reference's final answer, see `is_same_answer`. A reference that would not be right by that rule is
    an error.

    Args:
        path: the file, plain, `.gz` or `.zst`; blank lines are skipped.
        tokenizer: `None`: bytes.
        completion_length, prompt_length, template: see `text_prompts`.
        question_field, answer_field: keys of a line. The answer may be a number, or text that `extract_answer` reads;
            an answer in words needs a mark, `#### yes`.
        family_field, level_field: keys that say which arm a line belongs to; `None`: one arm. Levels are whole numbers.
        with_targets: keep the worked answers as targets, for a supervised start; then all must fit.
        limit: read at most this many lines.
        verifier: what compares answers: "small", `is_same_answer`: numbers with units, and words; or "math_verify":
            expressions too, by the package of the extra `math`, which disregards units. See docs/data.md.
        skip_unscorable: leave out lines that make no prompt, because they are not such objects or their reference would
            score 0, and say how many of each kind, instead of an error.

    Raises:
        ConfigError: no such file, or lines that make no prompt: all kinds, with counts and first places.
        EnvironmentProblem: the verifier is not installed.

    References:
        Cobbe et al., arXiv 2110.14168.
    """
    check_choice("gsm8k", "verifier", verifier, ("small", "math_verify"))
    is_same = is_same_answer if verifier == "small" else _same_expression()
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"there is no file {str(path)!r}", where="gsm8k(path)", fix="Name a JSONL file.")
    questions: list[Question] = []
    expected: list[str] = []
    trouble = Trouble()
    for where, record, is_utf8 in _records(path, trouble):
        if limit is not None and len(questions) >= limit:
            break
        try:
            if not isinstance(record, dict) or not is_utf8:
                raise _Unusable("lines that are not UTF-8" if not is_utf8 else "lines that are not JSON objects")
            solution = _text_of(record, answer_field, trouble)
            final = _final_answer(solution)
            if final is None or not is_same(extract_answer(solution), final):
                raise _Unusable("lines without a final answer, which would score 0 against themselves")
            family = "all" if family_field is None else _text_of(record, family_field, trouble)
            level = 0 if level_field is None else _field(record, level_field, trouble)
            if isinstance(level, bool) or not isinstance(level, int) or level < 0:
                raise _Unusable(f"lines whose {level_field!r} is not a whole number ≥ 0")
            prompt = _text_of(record, question_field, trouble)
        except _Unusable as error:
            trouble.add(str(error), where)
            continue
        questions.append(Question(prompt, solution if with_targets else None, family, level))
        expected.append(final)
    unusable = trouble_lines(trouble.to_json())
    if unusable and not (skip_unscorable and questions):
        has = f" The first of them has: {', '.join(trouble.fields)}." if trouble.fields else ""
        raise ConfigError(
            "; ".join(unusable),
            where=str(path),
            fix="Write a final answer behind #### or in \\boxed{…}, chat-style prompts and lists as one text. "
            f"Or set skip_unscorable to leave such lines out.{has}",
        )
    for line in unusable:
        _say_once(f"{path}: left out: {line}")
    return text_prompts(
        questions,
        lambda row, completion: float(is_same(extract_answer(completion), expected[row])),
        tokenizer or byte_tokenizer(),
        completion_length=completion_length,
        prompt_length=prompt_length,
        template=template,
        references=expected,
    )


@functools.cache
def _same_expression() -> SameExpression:
    """One for all prompts of this process: starting it takes a second."""
    return SameExpression()


@functools.cache
def _say_once(line: str) -> None:
    """A command reads its tasks several times."""
    print(line, file=sys.stderr)


class _Unusable(Exception):
    """What a line is counted as that makes no prompt."""


def _records(path: Path, trouble: Trouble) -> Iterator[tuple[str, object, bool]]:
    """The lines of the file; one that cannot be read to its end is an error."""
    try:
        yield from json_lines(path, trouble)
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(f"the file cannot be read: {error}", where=str(path), fix="Copy it again.") from error


def _final_answer(solution: str) -> str | None:
    """What completions are compared with: the answer of a worked solution, or a short answer as it stands."""
    is_short = "####" not in solution and "\\boxed" not in solution and parse_number(solution) is not None
    return solution.strip() if is_short else extract_answer(solution)


def _text_of(record: dict[str, object], name: str, trouble: Trouble) -> str:
    """A field that holds text or a number."""
    value = _field(record, name, trouble)
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise _Unusable(f"lines whose {name!r} is not text or a number")
    text = str(value)
    if any("\ud800" <= c <= "\udfff" for c in text):
        raise _Unusable(f"lines whose {name!r} has half of a surrogate pair")
    if not text.strip():
        raise _Unusable(f"lines whose {name!r} is empty")
    return text


def _field(record: dict[str, object], name: str, trouble: Trouble) -> object:
    if name not in record:
        trouble.fields = trouble.fields or dict.fromkeys(record)
        raise _Unusable(f"lines without {name!r}")
    return record[name]
